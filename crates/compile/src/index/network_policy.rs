//! `NetworkPolicy`, for captured pods: as policies that agents enforce on real peers and ports, on every way of a connection.
//!
//! All policies that select a pod are one list of what is allowed, and everything else is refused. So each set of policies
//! that selects pods together becomes a DENY policy with one rule, in which every clause says that one allowance does not
//! hold: "not from these addresses, or not to these ports". Peers are addresses, since labels are no part of an identity.
//!
//! Ingress is named by the pods that it isolates. Egress is enforced where a connection arrives, by a policy for all
//! workloads that holds for the addresses of the pods it isolates: so it says nothing of destinations outside of the mesh,
//! for which the cluster's own network sees real addresses and ports.
//!
//! Everything is compiled anew when something changes that it can depend on; nothing is, while it is switched off. Then agents
//! are told alone whom policies isolate, since the cluster's network may enforce them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_api::Node;
use manifest::{Labels, NamespacedName, PodFacts};
use model::PolicyKey;
use model::outbound::WAYPOINT_PORTS;
use model::workload::Isolated;
use proto::istio::security as pb;
use proto::type_url;
use sha2::{Digest as _, Sha256};

use super::Index;
use super::authorization::octets;
use super::flush::set;
use super::workload::is_waypoint;
use crate::resource::Resource;
use crate::store::{Allowance, NetworkPolicyFacts, Peer, Ports};

/// What is compiled.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Compiled {
    policies: BTreeMap<String, pb::Authorization>,
    /// The policy that isolates a pod, by the name of the pod's resource.
    by_pod: HashMap<Arc<str>, String>,
}

impl Compiled {
    /// The policy that a pod names.
    pub(super) fn of(&self, uid: &str) -> Option<&String> {
        self.by_pod.get(uid)
    }
}

/// A namespace and names of policies of it.
type Set<'w> = (Arc<str>, Vec<&'w Arc<str>>);
/// Addresses and ports that are allowed together; none of either means all.
type Reach = (Option<Vec<IpNet>>, Option<Vec<u32>>);

/// What there is to select.
pub(super) struct World<'w> {
    pub(super) policies: &'w BTreeMap<NamespacedName, NetworkPolicyFacts>,
    pub(super) namespaces: &'w HashMap<Arc<str>, Labels>,
    /// Pods that are there and have addresses of their own.
    pub(super) pods: BTreeMap<&'w Arc<str>, (&'w PodFacts, Vec<IpAddr>)>,
    /// Addresses of nodes: what runs on a node reaches the pods there.
    pub(super) nodes: &'w HashMap<Arc<str>, Vec<IpAddr>>,
}

impl Index {
    pub(super) fn set_network_policy(
        &mut self,
        key: &NamespacedName,
        facts: Option<NetworkPolicyFacts>,
    ) {
        if self.network_policies.get(key) == facts.as_ref() {
            return;
        }
        match facts {
            Some(facts) => drop(self.network_policies.insert(key.clone(), facts)),
            None => drop(self.network_policies.remove(key)),
        }
        if self.mesh.network_policies {
            self.dirty.network = true;
        } else {
            let pods = self.pods_by_namespace.get(&key.namespace);
            self.dirty.pods.extend(pods.cloned().unwrap_or_default());
        }
    }

    /// Whether there are some that the mesh enforces.
    pub(super) fn has_network_policies(&self) -> bool {
        self.mesh.network_policies && !self.network_policies.is_empty()
    }

    /// Which ways a pod is isolated by policies that the cluster's network enforces and the mesh does not. Where the mesh does,
    /// agents know it from the policies.
    pub(super) fn isolated(&self, pod: &PodFacts) -> Isolated {
        if self.mesh.network_policies || pod.host_network {
            return Isolated::default();
        }
        let namespace = &pod.key.namespace;
        let from = NamespacedName::new(namespace, "");
        let own = self.network_policies.range(from..);
        let own = own.take_while(|(key, _)| key.namespace == *namespace);
        let selecting: Vec<_> = own
            .map(|(_, policy)| policy)
            .filter(|policy| policy.selector.selects(&pod.labels))
            .collect();
        let by = |way: fn(&NetworkPolicyFacts) -> Option<&Vec<Allowance>>| {
            let mut isolating = selecting.iter().filter_map(|policy| way(policy)).peekable();
            isolating.peek().is_some() && !isolating.flatten().any(leaves_open)
        };
        Isolated {
            ingress: is_waypoint(&pod.labels) && by(|policy| policy.ingress.as_ref()),
            egress: by(|policy| policy.egress.as_ref()),
        }
    }

