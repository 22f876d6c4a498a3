//! One client's discovery stream, without its transport: what it subscribed to, what it has, what it gets next.
//!
//! Two orders matter. Policies go out before the workloads that name them, and policies that are gone are taken back
//! only after the workloads that named them have changed; so a client never meets a name that it does not know. And a
//! type has at most one response that the client has not answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use proto::envoy::discovery::DeltaDiscoveryRequest;
use proto::type_url;

use super::codec::Response;
use crate::resource::Resource;
use crate::snapshot::{Resources, Snapshot};

/// The types, in the order in which they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Type {
    Authorization,
    Address,
    Workload,
    NodePod,
}

impl Type {
    const ALL: [Self; 4] = [
        Self::Authorization,
        Self::Address,
        Self::Workload,
        Self::NodePod,
    ];

    pub(super) fn url(self) -> &'static str {
        match self {
            Self::Authorization => type_url::AUTHORIZATION,
            Self::Address => type_url::ADDRESS,
            Self::Workload => type_url::WORKLOAD,
            Self::NodePod => type_url::NODE_POD,
        }
    }

    fn find(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.url() == url)
    }

    /// What a node may see of this type.
    fn view(self, snapshot: &Snapshot, node: &str) -> Resources {
        match self {
            Self::Authorization => snapshot.authorizations.clone(),
            Self::Address | Self::Workload => snapshot.addresses.clone(),
            Self::NodePod => {
                let pods = snapshot.nodes.get(node).into_iter().flatten();
                pods.map(|(name, entry)| (Arc::clone(name), Arc::clone(&entry.resource)))
                    .collect()
            }
        }
    }

    /// The resource as this type has it; `None` when it has no part in it.
    fn project(self, resource: &Arc<Resource>) -> Option<Arc<Resource>> {
        match self {
            Self::Workload => workload_of(resource).map(Arc::new),
            _ => Some(Arc::clone(resource)),
        }
    }
}

/// New and changed resources by name.
type Changed = BTreeMap<Arc<str>, Arc<Resource>>;

/// What a request meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A subscription, or an answer to something long past.
    Subscription,
    /// The client took a response of this type, made from the snapshot of this generation.
    Ack(Type, u64),
    /// The client refused it, and says why.
    Nack(Type, u64, String),
    /// Nobody serves this type.
    UnknownType(String),
}

/// The stream of one client.
#[derive(Debug)]
pub(super) struct Stream {
    node: Arc<str>,
    nonces: u64,
    subscriptions: BTreeMap<Type, Subscription>,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Names asked for since the last response: they are answered even if nothing changed.
    asked: BTreeSet<String>,
    /// Name and version of what the client brought from an earlier stream, until the first response.
    brought: BTreeMap<String, String>,
    /// What the client has been told; `None` before the first response.
    told: Option<Resources>,
    generation: u64,
    /// Removals that wait until nothing refers to the names.
    withheld: BTreeSet<Arc<str>>,
    unanswered: Option<(String, u64)>,
}

impl Stream {
    pub(super) fn new(node: Arc<str>) -> Self {
        Self {
            node,
            nonces: 0,
            subscriptions: BTreeMap::new(),
        }
    }

    /// Takes a request in.
    pub(super) fn request(&mut self, request: DeltaDiscoveryRequest) -> Meaning {
        let Some(kind) = Type::find(&request.type_url) else {
            return Meaning::UnknownType(request.type_url);
        };
        let first = !self.subscriptions.contains_key(&kind);
        let subscription = self.subscriptions.entry(kind).or_default();
        subscription.change(&request, first);
        match subscription
            .unanswered
            .take_if(|(nonce, _)| *nonce == request.response_nonce)
        {
            None => Meaning::Subscription,
            Some((_, generation)) => match request.error_detail {
                None => Meaning::Ack(kind, generation),
                Some(status) => Meaning::Nack(kind, generation, status.message),
            },
        }
    }

    /// The next response that may be sent, given what is known now. Call it until there is none.
    pub(super) fn next(&mut self, now: &Snapshot) -> Option<Response> {
        for (kind, subscription) in &mut self.subscriptions {
            if !subscription.is_behind(*kind, now, &self.node) {
                continue;
            }
            if subscription.unanswered.is_some() {
                // Later types may refer to what this one still has to say.
                return None;
            }
            let (resources, removed, is_first) = subscription.advance(*kind, now, &self.node);
            if is_first || !resources.is_empty() || !removed.is_empty() {
                return Some(respond(
                    *kind,
                    subscription,
                    &mut self.nonces,
                    resources,
                    removed,
                ));
            }
        }
        for (kind, subscription) in &mut self.subscriptions {
            if subscription.unanswered.is_none() && !subscription.withheld.is_empty() {
                let removed = std::mem::take(&mut subscription.withheld)
                    .into_iter()
                    .collect();
                return Some(respond(
                    *kind,
                    subscription,
                    &mut self.nonces,
                    Vec::new(),
                    removed,
                ));
            }
        }
        None
    }
}

