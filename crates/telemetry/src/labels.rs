//! Labels of Istio's standard metrics (istio.io, Standard Metrics; reference implementation: ztunnel).

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    hash::{Hash, Hasher},
    sync::Arc,
};

use model::{Identity, Security, Service, Workload};
use prometheus_client::encoding::{
    EncodeLabel as _, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder,
};

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

/// The labels of both sides, which metrics of connections and of requests have in common: F100's, and those that Istio has
/// come to have since. What is the same under two names is kept once and written twice.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PartyLabels {
    /// Who counts.
    pub reporter: Reporter,
    /// Who opened the connection.
    pub source: Party,
    /// The service that was asked for.
    pub asked: Asked,
    /// Who is reached.
    pub destination: Party,
    /// How the destination knows the connection to be secured; unknown to the source (F101).
    pub security: Security,
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
            source,
            asked,
            destination,
            security,
        }
    }
}

impl EncodeLabelSet for PartyLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let (source, destination) = (&self.source, &self.destination);
        let security = self.security.as_str();
        // Istio's name for it before 1.1.
        let mtls = match self.security {
            Security::MutualTls => "true",
            Security::Unknown => "unknown",
            _ => "false",
        };
        for (name, value) in [
            ("reporter", self.reporter.as_str()),
            ("source_workload", source.workload.as_str()),
            (
                "source_canonical_service",
                source.canonical_service.as_str(),
            ),
            (
                "source_canonical_revision",
                source.canonical_revision.as_str(),
            ),
            ("source_workload_namespace", source.namespace.as_str()),
            ("source_namespace", source.namespace.as_str()),
            ("source_principal", source.principal.as_str()),
            ("source_app", source.canonical_service.as_str()),
            ("source_version", source.canonical_revision.as_str()),
            ("source_cluster", source.cluster.as_str()),
            ("destination_service", self.asked.hostname.as_str()),
            ("destination_service_name", self.asked.name.as_str()),
            (
                "destination_service_namespace",
                self.asked.namespace.as_str(),
            ),
            ("destination_workload", destination.workload.as_str()),
            (
                "destination_canonical_service",
                destination.canonical_service.as_str(),
            ),
            (
                "destination_canonical_revision",
                destination.canonical_revision.as_str(),
            ),
            (
                "destination_workload_namespace",
                destination.namespace.as_str(),
            ),
            ("destination_namespace", destination.namespace.as_str()),
            ("destination_principal", destination.principal.as_str()),
            ("destination_app", destination.canonical_service.as_str()),
            (
                "destination_version",
                destination.canonical_revision.as_str(),
            ),
            ("destination_cluster", destination.cluster.as_str()),
            ("connection_security_policy", security),
            ("connection_mtls", mtls),
        ] {
            (name, value).encode(encoder.encode_label())?;
        }
        Ok(())
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
