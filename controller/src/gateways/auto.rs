//! Makes a waypoint for a namespace that says `keelson.io/l7: auto` when an L7 object needs one, has it attached once it is
//! ready, and removes it some time after nothing needs it any more.
//!
//! What is made is a `Gateway`, whose pods are made as those of every other. That it has been ready is an annotation on it,
//! so that every replica knows and none forgets: from then on it is required, and never passed by while it is not ready.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use compile::index::view::{View, WAYPOINT_CLASS};
use compile::index::waypoint::{ATTACHED, AUTO, AUTO_NAME, L7, is_auto_made};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use manifest::{Kind, NamespacedName};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::Outcome;
use super::objects::{MANAGED_BY, MANAGER};
use crate::source::kubernetes::resource;

/// The waypoints, and what is remembered of them.
pub(super) struct Auto {
    client: Client,
    /// Since when nothing needs a waypoint that is there.
    idle: BTreeMap<Arc<str>, Instant>,
    /// Namespaces where a step failed, and when it is tried again.
    pauses: BTreeMap<Arc<str>, Instant>,
}

/// What is to be done in a namespace.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Make,
    Attach,
    Remove(Arc<str>),
    /// A Gateway of its name is somebody else's.
    Clash,
}

impl Auto {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            idle: BTreeMap::new(),
            pauses: BTreeMap::new(),
        }
    }

    /// Another replica does it by now.
    pub(super) fn forget(&mut self) {
        self.idle.clear();
        self.pauses.clear();
    }

    pub(super) async fn keep(&mut self, view: &View, outcomes: &BTreeMap<NamespacedName, Outcome>) {
        let now = Instant::now();
        self.pauses.retain(|_, until| *until > now);
        for (namespace, step) in steps(view, outcomes, &mut self.idle, now) {
            if self.pauses.contains_key(&namespace) {
                continue;
            }
            let why = view.needs.get(&namespace).map_or("", String::as_str);
            if let Err(error) = self.take(&namespace, &step, why).await {
                warn!(%namespace, why, %error, ?step, "cannot keep the waypoint of keelson.io/l7: auto");
            }
            // What was done is seen in the next view, which may take a moment.
            self.pauses.insert(namespace, now + PAUSE);
        }
    }

    async fn take(&self, namespace: &str, step: &Step, why: &str) -> kube::Result<()> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource(Kind::Gateway));
        match step {
            Step::Make => {
                info!(namespace, why, "a waypoint is made");
                let params = PatchParams::apply(MANAGER);
                let wanted = gateway(namespace);
                api.patch(AUTO_NAME, &params, &Patch::Apply(&wanted))
                    .await?;
            }
            Step::Attach => {
                info!(
                    namespace,
                    why, "the waypoint is ready and required from now on"
                );
                let patch = json!({"metadata": {"annotations": {ATTACHED: "true"}}});
                let params = PatchParams::default();
                api.patch(AUTO_NAME, &params, &Patch::Merge(&patch)).await?;
            }
            Step::Remove(uid) => {
                info!(
                    namespace,
                    "nothing needs the waypoint any more: it is removed"
                );
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: Some(uid.to_string()),
                        resource_version: None,
                    }),
                    ..DeleteParams::background()
                };
                api.delete(AUTO_NAME, &params).await?;
            }
            Step::Clash => warn!(
                namespace,
                why,
                "a Gateway {AUTO_NAME} that was not made for keelson.io/l7: auto is there; it is left as it is"
            ),
        }
        Ok(())
    }
}

