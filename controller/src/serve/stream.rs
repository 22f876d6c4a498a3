//! One client's discovery stream, without its transport: what it subscribed to, what it has, what it gets next.
//!
//! Two orders matter. Policies go out before the workloads that name them, and policies that are gone are taken back
//! only after the workloads that named them have changed; so a client never meets a name that it does not know. The same
//! holds for what the routes of a waypoint name. And a type has at most one response that the client has not answered.
//!
//! What a waypoint gets is cut into parts: a client has a response in memory as a whole, and a large one for as long as the
//! stream lasts.

mod demand;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use proto::envoy::discovery::DeltaDiscoveryRequest;

use super::codec::Response;
use compile::resource::Resource;
use compile::snapshot::{Resources, Snapshot};

pub(super) use types::{Type, Viewer};

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
    viewer: Viewer,
    nonces: u64,
    subscriptions: BTreeMap<Type, Subscription>,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// What the client has although it did not ask for the names: by address, or because it is on its node.
    held: BTreeSet<Arc<str>>,
    /// Names asked for since the last response: they are answered even if nothing changed.
    asked: BTreeSet<String>,
    /// Name and version of what the client brought from an earlier stream, until the first response.
    brought: BTreeMap<String, String>,
    /// What the client has been told; `None` before the first response.
    told: Option<Resources>,
    generation: u64,
    /// Removals that wait until nothing refers to the names.
    withheld: BTreeSet<Arc<str>>,
    /// What is left of a response that was cut into parts.
    rest: Option<Rest>,
    unanswered: Option<(String, u64)>,
    /// Generation of the last response that the client took.
    taken: u64,
    /// The client refused the last response, and knows at most a part of it.
    refused: bool,
}

/// The resources in the reverse of their order, and what is removed with the last part.
#[derive(Debug)]
struct Rest {
    resources: Vec<Arc<Resource>>,
    removed: Vec<Arc<str>>,
}

impl Stream {
    pub(super) fn new(viewer: Viewer) -> Self {
        Self {
            viewer,
            nonces: 0,
            subscriptions: BTreeMap::new(),
        }
    }

    /// Takes a request in.
    pub(super) fn request(&mut self, request: DeltaDiscoveryRequest) -> Meaning {
        let known = Type::find(&request.type_url).filter(|kind| self.viewer.has(*kind));
        let Some(kind) = known else {
            return Meaning::UnknownType(request.type_url);
        };
        let first = !self.subscriptions.contains_key(&kind);
        let subscription = self.subscriptions.entry(kind).or_default();
        subscription.change(&request, first);
        subscription.let_go(kind, &request.resource_names_unsubscribe, &self.viewer);
        match subscription
            .unanswered
            .take_if(|(nonce, _)| *nonce == request.response_nonce)
        {
            None => Meaning::Subscription,
            Some((_, generation)) => {
                subscription.refused = request.error_detail.is_some();
                if !subscription.refused {
                    subscription.taken = generation;
                }
                match request.error_detail {
                    None => Meaning::Ack(kind, generation),
                    Some(status) => Meaning::Nack(kind, generation, status.message),
                }
            }
        }
    }

    /// Everything up to this generation about workloads is known to the client. It is asked after [`Stream::next`]
    /// has nothing more to say.
    pub(super) fn knows(&self) -> u64 {
        // A waypoint dials nobody past the agent of its node, and of what another control plane says nothing is known here.
        if !matches!(self.viewer, Viewer::Node(_)) {
            return u64::MAX;
        }
        let known = Type::OF_WORKLOADS
            .iter()
            .filter_map(|kind| self.subscriptions.get(kind));
        // Who has not asked for workloads may be about to.
        known.map(Subscription::knows).min().unwrap_or(0)
    }