    pub(super) fn set_node_addresses(&mut self, node: &Node) {
        if !self.mesh.network_policies {
            return;
        }
        let status = node.status.iter();
        let addresses = status.flat_map(|status| status.addresses.iter().flatten());
        let own = addresses.filter_map(|one| one.address.parse::<IpAddr>().ok());
        let own: Vec<IpAddr> = own.collect();
        let name: Arc<str> = node.metadata.name.as_deref().unwrap_or_default().into();
        self.dirty.network |= self.node_addresses.get(&name) != Some(&own);
        self.node_addresses.insert(name, own);
    }

    /// Rebuilds what `NetworkPolicy` objects mean, and marks the pods for which that is something else.
    pub(super) fn flush_network_policies(&mut self, pods: &mut BTreeSet<Arc<str>>) -> bool {
        let there = self.pods.iter().filter(|(uid, pod)| {
            self.is_present(uid, pod) && !pod.host_network && !self.network_policies.is_empty()
        });
        let world = World {
            policies: &self.network_policies,
            namespaces: &self.namespaces,
            pods: there
                .map(|(uid, pod)| (uid, (&**pod, self.addresses_of(uid, pod))))
                .collect(),
            nodes: &self.node_addresses,
        };
        let now = compile(&world);
        let before = std::mem::take(&mut self.network);
        for uid in before.by_pod.keys().chain(now.by_pod.keys()) {
            if before.by_pod.get(uid) != now.by_pod.get(uid) {
                pods.insert(Arc::clone(uid));
            }
        }
        let map = &mut self.snapshot.authorizations;
        let mut changed = false;
        for name in before.policies.keys() {
            if !now.policies.contains_key(name) {
                changed |= set(map, name, None);
            }
        }
        for (name, policy) in &now.policies {
            let built = Resource::new(type_url::AUTHORIZATION, name.as_str(), policy);
            changed |= set(map, name, Some(built));
        }
        self.network = now;
        changed
    }
}

/// Whether an allowance is for everybody and for all ports on which waypoints take what the kernel leads to them.
fn leaves_open(allowance: &Allowance) -> bool {
    let (first, last) = (WAYPOINT_PORTS.start(), WAYPOINT_PORTS.end());
    let covers =
        |port: &Ports| matches!(port, Ports::Range(from, to) if from <= first && last <= to);
    let ports = allowance.ports.as_ref();
    allowance.peers.is_none() && ports.is_none_or(|ports| ports.iter().any(covers))
}

/// Compiles everything.
pub(super) fn compile(world: &World<'_>) -> Compiled {
    let mut compiled = Compiled::default();
    let mut isolated: BTreeMap<Set<'_>, Vec<IpAddr>> = BTreeMap::new();
    for (uid, (pod, addresses)) in &world.pods {
        let namespace = &pod.key.namespace;
        let selecting = world
            .policies
            .values()
            .filter(|policy| policy.key.namespace == *namespace)
            .filter(|policy| policy.selector.selects(&pod.labels));
        let (mut into, mut out) = (Vec::new(), Vec::new());
        for policy in selecting {
            into.extend(policy.ingress.is_some().then_some(policy));
            out.extend(policy.egress.is_some().then_some(&policy.key.name));
        }
        if !out.is_empty() {
            let key = (Arc::clone(namespace), out);
            isolated.entry(key).or_default().extend(addresses);
        }
        if let Some(policy) = world.ingress(pod, &into) {
            let name = format!("{}/{}", policy.namespace, policy.name);
            compiled.by_pod.insert(Arc::clone(uid), name.clone());
            compiled.policies.insert(name, policy);
        }
    }
    for ((namespace, names), addresses) in isolated {
        if let Some(policy) = world.egress(&namespace, &names, &addresses) {
            let name = format!("{}/{}", policy.namespace, policy.name);
            compiled.policies.insert(name, policy);
        }
    }
    compiled
}

