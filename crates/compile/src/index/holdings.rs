//! Which pods each node said it captured, and which addresses are theirs: what decides whether an address is reached
//! by tunnel, whatever becomes of the object of its pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use manifest::{NamespacedName, PodFacts};
use serde::{Deserialize, Serialize};

/// A pod that a node captured, as the node said it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The pod.
    #[serde(flatten)]
    pub pod: NamespacedName,
    /// Its `metadata.uid`; empty if the node did not say, and no object has said it since.
    #[serde(default)]
    pub uid: String,
    /// The addresses that the cluster gave to it.
    #[serde(default)]
    pub addresses: BTreeSet<IpAddr>,
    /// Its service account, once its object has said it.
    #[serde(default)]
    pub service_account: Option<Arc<str>>,
    /// A later word of the node left it out, and that word was not about all that the node holds.
    #[serde(default)]
    pub lost: bool,
}

/// What a node says about its captured pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// The pods.
    pub pods: Vec<Sandbox>,
    /// The node may hold more than these.
    pub partial: bool,
}

/// Which pods count as captured: what the nodes said, and pods whose objects are gone while their nodes hold them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Captured {
    /// By node, also of nodes that said that they have none.
    pub nodes: BTreeMap<String, Vec<Sandbox>>,
    /// Pods without an object.
    pub departed: Vec<PodFacts>,
}

/// The sandboxes of all nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Holdings {
    nodes: HashMap<Arc<str>, Node>,
    by_address: HashMap<IpAddr, BTreeSet<Holder>>,
}

/// Who has an address: node and resource name.
type Holder = (Arc<str>, Arc<str>);

/// By resource name. Nearly always one sandbox; more while a pod of the same name replaces another.
type Node = HashMap<Arc<str>, Vec<Sandbox>>;

/// What changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Difference {
    /// Resource names.
    pub(super) pods: BTreeSet<Arc<str>>,
    pub(super) addresses: BTreeSet<IpAddr>,
}

impl Sandbox {
    /// A pod of which only the name is known.
    pub fn named(pod: NamespacedName) -> Self {
        Self {
            pod,
            uid: String::new(),
            addresses: BTreeSet::new(),
            service_account: None,
            lost: false,
        }
    }

    /// Whether an object describes this very pod: a uid that is not known is no difference.
    pub(super) fn is_of(&self, pod: &PodFacts) -> bool {
        let uid = pod.uid_on_node();
        self.uid.is_empty() || uid.is_empty() || self.uid == uid
    }

    /// Learns from the pod's object.
    fn bind(&mut self, pod: &PodFacts) {
        if pod.host_network || self.lost {
            return;
        }
        if self.uid.is_empty() {
            pod.uid_on_node().clone_into(&mut self.uid);
        }
        self.addresses.extend(&pod.addresses);
        self.service_account = Some(Arc::clone(&pod.service_account));
    }
}

impl Holdings {
    /// Whether an agent of ours has spoken for a node.
    pub(super) fn has_spoken(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// The sandboxes that go by a pod's name on its node.
    pub(super) fn of(&self, node: &str, name: &str) -> &[Sandbox] {
        self.nodes
            .get(node)
            .and_then(|node| node.get(name))
            .map_or(&[], Vec::as_slice)
    }

    /// Whether a node holds an address, as far as it has said.
    pub(super) fn has_address(&self, node: &str, address: IpAddr) -> bool {
        let holders = self.by_address.get(&address).into_iter().flatten();
        holders.into_iter().any(|(holder, _)| **holder == *node)
    }

    /// All who have an address, with the resource names of their pods.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = (&Arc<str>, &Sandbox)> {
        let holders = self.by_address.get(&address).into_iter().flatten();
        holders.flat_map(move |(node, name)| {
            let sandboxes = self.of(node, name).iter();
            sandboxes
                .filter(move |sandbox| sandbox.addresses.contains(&address))
                .map(move |sandbox| (node, sandbox))
        })
    }

