//! What was decided and why, in a form that a person can read.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::{Policy, PolicyKey};

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
}

/// A policy that had a part in a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusingPolicy {
    /// Which.
    pub key: PolicyKey,
    /// Why it says less than the object that it was compiled from, if it does.
    pub unenforceable: Option<Arc<str>>,
}

impl Verdict {
    /// Whether the connection may go on.
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

impl DenyReason {
    /// A short and stable name, for metrics and logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Matched { policy, .. } if policy.unenforceable.is_some() => {
                "policy_unenforceable"
            }
            Self::Matched { .. } => "policy_deny",
            Self::NoAllowMatched { .. } => "policy_no_allow",
            Self::UnknownPolicy { .. } => "policy_unknown",
        }
    }

    /// The policy to look at first.
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::Matched { policy, .. } => Some(&policy.key),
            Self::NoAllowMatched { policies } => policies.first().map(|policy| &policy.key),
            Self::UnknownPolicy { policy } => Some(policy),
        }
    }
}

impl RefusingPolicy {
    pub(super) fn of(policy: &Policy) -> Self {
        Self {
            key: policy.key.clone(),
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
                    },
                ..
            } => write!(f, "policy {key} cannot be enforced: {why}"),
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
