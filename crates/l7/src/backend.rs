//! What is behind a route: services and subsets with their endpoints, and how they are used.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use model::{Identity, ServiceKey, WorkloadUid};

use crate::origin::Origin;

/// Names a set of endpoints: a port of a service, or of a subset of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKey {
    /// The service.
    pub service: ServiceKey,
    /// The service's port; 0 for its only one, or the one that was dialled.
    pub port: u16,
    /// The subset of a `DestinationRule`.
    pub subset: Option<Arc<str>>,
}

/// Endpoints, and how they are used.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Its name.
    pub key: ClusterKey,
    /// The object that says how it is used, if one does.
    pub origin: Option<Origin>,
    /// How it is used.
    pub policy: Arc<TrafficPolicy>,
    /// What is spoken on the port.
    pub protocol: model::service::AppProtocol,
    /// Who serves it, ready or not, in the order of their names.
    pub members: Vec<Member>,
}

/// An endpoint, and where it serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its address, and its own port for the service's.
    pub address: SocketAddr,
    /// Whether new requests may go there.
    pub ready: bool,
}

/// A workload that serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Its name in the whole mesh.
    pub uid: WorkloadUid,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The name that leads to its addresses, where these have to be looked up.
    pub hostname: Option<Arc<str>>,
    /// Who it is, if the mesh has captured it.
    pub identity: Option<Identity>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels.
    pub labels: Arc<BTreeMap<Arc<str>, Arc<str>>>,
    /// The node that it runs on.
    pub node: Arc<str>,
    /// Where it runs.
    pub locality: Locality,
    /// Its share, relative to the others of a cluster.
    pub weight: u32,
    /// The ports of services that it serves.
    pub ports: Vec<EndpointPort>,
    /// Policies that select it, by the names of their resources.
    pub policies: Vec<Arc<str>>,
}

/// A port of a service, and the endpoint's own for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointPort {
    /// The service.
    pub service: ServiceKey,
    /// The service's port.
    pub port: u16,
    /// The endpoint's port.
    pub target: u16,
    /// Whether new requests may go there.
    pub ready: bool,
}

/// Where something runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// The region.
    pub region: Arc<str>,
    /// The zone in it.
    pub zone: Arc<str>,
    /// The subzone in that.
    pub subzone: Arc<str>,
}

/// What a `DestinationRule` says of a service, as it is delivered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BackendRule {
    /// The object, if there is one.
    pub origin: Option<Origin>,
    /// For all ports that have none of their own.
    pub policy: Arc<TrafficPolicy>,
    /// By service port.
    pub ports: BTreeMap<u16, Arc<TrafficPolicy>>,
    /// By name.
    pub subsets: BTreeMap<Arc<str>, Subset>,
}

/// Some endpoints of a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Subset {
    /// Labels that its endpoints have.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Put over that of the service: what is set here counts.
    pub policy: Arc<TrafficPolicy>,
    /// By service port, the same.
    pub ports: BTreeMap<u16, Arc<TrafficPolicy>>,
}

/// How a cluster is used. What is `None` is not said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPolicy {
    /// How an endpoint is chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// What localities mean.
    pub locality: Option<LocalityPolicy>,
    /// For how long a new endpoint gets less.
    pub warm_up: Option<WarmUp>,
    /// Limits of connections and requests.
    pub limits: Option<Limits>,
    /// Which endpoints are left alone for a while.
    pub outliers: Option<Outliers>,
    /// TLS beyond that of the mesh.
    pub tls: Option<TlsMode>,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LoadBalancer {
    /// One after the other (F31).
    #[default]
    RoundRobin,
    /// The better of two that are drawn.
    LeastRequest,
    /// Drawn.
    Random,
    /// The one that the client dialled.
    Passthrough,
    /// The same for the same key.
    Hash(HashKey),
}

/// What a consistent hash is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// A header.
    Header(HeaderName),
    /// A cookie, which the waypoint sets if the client has none and it has a life.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// Its path.
        path: Option<Arc<str>>,
        /// For how long the client keeps it; zero is for its session. Without, none is set.
        ttl: Option<Duration>,
    },
    /// The client's address.
    SourceIp,
    /// The first value of a query parameter.
    QueryParameter(Arc<str>),
}

/// What localities mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalityPolicy {
    /// They are ignored.
    Off,
    /// The nearest first. By region: where to go when the nearest are unhealthy.
    Failover(BTreeMap<Arc<str>, Arc<str>>),
    /// Labels, with values where they are given, of which an endpoint should share as many as possible, in order.
    Priority(Vec<(Arc<str>, Option<Arc<str>>)>),
    /// From a locality (`region/zone/*`) to localities by weight.
    Distribute(Vec<(Arc<str>, Shares)>),
}

/// Localities (`region/zone/*`) with their weights.
pub type Shares = Vec<(Arc<str>, u32)>;

/// A new endpoint gets less at first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WarmUp {
    /// For how long.
    pub duration: Duration,
    /// The share with which it begins, in percent.
    pub minimum_percent: f64,
    /// How its share grows: 1 is evenly.
    pub aggression: f64,
}

