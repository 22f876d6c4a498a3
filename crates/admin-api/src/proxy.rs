//! What a waypoint or gateway routes by, with the objects that made it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyConfig {
    /// Grows with each configuration.
    pub generation: u64,
    /// Where it listens for clients from outside.
    pub listeners: Vec<ProxyListener>,
    /// Its rules.
    pub routes: Vec<ProxyRoute>,
    /// Where it sends to.
    pub clusters: Vec<ProxyCluster>,
}

/// A listener of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyListener {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// Whose names it takes.
    pub host: String,
    /// Whether TLS ends here.
    pub tls: bool,
    /// Whether clients have to show a certificate.
    pub mutual: bool,
    /// What is read: `requests`, `names` or `nothing`.
    pub reads: String,
    /// The hosts that are served.
    pub hosts: Vec<String>,
}

/// A rule, where it counts. Rules of one place come in the order of their objects; which of those of the Gateway API is
/// tried first follows from the request, the most specific match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyRoute {
    /// The service, or the host of a listener.
    pub on: String,
    /// Of this port alone.
    pub port: Option<u16>,
    /// For clients of this namespace alone.
    pub clients: Option<String>,
    /// Its conditions, a text a match; of several one has to hold. None at all hold always.
    pub when: Vec<String>,
    /// What happens: where requests go, with shares if there are several, or what answers them.
    pub to: Vec<String>,
    /// The object that says so, with the rule's number in it.
    pub object: String,
}

/// Endpoints, and how they are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyCluster {
    /// Its name, in Envoy's form: `outbound|PORT|SUBSET|HOST`.
    pub name: String,
    /// The service.
    pub service: String,
    /// The port.
    pub port: u16,
    /// The subset.
    pub subset: Option<String>,
    /// The object that says how it is used.
    pub object: Option<String>,
    /// TLS to the endpoints, if it is asked for.
    pub tls: Option<String>,
    /// Its endpoints.
    pub endpoints: Vec<ProxyEndpoint>,
}

/// An endpoint of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyEndpoint {
    /// The workload.
    pub workload: String,
    /// Where it serves.
    pub address: SocketAddr,
    /// Whether new requests may go there.
    pub ready: bool,
    /// Its share.
    pub weight: u32,
    /// Why it is left alone now, `errors` or `unreachable`, and for how long still in milliseconds.
    #[serde(default)]
    pub left_alone: Option<(String, u64)>,
}