    /// The next response that may be sent, given what is known now. Call it until there is none.
    pub(super) fn next(&mut self, now: &Snapshot) -> Option<Response> {
        for (kind, subscription) in &mut self.subscriptions {
            let is_cut = subscription.rest.is_some();
            if !is_cut && !subscription.is_behind(*kind, now, &self.viewer) {
                continue;
            }
            if subscription.unanswered.is_some() {
                // Later types may refer to what this one still has to say.
                return None;
            }
            if !is_cut {
                let (mut resources, removed, is_first) =
                    subscription.advance(*kind, now, &self.viewer);
                if !is_first && resources.is_empty() && removed.is_empty() {
                    continue;
                }
                if !kind.is_for_waypoints() {
                    let what = (resources, removed, false);
                    return Some(respond(*kind, subscription, &mut self.nonces, what));
                }
                resources.reverse();
                subscription.rest = Some(Rest { resources, removed });
            }
            let part = subscription.part();
            return Some(respond(*kind, subscription, &mut self.nonces, part));
        }
        for (kind, subscription) in &mut self.subscriptions {
            if subscription.unanswered.is_none() && !subscription.withheld.is_empty() {
                let removed = std::mem::take(&mut subscription.withheld)
                    .into_iter()
                    .collect();
                let what = (Vec::new(), removed, false);
                return Some(respond(*kind, subscription, &mut self.nonces, what));
            }
        }
        None
    }
}

fn respond(
    kind: Type,
    subscription: &mut Subscription,
    nonces: &mut u64,
    (resources, removed, more): (Vec<Arc<Resource>>, Vec<Arc<str>>, bool),
) -> Response {
    *nonces += 1;
    let nonce = nonces.to_string();
    let generation = subscription.generation;
    // Who has taken a part does not know the whole.
    let known = if more { subscription.taken } else { generation };
    subscription.unanswered = Some((nonce.clone(), known));
    Response {
        generation,
        type_url: kind.url(),
        nonce,
        resources,
        removed,
        more,
    }
}

impl Subscription {
    /// The next part of what is left, what is removed with it, and whether more follows.
    fn part(&mut self) -> (Vec<Arc<Resource>>, Vec<Arc<str>>, bool) {
        let Some(rest) = &mut self.rest else {
            return Default::default();
        };
        let (mut part, mut bytes) = (Vec::new(), 0);
        while bytes < PART
            && let Some(resource) = rest.resources.pop()
        {
            bytes += resource.frame().len();
            part.push(resource);
        }
        if !rest.resources.is_empty() {
            return (part, Vec::new(), true);
        }
        let removed = self.rest.take().map(|rest| rest.removed);
        (part, removed.unwrap_or_default(), false)
    }

    fn knows(&self) -> u64 {
        if self.told.is_some() && self.unanswered.is_none() && !self.refused {
            // What changed since the last response is nothing of this type.
            self.generation
        } else {
            self.taken
        }
    }

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
        if first && !self.wildcard {
            // What it got by address in an earlier stream it has by name.
            self.held = self
                .brought
                .keys()
                .map(|name| name.as_str().into())
                .collect();
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
    fn is_behind(&mut self, kind: Type, now: &Snapshot, viewer: &Viewer) -> bool {
        let Some(told) = self.told.as_ref().filter(|_| self.asked.is_empty()) else {
            return true;
        };
        if self.generation == now.generation {
            return false;
        }
        let is_same = told.diff(&kind.view(now, viewer)).next().is_none();
        if is_same {
            self.generation = now.generation;
        }
        !is_same
    }

    /// What was held for an address that the client does not ask for any more is not its concern.
    fn let_go(&mut self, kind: Type, unsubscribed: &[String], viewer: &Viewer) {
        if self.held.is_empty() || unsubscribed.is_empty() {
            return;
        }
        let mut held = std::mem::take(&mut self.held);
        held.retain(|name| {
            let told = self.told.as_ref().and_then(|told| told.get(name));
            told.is_some_and(|resource| self.is_on_demand(kind, resource, viewer))
        });
        self.held = held;
    }

    fn has_name(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name) || self.held.contains(name)
    }

    fn wants(&self, kind: Type, name: &str, resource: &Resource, viewer: &Viewer) -> bool {
        self.has_name(name) || self.is_on_demand(kind, resource, viewer)
    }

    fn is_on_demand(&self, kind: Type, resource: &Resource, viewer: &Viewer) -> bool {
        !self.wildcard
            && kind.is_address()
            && demand::is_wanted(resource, &self.names, viewer.node())
    }

    /// As the client gets it: who asks on demand hears under which other names it could have asked.
    fn addressed(&self, kind: Type, view: &Resources, resource: Arc<Resource>) -> Arc<Resource> {
        if self.wildcard || !kind.is_address() {
            return resource;
        }
        let aliases = view.get(&resource.name).map(|whole| demand::aliases(whole));
        Arc::new(resource.with_aliases(kind.url(), &aliases.unwrap_or_default()))
    }

