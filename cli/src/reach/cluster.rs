//! The programs of a cluster, through its API server: a connection to a pod's admin pages is a port-forward, so the
//! caller's own rights in Kubernetes are what it takes, and the pages stay on loopback.

use std::collections::BTreeMap;
use std::time::Duration;

use admin_api::page;
use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff;
use kube::ResourceExt as _;
use kube::api::{Api as Of, ListParams};
use tokio::time::timeout;

use super::{Page, Programs};
use crate::api::{Api, Deed, Forbidden};
use crate::pods;

/// The programs of one installation.
#[derive(Debug)]
pub(super) struct Cluster {
    api: Api,
    namespace: String,
    /// By node: nothing where an agent is wanted and there is no pod of it.
    agents: BTreeMap<String, Vec<Pod>>,
    controllers: Vec<Pod>,
}

impl Cluster {
    /// Finds the installation.
    pub(super) fn open(api: Api, namespace: Option<&str>) -> Result<Self> {
        let agents = find(&api, namespace)?;
        let namespace = agents.namespace().unwrap_or_default();
        let pods: Of<Pod> = Of::namespaced(api.client.clone(), &namespace);
        let ours = ListParams::default().labels("app.kubernetes.io/part-of=keelson");
        let deed = Deed::new("list", "pods").within(&namespace);
        let pods = api.call(&deed, pods.list(&ours))?.items;
        let mut by_node: BTreeMap<String, Vec<Pod>> = wanted(&api, &agents)?
            .into_iter()
            .map(|node| (node, Vec::new()))
            .collect();
        let mut controllers = Vec::new();
        for pod in pods {
            let name = pod.labels().get("app.kubernetes.io/name").cloned();
            match name.as_deref() {
                Some(AGENT) => {
                    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
                    by_node
                        .entry(node.unwrap_or_default())
                        .or_default()
                        .push(pod);
                }
                Some(CONTROLLER) => controllers.push(pod),
                _ => {}
            }
        }
        // Of a pod that waits for a node nobody knows which one.
        by_node.remove("");
        for pods in by_node.values_mut() {
            pods.sort_by_key(|pod| std::cmp::Reverse(pods::liveliness(pod)));
        }
        controllers.sort_by_key(|pod| std::cmp::Reverse(pods::liveliness(pod)));
        Ok(Self {
            api,
            namespace,
            agents: by_node,
            controllers,
        })
    }

    fn ask(&self, pod: &Pod, method: &str, port: u16, path: &str) -> Result<Page> {
        ask(&self.api, &self.namespace, pod, method, port, path)
    }
}

impl Programs for Cluster {
    fn nodes(&self) -> Vec<String> {
        self.agents.keys().cloned().collect()
    }

    fn node_of(&self, pod: &str) -> Result<Option<String>> {
        let Some((namespace, name)) = pod.split_once('/') else {
            return Ok(None);
        };
        let pods: Of<Pod> = Of::namespaced(self.api.client.clone(), namespace);
        let deed = Deed::new("get", "pods").within(namespace);
        let found = self.api.find(&deed, pods.get(name))?;
        Ok(found.and_then(|pod| pod.spec?.node_name))
    }

    fn agent(&self, method: &str, node: &str, path: &str) -> Result<Page> {
        let pods = self.agents.get(node).with_context(|| {
            let nodes: Vec<String> = self.nodes();
            format!(
                "no agent is meant to be on a node {node}; the nodes are {}",
                nodes.join(", ")
            )
        })?;
        let Some(pod) = pods.first() else {
            bail!(
                "node {node} has no pod of the DaemonSet {AGENT}; kubectl -n {} describe daemonset {AGENT} may say why",
                self.namespace
            );
        };
        if !pods::is_running(pod) {
            let why = pods::why_not_ready(pod).unwrap_or_else(|| "it does not run".to_owned());
            bail!(
                "the agent of node {node} does not run: pod {}: {why}",
                pod.name_any()
            );
        }
        self.ask(pod, method, AGENT_ADMIN, path)
            .with_context(|| format!("the agent of node {node}"))
    }

    fn pod(&self, pod: &str, path: &str) -> Result<Page> {
        let (namespace, name) = pod
            .split_once('/')
            .with_context(|| format!("{pod:?} is not written NAMESPACE/NAME"))?;
        let pods: Of<Pod> = Of::namespaced(self.api.client.clone(), namespace);
        let deed = Deed::new("get", "pods").within(namespace);
        let found = self.api.find(&deed, pods.get(name))?;
        let found = found.with_context(|| format!("there is no pod {pod}"))?;
        ask(
            &self.api,
            namespace,
            &found,
            "GET",
            super::WAYPOINT_ADMIN,
            path,
        )
        .with_context(|| format!("{pod} as a pod of a waypoint or gateway"))
    }

    fn controllers(&self, path: &str) -> Result<Vec<(String, Result<Page>)>> {
        if self.controllers.is_empty() {
            bail!(
                "there is no pod of the controller in namespace {}; kubectl -n {0} describe deployment {CONTROLLER} may say why",
                self.namespace
            );
        }
        let ask = |pod: &Pod| {
            let name = pod.name_any();
            let page = if pods::is_running(pod) {
                self.ask(pod, "GET", CONTROLLER_ADMIN, path)
            } else {
                let why = pods::why_not_ready(pod).unwrap_or_else(|| "it does not run".to_owned());
                Err(anyhow!("pod {name}: {why}"))
            };
            (name, page)
        };
        Ok(self.controllers.iter().map(ask).collect())
    }

