//! A lab that another process owns, as far as one can enter it from outside.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::cni;
use crate::http::{self, Response};
use crate::mesh::{AGENT_ADMIN, CONTROLLER_ADMIN};
use crate::netns::{Netns, on_thread};
use crate::objects;
use crate::process::Placement;
use crate::run_dir::RunDir;

/// What a lab wrote down about itself.
#[derive(Debug, Clone, Deserialize)]
pub struct Standing {
    /// Its id.
    pub id: String,
    /// Its nodes.
    pub nodes: Vec<StandingNode>,
    /// Its pods.
    pub pods: Vec<StandingPod>,
}

/// A node of a standing lab.
#[derive(Debug, Clone, Deserialize)]
pub struct StandingNode {
    /// `n1`, `n2`, ...
    pub name: String,
    /// The name of its network namespace.
    pub netns: String,
    /// The directory of its cgroup.
    pub cgroup: PathBuf,
    /// Its addresses on the link.
    pub ips: Vec<IpAddr>,
}

/// A pod of a standing lab.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StandingPod {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// The name of its network namespace.
    pub netns: String,
    /// The directory of its cgroup.
    pub cgroup: PathBuf,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its service account.
    pub service_account: String,
    /// Whether its containers have been started.
    pub started: bool,
    /// What its agent answered: `captured`, `exempt`, or nothing if it was never asked.
    pub capture: Option<String>,
    /// The log files of its containers.
    pub logs: Vec<PathBuf>,
}

impl Standing {
    /// Reads what the lab `id` wrote down.
    ///
    /// # Errors
    /// There is no such lab, or it is still being made.
    pub fn open(id: &str) -> Result<Self> {
        let path = RunDir::of(id)?.path().join("lab.json");
        let text = fs::read_to_string(&path).with_context(|| format!("no lab {id} stands here"))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// The directory of its files.
    ///
    /// # Errors
    /// The id is malformed.
    pub fn run_dir(&self) -> Result<PathBuf> {
        Ok(RunDir::of(&self.id)?.path().to_owned())
    }

    /// The pods that a node's agent knows, as the agent answers now.
    ///
    /// # Errors
    /// No agent runs there.
    pub fn agent_pods(&self, node: &str) -> Result<Vec<Value>> {
        cni::pods(&RunDir::of(&self.id)?.node(node).join("cni.sock"))
    }

    /// One of the admin pages of a node's agent.
    ///
    /// # Errors
    /// There is no such node, or nobody answers there.
    pub fn agent_page(&self, method: &str, node: &str, path: &str) -> Result<Response> {
        self.ask(method, node, AGENT_ADMIN, path)
    }

    /// A page on the loopback of a pod, `namespace/name`.
    ///
    /// # Errors
    /// There is no such pod, or nobody answers there.
    pub fn pod_page(&self, pod: &str, port: u16, path: &str) -> Result<Response> {
        let known = self.pods.iter().find(|known| known.key() == pod);
        let known = known.with_context(|| format!("the lab {} has no pod {pod}", self.id))?;
        let netns = Netns::open(&known.netns)?;
        on_thread(|| {
            netns.enter()?;
            http::ask("GET", SocketAddr::from(([127, 0, 0, 1], port)), path)
        })
    }

    /// One of the controller's admin pages.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn controller_page(&self, path: &str) -> Result<Response> {
        self.ask("GET", "n1", CONTROLLER_ADMIN, path)
    }

    fn ask(&self, method: &str, node: &str, server: SocketAddr, path: &str) -> Result<Response> {
        let known = self.nodes.iter().find(|known| known.name == node);
        let known = known.with_context(|| format!("the lab {} has no node {node}", self.id))?;
        let netns = Netns::open(&known.netns)?;
        on_thread(|| {
            netns.enter()?;
            http::ask(method, server, path)
        })
    }

    /// Writes a manifest into the live folder; the lab's owner acts on it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        objects::write(&RunDir::of(&self.id)?.manifests().join(file), text)
    }

    /// Sets or, with `None`, removes a label of a Namespace object in the live folder.
    ///
    /// # Errors
    /// The live folder holds no Namespace of that name.
    pub fn label_namespace(&self, namespace: &str, key: &str, value: Option<&str>) -> Result<()> {
        let folder = RunDir::of(&self.id)?.manifests();
        objects::label(&folder, "Namespace", None, namespace, (key, value))
    }

    /// The place of a process in the pod `namespace/name` or on the node `n1`, `n2`, ...
    ///
    /// # Errors
    /// There is no such pod or node.
    pub fn placement(&self, name: &str) -> Result<Placement> {
        if let Some(node) = self.nodes.iter().find(|node| node.name == name) {
            let cgroup = Cgroup::at(&node.cgroup).child("host")?;
            return Placement::new(&Netns::open(&node.netns)?, &cgroup, None);
        }
        let pod = self.pods.iter().find(|pod| pod.key() == name);
        let pod = pod.ok_or_else(|| {
            let known: Vec<String> = self.pods.iter().map(StandingPod::key).collect();
            anyhow!(
                "the lab {} has no pod or node {name}; its pods are {}",
                self.id,
                known.join(", ")
            )
        })?;
        let cgroup = Cgroup::at(&pod.cgroup).child("app")?;
        let hosts = RunDir::of(&self.id)?.hosts(&pod.namespace);
        Placement::new(&Netns::open(&pod.netns)?, &cgroup, Some(&hosts))
    }
}

impl StandingPod {
    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
