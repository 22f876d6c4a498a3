//! The types of a discovery stream, and who has which.

use std::sync::Arc;

use proto::type_url;

use compile::resource::Resource;
use compile::snapshot::{Resources, Snapshot, WaypointEntry};

/// The types, in the order in which they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::serve) enum Type {
    Authorization,
    Address,
    Workload,
    NodePod,
    Announced,
    L7Policy,
    L7Service,
    L7Endpoint,
    L7Backend,
    L7Listener,
    L7Route,
}

/// Whose stream it is, and so which types it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serve) enum Viewer {
    /// The agent of a node.
    Node(Arc<str>),
    /// The same, of an agent that has workloads and policies from another control plane.
    Captures(Arc<str>),
    /// A waypoint, `namespace/name`.
    Waypoint(Arc<str>),
}

impl Type {
    pub(super) const ALL: [Self; 11] = [
        Self::Authorization,
        Self::Address,
        Self::Workload,
        Self::NodePod,
        Self::Announced,
        Self::L7Policy,
        Self::L7Service,
        Self::L7Endpoint,
        Self::L7Backend,
        Self::L7Listener,
        Self::L7Route,
    ];
    /// What a client has to know before it is relied on not to dial a captured workload in plain.
    pub(super) const OF_WORKLOADS: [Self; 3] = [Self::Address, Self::Workload, Self::Announced];

    pub(in crate::serve) fn url(self) -> &'static str {
        match self {
            Self::Authorization => type_url::AUTHORIZATION,
            Self::Address => type_url::ADDRESS,
            Self::Workload => type_url::WORKLOAD,
            Self::NodePod => type_url::NODE_POD,
            Self::Announced => type_url::ANNOUNCED,
            Self::L7Policy => type_url::L7_POLICY,
            Self::L7Service => type_url::L7_SERVICE,
            Self::L7Endpoint => type_url::L7_ENDPOINT,
            Self::L7Backend => type_url::L7_BACKEND,
            Self::L7Listener => type_url::L7_LISTENER,
            Self::L7Route => type_url::L7_ROUTE,
        }
    }

    pub(super) fn find(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.url() == url)
    }

    /// What a viewer may see of this type.
    pub(super) fn view(self, snapshot: &Snapshot, viewer: &Viewer) -> Resources {
        let waypoint = match viewer {
            Viewer::Node(_) | Viewer::Captures(_) => None,
            Viewer::Waypoint(name) => snapshot.waypoints.get(name),
        };
        let of_waypoint = |resources: fn(&WaypointEntry) -> &Resources| {
            waypoint
                .map(|entry| resources(entry).clone())
                .unwrap_or_default()
        };
        match self {
            Self::Authorization => snapshot.authorizations.clone(),
            Self::Address | Self::Workload => snapshot.addresses.clone(),
            Self::Announced => snapshot.announced.clone(),
            Self::NodePod => {
                let pods = snapshot.nodes.get(viewer.node()).into_iter().flatten();
                pods.map(|(name, entry)| (Arc::clone(name), Arc::clone(&entry.resource)))
                    .collect()
            }
            Self::L7Policy => of_waypoint(|entry| &entry.policies),
            Self::L7Service => of_waypoint(|entry| &entry.services),
            Self::L7Endpoint => of_waypoint(|entry| &entry.endpoints),
            Self::L7Backend => of_waypoint(|entry| &entry.backends),
            Self::L7Listener => of_waypoint(|entry| &entry.listeners),
            Self::L7Route => of_waypoint(|entry| &entry.routes),
        }
    }

    pub(super) fn is_for_waypoints(self) -> bool {
        matches!(
            self,
            Self::L7Policy
                | Self::L7Service
                | Self::L7Endpoint
                | Self::L7Backend
                | Self::L7Listener
                | Self::L7Route
        )
    }

    /// Whether resources of other types name those of this one, so that they are taken back last.
    pub(super) fn is_named(self) -> bool {
        self == Self::Authorization || (self.is_for_waypoints() && self != Self::L7Route)
    }

    /// Whether resources can be asked for by address, and some are wanted unasked; see [`demand`].
    pub(super) fn is_address(self) -> bool {
        matches!(self, Self::Address | Self::Workload)
    }

    /// The resource as this type has it; `None` when it has no part in it.
    pub(super) fn project(self, resource: &Arc<Resource>) -> Option<Arc<Resource>> {
        match self {
            Self::Workload => workload_of(resource).map(Arc::new),
            _ => Some(Arc::clone(resource)),
        }
    }
}

impl Viewer {
    /// The node whose workloads are wanted unasked; a waypoint has none.
    pub(super) fn node(&self) -> &str {
        match self {
            Self::Node(node) | Self::Captures(node) => node,
            Self::Waypoint(_) => "",
        }
    }

    pub(super) fn has(&self, kind: Type) -> bool {
        match self {
            Self::Node(_) => !kind.is_for_waypoints(),
            Self::Captures(_) => kind == Type::NodePod,
            Self::Waypoint(_) => kind.is_for_waypoints(),
        }
    }
}

/// The workload inside an `Address`, which is that message's field 1.
fn workload_of(address: &Resource) -> Option<Resource> {
    const WORKLOAD_FIELD: u8 = 0x0a;
    let (field, mut rest) = address.body().split_first()?;
    if *field != WORKLOAD_FIELD {
        return None;
    }
    prost::encoding::decode_varint(&mut rest).ok()?;
    let name = Arc::clone(&address.name);
    Some(Resource::from_body(type_url::WORKLOAD, name, rest))
}
