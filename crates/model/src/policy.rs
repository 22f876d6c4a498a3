//! Who may connect to whom: compiled L4 policies and the verdict on one connection.
//!
//! The form is that of Istio's `istio.security.Authorization`. Which policies apply to a workload
//! is the business of [`crate::state`].

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::identity::Identity;
use crate::text::{NameError, parse, split};

mod matching;
#[cfg(test)]
mod naive;
#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
mod verdict;

pub use verdict::{AllowReason, DenyReason, RefusingPolicy, Verdict};

/// Names a policy in the whole mesh, by the object that it was made of.
///
/// Written and read as the resource that carries it is named, `namespace/name`. What is not an `AuthorizationPolicy` has
/// a prefix there that no object's name can have (Istio: architecture/ambient/peer-authentication.md), so objects of two
/// kinds may have the same name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// What it was made of.
    pub kind: PolicyKind,
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Name of the object; of [`PolicyKind::StaticStrict`], which is of no single one, the resource's.
    pub name: Arc<str>,
}

/// What a policy was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyKind {
    /// An `AuthorizationPolicy`.
    AuthorizationPolicy,
    /// A `PeerAuthentication` that selects workloads and of which some ports differ.
    PeerAuthentication,
    /// One or several `NetworkPolicy` objects that isolate the same pods.
    NetworkPolicy,
    /// No object of its own: all workloads name it that are STRICT on every port. [`Workload::strict_by`] says which
    /// `PeerAuthentication` is the cause.
    ///
    /// [`Workload::strict_by`]: crate::Workload::strict_by
    StaticStrict,
}

/// An object that a user wrote, for people: `PeerAuthentication shop/default`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyObject<'k> {
    kind: &'static str,
    key: &'k PolicyKey,
}

/// A compiled L4 policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name in the whole mesh.
    pub key: PolicyKey,
    /// Which workloads it applies to.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// OR-ed; a policy without rules never matches.
    pub rules: Vec<Rule>,
    /// It never takes part in a verdict.
    pub dry_run: bool,
    /// Why it says less, and so allows less, than the object that it was compiled from. Shown
    /// with every refusal that comes of it.
    pub unenforceable: Option<Arc<str>>,
}

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// All.
    Global,
    /// Those of its namespace.
    Namespace,
    /// Those that name it.
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// The connection is allowed if nothing denies it.
    Allow,
    /// The connection is denied.
    Deny,
}

/// Conditions that must all hold; a rule without clauses matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// AND-ed.
    pub clauses: Vec<Clause>,
}

/// Conditions of which one must hold; a clause without matches holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clause {
    /// OR-ed.
    pub matches: Vec<Match>,
}

/// Conditions on the ends of a connection.
///
/// Within a field the values are OR-ed, over the fields AND-ed, and a `not_` field holds if none
/// of its values does. A match with no values at all never holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Match {
    /// Namespace of the source's identity.
    pub namespaces: Vec<StringMatch>,
    /// The same, negated.
    pub not_namespaces: Vec<StringMatch>,
    /// The source's identity without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// The same, negated.
    pub not_principals: Vec<StringMatch>,
    /// Address of the peer.
    pub source_ips: Vec<IpNet>,
    /// The same, negated.
    pub not_source_ips: Vec<IpNet>,
    /// Address that the connection is for.
    pub destination_ips: Vec<IpNet>,
    /// The same, negated.
    pub not_destination_ips: Vec<IpNet>,
    /// Port that the connection is for.
    pub destination_ports: Vec<u16>,
    /// The same, negated.
    pub not_destination_ports: Vec<u16>,
    /// Service account of the source's identity.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// The same, negated.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

/// A condition on a string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StringMatch {
    /// It is this.
    Exact(Arc<str>),
    /// It begins with this.
    Prefix(Arc<str>),
    /// It ends with this.
    Suffix(Arc<str>),
    /// It is not empty.
    Presence,
}

/// A condition on the service account of an identity, in any trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub service_account: Arc<str>,
}

/// What is known of a connection before any of its bytes is read.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Who the peer has proved to be, if it has.
    pub source: Option<&'a Identity>,
    /// Address of the peer.
    pub source_ip: IpAddr,
    /// Address that the connection is for: the workload's own.
    pub destination_ip: IpAddr,
    /// Port that the connection is for: the workload's own.
    pub destination_port: u16,
}

/// The verdict of all policies that apply to the destination on one connection.
///
/// A DENY that matches denies; without any ALLOW policy the connection is allowed; otherwise one
/// of them must match. Policies in dry run are left out. It allocates nothing unless it denies.
pub fn decide<'p>(
    policies: impl Iterator<Item = &'p Policy> + Clone,
    connection: &Connection<'_>,
) -> Verdict {
    let connection = connection.canonical();
    let enforced = policies.filter(|policy| !policy.dry_run);
    let with = |action| {
        enforced
            .clone()
            .filter(move |policy| policy.action == action)
    };

    for policy in with(Action::Deny) {
        if let Some(rule) = policy.matching_rule(&connection) {
            return Verdict::Deny(DenyReason::Matched {
                policy: RefusingPolicy::of(policy),
                rule,
            });
        }
    }
    let mut any = false;
    for policy in with(Action::Allow) {
        if let Some(rule) = policy.matching_rule(&connection) {
            return Verdict::Allow(AllowReason::Matched {
                policy: policy.key.clone(),
                rule,
            });
        }
        any = true;
    }
    if any {
        Verdict::Deny(DenyReason::NoAllowMatched {
            policies: with(Action::Allow).map(RefusingPolicy::of).collect(),
        })
    } else {
        Verdict::Allow(AllowReason::NoAllowPolicy)
    }
}