impl World<'_> {
    /// What refuses connections to a pod that `policies` isolate; none where they allow everything.
    fn ingress(
        &self,
        pod: &PodFacts,
        policies: &[&NetworkPolicyFacts],
    ) -> Option<pb::Authorization> {
        if policies.is_empty() {
            return None;
        }
        let mut clauses = Vec::new();
        let node = self.nodes.get(&pod.node).map_or(&[][..], Vec::as_slice);
        clauses.extend(refuse(Some(nets(node.iter().copied())), None)?);
        for policy in policies {
            for allowance in policy.ingress.iter().flatten() {
                let from = self.addresses(&policy.key.namespace, allowance.peers.as_deref());
                let ports = allowance.ports.as_ref().map(|ports| {
                    let of_pod = |name: &str| {
                        let own = pod.ports.iter().filter(|port| port.name == name);
                        own.map(|port| port.port).collect::<Vec<_>>()
                    };
                    numbers(ports, of_pod)
                });
                clauses.extend(refuse(from, ports)?);
            }
        }
        let names: Vec<&str> = policies.iter().map(|policy| &*policy.key.name).collect();
        let scope = pb::Scope::WorkloadSelector;
        Some(deny(&pod.key.namespace, &names, scope, clauses, node))
    }

    /// What refuses connections of pods that `names` isolate; none where they allow everything.
    fn egress(
        &self,
        namespace: &Arc<str>,
        names: &[&Arc<str>],
        isolated: &[IpAddr],
    ) -> Option<pb::Authorization> {
        let own = pb::Match {
            source_ips: blocks(&nets(isolated.iter().copied())),
            ..pb::Match::default()
        };
        if own.source_ips.is_empty() {
            return None;
        }
        let mut clauses = vec![vec![own]];
        let policies = names.iter().filter_map(|name| {
            let key = NamespacedName {
                namespace: Arc::clone(namespace),
                name: Arc::clone(name),
            };
            self.policies.get(&key)
        });
        for allowance in policies.flat_map(|policy| policy.egress.iter().flatten()) {
            let to = self.addresses(namespace, allowance.peers.as_deref());
            for (to, ports) in self.served(allowance, to) {
                clauses.extend(refuse_to(to, ports)?);
            }
        }
        let names: Vec<&str> = names.iter().map(|name| &***name).collect();
        Some(deny(namespace, &names, pb::Scope::Global, clauses, &[]))
    }

    /// Where an allowance leads, and to which ports: one that is called by a name is another for each pod.
    fn served(&self, allowance: &Allowance, to: Option<Vec<IpNet>>) -> Vec<Reach> {
        let Some(ports) = &allowance.ports else {
            return vec![(to, None)];
        };
        let mut all = Vec::new();
        let plain = numbers(ports, |_| Vec::new());
        if !plain.is_empty() {
            all.push((to.clone(), Some(plain)));
        }
        let named: BTreeSet<&str> = ports
            .iter()
            .filter_map(|port| match port {
                Ports::Named(name) => Some(name.as_str()),
                Ports::Range(..) => None,
            })
            .collect();
        let mut by_port: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
        for (pod, addresses) in self.pods.values() {
            let meant = |ip: &&IpAddr| {
                to.as_ref()
                    .is_none_or(|to| to.iter().any(|net| net.contains(*ip)))
            };
            let addresses: Vec<IpAddr> = addresses.iter().filter(meant).copied().collect();
            let own = pod.ports.iter().filter(|port| named.contains(&*port.name));
            for port in own {
                by_port.entry(port.port).or_default().extend(&addresses);
            }
        }
        let by_port = by_port.into_iter();
        all.extend(by_port.map(|(port, ips)| (Some(nets(ips)), Some(vec![port.into()]))));
        all
    }

    /// The addresses of peers; none means all there are.
    fn addresses(&self, namespace: &Arc<str>, peers: Option<&[Peer]>) -> Option<Vec<IpNet>> {
        let mut all = Vec::new();
        for peer in peers? {
            match peer {
                Peer::Nobody => {}
                Peer::Block { block, except } => all.extend(without(*block, except)),
                Peer::Pods { namespaces, pods } => {
                    let there = self.pods.values().filter(|(pod, _)| {
                        let in_namespace = match namespaces {
                            None => pod.key.namespace == *namespace,
                            Some(selector) => self
                                .namespaces
                                .get(&pod.key.namespace)
                                .is_some_and(|labels| selector.selects(labels)),
                        };
                        in_namespace && pods.selects(&pod.labels)
                    });
                    all.extend(there.flat_map(|(_, ips)| ips.iter().copied().map(IpNet::from)));
                }
            }
        }
        Some(IpNet::aggregate(&all))
    }
}

