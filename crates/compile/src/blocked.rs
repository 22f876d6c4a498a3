//! Which `NetworkPolicy` keeps tunnels away from captured pods that it lets talk otherwise.
//!
//! The cluster's network sees a connection between captured pods of two nodes as one to port 15008. A policy that allows the
//! application's port and not this one refuses in the mesh what it allows without. What is refused either way is not named.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::ptr;
use std::sync::Arc;

use manifest::{Labels, PodFacts};

use crate::store::{Allowance, NetworkPolicyFacts, Peer, Ports};

/// A policy that a tunnel does not pass, with one connection that it lets pass without the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The policy, `namespace/name`.
    pub policy: String,
    /// Whether it is about what comes in to `to`; else about what leaves `from`.
    pub ingress: bool,
    /// A client, `namespace/name`.
    pub from: String,
    /// A server on another node.
    pub to: String,
    /// A port of the server that is allowed.
    pub port: u16,
}

/// Every such policy, once. `pods` are the captured ones.
///
/// Pods of which all policies say the same are looked at once, so the work grows with the kinds of pods and not with their number.
pub fn blocked(
    policies: &[NetworkPolicyFacts],
    namespaces: &HashMap<Arc<str>, Labels>,
    pods: &[PodFacts],
) -> Vec<Blocked> {
    let network = Network {
        namespaces,
        policies,
    };
    let classes = network.classes(pods);
    let mut found: BTreeMap<(String, bool), Blocked> = BTreeMap::new();
    for to in &classes {
        for from in &classes {
            let Some((client, server)) = apart(from, to) else {
                continue;
            };
            let pair = Pair { from, to };
            let Some(port) = pair.lost() else {
                continue;
            };
            let ways = [
                (true, pair.comes_in(TUNNEL)),
                (false, pair.goes_out(TUNNEL)),
            ];
            for (ingress, _) in ways.into_iter().filter(|(_, passes)| !passes) {
                let of = if ingress { to } else { from };
                for policy in of.isolating(ingress) {
                    let name = format!("{}/{}", policy.key.namespace, policy.key.name);
                    let blocked = || Blocked {
                        policy: name.clone(),
                        ingress,
                        from: named(client),
                        to: named(server),
                        port,
                    };
                    found.entry((name.clone(), ingress)).or_insert_with(blocked);
                }
            }
        }
    }
    found.into_values().collect()
}

/// Pods of which all policies say the same, at both ends of a connection.
struct Class<'w> {
    /// The policies that select them.
    selecting: Vec<&'w NetworkPolicyFacts>,
    /// The rules that have them as a peer.
    peer_of: HashSet<*const Allowance>,
    first: &'w PodFacts,
    /// One on another node than the first.
    elsewhere: Option<&'w PodFacts>,
}

impl<'w> Class<'w> {
    /// The policies that isolate its pods one way.
    fn isolating(&self, ingress: bool) -> impl Iterator<Item = &'w NetworkPolicyFacts> {
        let selecting = self.selecting.iter().copied();
        selecting.filter(move |policy| rules_of(policy, ingress).is_some())
    }

    /// The first port of each range in the rules that isolate its pods one way.
    fn firsts(&self, ingress: bool) -> impl Iterator<Item = u16> {
        let rules = self.isolating(ingress);
        let rules = rules.flat_map(move |policy| rules_of(policy, ingress).into_iter().flatten());
        let ranges = rules.flat_map(|rule| rule.ports.iter().flatten());
        ranges.filter_map(|ports| match ports {
            Ports::Range(first, _) => Some(*first),
            Ports::Named(_) => None,
        })
    }

    /// Whether the policies of its pods allow `peer` at the other end, and `port` of `server`.
    fn allows(&self, ingress: bool, peer: &Self, server: &Self, port: u16) -> bool {
        let mut isolating = self.isolating(ingress).peekable();
        isolating.peek().is_none()
            || isolating.any(|policy| {
                let mut rules = rules_of(policy, ingress).into_iter().flatten();
                rules.any(|rule| {
                    peer.peer_of.contains(&ptr::from_ref(rule)) && reaches(rule, server.first, port)
                })
            })
    }
}

/// Clients of one class and servers of another.
#[derive(Clone, Copy)]
struct Pair<'c, 'w> {
    from: &'c Class<'w>,
    to: &'c Class<'w>,
}

impl Pair<'_, '_> {
    /// A port at which the server would be reached without the mesh, and by tunnel is not.
    fn lost(self) -> Option<u16> {
        let passes = |port| self.comes_in(port) && self.goes_out(port);
        if passes(TUNNEL) {
            return None;
        }
        // What is allowed changes at these only, so they stand for all.
        let own = self.to.first.ports.iter().map(|port| port.port);
        let named = self.to.firsts(true).chain(self.from.firsts(false));
        let all: BTreeSet<u16> = own.chain(named).chain([ANY]).collect();
        all.into_iter()
            .find(|port| *port != TUNNEL && passes(*port))
    }

