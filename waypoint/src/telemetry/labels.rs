//! Labels of the metrics of requests (F100).

use std::borrow::Cow;
use std::sync::Arc;

use prometheus_client::encoding::{
    EncodeLabel as _, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder,
};
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HttpLabels {
    pub(crate) parties: PartyLabels,
    pub(crate) request_protocol: &'static str,
    pub(crate) response_code: u16,
    pub(crate) grpc_response_status: Grpc,
    pub(crate) response_flags: Cow<'static, str>,
}

impl EncodeLabelSet for HttpLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.parties.encode(encoder)?;
        ("request_protocol", self.request_protocol).encode(encoder.encode_label())?;
        ("response_code", self.response_code).encode(encoder.encode_label())?;
        ("grpc_response_status", self.grpc_response_status.clone())
            .encode(encoder.encode_label())?;
        ("response_flags", &*self.response_flags).encode(encoder.encode_label())?;
        // What would have been answered if policies were in force that are not: none is tried out so.
        for name in ["permissive_response_code", "permissive_response_policyid"] {
            (name, "none").encode(encoder.encode_label())?;
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::registry::Registry;
    use telemetry::Asked;

    use super::*;

    /// F100, with what is written where nothing is known.
    #[test]
    fn a_request_has_every_label_and_its_default() {
        let family = Family::<HttpLabels, Counter>::default();
        let parties = crate::telemetry::labels_of(
            &Party {
                namespace: Text::new(&"shop".into()),
                ..Party::default()
            },
            &Party::default(),
            &Asked::default(),
        );
        let labels = HttpLabels {
            parties,
            request_protocol: "http",
            response_code: 200,
            grpc_response_status: Grpc(None),
            response_flags: "-".into(),
        };
        family.get_or_create(&labels).inc();
        let mut registry = Registry::default();
        registry.register("istio_requests", "", family);
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        for label in [
            "reporter=\"waypoint\"",
            "source_app=\"unknown\"",
            "source_principal=\"unknown\"",
            "source_workload=\"unknown\"",
            "source_workload_namespace=\"shop\"",
            "source_namespace=\"shop\"",
            "source_version=\"unknown\"",
            "destination_app=\"unknown\"",
            "destination_principal=\"unknown\"",
            "destination_workload=\"unknown\"",
            "destination_workload_namespace=\"unknown\"",
            "destination_namespace=\"unknown\"",
            "destination_version=\"unknown\"",
            "destination_service=\"unknown\"",
            "destination_service_name=\"unknown\"",
            "destination_service_namespace=\"unknown\"",
            "request_protocol=\"http\"",
            "response_code=\"200\"",
            "response_flags=\"-\"",
            "permissive_response_code=\"none\"",
            "permissive_response_policyid=\"none\"",
            "connection_security_policy=\"none\"",
            "connection_mtls=\"false\"",
        ] {
            let times = page.matches(&format!(",{label}")).count();
            let times = times + page.matches(&format!("{{{label}")).count();
            assert_eq!(times, 1, "{label}: {page}");
        }
    }
}
