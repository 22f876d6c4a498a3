//! Labels of Istio's standard metrics (F100).

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// A label's text, shared with whoever has it; nothing is `unknown`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Text(pub(crate) Option<Arc<str>>);

impl Text {
    pub(crate) fn new(text: &Arc<str>) -> Self {
        Self((!text.is_empty()).then(|| Arc::clone(text)))
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("unknown")
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Text {}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        std::fmt::Write::write_str(encoder, self.as_str())
    }
}

/// One side of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Party {
    pub(crate) workload: Text,
    pub(crate) namespace: Text,
    pub(crate) canonical_service: Text,
    pub(crate) canonical_revision: Text,
    pub(crate) principal: Text,
    pub(crate) cluster: Text,
}

impl Party {
    /// As far as a waypoint is told of a workload: its application by its labels, as Istio does, and the workload by the
    /// application or else by the pod.
    pub(crate) fn of_endpoint(endpoint: &l7::Endpoint, principal: Text) -> Self {
        let label = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| endpoint.labels.get(*name))
                .filter(|value| !value.is_empty())
        };
        let application = label(&[
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ]);
        let version = label(&[
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ]);
        let pod = || endpoint.uid.to_string().rsplit('/').next().map(Arc::from);
        let name = Text(application.cloned().or_else(pod));
        Self {
            workload: name.clone(),
            namespace: Text::new(&endpoint.namespace),
            canonical_service: name,
            canonical_revision: Text(Some(version.cloned().unwrap_or_else(|| "latest".into()))),
            principal,
            cluster: Text::default(),
        }
    }
}

/// Labels of what is told of both sides.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Common {
    pub(crate) reporter: &'static str,
    pub(crate) source_workload: Text,
    pub(crate) source_canonical_service: Text,
    pub(crate) source_canonical_revision: Text,
    pub(crate) source_workload_namespace: Text,
    pub(crate) source_principal: Text,
    pub(crate) source_app: Text,
    pub(crate) source_version: Text,
    pub(crate) source_cluster: Text,
    pub(crate) destination_service: Text,
    pub(crate) destination_service_name: Text,
    pub(crate) destination_service_namespace: Text,
    pub(crate) destination_workload: Text,
    pub(crate) destination_canonical_service: Text,
    pub(crate) destination_canonical_revision: Text,
    pub(crate) destination_workload_namespace: Text,
    pub(crate) destination_principal: Text,
    pub(crate) destination_app: Text,
    pub(crate) destination_version: Text,
    pub(crate) destination_cluster: Text,
    pub(crate) connection_security_policy: &'static str,
}

/// The service that was asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Service {
    pub(crate) hostname: Text,
    pub(crate) name: Text,
    pub(crate) namespace: Text,
}

impl Common {
    pub(crate) fn new(source: &Party, destination: &Party, service: &Service) -> Self {
        // What the agents prove is mutual TLS; a client without identity came in plain.
        let secured = source.principal.0.is_some();
        Self {
            reporter: "waypoint",
            source_workload: source.workload.clone(),
            source_canonical_service: source.canonical_service.clone(),
            source_canonical_revision: source.canonical_revision.clone(),
            source_workload_namespace: source.namespace.clone(),
            source_principal: source.principal.clone(),
            source_app: source.canonical_service.clone(),
            source_version: source.canonical_revision.clone(),
            source_cluster: source.cluster.clone(),
            destination_service: service.hostname.clone(),
            destination_service_name: service.name.clone(),
            destination_service_namespace: service.namespace.clone(),
            destination_workload: destination.workload.clone(),
            destination_canonical_service: destination.canonical_service.clone(),
            destination_canonical_revision: destination.canonical_revision.clone(),
            destination_workload_namespace: destination.namespace.clone(),
            destination_principal: destination.principal.clone(),
            destination_app: destination.canonical_service.clone(),
            destination_version: destination.canonical_revision.clone(),
            destination_cluster: destination.cluster.clone(),
            connection_security_policy: if secured { "mutual_tls" } else { "none" },
        }
    }
}

/// Labels of `istio_requests_total` and its kin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HttpLabels {
    #[prometheus(flatten)]
    pub(crate) common: Common,
    pub(crate) request_protocol: &'static str,
    pub(crate) response_code: u16,
    pub(crate) grpc_response_status: Grpc,
    pub(crate) response_flags: Cow<'static, str>,
}

/// A gRPC status, empty for other requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Grpc(pub(crate) Option<u32>);

impl EncodeLabelValue for Grpc {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self.0 {
            Some(status) => EncodeLabelValue::encode(&status, encoder),
            None => Ok(()),
        }
    }
}

/// Labels of TCP connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TcpLabels {
    #[prometheus(flatten)]
    pub(crate) common: Common,
    pub(crate) request_protocol: &'static str,
    pub(crate) response_flags: Cow<'static, str>,
}

/// Labels of connections that were not taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RefusedLabels {
    pub(crate) reason: &'static str,
}