/// The clause that an allowance of sources does not hold, or none where it never does. Nothing at all, where it always does.
fn refuse(from: Option<Vec<IpNet>>, ports: Option<Vec<u32>>) -> Option<Option<Vec<pb::Match>>> {
    negated(from, ports, |nets| pb::Match {
        not_source_ips: blocks(nets),
        ..pb::Match::default()
    })
}

/// The same of destinations.
fn refuse_to(to: Option<Vec<IpNet>>, ports: Option<Vec<u32>>) -> Option<Option<Vec<pb::Match>>> {
    negated(to, ports, |nets| pb::Match {
        not_destination_ips: blocks(nets),
        ..pb::Match::default()
    })
}

fn negated(
    nets: Option<Vec<IpNet>>,
    ports: Option<Vec<u32>>,
    elsewhere: impl Fn(&[IpNet]) -> pb::Match,
) -> Option<Option<Vec<pb::Match>>> {
    // Nobody, or no port: it allows nothing, and a clause of it would always hold.
    if nets.as_ref().is_some_and(Vec::is_empty) || ports.as_ref().is_some_and(Vec::is_empty) {
        return Some(None);
    }
    let mut matches = Vec::new();
    matches.extend(nets.map(|nets| elsewhere(&nets)));
    matches.extend(
        ports
            .filter(|ports| ports.len() < usize::from(u16::MAX))
            .map(|ports| pb::Match {
                not_destination_ports: ports,
                ..pb::Match::default()
            }),
    );
    (!matches.is_empty()).then_some(Some(matches))
}

fn deny(
    namespace: &str,
    names: &[&str],
    scope: pb::Scope,
    clauses: Vec<Vec<pb::Match>>,
    node: &[IpAddr],
) -> pb::Authorization {
    let clauses: Vec<pb::Clause> = clauses
        .into_iter()
        .map(|matches| pb::Clause { matches })
        .collect();
    let mut policy = pb::Authorization {
        namespace: namespace.to_owned(),
        scope: scope.into(),
        action: pb::Action::Deny.into(),
        rules: vec![pb::Rule { clauses }],
        ..pb::Authorization::default()
    };
    // Pods that the same policies isolate differ in what their ports are called and in their nodes. Peers come and go in a
    // policy of the same name.
    let ports = policy.rules.iter().flat_map(|rule| &rule.clauses);
    let ports: Vec<&Vec<u32>> = ports
        .flat_map(|clause| &clause.matches)
        .map(|one| &one.not_destination_ports)
        .collect();
    let digest = Sha256::digest(format!("{names:?} {ports:?} {node:?}"));
    let digest: String = digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let names = names.join("+");
    let direction = match scope {
        pb::Scope::WorkloadSelector => "ingress",
        pb::Scope::Global | pb::Scope::Namespace => "egress",
    };
    let variant = format!("{direction}-{digest}");
    policy.name = PolicyKey::network_policy(namespace, &names, &variant)
        .resource()
        .into_owned();
    policy
}

/// Every number of these ports, once; `named` gives those that a name stands for.
fn numbers(ports: &[Ports], named: impl Fn(&str) -> Vec<u16>) -> Vec<u32> {
    let mut all = BTreeSet::new();
    for port in ports {
        match port {
            Ports::Range(first, last) => all.extend(*first..=*last),
            Ports::Named(name) => all.extend(named(name)),
        }
    }
    all.into_iter().map(u32::from).collect()
}

fn nets(ips: impl IntoIterator<Item = IpAddr>) -> Vec<IpNet> {
    let nets: Vec<IpNet> = ips.into_iter().map(IpNet::from).collect();
    IpNet::aggregate(&nets)
}

fn blocks(nets: &[IpNet]) -> Vec<pb::Address> {
    let block = |net: &IpNet| pb::Address {
        address: octets(net.network()),
        length: net.prefix_len().into(),
    };
    nets.iter().map(block).collect()
}

/// A range without some that are in it.
fn without(block: IpNet, except: &[IpNet]) -> Vec<IpNet> {
    let block = block.trunc();
    if except.iter().any(|hole| hole.contains(&block)) {
        return Vec::new();
    }
    if !except.iter().any(|hole| block.contains(hole)) {
        return vec![block];
    }
    let Ok(halves) = block.subnets(block.prefix_len() + 1) else {
        return Vec::new();
    };
    halves.flat_map(|half| without(half, except)).collect()
}
