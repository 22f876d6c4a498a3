//! Statuses of gateways and of routes, in the words of the Gateway API.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use compile::index::Verdict;
use compile::index::view::{GatewayView, ListenerView, RouteView, View};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use manifest::{Kind, NamespacedName};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::gateways::{Outcome, pause};
use crate::source::kubernetes::resource;

/// As whom we write: `spec.controllerName` of our classes.
pub(crate) const CONTROLLER_NAME: &str = "keelson.io/gateway-controller";

/// Writes what has changed since it wrote last.
pub(crate) struct Writer {
    client: Client,
    written: HashMap<(Kind, NamespacedName), u64>,
    tries: HashMap<(Kind, NamespacedName), Try>,
}

/// A status that the server has not taken.
struct Try {
    failures: u32,
    next: Instant,
    /// What was to be said.
    of: u64,
}

impl Writer {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            written: HashMap::new(),
            tries: HashMap::new(),
        }
    }

    /// Another replica writes by now.
    pub(crate) fn forget(&mut self) {
        self.written.clear();
        self.tries.clear();
    }

    /// Writes what is to be said of each Gateway of which something became, and of each route.
    pub(crate) async fn write(
        &mut self,
        view: &View,
        outcomes: &BTreeMap<NamespacedName, Outcome>,
    ) {
        let is_there = |(kind, name): &(Kind, NamespacedName)| match kind {
            Kind::Gateway => view.gateways.contains_key(name),
            kind => view.routes.contains_key(&(*kind, name.clone())),
        };
        self.written.retain(|key, _| is_there(key));
        self.tries.retain(|key, _| is_there(key));
        for (name, outcome) in outcomes {
            let Some(gateway) = view.gateways.get(name) else {
                continue;
            };
            let key = (Kind::Gateway, name.clone());
            let status = |there: &Value| of_gateway(gateway, outcome, there);
            self.one(key, (&gateway.uid, gateway.generation), status)
                .await;
        }
        for ((kind, name), route) in &view.routes {
            let status = |there: &Value| of_route(route, there);
            let key = (*kind, name.clone());
            self.one(key, (&route.uid, route.generation), status).await;
        }
    }

    async fn one(
        &mut self,
        key: (Kind, NamespacedName),
        (uid, generation): (&str, i64),
        status: impl Fn(&Value) -> Value,
    ) {
        // As it would be with nothing there, and at no time.
        let mut said = status(&Value::Null);
        without_times(&mut said);
        let mut hasher = DefaultHasher::new();
        (uid, generation, said.to_string()).hash(&mut hasher);
        let said = hasher.finish();
        if self.written.get(&key) == Some(&said) {
            return;
        }
        let tried = self.tries.get(&key).filter(|tried| tried.of == said);
        if tried.is_some_and(|tried| tried.next > Instant::now()) {
            return;
        }
        let (kind, name) = &key;
        match self.put(*kind, name, uid, status).await {
            Ok(()) => {
                self.tries.remove(&key);
                self.written.insert(key, said);
            }
            // Gone, or changed meanwhile: there is news of it soon.
            Err(kube::Error::Api(answer)) if [404, 409].contains(&answer.code) => {
                debug!(%name, "its status was written by another meanwhile");
            }
            Err(error) => {
                let failures = self.tries.get(&key).map_or(0, |tried| tried.failures) + 1;
                if failures == 1 {
                    let kind = kind.as_str();
                    warn!(kind, %name, %error, "cannot write the status; it is tried again");
                }
                let next = Instant::now() + pause(failures);
                let tried = Try {
                    failures,
                    next,
                    of: said,
                };
                self.tries.insert(key, tried);
            }
        }
    }

    async fn put(
        &self,
        kind: Kind,
        name: &NamespacedName,
        uid: &str,
        status: impl Fn(&Value) -> Value,
    ) -> kube::Result<()> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &name.namespace, &resource(kind));
        let there = api.get(&name.name).await?;
        if there.metadata.uid.as_deref() != Some(uid) {
            return Ok(());
        }
        let before = &there.data["status"];
        let wanted = status(before);
        let mut fields = wanted.as_object().into_iter().flatten();
        let is_so = fields.all(|(field, value)| before.get(field) == Some(value));
        if is_so {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"resourceVersion": there.metadata.resource_version},
            "status": wanted,
        });
        let params = PatchParams::default();
        api.patch_status(&name.name, &params, &Patch::Merge(&patch))
            .await?;
        Ok(())
    }
}

