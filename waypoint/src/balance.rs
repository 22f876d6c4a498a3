//! Which endpoint of a cluster gets a request.
//!
//! Left out are endpoints that are not ready, that are ejected, that could not be reached a moment ago, and that this
//! request has tried; what remains is narrowed to the nearest, and one of these is chosen as the cluster says.

pub(crate) mod choose;
pub(crate) mod count;
pub(crate) mod locality;
pub(crate) mod state;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use l7::ClusterKey;
use l7::backend::{Cluster, Member, TrafficPolicy};
use model::service::AppProtocol;
use model::{MeshState, ServiceKey};
use telemetry::{Asked, Party, Text};

use self::state::{ClusterState, EndpointState, Registry};
use crate::telemetry::{asked_of, party_of_endpoint};
use crate::upstream::{self, MaySecured};

/// A cluster of a configuration, with what is known of it.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) state: Arc<ClusterState>,
    pub(crate) candidates: Vec<Candidate>,
    /// As pages and the log name it.
    pub(crate) name: Arc<str>,
    /// Its service, for labels.
    pub(crate) asked: Rc<Asked>,
    /// TLS to its endpoints, where it is asked for.
    pub(crate) secured: MaySecured,
}

/// An endpoint, with what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) member: Member,
    pub(crate) state: Arc<EndpointState>,
    /// As metrics and the log name it.
    pub(crate) party: Rc<Party>,
}

impl Resolved {
    pub(crate) fn new(cluster: Arc<Cluster>, mesh: &MeshState, registry: &Registry) -> Self {
        let state = registry.cluster(&cluster.key);
        let addresses: Vec<SocketAddr> = cluster.members.iter().map(|one| one.address).collect();
        state.keep(&addresses);
        state.ruled_by(cluster.policy.outliers.as_ref());
        let candidate = |member: &Member| {
            let known = state.endpoint(member.address);
            if member.ready {
                // From now on, if nothing has been sent there yet: a slow start is counted from here.
                known.ready_for();
            } else {
                known.is_not_ready();
            }
            Candidate {
                member: member.clone(),
                state: known,
                party: Rc::new(party(member, mesh)),
            }
        };
        Self {
            candidates: cluster.members.iter().map(candidate).collect(),
            name: state::name(&cluster.key).into(),
            asked: Rc::new(asked_of(mesh, &cluster.key.service)),
            secured: upstream::secured(&cluster),
            cluster,
            state,
        }
    }
}

impl Resolved {
    /// A workload that was dialled by its own address is a cluster of one.
    pub(crate) fn alone(
        member: Member,
        protocol: AppProtocol,
        mesh: &MeshState,
        registry: &Registry,
    ) -> Self {
        let key = ClusterKey {
            service: ServiceKey {
                namespace: Arc::clone(&member.endpoint.namespace),
                hostname: member.address.ip().to_string().into(),
            },
            port: member.address.port(),
            subset: None,
        };
        let cluster = Cluster {
            key,
            origin: None,
            policy: Arc::new(TrafficPolicy::default()),
            protocol,
            members: vec![member],
        };
        Self::new(Arc::new(cluster), mesh, registry)
    }
}

impl Candidate {
    /// An endpoint of which nothing is known.
    pub(crate) fn alone(member: Member) -> Self {
        Self {
            member,
            state: Arc::new(EndpointState::new()),
            party: Rc::default(),
        }
    }
}

fn party(member: &Member, mesh: &MeshState) -> Party {
    let endpoint = &member.endpoint;
    let principal = Text::principal(endpoint.identity.as_ref());
    match mesh.workload(endpoint.uid.as_ref()) {
        Some(workload) => Party::new(Some(workload), principal),
        None => party_of_endpoint(endpoint, principal),
    }
}