/// What is to be done where. Notes since when a waypoint is idle.
fn steps(
    view: &View,
    outcomes: &BTreeMap<NamespacedName, Outcome>,
    idle: &mut BTreeMap<Arc<str>, Instant>,
    now: Instant,
) -> Vec<(Arc<str>, Step)> {
    let made: BTreeSet<&Arc<str>> = view
        .gateways
        .iter()
        .filter(|(_, gateway)| is_auto_made(&gateway.object))
        .map(|(name, _)| &name.namespace)
        .collect();
    idle.retain(|namespace, _| made.contains(namespace) && !view.needs.contains_key(namespace));
    let mut steps = Vec::new();
    for namespace in view.needs.keys() {
        let name = NamespacedName::new(namespace, AUTO_NAME);
        let step = match view.gateways.get(&name) {
            None => Some(Step::Make),
            Some(gateway) if !is_auto_made(&gateway.object) => Some(Step::Clash),
            Some(gateway) => {
                let annotations = gateway.object.metadata.annotations.as_ref();
                let is_attached = annotations.is_some_and(|all| all.contains_key(ATTACHED));
                let outcome = outcomes.get(&name);
                let is_ready = outcome.is_some_and(|one| one.programmed.holds);
                (is_ready && !is_attached).then_some(Step::Attach)
            }
        };
        steps.extend(step.map(|step| (Arc::clone(namespace), step)));
    }
    for namespace in made {
        if view.needs.contains_key(namespace) {
            continue;
        }
        let since = *idle.entry(Arc::clone(namespace)).or_insert(now);
        let name = NamespacedName::new(namespace, AUTO_NAME);
        if let Some(gateway) = view.gateways.get(&name)
            && now.duration_since(since) >= LINGER
        {
            let step = Step::Remove(Arc::clone(&gateway.uid));
            steps.push((Arc::clone(namespace), step));
        }
    }
    steps
}

fn gateway(namespace: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {
            "name": AUTO_NAME,
            "namespace": namespace,
            "labels": {MANAGED_BY: MANAGER, L7: AUTO},
        },
        "spec": {
            "gatewayClassName": WAYPOINT_CLASS,
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    })
}

/// How long a waypoint stays that nothing needs: whoever replaces a route by another shall not wait for pods.
const LINGER: Duration = Duration::from_secs(600);
/// Between two steps in a namespace.
const PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use compile::index::Verdict;
    use compile::index::view::GatewayView;

    use super::*;

    fn outcome(is_ready: bool) -> Outcome {
        Outcome {
            refused: None,
            programmed: match is_ready {
                true => Verdict::yes("Programmed"),
                false => Verdict::no("Pending", String::new()),
            },
            addresses: Vec::new(),
        }
    }

    fn view(need: bool, gateway: Option<Value>) -> View {
        let mut view = View::default();
        if need {
            view.needs.insert("shop".into(), "HTTPRoute shop/r".into());
        }
        if let Some(object) = gateway {
            let gateway = GatewayView {
                object: Arc::new(serde_json::from_value(object).unwrap()),
                uid: "u".into(),
                generation: 1,
                refused: None,
                notes: Vec::new(),
                listeners: Vec::new(),
                ports: BTreeSet::new(),
            };
            view.gateways
                .insert(NamespacedName::new("shop", AUTO_NAME), gateway);
        }
        view
    }

    fn attached() -> Value {
        let mut attached = gateway("shop");
        attached["metadata"]["annotations"] = json!({ATTACHED: "true"});
        attached
    }

    /// Issue 12 B3: it is made when it is needed, attached when it is ready and not before, and is left alone from then on.
    #[test]
    fn a_waypoint_is_made_when_it_is_needed_and_attached_when_it_is_ready() {
        let key = NamespacedName::new("shop", AUTO_NAME);
        let mut theirs = gateway("shop");
        theirs["metadata"]["labels"] = json!({});
        for (need, there, is_ready, expected) in [
            (false, None, false, None),
            (true, None, false, Some(Step::Make)),
            (true, Some(gateway("shop")), false, None),
            (true, Some(gateway("shop")), true, Some(Step::Attach)),
            (true, Some(attached()), true, None),
            (true, Some(attached()), false, None),
            (true, Some(theirs), true, Some(Step::Clash)),
        ] {
            let outcomes = [(key.clone(), outcome(is_ready))].into();
            let view = view(need, there);
            let mut steps = steps(&view, &outcomes, &mut BTreeMap::new(), Instant::now());
            assert_eq!(steps.pop().map(|(_, step)| step), expected, "{view:?}");
        }
    }

    #[test]
    fn a_waypoint_that_nothing_needs_stays_for_a_while_and_one_that_is_needed_again_stays() {
        let start = Instant::now();
        let mut idle = BTreeMap::new();
        let mut at = |need: bool, after: Duration| {
            let view = view(need, Some(attached()));
            let mut steps = steps(&view, &BTreeMap::new(), &mut idle, start + after);
            steps.pop().map(|(_, step)| step)
        };
        assert_eq!(at(false, Duration::ZERO), None);
        assert_eq!(at(false, LINGER / 2), None);
        assert_eq!(at(true, LINGER / 2), None);
        assert_eq!(at(false, LINGER), None);
        let removed = at(false, LINGER * 2);
        assert_eq!(removed, Some(Step::Remove("u".into())));
    }
}
