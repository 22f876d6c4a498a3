//! Until everything is ready, or it is clear that it will not be.

use std::thread;
use std::time::{Duration, Instant};

use admin_api::Health;
use anyhow::Result;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api as Of, ListParams};
use serde::Serialize;

use super::progress;
use crate::api::{Api, Deed, Forbidden};
use crate::pods;
use crate::reach::{self, AGENT, CONTROLLER};

/// How it has ended.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    ready: bool,
    took_seconds: u64,
    /// Nodes that no agent can serve, with the reason.
    unservable: Vec<String>,
    /// What was not ready when the time was over, with the reason.
    not_ready: Vec<String>,
}

impl Outcome {
    pub(super) fn is_good(&self) -> bool {
        self.ready && self.unservable.is_empty()
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if self.ready && self.unservable.is_empty() {
            text.push_str(&format!(
                "everything is ready after {} s\n",
                self.took_seconds
            ));
        }
        for line in &self.unservable {
            text.push_str(&format!("NO  {line}\n"));
        }
        for line in &self.not_ready {
            text.push_str(&format!("NO  {line}\n"));
        }
        if !self.not_ready.is_empty() {
            text.push_str(&format!(
                "not ready after {} s; the command can be run again\n",
                self.took_seconds
            ));
        } else if !self.unservable.is_empty() {
            text.push_str(
                "what is not named here is ready; agent.nodeSelector leaves out nodes that cannot be served\n",
            );
        }
        text
    }
}

/// What there is at one moment.
#[derive(Debug, Default)]
struct Look {
    line: String,
    not_ready: Vec<String>,
    unservable: Vec<String>,
}

/// Waits.
pub(super) fn wait(api: &Api, namespace: &str, timeout: Duration) -> Result<Outcome> {
    let began = Instant::now();
    let mut said = String::new();
    loop {
        let look = match look(api, namespace) {
            Err(error) if error.is::<Forbidden>() => return Err(error),
            // An API server that is being started again is no reason to give up.
            Err(error) => Look {
                line: format!("{error:#}"),
                not_ready: vec![format!("{error:#}")],
                unservable: Vec::new(),
            },
            Ok(look) => look,
        };
        if look.line != said {
            progress(&look.line);
            said.clone_from(&look.line);
        }
        let is_over = began.elapsed() > timeout;
        if look.not_ready.is_empty() || is_over {
            return Ok(Outcome {
                ready: look.not_ready.is_empty(),
                took_seconds: began.elapsed().as_secs(),
                unservable: look.unservable,
                not_ready: look.not_ready,
            });
        }
        thread::sleep(EVERY);
    }
}

fn look(api: &Api, namespace: &str) -> Result<Look> {
    let mut look = Look::default();
    let deployments: Of<Deployment> = Of::namespaced(api.client.clone(), namespace);
    let deed = Deed::new("get", "deployments.apps").within(namespace);
    let controller = api.call(&deed, deployments.get(CONTROLLER))?;
    let sets: Of<DaemonSet> = Of::namespaced(api.client.clone(), namespace);
    let deed = Deed::new("get", "daemonsets.apps").within(namespace);
    let agents = api.call(&deed, sets.get(AGENT))?;
    let all: Of<Pod> = Of::namespaced(api.client.clone(), namespace);
    let deed = Deed::new("list", "pods").within(namespace);
    let ours = ListParams::default().labels("app.kubernetes.io/part-of=keelson");
    let pods = api.call(&deed, all.list(&ours))?.items;

    for pod in &pods {
        let name = pod.name_any();
        if pod.metadata.deletion_timestamp.is_some() {
            look.not_ready.push(format!(
                "pod {name} is ending, and lets its connections end"
            ));
            continue;
        }
        let Some(why) = pods::why_not_ready(pod) else {
            continue;
        };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let node = node.unwrap_or_else(|| "no node yet".to_owned());
        let why = match health(api, namespace, pod) {
            Some(Health {
                cannot: Some(cannot),
                ..
            }) => {
                look.unservable
                    .push(format!("node {node}: wanted, cannot: {cannot}"));
                continue;
            }
            Some(health) if !health.awaited.is_empty() => {
                format!("it awaits {}", health.awaited.join(", "))
            }
            _ => why,
        };
        look.not_ready.push(format!("pod {name} on {node}: {why}"));
    }
    let wanted = controller.spec.replicas.unwrap_or(1);
    let status = controller.status.as_ref();
    let updated = status.and_then(|status| status.updated_replicas);
    let available = status.and_then(|status| status.available_replicas);
    let seen = status.and_then(|status| status.observed_generation);
    let (updated, available) = (updated.unwrap_or(0), available.unwrap_or(0));
    if seen < controller.metadata.generation || updated < wanted || available < wanted {
        look.not_ready.push(format!(
            "deployment {CONTROLLER}: {available} of {wanted} available, {updated} of this version"
        ));
    }
    let status = agents.status.unwrap_or_default();
    let on = status.desired_number_scheduled;
    let updated = status.updated_number_scheduled.unwrap_or(0);
    let ready = status.number_ready;
    let cannot = i32::try_from(look.unservable.len()).unwrap_or(i32::MAX);
    let is_seen = status.observed_generation >= agents.metadata.generation;
    if !is_seen || updated < on || ready + cannot < on {
        look.not_ready.push(format!(
            "daemonset {AGENT}: {ready} of {on} nodes ready, {updated} with this version"
        ));
    }
    look.line = format!(
        "controller: {available} of {wanted} ready; agents: {ready} of {on} ready, {updated} of this version"
    );
    if cannot > 0 {
        look.line
            .push_str(&format!("; {cannot} nodes cannot be served"));
    }
    Ok(look)
}

/// What a pod that runs and is not ready says of itself.
fn health(api: &Api, namespace: &str, pod: &Pod) -> Option<Health> {
    if !pods::is_running(pod) {
        return None;
    }
    let name = pod.labels().get("app.kubernetes.io/name");
    let is_agent = name.is_some_and(|name| name == AGENT);
    let page = reach::health(api, namespace, pod, is_agent).ok()?;
    Some(Health::read(page.status, &page.body))
}

const EVERY: Duration = Duration::from_millis(500);
