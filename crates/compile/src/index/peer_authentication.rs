//! `PeerAuthentication` as the DENY policies that Istio's control plane makes of it, same names, same meaning.
//!
//! STRICT is "deny who has no identity". A workload that is STRICT on every port names one static policy; a workload
//! whose ports differ names a policy converted from its own object. Workload goes before namespace before mesh, and
//! UNSET inherits. DISABLE accepts what PERMISSIVE accepts: it never turns mTLS off between mesh peers, so disabling it
//! for one workload breaks nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_api::peer_authentication::Mode;
use manifest::NamespacedName;
use model::PolicyKey;
use model::policy::STATIC_STRICT;
use proto::istio::security as pb;

use crate::store::PeerAuthenticationFacts;

/// Which policies of this module a workload names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect<'f> {
    /// None: plaintext is accepted on every port.
    Permissive,
    /// The static one: no plaintext on any port.
    Strict {
        /// The object that makes it so.
        by: &'f NamespacedName,
    },
    /// The one converted from the workload's own object.
    Converted {
        /// That object.
        from: &'f NamespacedName,
    },
}

/// The object that makes ports strict where the workload's own object says nothing; none where they are not strict.
pub fn inherited<'f>(
    mesh: Option<&'f PeerAuthenticationFacts>,
    namespace: Option<&'f PeerAuthenticationFacts>,
) -> Option<&'f NamespacedName> {
    let says = |policy: &&PeerAuthenticationFacts| policy.mode != Mode::Unset;
    let decides = namespace.filter(says).or(mesh)?;
    (decides.mode == Mode::Strict).then_some(&decides.key)
}

/// What holds for a workload, given who makes it strict unless it says otherwise, and the object that selects it.
pub fn effect<'f>(
    inherited: Option<&'f NamespacedName>,
    workload: Option<&'f PeerAuthenticationFacts>,
) -> Effect<'f> {
    let strict = match workload {
        None => inherited,
        Some(policy)
            if differing(base(inherited.is_some(), policy), policy)
                .next()
                .is_some() =>
        {
            return Effect::Converted { from: &policy.key };
        }
        Some(policy) => match policy.mode {
            Mode::Unset => inherited,
            Mode::Strict => Some(&policy.key),
            Mode::Permissive | Mode::Disable => None,
        },
    };
    strict.map_or(Effect::Permissive, |by| Effect::Strict { by })
}

/// The converted policy of an object that selects workloads; `None` when none of its ports differs from the rest.
pub fn convert(
    inherits_strict: bool,
    policy: &PeerAuthenticationFacts,
) -> Option<pb::Authorization> {
    let strict = base(inherits_strict, policy);
    let ports: Vec<u32> = differing(strict, policy).map(u32::from).collect();
    if ports.is_empty() {
        return None;
    }
    let rules = if strict {
        // Deny who has no identity, except on these ports: one rule whose clauses all hold.
        let exceptions = ports.into_iter().map(|port| pb::Match {
            not_destination_ports: vec![port],
            ..<_>::default()
        });
        vec![rule(std::iter::once(anonymous()).chain(exceptions))]
    } else {
        // Deny who has no identity on these ports only: a rule for each.
        ports
            .into_iter()
            .map(|port| {
                rule([pb::Match {
                    destination_ports: vec![port],
                    ..anonymous()
                }])
            })
            .collect()
    };
    Some(deny(&converted(&policy.key), rules))
}

/// The policy that workloads name that are STRICT on every port.
pub fn static_strict(root_namespace: &str) -> pb::Authorization {
    deny(&strict_key(root_namespace), vec![rule([anonymous()])])
}

/// The key of that policy.
pub fn strict_key(root_namespace: &str) -> PolicyKey {
    PolicyKey::new(root_namespace, STATIC_STRICT)
}

/// The key of the policy converted from this object.
pub fn converted(object: &NamespacedName) -> PolicyKey {
    let NamespacedName { namespace, name } = object;
    PolicyKey::peer_authentication(Arc::clone(namespace), Arc::clone(name))
}

fn base(inherits_strict: bool, policy: &PeerAuthenticationFacts) -> bool {
    match policy.mode {
        Mode::Unset => inherits_strict,
        own => own == Mode::Strict,
    }
}

/// The ports whose mode is not the one of the rest.
fn differing(strict: bool, policy: &PeerAuthenticationFacts) -> impl Iterator<Item = u16> + '_ {
    let ports: &BTreeMap<u16, Mode> = &policy.ports;
    ports
        .iter()
        .filter(move |(_, mode)| **mode != Mode::Unset && (**mode == Mode::Strict) != strict)
        .map(|(port, _)| *port)
}

fn anonymous() -> pb::Match {
    let presence = pb::StringMatch {
        match_type: Some(pb::string_match::MatchType::Presence(())),
    };
    pb::Match {
        not_principals: vec![presence],
        ..pb::Match::default()
    }
}

fn rule(matches: impl IntoIterator<Item = pb::Match>) -> pb::Rule {
    pb::Rule {
        clauses: matches
            .into_iter()
            .map(|m| pb::Clause { matches: vec![m] })
            .collect(),
    }
}

fn deny(key: &PolicyKey, rules: Vec<pb::Rule>) -> pb::Authorization {
    pb::Authorization {
        name: key.resource().into_owned(),
        namespace: key.namespace.to_string(),
        scope: pb::Scope::WorkloadSelector.into(),
        action: pb::Action::Deny.into(),
        rules,
        ..pb::Authorization::default()
    }
}
