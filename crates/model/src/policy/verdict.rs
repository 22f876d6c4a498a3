//! What was decided and why, in a form that a person can read.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::{Policy, PolicyKey, PolicyKind};
use crate::address::GatewayAddress;
use crate::reason::Reason;

/// What was decided on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// It may go on.
    Allow(AllowReason),
    /// It may not.
    Deny(DenyReason),
}

/// Why a connection is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum AllowReason {
    /// No ALLOW policy applies to the destination.
    NoAllowPolicy,
    /// It comes from the destination's waypoint, which has asked policy about the client itself.
    Waypoint,
    /// An ALLOW policy matches.
    Matched {
        /// Which.
        policy: PolicyKey,
        /// Index of its rule, from 0.
        rule: usize,
    },
}

/// Why a connection is denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum DenyReason {
    /// A DENY policy matches.
    Matched {
        /// Which.
        policy: RefusingPolicy,
        /// Index of its rule, from 0.
        rule: usize,
    },
    /// There are ALLOW policies for the destination and none matches.
    NoAllowMatched {
        /// All of them.
        policies: Vec<RefusingPolicy>,
    },
    /// The destination names a policy that is not here.
    UnknownPolicy {
        /// Which.
        policy: PolicyKey,
    },
    /// It has to come from the destination's waypoint, and does not.
    WaypointRequired {
        /// Which.
        waypoint: GatewayAddress,
    },
}

/// A policy that had a part in a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusingPolicy {
    /// Which.
    pub key: PolicyKey,
    /// The `PeerAuthentication` that makes the workload name it, where that does not follow from the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_by: Option<PolicyKey>,
    /// Why it says less than the object that it was compiled from, if it does.
    pub unenforceable: Option<Arc<str>>,
}

impl Verdict {
    /// With the `PeerAuthentication` that makes a workload STRICT, where a policy refused that does not know it.
    pub(crate) fn made_by(mut self, strict_by: Option<&PolicyKey>) -> Self {
        if let Self::Deny(DenyReason::Matched { policy, .. }) = &mut self
            && policy.key.kind == PolicyKind::StaticStrict
        {
            policy.made_by = strict_by.cloned();
        }
        self
    }

    /// Whether the connection may go on.
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

impl DenyReason {
    /// The word for metrics and logs.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Matched { policy, .. } if policy.unenforceable.is_some() => {
                Reason::PolicyUnenforceable
            }
            Self::Matched { .. } => Reason::PolicyDeny,
            Self::NoAllowMatched { .. } => Reason::PolicyNoAllow,
            Self::UnknownPolicy { .. } => Reason::PolicyUnknown,
            Self::WaypointRequired { .. } => Reason::WaypointRequired,
        }
    }

    /// The policy to look at first.
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::Matched { policy, .. } => Some(&policy.key),
            Self::NoAllowMatched { policies } => policies.first().map(|policy| &policy.key),
            Self::UnknownPolicy { policy } => Some(policy),
            Self::WaypointRequired { .. } => None,
        }
    }
}

impl RefusingPolicy {
    pub(super) fn of(policy: &Policy) -> Self {
        Self {
            key: policy.key.clone(),
            made_by: None,
            unenforceable: policy.unenforceable.clone(),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(reason) => write!(f, "allowed: {reason}"),
            Self::Deny(reason) => write!(f, "denied: {reason}"),
        }
    }
}

impl fmt::Display for AllowReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAllowPolicy => f.write_str("no ALLOW policy applies"),
            Self::Waypoint => f.write_str("the destination's waypoint has decided"),
            Self::Matched { policy, rule } => {
                write!(f, "ALLOW policy {policy} matches (rules[{rule}])")
            }
        }
    }
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matched {
                policy:
                    RefusingPolicy {
                        key,
                        unenforceable: Some(why),
                        ..
                    },
                ..
            } => write!(f, "policy {key} cannot be enforced: {why}"),
            Self::Matched { policy, .. } if policy.key.kind != PolicyKind::AuthorizationPolicy => {
                match policy.made_by.as_ref().unwrap_or(&policy.key).object() {
                    Some(object) => write!(f, "{object} is STRICT")?,
                    None => write!(f, "a PeerAuthentication is STRICT (policy {})", policy.key)?,
                }
                f.write_str(", and the client has shown no identity")
            }
            Self::Matched { policy, rule } => {
                write!(f, "DENY policy {policy} matches (rules[{rule}])")
            }
            Self::NoAllowMatched { policies } => {
                f.write_str("no ALLOW policy matches; there are ")?;
                for (i, policy) in policies.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(f, "{comma}{policy}")?;
                }
                Ok(())
            }
            Self::UnknownPolicy { policy } => write!(
                f,
                "policy {policy} is named by the destination and has not been received"
            ),
            Self::WaypointRequired { waypoint } => write!(
                f,
                "the destination requires waypoint {waypoint}, and the connection does not come from it"
            ),
        }
    }
}

impl fmt::Display for RefusingPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        match &self.unenforceable {
            Some(why) => write!(f, " (cannot be enforced in full: {why})"),
            None => Ok(()),
        }
    }
}
