//! Who this node's agent is to the controller, and the report of what it captured.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use proto::agent::NodeReport;
use proto::agent::node_service_client::NodeServiceClient;
use proto::envoy::core::Node;

use crate::controller::{ConnectError, Controller};

/// The agent's place in the cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeInfo {
    /// The node's name in Kubernetes.
    pub node: String,
    /// The agent's address.
    pub ip: IpAddr,
    /// The agent's pod.
    pub pod: String,
    /// The agent's namespace.
    pub namespace: String,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// More facts for the controller, by name.
    pub metadata: BTreeMap<String, String>,
}

impl NodeInfo {
    /// The xDS node id in the form that Istio's control plane parses:
    /// `ztunnel~<ip>~<pod>.<namespace>~<namespace>.svc.<cluster domain>`.
    #[must_use]
    pub fn id(&self) -> String {
        format!(
            "ztunnel~{}~{}.{}~{}.svc.{}",
            self.ip, self.pod, self.namespace, self.namespace, self.cluster_domain
        )
    }

    pub(crate) fn to_proto(&self) -> Node {
        let mut fields: BTreeMap<String, String> = self.metadata.clone();
        fields.insert("NAME".to_owned(), self.pod.clone());
        fields.insert("NAMESPACE".to_owned(), self.namespace.clone());
        fields.insert("INSTANCE_IPS".to_owned(), self.ip.to_string());
        fields.insert("NODE_NAME".to_owned(), self.node.clone());
        Node {
            id: self.id(),
            metadata: Some(strings(fields)),
            ..Node::default()
        }
    }
}

/// A protobuf struct of strings.
pub(crate) fn strings(fields: impl IntoIterator<Item = (String, String)>) -> Struct {
    Struct {
        fields: fields
            .into_iter()
            .map(|(name, text)| {
                let kind = Some(Kind::StringValue(text));
                (name, Value { kind })
            })
            .collect(),
    }
}

/// Why the controller did not take a report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It could not be asked.
    #[error("the report of captured pods could not be sent")]
    Connect(#[from] ConnectError),
    /// It said no.
    #[error("the controller did not take the report of captured pods: {}", .0.message())]
    Refused(#[source] Box<tonic::Status>),
}

/// Tells the controller which pods are captured.
#[derive(Debug)]
pub struct NodeClient {
    controller: Controller,
    client: Option<NodeServiceClient<tonic::transport::Channel>>,
}

impl NodeClient {
    /// Connects with the first report.
    #[must_use]
    pub fn new(controller: Controller) -> Self {
        Self {
            controller,
            client: None,
        }
    }

    /// Sends the full set of captured workloads. One attempt; the next one after a failure connects anew. Gives the namespaces
    /// that enrol their pods, if the controller says which.
    ///
    /// # Errors
    /// The controller is not there, or does not take it.
    pub async fn report(&mut self, report: NodeReport) -> Result<Option<Vec<String>>, ReportError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => NodeServiceClient::new(self.controller.connect().await?),
        };
        let mut request = self.controller.authorize(report)?;
        request.set_timeout(REPORT_TIMEOUT);
        let answer = client
            .report(request)
            .await
            .map_err(|status| ReportError::Refused(Box::new(status)))?
            .into_inner();
        self.client = Some(client);
        Ok(answer.namespaces_told.then_some(answer.mesh_namespaces))
    }
}

/// A controller that does not answer for this long did not take the report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