impl Policy {
    /// Stands for a policy that could not be understood: it denies everything, and says why.
    pub fn unenforceable(key: PolicyKey, scope: Scope, reason: impl Into<Arc<str>>) -> Self {
        Self {
            key,
            scope,
            action: Action::Deny,
            rules: vec![Rule::default()],
            dry_run: false,
            unenforceable: Some(reason.into()),
        }
    }

    /// Index of the first rule that matches. Dry run is the caller's business: a caller may want
    /// to know what a policy would do.
    pub fn matching_rule(&self, connection: &Connection<'_>) -> Option<usize> {
        let connection = connection.canonical();
        self.rules
            .iter()
            .position(|rule| matching::rule_holds(rule, &connection))
    }
}

impl Match {
    /// Whether the conditions hold for a connection.
    pub fn holds(&self, connection: &Connection<'_>) -> bool {
        matching::match_holds(self, &connection.canonical())
    }
}

impl Connection<'_> {
    /// IPv4-mapped addresses are IPv4 addresses: a dual-stack socket must not evade an IPv4 range.
    fn canonical(self) -> Self {
        Self {
            source_ip: self.source_ip.to_canonical(),
            destination_ip: self.destination_ip.to_canonical(),
            ..self
        }
    }
}

impl PolicyKey {
    /// A key of the two parts of its resource's name.
    pub fn new(namespace: impl Into<Arc<str>>, resource: impl Into<Arc<str>>) -> Self {
        let resource = resource.into();
        let (kind, name) = match resource.strip_prefix(CONVERTED) {
            Some(name) => (PolicyKind::PeerAuthentication, name.into()),
            None if resource.starts_with(NETWORK_POLICY) => {
                let name = resource.strip_prefix(NETWORK_POLICY).unwrap_or_default();
                (PolicyKind::NetworkPolicy, name.into())
            }
            None if *resource == *STATIC_STRICT => (PolicyKind::StaticStrict, resource),
            None => (PolicyKind::AuthorizationPolicy, resource),
        };
        Self {
            kind,
            namespace: namespace.into(),
            name,
        }
    }

    /// The key of what is made of the `PeerAuthentication` of this name.
    pub fn peer_authentication(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            kind: PolicyKind::PeerAuthentication,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of what is made of the `NetworkPolicy` objects of these names (with `+` between them); `variant` tells
    /// policies of the same objects apart.
    pub fn network_policy(namespace: impl Into<Arc<str>>, names: &str, variant: &str) -> Self {
        Self {
            kind: PolicyKind::NetworkPolicy,
            namespace: namespace.into(),
            name: format!("{names}@{variant}").into(),
        }
    }

    /// The second part of its resource's name.
    pub fn resource(&self) -> Cow<'_, str> {
        match self.kind {
            PolicyKind::AuthorizationPolicy | PolicyKind::StaticStrict => (&*self.name).into(),
            PolicyKind::PeerAuthentication => format!("{CONVERTED}{}", self.name).into(),
            PolicyKind::NetworkPolicy => format!("{NETWORK_POLICY}{}", self.name).into(),
        }
    }

    /// The object that it was made of, if it is one object's.
    pub fn object(&self) -> Option<PolicyObject<'_>> {
        let kind = match self.kind {
            PolicyKind::AuthorizationPolicy => "AuthorizationPolicy",
            PolicyKind::PeerAuthentication => "PeerAuthentication",
            PolicyKind::NetworkPolicy => "NetworkPolicy",
            PolicyKind::StaticStrict => return None,
        };
        Some(PolicyObject { kind, key: self })
    }
}

/// Istio's name of the policy of all workloads that are STRICT on every port.
pub const STATIC_STRICT: &str = "istio_converted_static_strict";
/// What Istio puts before the name of a `PeerAuthentication` that is converted.
const CONVERTED: &str = "converted_peer_authentication_";

/// What stands before the names of `NetworkPolicy` objects.
const NETWORK_POLICY: &str = "network_policy_";

impl FromStr for PolicyKey {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        split(text, "namespace/name").map(|(namespace, name)| Self::new(namespace, name))
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.resource())
    }
}

impl fmt::Display for PolicyObject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.key.name.split('@').next().unwrap_or_default();
        write!(f, "{} {}/{name}", self.kind, self.key.namespace)
    }
}

impl Serialize for PolicyKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PolicyKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse(deserializer)
    }
}
