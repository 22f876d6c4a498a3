//! What kubelet, CNI plugin and kube-proxy of every node do: reality follows the live folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1 as core;
use serde_json::json;

use crate::cni::{self, Enrolment};
use crate::kube_proxy;
use crate::mesh::{CONTROLLER_PORT, Mesh};
use crate::node::Node;
use crate::objects::{self, Objects};
use crate::pod::{Plan, Pod};
use crate::process::Process;
use crate::run_dir::RunDir;
use crate::tool;
use crate::waypoint;

/// The changing part of a lab.
#[derive(Debug)]
pub(crate) struct Cluster {
    // First, so that the mesh's programs end before the pods they serve.
    pub(crate) mesh: Mesh,
    pods: BTreeMap<String, RunningPod>,
    id: String,
    nodes: Vec<Node>,
    run_dir: RunDir,
    pods_made: u32,
    proxy_rules: String,
}

#[derive(Debug)]
struct RunningPod {
    pod: Pod,
    manifest: core::Pod,
    enrolment: Option<Enrolment>,
    containers: Vec<Process>,
    started: bool,
}

impl Cluster {
    pub(crate) fn new(id: &str, nodes: &[Node], run_dir: &RunDir) -> Self {
        Self {
            mesh: Mesh::default(),
            pods: BTreeMap::new(),
            id: id.to_owned(),
            nodes: nodes.to_vec(),
            run_dir: run_dir.clone(),
            pods_made: 0,
            proxy_rules: String::new(),
        }
    }

    pub(crate) fn pod(&self, key: &str) -> Option<Pod> {
        self.pods.get(key).map(|running| running.pod.clone())
    }

    pub(crate) fn pods(&self) -> Vec<Pod> {
        self.pods
            .values()
            .map(|running| running.pod.clone())
            .collect()
    }

    /// What the agent said when the pod was announced to it; `None` if it never was.
    pub(crate) fn enrolment(&self, key: &str) -> Option<Enrolment> {
        self.pods.get(key)?.enrolment.clone()
    }

    /// The processes of a pod's containers.
    pub(crate) fn containers(&mut self, key: &str) -> &mut [Process] {
        match self.pods.get_mut(key) {
            Some(running) => &mut running.containers,
            None => &mut [],
        }
    }

    /// One pass over the folder. Every pod gets its turn, whatever happened to the others.
    pub(crate) fn reconcile(&mut self) -> Result<()> {
        let folder = self.run_dir.manifests();
        let names: Vec<String> = self
            .nodes
            .iter()
            .map(|node| node.name().to_owned())
            .collect();
        if let Some(first) = self.nodes.first() {
            let place = waypoint::Place {
                run_dir: &self.run_dir,
                nodes: &names,
                controller: format!("https://{}:{CONTROLLER_PORT}", first.v4()),
            };
            waypoint::complete(&folder, &place)?;
        }
        objects::complete_pods(&folder, &names)?;
        objects::complete_services(&folder)?;
        let objects = Objects::read(&folder)?;
        let mut wanted = BTreeMap::new();
        for manifest in &objects.pods {
            let spec = manifest.spec.as_ref();
            let node = spec.and_then(|spec| spec.node_name.as_ref());
            if node.is_some_and(|node| names.contains(node)) {
                wanted.insert(key_of(manifest), manifest);
            }
        }
        let mut failures = Vec::new();
        self.remove_unwanted(&wanted, &mut failures);
        self.write_hosts(&objects)?;
        self.update_proxies(&objects)?;
        for (key, manifest) in wanted {
            let made = self.ensure(&key, manifest);
            failures.extend(made.with_context(|| format!("pod {key}")).err());
        }
        self.write_state()?;
        report(failures)
    }

