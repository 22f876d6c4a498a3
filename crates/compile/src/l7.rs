//! L7 objects compiled for waypoints, each by itself: no object is looked at together with another one here.
//!
//! A rule with a condition that cannot be read is left out; a rule with an action that cannot be carried out fails its
//! requests. Both are errors on the object, with the field, and neither stops another rule.

pub(crate) mod destination_rule;
pub(crate) mod gateway;
pub(crate) mod gateway_route;
pub(crate) mod hosts;
pub(crate) mod ingress;
pub(crate) mod notes;
pub(crate) mod virtual_service;

use std::sync::Arc;

use l7::Rule;
use l7::route::Match;
use manifest::NamespacedName;

/// A rule, before it is known where it is attached.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parts {
    /// One of them has to hold; none means always.
    pub(crate) matches: Vec<Match>,
    /// What happens then.
    pub(crate) rule: Arc<Rule>,
    /// The `VirtualService` whose rules stand in the place of this one.
    pub(crate) delegate: Option<NamespacedName>,
}