fn respond(
    kind: Type,
    subscription: &mut Subscription,
    nonces: &mut u64,
    resources: Vec<Arc<Resource>>,
    removed: Vec<Arc<str>>,
) -> Response {
    *nonces += 1;
    let nonce = nonces.to_string();
    let generation = subscription.generation;
    subscription.unanswered = Some((nonce.clone(), generation));
    Response {
        generation,
        type_url: kind.url(),
        nonce,
        resources,
        removed,
    }
}

impl Subscription {
    fn change(&mut self, request: &DeltaDiscoveryRequest, first: bool) {
        let DeltaDiscoveryRequest {
            resource_names_subscribe: add,
            resource_names_unsubscribe: remove,
            ..
        } = request;
        if first {
            self.brought = request.initial_resource_versions.clone();
            // Before there were named wildcards, naming nothing meant everything.
            self.wildcard = add.is_empty() && remove.is_empty();
        }
        for name in add {
            if name == WILDCARD {
                if !self.wildcard {
                    self.wildcard = true;
                    self.told = None;
                }
            } else {
                self.names.insert(name.clone());
                self.asked.insert(name.clone());
            }
        }
        for name in remove {
            if name == WILDCARD {
                self.wildcard = false;
            } else {
                self.names.remove(name);
                self.asked.remove(name);
            }
        }
    }

    /// Whether there is something to say. A new generation that changed nothing here is noted on the way.
    fn is_behind(&mut self, kind: Type, now: &Snapshot, node: &str) -> bool {
        let Some(told) = self.told.as_ref().filter(|_| self.asked.is_empty()) else {
            return true;
        };
        if self.generation == now.generation {
            return false;
        }
        let is_same = told.diff(&kind.view(now, node)).next().is_none();
        if is_same {
            self.generation = now.generation;
        }
        !is_same
    }

    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Moves on to `now`: what is new, names of what is gone, and whether this is the first response.
    fn advance(
        &mut self,
        kind: Type,
        now: &Snapshot,
        node: &str,
    ) -> (Vec<Arc<Resource>>, Vec<Arc<str>>, bool) {
        let view = kind.view(now, node);
        let before = self.told.take();
        let is_first = before.is_none();
        let (mut changed, gone) = match before {
            None => self.since_brought(kind, &view),
            Some(before) => self.since(kind, &before, &view),
        };
        let mut removed = Vec::new();
        for name in gone {
            // Taken back when nothing names it any more; see the module's first lines.
            if kind == Type::Authorization {
                self.withheld.insert(name);
            } else {
                removed.push(name);
            }
        }
        for name in std::mem::take(&mut self.asked) {
            match view
                .get(name.as_str())
                .and_then(|resource| kind.project(resource))
            {
                // In the first response everything that is wanted has been looked at.
                Some(_) if is_first => {}
                Some(resource) => {
                    changed.insert(Arc::clone(&resource.name), resource);
                }
                None if removed.iter().any(|known| **known == *name) => {}
                None => removed.push(name.into()),
            }
        }
        self.withheld.retain(|name| !view.contains_key(name));
        self.told = Some(view);
        self.generation = now.generation;
        (changed.into_values().collect(), removed, is_first)
    }

    fn since(&self, kind: Type, before: &Resources, now: &Resources) -> (Changed, Vec<Arc<str>>) {
        let mut changed = BTreeMap::new();
        let mut gone = Vec::new();
        for item in before.diff(now) {
            match item {
                DiffItem::Add(name, resource)
                | DiffItem::Update {
                    new: (name, resource),
                    ..
                } if self.wants(name) => {
                    changed.extend(
                        kind.project(resource)
                            .map(|resource| (Arc::clone(name), resource)),
                    );
                }
                DiffItem::Remove(name, resource)
                    if self.wants(name) && kind.project(resource).is_some() =>
                {
                    gone.push(Arc::clone(name));
                }
                _ => {}
            }
        }
        (changed, gone)
    }

    /// Everything that is wanted, except what the client brought in the same version.
    fn since_brought(&mut self, kind: Type, now: &Resources) -> (Changed, Vec<Arc<str>>) {
        let brought = std::mem::take(&mut self.brought);
        let is_there = |name: &str| {
            now.get(name)
                .is_some_and(|resource| kind.project(resource).is_some())
        };
        let gone = brought
            .keys()
            .filter(|name| self.wants(name) && !is_there(name));
        let gone = gone.map(|name| Arc::from(name.as_str())).collect();
        let wanted = now.iter().filter(|(name, _)| self.wants(name));
        let changed = wanted
            .filter_map(|(name, resource)| Some((Arc::clone(name), kind.project(resource)?)))
            .filter(|(name, resource)| {
                brought
                    .get(&**name)
                    .is_none_or(|v| **v != *resource.version)
            });
        (changed.collect(), gone)
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

/// Subscribes to everything.
const WILDCARD: &str = "*";

#[cfg(test)]
mod tests;