    fn versions(&self) -> Vec<(String, String)> {
        let of = |pod: &Pod| {
            let image = pod.spec.as_ref()?.containers.first()?.image.clone()?;
            let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
            Some((pod.name_any(), tag.to_owned()))
        };
        self.controllers.iter().filter_map(of).collect()
    }
}

/// Asks a pod for a page.
fn ask(api: &Api, namespace: &str, pod: &Pod, method: &str, port: u16, path: &str) -> Result<Page> {
    let name = pod.name_any();
    let pods: Of<Pod> = Of::namespaced(api.client.clone(), namespace);
    // Newer API servers ask for both verbs.
    let deed = Deed::new("get and create", "pods/portforward").within(namespace);
    let answer = api.wait(async {
        let opened = timeout(ANSWERS_WITHIN, pods.portforward(&name, &[port])).await;
        let mut forwarded = opened
            .with_context(|| format!("no way to pod {name} within {ANSWERS_WITHIN:?}"))?
            .map_err(|error| api.said(&deed, error))?;
        let stream = forwarded
            .take_stream(port)
            .context("a forwarded port has a stream")?;
        let refused = forwarded.take_error(port);
        let asked = timeout(ANSWERS_WITHIN, exchange(stream, method, port, path)).await;
        match asked {
            Ok(Ok(page)) => Ok(page),
            Ok(Err(error)) => {
                let refused = async { refused?.await };
                let said = timeout(SAYS_WITHIN, refused).await.ok().flatten();
                Err(said.map_or(error, |said| anyhow!("{}", said.trim())))
            }
            Err(_) => Err(anyhow!("no answer within {ANSWERS_WITHIN:?}")),
        }
    });
    answer.with_context(|| {
        let why = pods::why_not_ready(pod);
        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
        format!("pod {name}{why} does not answer")
    })
}

/// The page of health of a pod of ours.
pub(crate) fn health(api: &Api, namespace: &str, pod: &Pod, is_agent: bool) -> Result<Page> {
    let port = if is_agent {
        AGENT_ADMIN
    } else {
        CONTROLLER_ADMIN
    };
    ask(api, namespace, pod, "GET", port, page::HEALTH)
}

/// The DaemonSet of the agents.
fn find(api: &Api, namespace: Option<&str>) -> Result<DaemonSet> {
    let within = namespace.unwrap_or(USUAL_NAMESPACE);
    let sets: Of<DaemonSet> = Of::namespaced(api.client.clone(), within);
    let deed = Deed::new("get", "daemonsets.apps").within(within);
    if let Some(found) = api.find(&deed, sets.get(AGENT))? {
        return Ok(found);
    }
    if namespace.is_some() {
        bail!("Keelson is not installed in namespace {within}: there is no DaemonSet {AGENT}");
    }
    let all: Of<DaemonSet> = Of::all(api.client.clone());
    let deed = Deed::new("list", "daemonsets.apps");
    let ours = ListParams::default().labels(&format!("app.kubernetes.io/name={AGENT}"));
    let listed = api.call(&deed, all.list(&ours));
    let found = listed.with_context(|| {
        format!("Keelson is not in namespace {within}; --mesh-namespace names another")
    })?;
    found.items.into_iter().next().with_context(|| {
        format!(
            "Keelson is not installed in the cluster at {}: `keelson install` does that",
            api.server()
        )
    })
}

/// The nodes that the DaemonSet wants an agent on, as far as its selector says; taints are tolerated.
fn wanted(api: &Api, agents: &DaemonSet) -> Result<Vec<String>> {
    let nodes: Of<Node> = Of::all(api.client.clone());
    let deed = Deed::new("list", "nodes");
    let listed = match api.call(&deed, nodes.list(&ListParams::default())) {
        Ok(nodes) => nodes,
        // Then those count that have one.
        Err(error) if error.is::<Forbidden>() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let selector = agents
        .spec
        .template
        .spec
        .as_ref()
        .and_then(|spec| spec.node_selector.clone())
        .unwrap_or_default();
    let is_meant = |node: &&Node| {
        let labels = node.labels();
        selector
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
    };
    let names = listed.items.iter().filter(is_meant);
    Ok(names.map(|node| node.name_any()).collect())
}

/// One request and its answer.
async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    method: &str,
    port: u16,
    path: &str,
) -> Result<Page> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer, or with whoever asked.
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", format!("127.0.0.1:{port}"))
        .header("connection", "close")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status().as_u16();
    let date = answer.headers().get("date");
    let date = date.and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    let date = date.map(|date| date.timestamp().as_second());
    let body = answer.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok(Page {
        status,
        date,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

pub(crate) const AGENT: &str = "keelson-node-agent";
pub(crate) const CONTROLLER: &str = "keelson-controller";
pub(crate) const USUAL_NAMESPACE: &str = "keelson-system";
const AGENT_ADMIN: u16 = 15000;
const CONTROLLER_ADMIN: u16 = 15014;
/// Pages of a large mesh take their time through an API server.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// Why a port could not be reached comes with its end.
const SAYS_WITHIN: Duration = Duration::from_secs(1);