/// Limits of a cluster; they hold over all workers of a waypoint. `None` is without limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: Option<u32>,
    /// Requests at once.
    pub requests: Option<u32>,
    /// Requests that one connection carries.
    pub requests_per_connection: Option<u32>,
    /// Retries at once.
    pub retries: Option<u32>,
    /// Streams at once on one connection.
    pub streams_per_connection: Option<u32>,
    /// Time for a connection to be made.
    pub connect_timeout: Option<Duration>,
    /// A connection without requests ends after so long.
    pub idle_timeout: Option<Duration>,
    /// A connection ends after so long.
    pub connection_life: Option<Duration>,
    /// TCP keepalive: probes, time before the first, time between.
    pub keepalive: Option<Keepalive>,
    /// HTTP/2 upstream: always, never, or as the client does.
    pub upgrade: Upgrade,
}

/// TCP keepalive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes without an answer that end the connection.
    pub probes: Option<u32>,
    /// Silence before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// Whether requests are sent as HTTP/2 where the port does not say what it speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Upgrade {
    /// As the port says.
    #[default]
    Unsaid,
    /// HTTP/1.1 stays that.
    Never,
    /// HTTP/1.1 becomes HTTP/2.
    Always,
    /// What the client speaks.
    AsClient,
}

/// Endpoints that are left alone for a while. Istio's defaults where nothing is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outliers {
    /// Answers of 5xx in a row; `None` does not eject.
    pub server_errors: Option<u32>,
    /// 502, 503 and 504 in a row.
    pub gateway_errors: Option<u32>,
    /// Failures to get an answer in a row, counted apart from answers.
    pub local_failures: Option<u32>,
    /// Time between sweeps.
    pub interval: Duration,
    /// The first time; it grows with each ejection.
    pub base_time: Duration,
    /// At most this share of a cluster, in percent.
    pub max_percent: u32,
    /// Below this share of healthy endpoints, in percent, ejection counts for nothing.
    pub min_health_percent: u32,
}

/// TLS that the waypoint speaks to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// None of its own: the mesh's, where the endpoint is in it.
    Mesh,
    /// None, not even the mesh's, towards endpoints outside of it.
    Disable,
    /// TLS, with this SNI and these names that the server may prove.
    Simple {
        /// Server name.
        sni: Option<Arc<str>>,
        /// Names of which the server must prove one; none means the SNI.
        names: Vec<Arc<str>>,
        /// Nothing is verified.
        insecure: bool,
        /// What the server's certificate has to lead to.
        roots: Roots,
    },
}

/// The certificates that are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// Those of the machine.
    #[default]
    Machine,
    /// These, in PEM. None at all believes nobody.
    Given(Arc<[u8]>),
    /// Those in the Secret of this name, of the namespace of who asks. The controller puts them in its place.
    Named(Arc<str>),
}

impl Default for Outliers {
    /// Envoy's and Istio's.
    fn default() -> Self {
        Self {
            server_errors: Some(5),
            gateway_errors: None,
            local_failures: None,
            interval: Duration::from_secs(10),
            base_time: Duration::from_secs(30),
            max_percent: 10,
            min_health_percent: 0,
        }
    }
}

impl TlsMode {
    /// TLS that no server can satisfy: where it cannot be known what was meant, nothing is sent.
    pub fn impossible() -> Self {
        Self::Simple {
            sni: None,
            names: Vec::new(),
            insecure: false,
            roots: Roots::Given(Arc::new([])),
        }
    }
}

impl TrafficPolicy {
    /// This policy, with what another one says put over it, field by field as Istio does.
    #[must_use]
    pub fn overlaid(&self, with: &Self) -> Self {
        Self {
            load_balancer: with
                .load_balancer
                .clone()
                .or_else(|| self.load_balancer.clone()),
            locality: with.locality.clone().or_else(|| self.locality.clone()),
            warm_up: with.warm_up.or(self.warm_up),
            limits: with.limits.clone().or_else(|| self.limits.clone()),
            outliers: with.outliers.clone().or_else(|| self.outliers.clone()),
            tls: with.tls.clone().or_else(|| self.tls.clone()),
        }
    }
}

impl BackendRule {
    /// How a port of the service, or of a subset, is used. Settings of a port stand in the place of the whole policy of
    /// their level (Istio: portLevelSettings override the destination-level settings, and what they leave out is the
    /// default). `None` if there is no such subset.
    pub fn policy(&self, port: u16, subset: Option<&str>) -> Option<Arc<TrafficPolicy>> {
        let service = self.ports.get(&port).unwrap_or(&self.policy);
        let Some(name) = subset else {
            return Some(Arc::clone(service));
        };
        let subset = self.subsets.get(name)?;
        let own = subset.ports.get(&port).unwrap_or(&subset.policy);
        Some(Arc::new(service.overlaid(own)))
    }
}

impl Subset {
    /// Whether an endpoint belongs to it.
    pub fn selects(&self, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        self.labels
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
    }
}
