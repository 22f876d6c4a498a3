//! Which `NetworkPolicy` keeps tunnels away from captured pods that it lets talk otherwise.
//!
//! The cluster's network sees a connection between captured pods of two nodes as one to port 15008. A policy that allows the
//! application's port and not this one refuses in the mesh what it allows without. What is refused either way is not named.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
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
pub fn blocked(
    policies: &[NetworkPolicyFacts],
    namespaces: &HashMap<Arc<str>, Labels>,
    pods: &[PodFacts],
) -> Vec<Blocked> {
    let network = Network {
        namespaces,
        of: pods.iter().map(|pod| selecting(policies, pod)).collect(),
    };
    let mut found: BTreeMap<(String, bool), Blocked> = BTreeMap::new();
    for (to, server) in pods.iter().enumerate() {
        for (from, client) in pods.iter().enumerate() {
            if client.node == server.node || client.node.is_empty() || server.node.is_empty() {
                continue;
            }
            let Some(port) = network.lost(policies, (from, client), (to, server)) else {
                continue;
            };
            let blocks_in = !network.comes_in(to, client, server, TUNNEL);
            let blocks_out = !network.goes_out(from, server, TUNNEL);
            let ways = [(true, blocks_in, to), (false, blocks_out, from)];
            for (ingress, _, of) in ways.into_iter().filter(|(_, blocks, _)| *blocks) {
                for policy in network.isolating(of, ingress) {
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

/// What policies say of each pod, in the pods' order.
struct Network<'w> {
    namespaces: &'w HashMap<Arc<str>, Labels>,
    of: Vec<Vec<&'w NetworkPolicyFacts>>,
}

impl<'w> Network<'w> {
    /// The policies that isolate a pod one way.
    fn isolating(
        &self,
        pod: usize,
        ingress: bool,
    ) -> impl Iterator<Item = &'w NetworkPolicyFacts> + use<'_, 'w> {
        let selecting = self.of.get(pod).into_iter().flatten().copied();
        selecting.filter(move |policy| rules(policy, ingress).is_some())
    }

    /// A port at which the server would be reached without the mesh, and by tunnel is not.
    fn lost(
        &self,
        policies: &[NetworkPolicyFacts],
        (from, client): (usize, &PodFacts),
        (to, server): (usize, &PodFacts),
    ) -> Option<u16> {
        let passes =
            |port| self.comes_in(to, client, server, port) && self.goes_out(from, server, port);
        if passes(TUNNEL) {
            return None;
        }
        candidates(policies, server)
            .into_iter()
            .find(|port| passes(*port))
    }

    fn comes_in(&self, to: usize, client: &PodFacts, server: &PodFacts, port: u16) -> bool {
        self.allows(to, true, client, server, port)
    }

    fn goes_out(&self, from: usize, server: &PodFacts, port: u16) -> bool {
        self.allows(from, false, server, server, port)
    }

    /// Whether the policies of a pod allow `peer` at the other end, and `port` of `server`.
    fn allows(
        &self,
        pod: usize,
        ingress: bool,
        peer: &PodFacts,
        server: &PodFacts,
        port: u16,
    ) -> bool {
        let mut isolating = self.isolating(pod, ingress).peekable();
        isolating.peek().is_none()
            || isolating.any(|policy| {
                let rules = rules(policy, ingress).into_iter().flatten();
                rules.into_iter().any(|rule| {
                    self.is_peer(rule, &policy.key.namespace, peer) && reaches(rule, server, port)
                })
            })
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

fn rules(policy: &NetworkPolicyFacts, ingress: bool) -> Option<&Vec<Allowance>> {
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

/// Ports that stand for all of them: what is allowed changes at these only.
fn candidates(policies: &[NetworkPolicyFacts], server: &PodFacts) -> BTreeSet<u16> {
    let named = server.ports.iter().map(|port| port.port);
    let both = policies
        .iter()
        .flat_map(|policy| [&policy.ingress, &policy.egress]);
    let rules = both.flatten().flatten();
    let ranges = rules.flat_map(|rule| rule.ports.iter().flatten());
    let firsts = ranges.filter_map(|ports| match ports {
        Ports::Range(first, _) => Some(*first),
        Ports::Named(_) => None,
    });
    // Any port, where rules name none.
    let all: BTreeSet<u16> = named.chain(firsts).chain([ANY]).collect();
    all.into_iter().filter(|port| *port != TUNNEL).collect()
}

fn named(pod: &PodFacts) -> String {
    format!("{}/{}", pod.key.namespace, pod.key.name)
}

/// Where tunnels arrive.
const TUNNEL: u16 = 15008;
const ANY: u16 = 80;

#[cfg(test)]
mod tests;
