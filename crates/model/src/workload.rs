//! What runs in the mesh and can be an end of a connection.

mod services;

use std::borrow::Borrow;
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::address::{Family, GatewayAddress};
use crate::identity::{Identity, TrustDomain};
use crate::policy::PolicyKey;
use crate::service::ServiceKey;
use crate::text::Interner;
pub use services::ServicePorts;

/// Names a workload in the whole mesh: `cluster/group/kind/namespace/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkloadUid(Arc<str>);

/// Something that runs and has addresses: a pod, or what stands for one outside of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Its name in the whole mesh.
    pub uid: WorkloadUid,
    /// Name of the object.
    pub name: Arc<str>,
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Its addresses; the first of a family is the one to dial.
    pub addresses: Vec<IpAddr>,
    /// A name to resolve when there is no address.
    pub hostname: Arc<str>,
    /// The network of its addresses.
    pub network: Arc<str>,
    /// How it is reached.
    pub tunnel: TunnelProtocol,
    /// The trust domain of its identity.
    pub trust_domain: TrustDomain,
    /// The service account of its identity.
    pub service_account: Arc<str>,
    /// Where connections to its addresses have to go first.
    pub waypoint: Option<GatewayAddress>,
    /// How it is reached from other networks.
    pub network_gateway: Option<GatewayAddress>,
    /// The node that it runs on.
    pub node: Arc<str>,
    /// Name of the application, for telemetry.
    pub canonical_name: Arc<str>,
    /// Version of the application, for telemetry.
    pub canonical_revision: Arc<str>,
    /// Kind of its owner, for telemetry.
    pub workload_type: WorkloadType,
    /// Name of its owner, for telemetry.
    pub workload_name: Arc<str>,
    /// It terminates HBONE by itself.
    pub native_tunnel: bool,
    /// How its application learns the client's address from us, if not from the socket.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The services that it is an endpoint of, with the ports that it serves for them.
    pub services: ServicePorts,
    /// Policies for it besides those of its namespace and of the mesh.
    pub authorization_policies: Vec<PolicyKey>,
    /// The `PeerAuthentication` that makes it STRICT on every port, where that is known.
    pub strict_by: Option<Box<PolicyKey>>,
    /// It may connect to nobody that the mesh does not know. Agents of earlier versions do not say it in their dumps.
    #[serde(default)]
    pub egress_closed: bool,
    /// What the cluster's own network may keep from it. Likewise.
    #[serde(default)]
    pub isolated: Isolated,
    /// Whether it is ready.
    pub status: Health,
    /// The cluster that it runs in.
    pub cluster_id: Arc<str>,
    /// Where it is.
    pub locality: Locality,
    /// Whether its addresses are its own.
    pub network_mode: NetworkMode,
    /// Relative weight among the endpoints of a service.
    pub capacity: u32,
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TunnelProtocol {
    /// By plain TCP.
    #[default]
    None,
    /// By HBONE.
    Hbone,
}

/// Kind of a workload's owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WorkloadType {
    /// A Deployment or the like.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// None: a bare pod.
    Pod,
    /// A Job.
    Job,
}

/// Whether a workload is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready.
    Unhealthy,
}

/// Whether a workload's addresses are its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NetworkMode {
    /// They are.
    #[default]
    Standard,
    /// They are its node's.
    HostNetwork,
}

/// How an application learns the client's address from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ApplicationTunnel {
    /// What is spoken.
    pub protocol: ApplicationProtocol,
    /// The port that speaks it; unset means the port that was asked for.
    pub port: Option<u16>,
}

/// What an [`ApplicationTunnel`] speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ApplicationProtocol {
    /// Nothing.
    None,
    /// PROXY protocol.
    Proxy,
}

/// A port of a service at one workload; a port that the service declares by number needs none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The port that clients of the service use.
    pub service_port: u16,
    /// The port of the workload.
    pub target_port: u16,
    /// The family of the addresses that serve it; all of the workload's if it is not said.
    pub family: Option<Family>,
    /// Whether it is ready; as the workload is if it is not said.
    pub status: Option<Health>,
}

