//! Labels of the metrics of requests (F100).

use std::borrow::Cow;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use telemetry::{Party, PartyLabels, Text};

/// An endpoint as far as a waypoint is told of it: its application by its labels, as Istio does, and the workload by the
/// application or else by the pod.
pub(crate) fn party_of_endpoint(endpoint: &l7::Endpoint, principal: Text) -> Party {
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
    let name = Text::from(application.cloned().or_else(pod));
    Party {
        workload: name.clone(),
        namespace: Text::new(&endpoint.namespace),
        canonical_service: name,
        canonical_revision: Text::new(&version.cloned().unwrap_or_else(|| "latest".into())),
        principal,
        cluster: Text::unknown(),
    }
}

/// Labels of `istio_requests_total` and its kin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HttpLabels {
    #[prometheus(flatten)]
    pub(crate) parties: PartyLabels,
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