    /// Moves on to `now`: what is new, names of what is gone, and whether this is the first response.
    fn advance(
        &mut self,
        kind: Type,
        now: &Snapshot,
        viewer: &Viewer,
    ) -> (Vec<Arc<Resource>>, Vec<Arc<str>>, bool) {
        let view = kind.view(now, viewer);
        let before = self.told.take();
        let is_first = before.is_none();
        let (mut changed, gone) = match before {
            None => self.since_brought(kind, &view, viewer),
            Some(before) => self.since(kind, &before, &view, viewer),
        };
        self.hold(&changed, &gone);
        let mut removed = Vec::new();
        for name in gone {
            // Taken back when nothing names it any more; see the module's first lines.
            if kind.is_named() {
                self.withheld.insert(name);
            } else {
                removed.push(name);
            }
        }
        let asked = std::mem::take(&mut self.asked);
        let mut by_alias = self.find(kind, &view, &asked);
        for name in asked {
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
                None => {
                    let found = by_alias.remove(&name).unwrap_or_default();
                    if found.is_empty() {
                        removed.push(name.into());
                    }
                    self.hold(&found, &[]);
                    changed.extend(found);
                }
            }
        }
        self.withheld.retain(|name| !view.contains_key(name));
        let changed = changed
            .into_values()
            .map(|resource| self.addressed(kind, &view, resource))
            .collect();
        self.told = Some(view);
        self.generation = now.generation;
        (changed, removed, is_first)
    }

    /// What names stand for that are none of a resource's own.
    fn find(
        &self,
        kind: Type,
        view: &Resources,
        asked: &BTreeSet<String>,
    ) -> BTreeMap<String, Changed> {
        if !kind.is_address() {
            return BTreeMap::new();
        }
        let project = |resource: &Arc<Resource>| {
            let resource = kind.project(resource)?;
            Some((Arc::clone(&resource.name), resource))
        };
        demand::find(view, asked)
            .into_iter()
            .map(|(alias, found)| (alias, found.iter().filter_map(project).collect()))
            .collect()
    }

    fn hold(&mut self, changed: &Changed, gone: &[Arc<str>]) {
        if self.wildcard {
            return;
        }
        for name in gone {
            self.held.remove(name);
        }
        let unnamed = changed.keys().filter(|name| !self.names.contains(&***name));
        self.held.extend(unnamed.cloned());
    }

    fn since(
        &self,
        kind: Type,
        before: &Resources,
        now: &Resources,
        viewer: &Viewer,
    ) -> (Changed, Vec<Arc<str>>) {
        let mut changed = BTreeMap::new();
        let mut gone = Vec::new();
        for item in before.diff(now) {
            match item {
                DiffItem::Add(name, resource)
                | DiffItem::Update {
                    new: (name, resource),
                    ..
                } if self.wants(kind, name, resource, viewer) => {
                    changed.extend(
                        kind.project(resource)
                            .map(|resource| (Arc::clone(name), resource)),
                    );
                }
                DiffItem::Remove(name, resource)
                    if self.has_name(name) && kind.project(resource).is_some() =>
                {
                    gone.push(Arc::clone(name));
                }
                _ => {}
            }
        }
        (changed, gone)
    }

    /// Everything that is wanted, except what the client brought in the same version.
    fn since_brought(
        &mut self,
        kind: Type,
        now: &Resources,
        viewer: &Viewer,
    ) -> (Changed, Vec<Arc<str>>) {
        let brought = std::mem::take(&mut self.brought);
        let is_there = |name: &str| {
            now.get(name)
                .is_some_and(|resource| kind.project(resource).is_some())
        };
        let gone = brought
            .keys()
            .filter(|name| self.has_name(name) && !is_there(name));
        let gone = gone.map(|name| Arc::from(name.as_str())).collect();
        let wanted = now
            .iter()
            .filter(|(name, resource)| self.wants(kind, name, resource, viewer));
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

/// A part ends with the resource that makes it as large as this, in bytes.
const PART: usize = 64 << 10;
/// Subscribes to everything.
const WILDCARD: &str = "*";

#[cfg(test)]
mod tests;
