//! Node reports: which pods a node has captured. A node speaks for itself only.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use manifest::NamespacedName;
use proto::agent::node_service_server::NodeService;
use proto::agent::{CapturedPod, NodeReport, NodeReportAck};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tonic::{Request, Response, Status, async_trait};
use tracing::{debug, warn};

use super::Services;
use super::auth::{Authenticator, Subscriber, caller, peer};
use crate::metrics::Metrics;
use crate::pipeline::{Published, Report};
use compile::index::{Sandbox, Word, holdings};

/// The service.
pub(super) struct Reports {
    authenticator: Arc<dyn Authenticator>,
    reports: mpsc::Sender<Report>,
    metrics: Metrics,
    published: watch::Receiver<Arc<Published>>,
}

impl Reports {
    pub(super) fn new(services: &Services) -> Self {
        Self {
            authenticator: Arc::clone(&services.authenticator),
            reports: services.reports.clone(),
            metrics: services.metrics.clone(),
            published: services.published.clone(),
        }
    }
}

#[async_trait]
impl NodeService for Reports {
    async fn report(
        &self,
        request: Request<NodeReport>,
    ) -> Result<Response<NodeReportAck>, Status> {
        let extensions = request.extensions();
        let caller = caller(&*self.authenticator, request.metadata(), extensions)
            .await
            .inspect_err(|error| {
                self.metrics.unauthenticated.inc();
                warn!(peer = ?peer(extensions), %error, "node report refused");
            })?;
        let node = match caller {
            Subscriber::Node(node) => node,
            Subscriber::Workload { node, identity } => {
                warn!(node = &*node, %identity, "node report refused: not from the node's agent");
                let text =
                    format!("this token belongs to {identity}, which cannot report for a node");
                return Err(Status::permission_denied(text));
            }
        };
        let mut report = request.into_inner();
        if report.node != *node {
            warn!(
                node = &*node,
                reported = report.node,
                "node report refused: it is about another node"
            );
            let text = format!(
                "this token belongs to node {node}; it cannot report for {}",
                report.node
            );
            return Err(Status::permission_denied(text));
        }
        debug!(
            node = report.node,
            captured = report.captured.len(),
            partial = report.partial,
            agent = report.agent_version,
            "node report"
        );
        let (done, answer) = oneshot::channel();
        let stopping = || Status::unavailable("the controller is stopping");
        let report = Report {
            node: std::mem::take(&mut report.node),
            word: word(report),
            done,
        };
        self.reports
            .send(report)
            .await
            .map_err(|_closed| stopping())?;
        match timeout(KEPT_WITHIN, answer).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                let text = "another replica of the controller has heard of this node meanwhile; report again";
                return Err(Status::unavailable(text));
            }
            Ok(Err(_closed)) => return Err(stopping()),
            // It is in effect here. The other replicas hear of it when it can be written.
            Err(_elapsed) => {
                debug!(node = &*node, "the report is not written down yet")
            }
        }
        let published = Arc::clone(&self.published.borrow());
        let namespaces = published.snapshot.mesh_namespaces.iter();
        Ok(Response::new(NodeReportAck {
            mesh_namespaces: namespaces.map(ToString::to_string).collect(),
            namespaces_told: true,
        }))
    }
}

/// What a report says. An agent that does not describe its pods names them.
fn word(report: NodeReport) -> Word {
    let NodeReport {
        captured,
        pods,
        partial,
        ..
    } = report;
    let pods = if pods.is_empty() {
        holdings::named(captured).collect()
    } else {
        pods.into_iter().filter_map(sandbox).collect()
    };
    Word { pods, partial }
}

/// None for what cannot be a pod: its name becomes part of the names of resources.
fn sandbox(pod: CapturedPod) -> Option<Sandbox> {
    let is_name = |text: &str| (1..=MAX_NAME).contains(&text.len()) && !text.contains('/');
    if !is_name(&pod.namespace) || !is_name(&pod.name) || pod.pod_uid.len() > MAX_NAME {
        warn!(
            namespace = pod.namespace,
            name = pod.name,
            "the node reports a pod that cannot be one; ignored"
        );
        return None;
    }
    let addresses = pod.addresses.iter().take(MAX_ADDRESSES);
    let addresses = addresses.filter_map(|bytes| {
        let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
        let v6 = <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from);
        v4.or(v6).ok().map(|ip| ip.to_canonical())
    });
    Some(Sandbox {
        uid: pod.pod_uid,
        addresses: addresses.collect(),
        ..Sandbox::named(NamespacedName::new(&pod.namespace, &pod.name))
    })
}

/// How long a report waits to be written down: shorter than agents wait for an answer.
const KEPT_WITHIN: Duration = Duration::from_secs(3);
/// Bytes of a name or uid in Kubernetes.
const MAX_NAME: usize = 253;
/// More than any pod has.
const MAX_ADDRESSES: usize = 16;
