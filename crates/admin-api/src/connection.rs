//! The pages of connections: those that are open, and those that were refused.

use std::net::SocketAddr;
use std::sync::Arc;

use model::{Reason, Security};
use serde::{Deserialize, Serialize};

/// Which way a connection goes, as the pod sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The pod opened it.
    Outbound,
    /// The pod serves it.
    Inbound,
    /// The pod opened it to another pod of this node, socket to socket.
    Direct,
    /// The pod is a waypoint, and carries it between two others.
    Waypoint,
}

impl Direction {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Direct => "direct",
            Self::Waypoint => "waypoint",
        }
    }
}

/// One end of a connection, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionEnd {
    /// Address and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<SocketAddr>,
    /// Name of the workload's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// Its identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// A connection, described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Which way.
    pub direction: Direction,
    /// The pod of this node, `namespace/name`.
    pub pod: String,
    /// Who opened it.
    pub source: ConnectionEnd,
    /// Who serves it.
    pub destination: ConnectionEnd,
    /// The service that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// How it is protected.
    pub security: Security,
    /// Where the tunnel goes, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<SocketAddr>,
}

/// A refusal that is kept for the admin page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// The connection.
    #[serde(flatten)]
    pub connection: Description,
    /// The reason in a word.
    pub reason: Reason,
    /// The reason in a sentence.
    pub text: String,
}

/// A live connection as the admin page shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveView {
    /// What it is.
    #[serde(flatten)]
    pub connection: Description,
    /// It was open before its pod was captured: nobody carries it, and its client has no identity.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub older_than_capture: bool,
    /// Bytes from the client.
    pub request_bytes: u64,
    /// Bytes from the server.
    pub response_bytes: u64,
    /// Age in milliseconds.
    pub age_ms: u64,
}
