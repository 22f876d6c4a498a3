//! Facts of a `NetworkPolicy`, as far as they are about TCP.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_api::{IntOrString, LabelSelector, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use manifest::{Labels, NamespacedName};

/// What the index needs to know of a `NetworkPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkPolicyFacts {
    /// Who it is.
    pub key: NamespacedName,
    /// The pods of its namespace that it isolates.
    pub selector: Selector,
    /// Who may connect to them; none where it does not isolate that way.
    pub ingress: Option<Vec<Allowance>>,
    /// To whom they may connect; none where it does not isolate that way.
    pub egress: Option<Vec<Allowance>>,
}

/// One rule: peers and ports that are allowed together.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowance {
    /// Any of them; none means anybody.
    pub peers: Option<Vec<Peer>>,
    /// Any of them; none means any port.
    pub ports: Option<Vec<Ports>>,
}

/// Somebody at the other end.
#[derive(Clone, Debug, PartialEq)]
pub enum Peer {
    /// Addresses.
    Block {
        /// The range.
        block: IpNet,
        /// What of it is not meant.
        except: Vec<IpNet>,
    },
    /// Pods of the selected namespaces.
    Pods {
        /// Namespaces; none means the policy's own.
        namespaces: Option<Selector>,
        /// Pods of them.
        pods: Selector,
    },
    /// What cannot be read is nobody.
    Nobody,
}

/// Ports of TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// From one to another, both inclusive.
    Range(u16, u16),
    /// As the pods that serve call it.
    Named(String),
}

/// A selector of labels, with its expressions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector {
    labels: BTreeMap<String, String>,
    expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq)]
struct Expression {
    key: String,
    operator: String,
    values: Vec<String>,
}

impl NetworkPolicyFacts {
    /// Reads a policy.
    pub fn read(policy: &NetworkPolicy) -> Self {
        let spec = policy.spec.clone().unwrap_or_default();
        let types = spec.policy_types.unwrap_or_default();
        let isolates = |kind: &str| types.iter().any(|one| one == kind);
        // As the API server fills in what is left out.
        let ingress = types.is_empty() || isolates("Ingress");
        let egress = isolates("Egress") || (types.is_empty() && spec.egress.is_some());
        let ingress = ingress.then(|| {
            let rules = spec.ingress.unwrap_or_default().into_iter();
            rules
                .filter_map(|rule| allowance(rule.from, rule.ports))
                .collect()
        });
        let egress = egress.then(|| {
            let rules = spec.egress.unwrap_or_default().into_iter();
            rules
                .filter_map(|rule| allowance(rule.to, rule.ports))
                .collect()
        });
        Self {
            key: NamespacedName::of(&policy.metadata),
            selector: Selector::read(spec.pod_selector.as_ref()),
            ingress,
            egress,
        }
    }
}

/// None for what allows nothing of TCP.
fn allowance(
    peers: Option<Vec<NetworkPolicyPeer>>,
    ports: Option<Vec<NetworkPolicyPort>>,
) -> Option<Allowance> {
    let peers = peers.filter(|peers| !peers.is_empty());
    let ports = ports.filter(|ports| !ports.is_empty());
    let ports = match ports {
        None => None,
        Some(all) => {
            let mut tcp = Vec::new();
            for port in all {
                let is_tcp = port.protocol.as_deref().is_none_or(|name| name == "TCP");
                match (is_tcp, port.port) {
                    (false, _) => {}
                    (true, None) => tcp.push(Ports::Range(1, u16::MAX)),
                    (true, Some(IntOrString::String(name))) => tcp.push(Ports::Named(name)),
                    (true, Some(IntOrString::Int(first))) => {
                        let last = port.end_port.unwrap_or(first);
                        // A number that is no port is reached by nobody.
                        if let (Ok(first), Ok(last)) = (first.try_into(), last.try_into()) {
                            tcp.push(Ports::Range(first, last));
                        }
                    }
                }
            }
            if tcp.is_empty() {
                return None;
            }
            Some(tcp)
        }
    };
    Some(Allowance {
        peers: peers.map(|peers| peers.into_iter().map(peer).collect()),
        ports,
    })
}

fn peer(peer: NetworkPolicyPeer) -> Peer {
    if let Some(block) = peer.ip_block {
        let except = block.except.unwrap_or_default();
        let except: Result<Vec<IpNet>, _> = except.iter().map(|text| text.parse()).collect();
        return match (block.cidr.parse(), except) {
            (Ok(block), Ok(except)) => Peer::Block { block, except },
            _ => Peer::Nobody,
        };
    }
    if peer.namespace_selector.is_none() && peer.pod_selector.is_none() {
        return Peer::Nobody;
    }
    Peer::Pods {
        namespaces: peer
            .namespace_selector
            .as_ref()
            .map(|selector| Selector::read(Some(selector))),
        pods: Selector::read(peer.pod_selector.as_ref()),
    }
}

impl Selector {
    /// Reads a selector; none is the empty one, which selects everything.
    pub(crate) fn read(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else {
            return Self::default();
        };
        let expressions = selector.match_expressions.iter().flatten();
        Self {
            labels: selector.match_labels.clone().unwrap_or_default(),
            expressions: expressions
                .map(|expression| Expression {
                    key: expression.key.clone(),
                    operator: expression.operator.clone(),
                    values: expression.values.clone().unwrap_or_default(),
                })
                .collect(),
        }
    }

    /// Whether it selects what has these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|one| one.holds(labels))
    }
}

impl Expression {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let is_one = value.is_some_and(|value| self.values.contains(value));
        match self.operator.as_str() {
            "In" => is_one,
            "NotIn" => !is_one,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            // The API server knows no other.
            _ => false,
        }
    }
}