impl PortMapping {
    /// A port that is served on all addresses of the workload and as ready as the workload is.
    pub fn new(service_port: u16, target_port: u16) -> Self {
        Self {
            service_port,
            target_port,
            family: None,
            status: None,
        }
    }
}

/// Where something is; empty where that is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone in the region.
    pub zone: Arc<str>,
    /// Subzone in the zone.
    pub subzone: Arc<str>,
}

impl Workload {
    /// The identity that it proves and that others expect of it.
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: Arc::clone(&self.namespace),
            service_account: Arc::clone(&self.service_account),
        }
    }

    /// Whether others may have its addresses at the same time.
    pub fn is_sharer(&self) -> bool {
        self.network_mode == NetworkMode::HostNetwork
    }

    /// How the workload serves a port of a service: usually in one way, in none if it is not said.
    pub fn mappings(
        &self,
        service: &ServiceKey,
        service_port: u16,
    ) -> impl Iterator<Item = &PortMapping> + Clone {
        self.services
            .get(service)
            .into_iter()
            .flatten()
            .filter(move |mapping| mapping.service_port == service_port && mapping.target_port != 0)
    }

    /// Its first address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|&ip| Family::of(ip) == family)
    }

    /// Makes strings that other workloads have too the same allocation.
    pub(crate) fn share_strings(&mut self, interner: &mut Interner) {
        for text in [
            &mut self.namespace,
            &mut self.network,
            self.trust_domain.text_mut(),
            &mut self.service_account,
            &mut self.node,
            &mut self.canonical_name,
            &mut self.canonical_revision,
            &mut self.workload_name,
            &mut self.cluster_id,
            &mut self.locality.region,
            &mut self.locality.zone,
            &mut self.locality.subzone,
        ] {
            interner.share(text);
        }
        for policy in &mut self.authorization_policies {
            interner.share(&mut policy.namespace);
            interner.share(&mut policy.name);
        }
        let services = self.services.all_mut();
        for (key, ports) in services.iter_mut() {
            interner.share(&mut key.namespace);
            interner.share(&mut key.hostname);
            ports.shrink_to_fit();
        }
        services.shrink_to_fit();
        self.addresses.shrink_to_fit();
        self.authorization_policies.shrink_to_fit();
    }
}

/// Which ways `NetworkPolicy` objects isolate a pod, where the cluster's network enforces them and the mesh does not. Ports that the
/// mesh chooses itself may be closed then, and nobody has to have allowed more of them than that of tunnels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolated {
    /// Connections to it. Said of waypoints alone.
    pub ingress: bool,
    /// Connections that it opens.
    pub egress: bool,
}

impl Default for Workload {
    /// Nothing, with the defaults of Istio's workload API.
    fn default() -> Self {
        Self {
            uid: WorkloadUid::default(),
            name: Arc::default(),
            namespace: Arc::default(),
            addresses: Vec::new(),
            hostname: Arc::default(),
            network: Arc::default(),
            tunnel: TunnelProtocol::default(),
            trust_domain: TrustDomain::default(),
            service_account: "default".into(),
            waypoint: None,
            network_gateway: None,
            node: Arc::default(),
            canonical_name: Arc::default(),
            canonical_revision: Arc::default(),
            workload_type: WorkloadType::default(),
            workload_name: Arc::default(),
            native_tunnel: false,
            application_tunnel: None,
            services: ServicePorts::default(),
            authorization_policies: Vec::new(),
            strict_by: None,
            egress_closed: false,
            isolated: Isolated::default(),
            status: Health::default(),
            cluster_id: "Kubernetes".into(),
            locality: Locality::default(),
            network_mode: NetworkMode::default(),
            capacity: 1,
        }
    }
}

impl WorkloadUid {
    /// The uid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<Arc<str>>> From<T> for WorkloadUid {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl Deref for WorkloadUid {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for WorkloadUid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