    fn remove_unwanted(
        &mut self,
        wanted: &BTreeMap<String, &core::Pod>,
        failures: &mut Vec<anyhow::Error>,
    ) {
        let uid = |key: &str| wanted.get(key)?.metadata.uid.clone();
        let gone: Vec<String> = self
            .pods
            .iter()
            .filter(|(key, running)| uid(key).as_deref() != Some(running.pod.uid()))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            let Some(running) = self.pods.remove(&key) else {
                continue;
            };
            drop(running.containers);
            let removed = running.pod.cgroup().kill();
            if let Some(socket) = self.mesh.cni_socket(running.pod.node().name()) {
                // As a kubelet does: an absent agent does not keep a pod from going.
                if let Err(error) = cni::del(&socket, &running.pod) {
                    tracing::warn!(error = format!("{error:#}"), "removing a pod nevertheless");
                }
            }
            let removed = removed.and_then(|()| running.pod.destroy());
            failures.extend(removed.with_context(|| format!("removing pod {key}")).err());
        }
    }

    /// Removes a pod without a word to the agent.
    pub(crate) fn lose(&mut self, pod: &Pod) -> Result<()> {
        drop(self.pods.remove(&pod.key()));
        pod.cgroup().kill()?;
        pod.destroy()
    }

    fn ensure(&mut self, key: &str, manifest: &core::Pod) -> Result<()> {
        if !self.pods.contains_key(key) {
            let pod = self.sandbox(manifest)?;
            let running = RunningPod {
                pod,
                manifest: manifest.clone(),
                enrolment: None,
                containers: Vec::new(),
                started: false,
            };
            self.pods.insert(key.to_owned(), running);
        }
        let Some(running) = self.pods.get_mut(key) else {
            return Ok(());
        };
        if running.started {
            return Ok(());
        }
        if let Some(socket) = self.mesh.cni_socket(running.pod.node().name()) {
            running.enrolment = Some(cni::add(&socket, &running.pod)?);
        }
        running.start_containers()
    }

    fn sandbox(&mut self, manifest: &core::Pod) -> Result<Pod> {
        let spec = manifest.spec.as_ref();
        let node = spec.and_then(|spec| spec.node_name.as_deref());
        let Some(node) = self.nodes.iter().find(|known| Some(known.name()) == node) else {
            bail!("its node does not exist");
        };
        let metadata = &manifest.metadata;
        let plan = Plan {
            namespace: metadata
                .namespace
                .clone()
                .unwrap_or_else(|| "default".to_owned()),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            service_account: spec
                .and_then(|spec| spec.service_account_name.clone())
                .unwrap_or_else(|| "default".to_owned()),
            ips: objects::parse_ips(manifest)?,
        };
        self.pods_made += 1;
        Pod::create(&self.id, self.pods_made, node, &self.run_dir, plan)
    }

    /// Announces pods to a new agent, without touching their containers: those that no agent of
    /// this node has been told of, or all of them.
    pub(crate) fn announce(&mut self, node: &str, all: bool) -> Result<()> {
        let Some(socket) = self.mesh.cni_socket(node) else {
            return Ok(());
        };
        let mut failures = Vec::new();
        for running in self
            .pods
            .values_mut()
            .filter(|running| running.pod.node().name() == node)
        {
            if running.enrolment.is_none() || all {
                match cni::add(&socket, &running.pod) {
                    Ok(enrolment) => running.enrolment = Some(enrolment),
                    Err(error) => failures.push(error),
                }
            }
        }
        report(failures)
    }

    fn update_proxies(&mut self, objects: &Objects) -> Result<()> {
        let rules = kube_proxy::rules(objects);
        if rules != self.proxy_rules {
            for node in &self.nodes {
                tool::nft(node.netns(), &rules)?;
            }
            self.proxy_rules = rules;
        }
        Ok(())
    }

    /// The names that a cluster's DNS would answer, one file per Kubernetes namespace. Written in
    /// place: processes have the file mounted over their `/etc/hosts`.
    fn write_hosts(&self, objects: &Objects) -> Result<()> {
        let namespace_of = |pod: &core::Pod| {
            pod.metadata
                .namespace
                .clone()
                .unwrap_or_else(|| "default".to_owned())
        };
        let namespaces: BTreeSet<String> = objects.pods.iter().map(namespace_of).collect();
        for own in namespaces {
            let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
            for service in &objects.services {
                let name = service.metadata.name.clone().unwrap_or_default();
                let namespace = service.metadata.namespace.as_deref().unwrap_or("default");
                let short = if namespace == own {
                    format!(" {name}")
                } else {
                    String::new()
                };
                for ip in kube_proxy::names_resolve_to(objects, service) {
                    text += &format!(
                        "{ip} {name}.{namespace}.svc.cluster.local {name}.{namespace}.svc {name}.{namespace}{short}\n"
                    );
                }
            }
            fs::write(self.run_dir.hosts(&own), text)?;
        }
        Ok(())
    }

    /// What another process needs to find its way in this lab.
    pub(crate) fn write_state(&self) -> Result<()> {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                json!({
                    "name": node.name(), "netns": node.netns().name(),
                    "cgroup": node.cgroup().path(), "ips": [node.v4().to_string(), node.v6().to_string()],
                })
            })
            .collect();
        let pods: Vec<_> = self
            .pods
            .values()
            .map(
                |RunningPod {
                     pod,
                     enrolment,
                     started,
                     containers,
                     ..
                 }| {
                    json!({
                        "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid(),
                        "node": pod.node().name(), "netns": pod.netns().name(),
                        "cgroup": pod.cgroup().path(), "ips": pod.ips(),
                        "serviceAccount": pod.service_account(), "started": started,
                        "capture": enrolment.as_ref().map(|enrolment| &enrolment.capture),
                        "logs": containers.iter().map(Process::log_path).collect::<Vec<_>>(),
                    })
                },
            )
            .collect();
        let state = json!({"id": self.id, "nodes": nodes, "pods": pods});
        objects::write(
            &self.run_dir.path().join("lab.json"),
            &format!("{state:#}\n"),
        )
    }
}

impl RunningPod {
    fn start_containers(&mut self) -> Result<()> {
        self.started = true;
        let spec = self.manifest.spec.as_ref();
        for container in spec.iter().flat_map(|spec| &spec.containers) {
            let words = container.command.iter().chain(&container.args).flatten();
            let mut words = words.cloned();
            let Some(program) = words.next() else {
                bail!(
                    "container {} has no command, and the lab pulls no images",
                    container.name
                );
            };
            let mut command = Command::new(program);
            command.args(words);
            for variable in container.env.iter().flatten() {
                command.env(&variable.name, variable.value.clone().unwrap_or_default());
            }
            self.containers
                .push(self.pod.start(&container.name, command)?);
        }
        Ok(())
    }
}

fn key_of(pod: &core::Pod) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    format!(
        "{namespace}/{}",
        pod.metadata.name.as_deref().unwrap_or_default()
    )
}

/// The first failure as the error; the others beside it in its text.
fn report(failures: Vec<anyhow::Error>) -> Result<()> {
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else {
        return Ok(());
    };
    let rest: Vec<String> = failures.map(|error| format!("{error:#}")).collect();
    if rest.is_empty() {
        return Err(first);
    }
    Err(first.context(format!("also failed: {}", rest.join("; "))))
}
