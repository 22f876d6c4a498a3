//! Names and addresses that stand for many workloads.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::address::{GatewayAddress, NetworkAddress};
use crate::identity::Identity;
use crate::text::{Interner, NameError, parse, split};

/// Names a service in the whole mesh: `namespace/hostname`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Fully qualified name.
    pub hostname: Arc<str>,
}

/// A name, and virtual addresses, in front of workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Name of the object.
    pub name: Arc<str>,
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Fully qualified name.
    pub hostname: Arc<str>,
    /// Virtual addresses and ranges; none for a headless service.
    pub addresses: Vec<NetworkAddress>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Identities that its endpoints may prove besides their own.
    pub subject_alt_names: Vec<Identity>,
    /// Where connections to it have to go first.
    pub waypoint: Option<GatewayAddress>,
    /// Waypoints to choose from by weight, instead of `waypoint`.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// A client keeps its endpoint for so long after its last connection; unset means that each
    /// connection is drawn anew.
    pub session_timeout: Option<Duration>,
    /// Address families that it may be reached by.
    pub ip_families: IpFamilies,
    /// Preferred over others with the same hostname or address.
    pub canonical: bool,
    /// Gateways send through its waypoint too.
    pub ingress_use_waypoint: bool,
    /// Who may see it.
    pub visibility: Visibility,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServicePort {
    /// The port that clients use.
    pub port: u16,
    /// The port of the endpoints; 0 for a named one, which each endpoint maps for itself.
    pub target_port: u16,
    /// What is spoken there.
    pub app_protocol: AppProtocol,
}

/// What is spoken on a port, as declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AppProtocol {
    /// Not declared, or declared as something that we have no name for.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// TLS.
    Tls,
}

/// A waypoint and its share of connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub destination: GatewayAddress,
    /// Its share, relative to the others.
    pub weight: u32,
}

/// How an endpoint of a service is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LoadBalancing {
    /// What client and endpoint should have in common, most important first.
    pub routing_preference: Vec<Scope>,
    /// What a mismatch means.
    pub mode: Mode,
    /// What an endpoint that is not ready means.
    pub health_policy: HealthPolicy,
}

/// Something that client and endpoint can have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// The region.
    Region,
    /// The zone.
    Zone,
    /// The subzone.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The network.
    Network,
}

/// What a mismatch of a [`Scope`] means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Nothing: scopes are ignored.
    #[default]
    Any,
    /// The endpoint is left out.
    Strict,
    /// The endpoint is used if there is no better one.
    Failover,
    /// No endpoint is chosen: connections go to where they were going.
    Passthrough,
}

/// What an endpoint that is not ready means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HealthPolicy {
    /// It is left out.
    #[default]
    OnlyHealthy,
    /// It is used like any other.
    AllowAll,
}

/// Address families that a service may be reached by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IpFamilies {
    /// Not declared: both.
    #[default]
    Automatic,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// Both.
    Dual,
}

/// Who may see a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Clients of its own namespace.
    Namespace,
}

impl Service {
    /// Its name in the whole mesh.
    pub fn key(&self) -> ServiceKey {
        ServiceKey {
            namespace: Arc::clone(&self.namespace),
            hostname: Arc::clone(&self.hostname),
        }
    }

    /// Its declaration of a port.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|declared| declared.port == port)
    }

    /// Whether a client of this namespace may see it.
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        self.visibility == Visibility::Public || &*self.namespace == namespace
    }

    pub(crate) fn share_strings(&mut self, interner: &mut Interner) {
        interner.share(&mut self.namespace);
        interner.share(&mut self.hostname);
        for address in &mut self.addresses {
            interner.share(&mut address.network);
        }
    }
}

impl IpFamilies {
    /// Whether an address is of a family that may be used.
    pub fn accepts(self, ip: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::V4Only => ip.is_ipv4(),
            Self::V6Only => ip.is_ipv6(),
        }
    }
}

impl ServiceKey {
    /// A key of its parts.
    pub fn new(namespace: impl Into<Arc<str>>, hostname: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            hostname: hostname.into(),
        }
    }
}

impl FromStr for ServiceKey {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        split(text, "namespace/hostname").map(|(namespace, hostname)| Self {
            namespace,
            hostname,
        })
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl Serialize for ServiceKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse(deserializer)
    }
}