    fn comes_in(self, port: u16) -> bool {
        self.to.allows(true, self.from, self.to, port)
    }

    fn goes_out(self, port: u16) -> bool {
        self.from.allows(false, self.to, self.to, port)
    }
}

/// A pod of each class, on two nodes.
fn apart<'w>(from: &Class<'w>, to: &Class<'w>) -> Option<(&'w PodFacts, &'w PodFacts)> {
    let clients = [Some(from.first), from.elsewhere].into_iter().flatten();
    let servers = || [Some(to.first), to.elsewhere].into_iter().flatten();
    clients
        .flat_map(|client| servers().map(move |server| (client, server)))
        .find(|(client, server)| client.node != server.node)
}

struct Network<'w> {
    namespaces: &'w HashMap<Arc<str>, Labels>,
    policies: &'w [NetworkPolicyFacts],
}

impl<'w> Network<'w> {
    /// The classes of the pods that have a node, in the order of their first pods.
    fn classes(&self, pods: &'w [PodFacts]) -> Vec<Class<'w>> {
        let mut known: HashMap<_, usize> = HashMap::new();
        let mut classes: Vec<Class<'w>> = Vec::new();
        for pod in pods.iter().filter(|pod| !pod.node.is_empty()) {
            let selecting = selecting(self.policies, pod);
            let peer_of = self.peer_of(pod);
            let selectors: Vec<_> = selecting.iter().map(|one| ptr::from_ref(*one)).collect();
            let ports: Vec<_> = pod.ports.iter().map(|one| (&one.name, one.port)).collect();
            match known.entry((selectors, peer_of, ports)) {
                Entry::Occupied(there) => {
                    if let Some(class) = classes.get_mut(*there.get())
                        && class.first.node != pod.node
                    {
                        class.elsewhere.get_or_insert(pod);
                    }
                }
                Entry::Vacant(none) => {
                    let peer_of = none.key().1.iter().copied().collect();
                    none.insert(classes.len());
                    classes.push(Class {
                        selecting,
                        peer_of,
                        first: pod,
                        elsewhere: None,
                    });
                }
            }
        }
        classes
    }

    /// The rules that have a pod as a peer.
    fn peer_of(&self, pod: &PodFacts) -> Vec<*const Allowance> {
        let mut all = Vec::new();
        for policy in self.policies {
            let both = [&policy.ingress, &policy.egress].into_iter().flatten();
            let its = both.flatten();
            let its = its.filter(|rule| self.is_peer(rule, &policy.key.namespace, pod));
            all.extend(its.map(ptr::from_ref));
        }
        all
    }

    fn is_peer(&self, rule: &Allowance, namespace: &Arc<str>, pod: &PodFacts) -> bool {
        let is_one = |peer: &Peer| match peer {
            Peer::Nobody => false,
            Peer::Block { block, except } => pod.addresses.iter().any(|ip: &IpAddr| {
                block.contains(ip) && !except.iter().any(|hole| hole.contains(ip))
            }),
            Peer::Pods { namespaces, pods } => {
                let within = match namespaces {
                    None => pod.key.namespace == *namespace,
                    Some(selector) => {
                        let labels = self.namespaces.get(&pod.key.namespace);
                        labels.is_some_and(|labels| selector.selects(labels))
                    }
                };
                within && pods.selects(&pod.labels)
            }
        };
        rule.peers
            .as_ref()
            .is_none_or(|peers| peers.iter().any(is_one))
    }
}

fn selecting<'w>(
    policies: &'w [NetworkPolicyFacts],
    pod: &PodFacts,
) -> Vec<&'w NetworkPolicyFacts> {
    let of_namespace = |policy: &&NetworkPolicyFacts| policy.key.namespace == pod.key.namespace;
    policies
        .iter()
        .filter(of_namespace)
        .filter(|policy| policy.selector.selects(&pod.labels))
        .collect()
}

fn rules_of(policy: &NetworkPolicyFacts, ingress: bool) -> Option<&Vec<Allowance>> {
    if ingress {
        policy.ingress.as_ref()
    } else {
        policy.egress.as_ref()
    }
}

fn reaches(rule: &Allowance, server: &PodFacts, port: u16) -> bool {
    let has = |ports: &Ports| match ports {
        Ports::Range(first, last) => (*first..=*last).contains(&port),
        Ports::Named(name) => server
            .ports
            .iter()
            .any(|own| own.name == *name && own.port == port),
    };
    rule.ports
        .as_ref()
        .is_none_or(|ports| ports.iter().any(has))
}

fn named(pod: &PodFacts) -> String {
    format!("{}/{}", pod.key.namespace, pod.key.name)
}

/// The port where tunnels arrive.
const TUNNEL: u16 = 15008;
/// A port that no rule names stands for all others.
const ANY: u16 = 80;

#[cfg(test)]
mod tests;
