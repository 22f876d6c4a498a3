//! `PeerAuthentication` as the DENY policies that Istio's control plane makes of it, same names, same meaning.
//!
//! STRICT is "deny who has no identity". A workload that is STRICT on every port names one static policy; a workload
//! whose ports differ names a policy converted from its own object. Workload goes before namespace before mesh, and
//! UNSET inherits. DISABLE accepts what PERMISSIVE accepts: it never turns mTLS off between mesh peers, so disabling it
//! for one workload breaks nobody.

use std::collections::BTreeMap;

use k8s_api::peer_authentication::Mode;
use proto::istio::security as pb;

use crate::store::PeerAuthenticationFacts;

/// Which policies of this module a workload names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// None: plaintext is accepted on every port.
    Permissive,
    /// The static one: no plaintext on any port.
    Strict,
    /// The one converted from the workload's own object.
    Converted,
}

/// Whether ports are strict where the workload's own object says nothing.
pub fn inherits_strict(
    mesh: Option<&PeerAuthenticationFacts>,
    namespace: Option<&PeerAuthenticationFacts>,
) -> bool {
    let mode =
        |policy: Option<&PeerAuthenticationFacts>| policy.map_or(Mode::Unset, |policy| policy.mode);
    match mode(namespace) {
        Mode::Unset => mode(mesh) == Mode::Strict,
        own => own == Mode::Strict,
    }
}

/// What holds for a workload, given what it inherits and the object that selects it.
pub fn effect(inherits_strict: bool, workload: Option<&PeerAuthenticationFacts>) -> Effect {
    let Some(policy) = workload else {
        return if inherits_strict {
            Effect::Strict
        } else {
            Effect::Permissive
        };
    };
    let strict = base(inherits_strict, policy);
    match (differing(strict, policy).next(), strict) {
        (Some(_), _) => Effect::Converted,
        (None, true) => Effect::Strict,
        (None, false) => Effect::Permissive,
    }
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
    Some(deny(
        &converted_name(&policy.key.name),
        &policy.key.namespace,
        rules,
    ))
}

/// The policy that workloads name that are STRICT on every port.
pub fn static_strict(root_namespace: &str) -> pb::Authorization {
    deny(STATIC_STRICT, root_namespace, vec![rule([anonymous()])])
}

/// The name of the policy converted from the object of this name.
pub fn converted_name(name: &str) -> String {
    format!("converted_peer_authentication_{name}")
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

fn deny(name: &str, namespace: &str, rules: Vec<pb::Rule>) -> pb::Authorization {
    pb::Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: pb::Scope::WorkloadSelector.into(),
        action: pb::Action::Deny.into(),
        rules,
        ..pb::Authorization::default()
    }
}

/// Istio's name; the underscore keeps it apart from any object's name.
pub const STATIC_STRICT: &str = "istio_converted_static_strict";