    /// Takes a node's word. `object` gives the resource name of a pod and its object on this node.
    pub(super) fn hear<'p>(
        &mut self,
        node: &Arc<str>,
        word: Word,
        object: impl Fn(&NamespacedName) -> (Arc<str>, Option<&'p PodFacts>),
    ) -> Difference {
        let before = self.take(node);
        let mut now = Node::new();
        for mut sandbox in word.pods {
            let (name, pod) = object(&sandbox.pod);
            let pod = pod.filter(|pod| sandbox.is_of(pod));
            let known = before.get(&name).into_iter().flatten();
            let mut known =
                known.filter(|known| known.uid == sandbox.uid || sandbox.uid.is_empty());
            // What an object said before stays true; of a word without uid only if there is no object to ask.
            if let Some(known) = known.next_back().filter(|known| {
                !sandbox.uid.is_empty() || pod.is_none_or(|pod| known.uid == pod.uid_on_node())
            }) {
                sandbox.uid.clone_from(&known.uid);
                sandbox.addresses.extend(&known.addresses);
                sandbox.service_account.clone_from(&known.service_account);
            }
            if let Some(pod) = pod {
                sandbox.bind(pod);
            }
            let all = now.entry(name).or_default();
            if !all.contains(&sandbox) {
                all.push(sandbox);
            }
        }
        if word.partial {
            keep_lost(&before, &mut now);
        }
        self.put(node, now);
        self.difference(node, before)
    }

    /// Learns from an object of a pod on a node. Says whether there was anything to learn.
    pub(super) fn bind(&mut self, name: &Arc<str>, pod: &PodFacts) -> bool {
        let own = self.nodes.get_mut(&pod.node).and_then(|n| n.get_mut(name));
        let mut changed = false;
        for sandbox in own.into_iter().flatten().filter(|own| own.is_of(pod)) {
            let before = sandbox.clone();
            sandbox.bind(pod);
            changed |= before != *sandbox;
            for address in sandbox.addresses.difference(&before.addresses) {
                let holders = self.by_address.entry(*address).or_default();
                holders.insert((Arc::clone(&pod.node), Arc::clone(name)));
            }
        }
        changed
    }

    /// A pod of a node has an address now: who was lost with it on another node does not have it any more. About its
    /// own pods the node has the last word.
    pub(super) fn pass_on(&mut self, address: IpAddr, heirs_node: &str) -> bool {
        let holders = self.by_address.get(&address).cloned().unwrap_or_default();
        let mut changed = false;
        for (node, name) in holders.iter().filter(|(node, _)| **node != *heirs_node) {
            let own = self.nodes.get_mut(node).and_then(|n| n.get_mut(name));
            let Some(own) = own else { continue };
            for sandbox in own.iter_mut().filter(|own| own.lost) {
                changed |= sandbox.addresses.remove(&address);
            }
            own.retain(|sandbox| !sandbox.lost || !sandbox.addresses.is_empty());
            if !own.iter().any(|own| own.addresses.contains(&address))
                && let Some(holders) = self.by_address.get_mut(&address)
            {
                holders.remove(&(Arc::clone(node), Arc::clone(name)));
            }
        }
        changed
    }

    /// The node is no more: what it held is free, but for pods that `keep` says are still there.
    pub(super) fn forget(
        &mut self,
        node: &Arc<str>,
        keep: impl Fn(&str, &Sandbox) -> bool,
    ) -> Difference {
        let before = self.take(node);
        let mut now = Node::new();
        for (name, sandboxes) in &before {
            let kept = sandboxes.iter().filter(|sandbox| keep(name, sandbox));
            let kept: Vec<_> = kept.cloned().collect();
            if !kept.is_empty() {
                now.insert(Arc::clone(name), kept);
            }
        }
        if !now.is_empty() {
            self.put(node, now);
        }
        self.difference(node, before)
    }

    /// What is to be kept over a restart.
    pub(super) fn to_keep(&self) -> BTreeMap<String, Vec<Sandbox>> {
        let nodes = self.nodes.iter();
        nodes
            .map(|(node, sandboxes)| (node.to_string(), sorted(sandboxes)))
            .collect()
    }

