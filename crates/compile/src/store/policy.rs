//! Facts of the two policy kinds, also of those that cannot be read.

use std::collections::BTreeMap;

use k8s_api::authorization_policy::AuthorizationPolicySpec;
use k8s_api::peer_authentication::Mode;
use k8s_api::{AuthorizationPolicy, PeerAuthentication};
use manifest::{BrokenPolicy, FieldLines, Labels, NamespacedName, Origin};

/// What the index needs to know of a `PeerAuthentication`.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerAuthenticationFacts {
    /// Who it is.
    pub key: NamespacedName,
    /// Sorts before those that lose to it on the same level; see [`PeerAuthenticationFacts::rank`].
    pub created: Option<String>,
    /// The workloads it is for; empty means all of its namespace.
    pub selector: Labels,
    /// The mode of ports without an entry of their own.
    pub mode: Mode,
    /// The mode by workload port.
    pub ports: BTreeMap<u16, Mode>,
    /// Why it cannot be read; it then counts as STRICT and goes before all others of its level.
    pub broken: Option<String>,
}

impl PeerAuthenticationFacts {
    /// Reads a policy.
    pub fn read(policy: &PeerAuthentication) -> Self {
        let spec = &policy.spec;
        Self {
            key: NamespacedName::of(&policy.metadata),
            created: policy
                .metadata
                .creation_timestamp
                .as_ref()
                .and_then(|time| {
                    let text = serde_json::to_value(time).ok()?;
                    text.as_str().map(str::to_owned)
                }),
            selector: spec
                .selector
                .as_ref()
                .map(|s| s.match_labels.clone())
                .unwrap_or_default(),
            mode: spec.mode(),
            ports: spec
                .port_level_mtls
                .iter()
                .map(|(port, mtls)| (*port, mtls.mode))
                .collect(),
            broken: None,
        }
    }

    /// A policy that cannot be read: whoever wrote it may have wanted STRICT.
    pub fn broken(policy: &BrokenPolicy) -> Self {
        Self {
            key: policy.key.clone(),
            created: None,
            selector: policy.selector.clone().unwrap_or_default(),
            mode: Mode::Strict,
            ports: BTreeMap::new(),
            broken: Some(policy.reason.clone()),
        }
    }

    /// The smallest wins on a level: unreadable ones, then the oldest, then by name. Without a time it counts as young.
    pub fn rank(&self) -> impl Ord + use<'_> {
        (
            self.broken.is_none(),
            self.created.is_none(),
            &self.created,
            &self.key.name,
        )
    }
}

/// What the index needs to know of an `AuthorizationPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyFacts {
    /// Who it is.
    pub key: NamespacedName,
    /// Where it was written.
    pub origin: Origin,
    /// The lines of its fields.
    pub lines: FieldLines,
    /// What it asks for.
    pub wish: PolicyWish,
}

/// What an `AuthorizationPolicy` asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyWish {
    /// As written.
    Readable {
        /// The specification.
        spec: Box<AuthorizationPolicySpec>,
        /// Whether matches are only reported (annotation `istio.io/dry-run`).
        dry_run: bool,
    },
    /// Cannot be read, so it refuses.
    Broken {
        /// The labels it selects by; `None` means its whole namespace.
        selector: Option<Labels>,
        /// What is wrong with it.
        reason: String,
    },
}

impl PolicyFacts {
    /// Reads a policy.
    pub fn read(policy: &AuthorizationPolicy, origin: Origin, lines: FieldLines) -> Self {
        let dry_run = policy
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get("istio.io/dry-run"));
        let dry_run = dry_run.is_some_and(|value| {
            matches!(value.as_str(), "true" | "True" | "TRUE" | "1" | "t" | "T")
        });
        let wish = PolicyWish::Readable {
            spec: Box::new(policy.spec.clone()),
            dry_run,
        };
        Self {
            key: NamespacedName::of(&policy.metadata),
            origin,
            lines,
            wish,
        }
    }

    /// A policy that cannot be read.
    pub fn broken(policy: &BrokenPolicy, origin: Origin) -> Self {
        let key = policy.key.clone();
        let wish = PolicyWish::Broken {
            selector: policy.selector.clone(),
            reason: policy.reason.clone(),
        };
        Self {
            key,
            origin,
            lines: FieldLines::default(),
            wish,
        }
    }

    /// The labels it selects by; empty means that it is for its whole namespace, or the mesh.
    pub fn selector(&self) -> Option<&Labels> {
        match &self.wish {
            PolicyWish::Readable { spec, .. } => spec.selector.as_ref().map(|s| &s.match_labels),
            PolicyWish::Broken { selector, .. } => selector.as_ref(),
        }
    }
}
