//! Labels of Istio's standard metrics (istio.io, Standard Metrics; reference implementation: ztunnel).

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    hash::{Hash, Hasher},
    sync::Arc,
};

use model::{Identity, Security, Service, Workload};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// A label's text, shared with whoever has it already. Istio writes `unknown` for what is not known.
#[derive(Clone, Debug, Default)]
pub struct Text(Option<Arc<str>>);

impl Text {
    /// The text of an unknown thing.
    #[must_use]
    pub fn unknown() -> Self {
        Self(None)
    }

    /// A text; empty becomes `unknown`.
    #[must_use]
    pub fn new(text: &Arc<str>) -> Self {
        Self((!text.is_empty()).then(|| Arc::clone(text)))
    }

    /// A SPIFFE identity as labels write it.
    #[must_use]
    pub fn principal(identity: Option<&Identity>) -> Self {
        Self(identity.map(|identity| identity.to_string().into()))
    }

    /// The text, if it is known.
    #[must_use]
    pub fn known(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// The same, shared.
    #[must_use]
    pub fn shared(&self) -> Option<Arc<str>> {
        self.0.clone()
    }

    fn as_str(&self) -> &str {
        self.known().unwrap_or("unknown")
    }
}

impl From<Option<Arc<str>>> for Text {
    fn from(text: Option<Arc<str>>) -> Self {
        text.as_ref().map_or_else(Self::unknown, Self::new)
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
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(self.as_str())
    }
}

/// Who counts a connection or a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reporter {
    /// The client's node.
    Source,
    /// The server's node.
    Destination,
    /// The waypoint between them.
    Waypoint,
}

impl Reporter {
    /// As metrics write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Waypoint => "waypoint",
        }
    }
}

impl EncodeLabelValue for Reporter {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(self.as_str())
    }
}

/// One side of a connection for its labels. The default is somebody unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Party {
    /// Name of the workload.
    pub workload: Text,
    /// Its namespace.
    pub namespace: Text,
    /// Its canonical service, which is also what Istio calls its `app`.
    pub canonical_service: Text,
    /// Its canonical revision, which is also its version.
    pub canonical_revision: Text,
    /// Its SPIFFE identity, if that was proved.
    pub principal: Text,
    /// Its cluster.
    pub cluster: Text,
}

impl Party {
    /// A workload, if it is known, with the identity that it has proved.
    #[must_use]
    pub fn new(workload: Option<&Workload>, principal: Text) -> Self {
        let Some(workload) = workload else {
            return Self {
                principal,
                ..Self::default()
            };
        };
        Self {
            workload: Text::new(&workload.workload_name),
            namespace: Text::new(&workload.namespace),
            canonical_service: Text::new(&workload.canonical_name),
            canonical_revision: Text::new(&workload.canonical_revision),
            principal,
            cluster: Text::new(&workload.cluster_id),
        }
    }
}

/// The service that was asked for. The default is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Asked {
    /// Its host name.
    pub hostname: Text,
    /// Its name.
    pub name: Text,
    /// Its namespace.
    pub namespace: Text,
}

impl From<Option<&Service>> for Asked {
    fn from(service: Option<&Service>) -> Self {
        service.map_or_else(Self::default, |service| Self {
            hostname: Text::new(&service.hostname),
            name: Text::new(&service.name),
            namespace: Text::new(&service.namespace),
        })
    }
}

/// The labels of both sides, which metrics of connections and of requests have in common.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct PartyLabels {
    /// Who counts.
    pub reporter: Reporter,
    /// Name of the workload that opened the connection.
    pub source_workload: Text,
    /// Its canonical service.
    pub source_canonical_service: Text,
    /// Its canonical revision.
    pub source_canonical_revision: Text,
    /// Its namespace.
    pub source_workload_namespace: Text,
    /// Its SPIFFE identity.
    pub source_principal: Text,
    /// Its `app`.
    pub source_app: Text,
    /// Its version.
    pub source_version: Text,
    /// Its cluster.
    pub source_cluster: Text,
    /// Host name of the service that was asked for.
    pub destination_service: Text,
    /// Name of that service.
    pub destination_service_name: Text,
    /// Namespace of that service.
    pub destination_service_namespace: Text,
    /// Name of the workload that is reached.
    pub destination_workload: Text,
    /// Its canonical service.
    pub destination_canonical_service: Text,
    /// Its canonical revision.
    pub destination_canonical_revision: Text,
    /// Its namespace.
    pub destination_workload_namespace: Text,
    /// Its SPIFFE identity.
    pub destination_principal: Text,
    /// Its `app`.
    pub destination_app: Text,
    /// Its version.
    pub destination_version: Text,
    /// Its cluster.
    pub destination_cluster: Text,
    /// A word of [`Security`] as the destination saw it, `unknown` to the source (F101).
    pub connection_security_policy: &'static str,
}

impl PartyLabels {
    /// The labels of what goes from `source` to `destination`.
    #[must_use]
    pub fn new(
        reporter: Reporter,
        source: Party,
        destination: Party,
        asked: Asked,
        security: Security,
    ) -> Self {
        Self {
            reporter,
            source_workload: source.workload,
            source_app: source.canonical_service.clone(),
            source_canonical_service: source.canonical_service,
            source_version: source.canonical_revision.clone(),
            source_canonical_revision: source.canonical_revision,
            source_workload_namespace: source.namespace,
            source_principal: source.principal,
            source_cluster: source.cluster,
            destination_service: asked.hostname,
            destination_service_name: asked.name,
            destination_service_namespace: asked.namespace,
            destination_workload: destination.workload,
            destination_app: destination.canonical_service.clone(),
            destination_canonical_service: destination.canonical_service,
            destination_version: destination.canonical_revision.clone(),
            destination_canonical_revision: destination.canonical_revision,
            destination_workload_namespace: destination.namespace,
            destination_principal: destination.principal,
            destination_cluster: destination.cluster,
            connection_security_policy: security.as_str(),
        }
    }
}

/// Labels of the metrics of connections.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct TcpLabels {
    /// Both sides.
    #[prometheus(flatten)]
    pub parties: PartyLabels,
    /// Always `tcp`.
    pub request_protocol: &'static str,
    /// `-`, or why it failed.
    pub response_flags: Cow<'static, str>,
}

impl From<PartyLabels> for TcpLabels {
    fn from(parties: PartyLabels) -> Self {
        Self {
            parties,
            request_protocol: "tcp",
            response_flags: NO_FLAGS.into(),
        }
    }
}

/// The flags of what went well.
pub(crate) const NO_FLAGS: &str = "-";