    /// The same of one node.
    pub(super) fn kept_of(&self, node: &str) -> Vec<Sandbox> {
        self.nodes.get(node).map(sorted).unwrap_or_default()
    }

    fn take(&mut self, node: &Arc<str>) -> Node {
        let before = self.nodes.remove(node).unwrap_or_default();
        for (name, sandbox) in each(&before) {
            for address in &sandbox.addresses {
                if let Some(holders) = self.by_address.get_mut(address) {
                    holders.remove(&(Arc::clone(node), Arc::clone(name)));
                    if holders.is_empty() {
                        self.by_address.remove(address);
                    }
                }
            }
        }
        before
    }

    fn put(&mut self, node: &Arc<str>, now: Node) {
        for (name, sandbox) in each(&now) {
            for address in &sandbox.addresses {
                let holders = self.by_address.entry(*address).or_default();
                holders.insert((Arc::clone(node), Arc::clone(name)));
            }
        }
        self.nodes.insert(Arc::clone(node), now);
    }

    fn difference(&self, node: &Arc<str>, before: Node) -> Difference {
        let none = Node::new();
        let now = self.nodes.get(node).unwrap_or(&none);
        let mut difference = Difference::default();
        let names: BTreeSet<&Arc<str>> = before.keys().chain(now.keys()).collect();
        for name in names {
            let (old, new) = (before.get(name), now.get(name));
            if old == new {
                continue;
            }
            difference.pods.insert(Arc::clone(name));
            let sandboxes = old.into_iter().chain(new).flatten();
            let addresses = sandboxes.flat_map(|sandbox| sandbox.addresses.iter().copied());
            difference.addresses.extend(addresses);
        }
        difference
    }
}

fn sorted(node: &Node) -> Vec<Sandbox> {
    let mut all: Vec<Sandbox> = node.values().flatten().cloned().collect();
    all.sort_by(|a, b| (&a.pod, &a.uid).cmp(&(&b.pod, &b.uid)));
    all
}

/// A word that leaves pods out without saying that they are gone ends nothing.
fn keep_lost(before: &Node, now: &mut Node) {
    let mut room = MAX_LOST;
    for (name, sandbox) in each(before) {
        let all = now.entry(Arc::clone(name)).or_default();
        let is_there = all.iter().any(|known| known.uid == sandbox.uid);
        if !is_there && !sandbox.addresses.is_empty() && room > 0 {
            room -= 1;
            all.push(Sandbox {
                lost: true,
                ..sandbox.clone()
            });
        }
    }
    now.retain(|_, sandboxes| !sandboxes.is_empty());
}

fn each(node: &Node) -> impl Iterator<Item = (&Arc<str>, &Sandbox)> {
    node.iter()
        .flat_map(|(name, sandboxes)| sandboxes.iter().map(move |sandbox| (name, sandbox)))
}

/// Reads what was kept, also by a version that kept names only.
impl<'de> Deserialize<'de> for Captured {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Kept {
            Sandboxes {
                nodes: BTreeMap<String, Vec<Sandbox>>,
                departed: Vec<PodFacts>,
            },
            Names(BTreeMap<String, BTreeSet<String>>),
        }
        Ok(match Kept::deserialize(from)? {
            Kept::Sandboxes { nodes, departed } => Self { nodes, departed },
            Kept::Names(names) => Self {
                nodes: names
                    .into_iter()
                    .map(|(node, names)| (node, named(names).collect()))
                    .collect(),
                departed: Vec::new(),
            },
        })
    }
}

/// The pods of which only the names of their resources are known; what is no such name is left out.
pub fn named(names: impl IntoIterator<Item = String>) -> impl Iterator<Item = Sandbox> {
    names.into_iter().filter_map(|name| {
        let mut parts = name.split('/').skip(2);
        let three = [parts.next()?, parts.next()?, parts.next()?];
        let ["Pod", namespace, name] = three else {
            return None;
        };
        parts
            .next()
            .is_none()
            .then(|| Sandbox::named(NamespacedName::new(namespace, name)))
    })
}

/// Pods that a node may leave out of its words and that are still not taken for gone.
const MAX_LOST: usize = 4096;
