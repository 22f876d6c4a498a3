//! Node reports: which pods a node has captured. A node speaks for itself only.

use std::sync::Arc;

use proto::agent::node_service_server::NodeService;
use proto::agent::{NodeReport, NodeReportAck};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, async_trait};
use tracing::{debug, warn};

use super::Services;
use super::auth::{Authenticator, caller};
use crate::metrics::Metrics;
use crate::pipeline::Report;

/// The service.
pub(super) struct Reports {
    authenticator: Arc<dyn Authenticator>,
    reports: mpsc::Sender<Report>,
    metrics: Metrics,
}

impl Reports {
    pub(super) fn new(services: &Services) -> Self {
        Self {
            authenticator: Arc::clone(&services.authenticator),
            reports: services.reports.clone(),
            metrics: services.metrics.clone(),
        }
    }
}

#[async_trait]
impl NodeService for Reports {
    async fn report(
        &self,
        request: Request<NodeReport>,
    ) -> Result<Response<NodeReportAck>, Status> {
        let caller = caller(&*self.authenticator, request.metadata())
            .await
            .inspect_err(|error| {
                self.metrics.unauthenticated.inc();
                warn!(peer = ?request.remote_addr(), %error, "node report refused");
            })?;
        let report = request.into_inner();
        if report.node != *caller.node {
            warn!(
                node = &*caller.node,
                reported = report.node,
                "node report refused: it is about another node"
            );
            let text = format!(
                "this token belongs to node {}; it cannot report for {}",
                caller.node, report.node
            );
            return Err(Status::permission_denied(text));
        }
        debug!(
            node = report.node,
            captured = report.captured.len(),
            agent = report.agent_version,
            "node report"
        );
        let (done, answer) = oneshot::channel();
        let stopping = || Status::unavailable("the controller is stopping");
        let report = Report {
            node: report.node,
            captured: report.captured,
            done,
        };
        self.reports
            .send(report)
            .await
            .map_err(|_closed| stopping())?;
        answer.await.map_err(|_closed| stopping())?;
        Ok(Response::new(NodeReportAck {}))
    }
}