/// The status of a Gateway, over the one that there is.
fn of_gateway(gateway: &GatewayView, outcome: &Outcome, there: &Value) -> Value {
    let sound = |listener: &&ListenerView| listener.accepted.holds;
    let unsound = gateway.listeners.iter().filter(|one| !sound(one)).count();
    let names = || {
        let unsound = gateway.listeners.iter().filter(|one| !sound(one));
        let names: Vec<&str> = unsound.map(|one| one.name.as_str()).collect();
        format!("listeners that are not in order: {}", names.join(", "))
    };
    let accepted = match (&outcome.refused, &gateway.refused) {
        (Some(refused), _) => refused.clone(),
        (None, Some((reason, message))) => Verdict::no(reason, message.clone()),
        (None, None) if unsound > 0 && unsound == gateway.listeners.len() => {
            Verdict::no("ListenersNotValid", names())
        }
        (None, None) if unsound > 0 => Verdict {
            holds: true,
            reason: "ListenersNotValid",
            message: names(),
        },
        (None, None) => Verdict {
            message: gateway.notes.join("; "),
            ..Verdict::yes("Accepted")
        },
    };
    let programmed = if accepted.holds {
        outcome.programmed.clone()
    } else {
        Verdict::no("Invalid", accepted.message.clone())
    };
    let known = |pointer: &str| -> Vec<Value> {
        let known = there.pointer(pointer).and_then(Value::as_array);
        known.cloned().unwrap_or_default()
    };
    let before = known("/listeners");
    let listeners = gateway.listeners.iter().map(|listener| {
        let before = before
            .iter()
            .find(|one| one["name"] == listener.name.as_str());
        let before = before.and_then(|one| one["conditions"].as_array());
        of_listener(
            listener,
            &programmed,
            before.map_or(&[][..], Vec::as_slice),
            gateway.generation,
        )
    });
    let addresses = outcome.addresses.iter();
    let addresses = addresses.map(|(kind, value)| json!({"type": kind, "value": value}));
    let wanted = [("Accepted", accepted), ("Programmed", programmed.clone())];
    json!({
        "addresses": addresses.collect::<Vec<_>>(),
        "conditions": conditions(&known("/conditions"), &wanted, gateway.generation),
        "listeners": listeners.collect::<Vec<_>>(),
    })
}

fn of_listener(
    listener: &ListenerView,
    gateway: &Verdict,
    before: &[Value],
    generation: i64,
) -> Value {
    let serves = listener.accepted.holds && listener.resolved.holds;
    let programmed = if serves {
        gateway.clone()
    } else {
        Verdict::no("Invalid", "the listener is not open".to_owned())
    };
    let wanted = [
        ("Accepted", listener.accepted.clone()),
        ("Conflicted", listener.conflicted.clone()),
        ("Programmed", programmed),
        ("ResolvedRefs", listener.resolved.clone()),
    ];
    let kinds = listener
        .kinds
        .iter()
        .map(|kind| json!({"group": "gateway.networking.k8s.io", "kind": kind}));
    json!({
        "name": listener.name,
        "supportedKinds": kinds.collect::<Vec<_>>(),
        "attachedRoutes": listener.attached,
        "conditions": conditions(before, &wanted, generation),
    })
}

/// The status of a route: what others say of it stays.
fn of_route(route: &RouteView, there: &Value) -> Value {
    let before = there["parents"].as_array();
    let before = before.map_or(&[][..], Vec::as_slice);
    let others = before
        .iter()
        .filter(|one| one["controllerName"] != CONTROLLER_NAME);
    let mut parents: Vec<Value> = others.cloned().collect();
    for parent in &route.parents {
        let reference = serde_json::to_value(&parent.reference).unwrap_or_default();
        let known = before
            .iter()
            .find(|one| one["controllerName"] == CONTROLLER_NAME && one["parentRef"] == reference);
        let known = known.and_then(|one| one["conditions"].as_array());
        let mut wanted = vec![
            ("Accepted", parent.accepted.clone()),
            ("ResolvedRefs", parent.resolved.clone()),
        ];
        if let Some(message) = &parent.partly {
            let partly = Verdict {
                message: message.clone(),
                ..Verdict::yes("UnsupportedValue")
            };
            wanted.push(("PartiallyInvalid", partly));
        }
        let ours = known.into_iter().flatten();
        let ours = ours.filter(|one| one["type"] != "PartiallyInvalid" || parent.partly.is_some());
        let ours: Vec<Value> = ours.cloned().collect();
        parents.push(json!({
            "controllerName": CONTROLLER_NAME,
            "parentRef": reference,
            "conditions": conditions(&ours, &wanted, route.generation),
        }));
    }
    json!({"parents": parents})
}

/// Conditions, over those that there are: of other types they stay, and a time of transition stays where the status does.
pub(crate) fn conditions(
    before: &[Value],
    wanted: &[(&str, Verdict)],
    generation: i64,
) -> Vec<Value> {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let is_ours = |one: &Value| wanted.iter().any(|(kind, _)| one["type"] == *kind);
    let mut all: Vec<Value> = before.iter().filter(|one| !is_ours(one)).cloned().collect();
    for (kind, verdict) in wanted {
        let status = if verdict.holds { "True" } else { "False" };
        let same = before
            .iter()
            .find(|one| one["type"] == *kind && one["status"] == status);
        let since = same.and_then(|one| one["lastTransitionTime"].as_str());
        let message: String = verdict.message.chars().take(LONGEST).collect();
        all.push(json!({
            "type": kind,
            "status": status,
            "reason": verdict.reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": since.unwrap_or(&now),
        }));
    }
    all.sort_by_key(|one| one["type"].as_str().unwrap_or_default().to_owned());
    all
}

fn without_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("lastTransitionTime");
            fields.values_mut().for_each(without_times);
        }
        Value::Array(items) => items.iter_mut().for_each(without_times),
        _ => {}
    }
}

/// Characters of a condition's message.
const LONGEST: usize = 32_768;

#[cfg(test)]
mod tests;
