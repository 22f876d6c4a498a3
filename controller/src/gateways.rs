//! Makes and keeps what each Gateway of our classes needs: pods, a Service, an account and what else belongs to them.
//!
//! The replica that holds the Lease does it. What has not changed is not written; what somebody else changed is put right; what is
//! another's is left alone, and said. With the Gateway the garbage collector takes it all, for it belongs to it.

mod auto;
mod classes;
mod foreign;
pub mod objects;
mod overlay;
mod owned;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use compile::index::Verdict;
use compile::index::view::{EDGE_CLASS, GatewayView, ISTIO_CLASS, View, is_waypoint_class};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use manifest::{Kind, NamespacedName};
use serde_json::Value;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use self::auto::Auto;
use self::classes::{Classes, Holder};
use self::foreign::Foreign;
use self::objects::{MANAGER, Made, Settings};
use self::overlay::Overlays;
use self::owned::{Key, Owned};
use crate::pipeline::Viewer;
use crate::source::kubernetes::resource;
use crate::status::gateways::Writer;
use crate::status::ingresses::Ingresses;

/// What became of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `Accepted`, where it is refused as a whole for what it asks for.
    pub refused: Option<Verdict>,
    /// `Programmed`.
    pub programmed: Verdict,
    /// Type and value of each of its addresses.
    pub addresses: Vec<(&'static str, String)>,
}

/// What the keeper works with.
pub struct Keeper {
    /// The cluster.
    pub client: Client,
    /// How pods are made; without, none are.
    pub settings: Option<Settings>,
    /// What there is to make, and to say.
    pub viewer: Viewer,
    /// Whether this replica does it.
    pub leading: watch::Receiver<bool>,
    /// The DNS suffix of Services.
    pub cluster_domain: String,
}

impl Keeper {
    /// Keeps everything, for a mesh with these roots (PEM), and writes the statuses of gateways and routes.
    pub async fn run(self, roots: impl Fn() -> String) {
        let mut work = Work::new(&self);
        let mut writer = Writer::new(self.client.clone());
        let mut ingresses = Ingresses::new(self.client.clone());
        let mut classes = Classes::new(self.client.clone());
        let mut auto = Auto::new(self.client.clone());
        let mut foreign = Foreign::new(self.client.clone());
        let mut known: Option<(u64, Arc<View>)> = None;
        loop {
            let changed = Arc::clone(&work.owned.changed);
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = changed.notified() => tokio::time::sleep(SETTLE).await,
            }
            if !*self.leading.borrow() {
                work.forget();
                writer.forget();
                ingresses.forget();
                auto.forget();
                foreign.forget();
                continue;
            }
            let version = known.as_ref().map(|(version, _)| *version);
            match self.viewer.newest(version).await {
                Ok(Some(newest)) => known = Some(newest),
                Ok(None) => {}
                Err(_gone) => return,
            }
            let Some((_, view)) = &known else { continue };
            let mut outcomes = BTreeMap::new();
            let named = foreign::of_istio(view);
            if self.settings.is_some() {
                classes.keep(!named.is_empty()).await;
            }
            let view = &foreign.without(view, named, classes.istio()).await;
            work.istio_is_anothers = matches!(classes.istio(), Some(Holder::Another(_)));
            if let Some(settings) = &self.settings {
                outcomes = work.keep(view, settings, &roots()).await;
                auto.keep(view, &outcomes).await;
            }
            writer.write(view, &outcomes).await;
            ingresses.write(view, &outcomes).await;
        }
    }
}

struct Work<'k> {
    client: &'k Client,
    cluster_domain: &'k str,
    owned: Owned,
    /// Whether Istio's class of waypoints is another controller's.
    istio_is_anothers: bool,
    /// What was written last of each object, and what the server made of it.
    written: HashMap<Key, (u64, u64)>,
    tries: BTreeMap<NamespacedName, Try>,
    parameters: BTreeMap<NamespacedName, (Instant, String, Result<Overlays, String>)>,
}

/// A Gateway that something stands in the way of.
struct Try {
    failures: u32,
    next: Instant,
    of: u64,
    why: Failure,
}

/// Why nothing, or not all, was made.
#[derive(Clone, Debug)]
struct Failure {
    reason: &'static str,
    message: String,
}

impl<'k> Work<'k> {
    fn new(keeper: &'k Keeper) -> Self {
        Self {
            client: &keeper.client,
            cluster_domain: &keeper.cluster_domain,
            owned: Owned::new(keeper.client.clone()),
            istio_is_anothers: false,
            written: HashMap::new(),
            tries: BTreeMap::new(),
            parameters: BTreeMap::new(),
        }
    }

    /// Another replica does it by now.
    fn forget(&mut self) {
        self.owned.stop();
        self.written.clear();
        self.tries.clear();
        self.parameters.clear();
    }

    async fn keep(
        &mut self,
        view: &View,
        settings: &Settings,
        roots: &str,
    ) -> BTreeMap<NamespacedName, Outcome> {
        let mut outcomes = BTreeMap::new();
        for (name, gateway) in &view.gateways {
            self.owned.follow(&name.namespace);
            if let Some(outcome) = self.one(name, gateway, settings, roots).await {
                outcomes.insert(name.clone(), outcome);
            }
        }
        self.tries
            .retain(|name, _| view.gateways.contains_key(name));
        self.parameters
            .retain(|name, _| view.gateways.contains_key(name));
        self.let_go(view).await;
        outcomes
    }

    /// What becomes of one Gateway; `None` where that is not known yet.
    async fn one(
        &mut self,
        name: &NamespacedName,
        gateway: &GatewayView,
        settings: &Settings,
        roots: &str,
    ) -> Option<Outcome> {
        let overlays = match self.overlays(name, gateway, settings).await {
            Ok(overlays) => overlays,
            Err(message) => {
                let verdict = Verdict::no("InvalidParameters", message.clone());
                let refused = Some(verdict);
                return Some(self.outcome(name, gateway, refused, Some(("Invalid", message))));
            }
        };
        if gateway.refused.is_some() {
            return Some(self.outcome(name, gateway, None, None));
        }
        match self.owned.is_listed(&name.namespace) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(why) => {
                return Some(self.outcome(name, gateway, None, Some(("NoResources", why))));
            }
        }
        let wanted = match objects::wanted(gateway, settings, &overlays, roots) {
            Ok(wanted) => wanted,
            Err(message) => {
                return Some(self.outcome(name, gateway, None, Some(("Invalid", message))));
            }
        };
        let of = digest(&format!("{wanted:?}"));
        let waits = self.tries.get(name);
        let waits = waits.filter(|waits| waits.of == of && waits.next > Instant::now());
        if let Some(waits) = waits {
            let why = (waits.why.reason, waits.why.message.clone());
            return Some(self.outcome(name, gateway, None, Some(why)));
        }
        let mut failure = None;
        for ((made, object), wanted) in &wanted {
            let key = (*made, name.namespace.to_string(), object.clone());
            if let Err(why) = self.make(&key, &gateway.uid, wanted).await {
                failure.get_or_insert(why);
            }
        }
        self.remove_others(name, &gateway.uid, &wanted).await;
        match failure {
            None => {
                self.tries.remove(name);
                Some(self.outcome(name, gateway, None, None))
            }
            Some(why) => {
                let failures = self.tries.get(name).map_or(0, |known| known.failures) + 1;
                if failures == 1 {
                    warn!(gateway = %name, why = why.message, "cannot make what a Gateway needs");
                }
                let said = (why.reason, why.message.clone());
                let next = Instant::now() + pause(failures);
                let tried = Try {
                    failures,
                    next,
                    of,
                    why,
                };
                self.tries.insert(name.clone(), tried);
                Some(self.outcome(name, gateway, None, Some(said)))
            }
        }
    }

    /// Writes an object that is not as it should be.
    async fn make(&mut self, key: &Key, owner: &str, wanted: &Value) -> Result<(), Failure> {
        let (made, namespace, name) = key;
        let api = self.api(*made, namespace);
        let live = self.owned.get(key);
        let own = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            let mut owners = owners.into_iter().flatten();
            owners.any(|one| one["uid"] == owner)
        };
        let wanted_digest = digest(&wanted.to_string());
        match &live {
            Some(live) if own(live) => {
                let written = self.written.get(key);
                if written == Some(&(wanted_digest, content(live))) {
                    return Ok(());
                }
                if live["metadata"]["deletionTimestamp"].is_string() {
                    return Ok(());
                }
            }
            Some(_) => return Err(clash(key)),
            None => {
                // It may be there without our label.
                let there = api.get_opt(name).await.map_err(|error| failure(&error))?;
                let there = there.and_then(|there| serde_json::to_value(there).ok());
                if there.is_some_and(|there| !own(&there)) {
                    return Err(clash(key));
                }
            }
        }
        if let Some(left) = live.as_ref().and_then(|live| left_to_others(live, wanted)) {
            // Not by force: who has said meanwhile how many there are is not contradicted.
            let params = PatchParams::apply(LEAVER);
            if let Err(error) = api.patch(name, &params, &Patch::Apply(&left)).await {
                debug!(%error, namespace, name, "the number of replicas is another's");
            }
        }
        let params = PatchParams::apply(MANAGER).force();
        let answer = api.patch(name, &params, &Patch::Apply(wanted)).await;
        let answer = answer.map_err(|error| failure(&error))?;
        let answer = serde_json::to_value(answer).unwrap_or_default();
        let is_new = live
            .as_ref()
            .is_none_or(|live| content(live) != content(&answer));
        if is_new {
            info!(
                kind = made.names().2,
                namespace, name, "written for a Gateway"
            );
        }
        self.written
            .insert(key.clone(), (wanted_digest, content(&answer)));
        self.owned.put(key.clone(), answer);
        Ok(())
    }

    /// Removes what was made for the Gateway and is not wanted any more.
    async fn remove_others(&self, name: &NamespacedName, owner: &str, wanted: &objects::Wanted) {
        for (key, object) in self.owned.all() {
            let is_here = key.1 == *name.namespace;
            let is_wanted = wanted.contains_key(&(key.0, key.2.clone()));
            let of = &object["metadata"]["ownerReferences"][0]["uid"];
            if is_here && !is_wanted && of == owner {
                self.remove(&key, &object).await;
            }
        }
    }

    async fn remove(&self, key: &Key, object: &Value) {
        if object["metadata"]["deletionTimestamp"].is_string() {
            return;
        }
        let (made, namespace, name) = key;
        let uid = object["metadata"]["uid"].as_str().map(str::to_owned);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid,
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match self.api(*made, namespace).delete(name, &params).await {
            Ok(_) => info!(kind = made.names().2, namespace, name, "removed"),
            Err(error) => debug!(%error, namespace, name, "cannot remove"),
        }
    }

    /// Removes what was made for Gateways that have got another class. Those that are gone the garbage collector sees to.
    async fn let_go(&self, view: &View) {
        let uids: BTreeSet<&str> = view.gateways.values().map(|one| &*one.uid).collect();
        let mut asked: BTreeMap<String, bool> = BTreeMap::new();
        for (key, object) in self.owned.all() {
            let owner = &object["metadata"]["ownerReferences"][0];
            let (Some(uid), Some(name)) = (owner["uid"].as_str(), owner["name"].as_str()) else {
                continue;
            };
            if uids.contains(uid) || owner["kind"] != "Gateway" {
                continue;
            }
            let is_let_go = match asked.get(uid) {
                Some(known) => *known,
                None => {
                    let is_let_go = self.has_another_class(&key.1, name, uid).await;
                    asked.insert(uid.to_owned(), is_let_go);
                    is_let_go
                }
            };
            if is_let_go {
                self.remove(&key, &object).await;
            }
        }
    }

    /// Whether the Gateway says itself that it is none of ours: one that could not be read may be.
    async fn has_another_class(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource(Kind::Gateway));
        let Ok(Some(gateway)) = api.get_opt(name).await else {
            return false;
        };
        let class = gateway.data["spec"]["gatewayClassName"].as_str();
        gateway.metadata.uid.as_deref() == Some(uid)
            && class.is_some_and(|class| match class {
                ISTIO_CLASS => self.istio_is_anothers,
                class => class != EDGE_CLASS && !is_waypoint_class(class),
            })
    }

    fn api(&self, made: Made, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &owned::resource(made))
    }

    /// What the ConfigMap says that the Gateway names.
    async fn overlays(
        &mut self,
        name: &NamespacedName,
        gateway: &GatewayView,
        settings: &Settings,
    ) -> Result<Overlays, String> {
        let infrastructure = gateway.object.spec.infrastructure.as_ref();
        let Some(reference) = infrastructure
            .and_then(|all| all.get("parametersRef"))
            .filter(|reference| !reference.is_null())
        else {
            self.parameters.remove(name);
            return Ok(Overlays::default());
        };
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        if (text("group"), text("kind")) != ("", "ConfigMap") {
            return Err("spec.infrastructure.parametersRef: only a ConfigMap is read".to_owned());
        }
        let map = text("name").to_owned();
        if let Some((at, of, known)) = self.parameters.get(name)
            && at.elapsed() < PARAMETERS_EVERY
            && *of == map
        {
            return known.clone();
        }
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &name.namespace);
        let read = match maps.get_opt(&map).await {
            Ok(Some(found)) => Overlays::read(&found.data.unwrap_or_default(), settings.bounds())
                .map_err(|error| format!("ConfigMap {map}: {error}")),
            Ok(None) => Err(format!("there is no ConfigMap {}/{map}", name.namespace)),
            Err(error) => match self.parameters.get(name) {
                // What was known stays.
                Some((_, of, known)) if *of == map => known.clone(),
                _ => Err(failure(&error).message),
            },
        };
        let noted = (Instant::now(), map, read.clone());
        self.parameters.insert(name.clone(), noted);
        read
    }

    fn outcome(
        &self,
        name: &NamespacedName,
        gateway: &GatewayView,
        refused: Option<Verdict>,
        failed: Option<(&'static str, String)>,
    ) -> Outcome {
        let made = objects::name_of(gateway);
        let get = |kind: Made| {
            self.owned
                .get(&(kind, name.namespace.to_string(), made.clone()))
        };
        let service = get(Made::Service);
        let host = format!("{made}.{}.svc.{}", name.namespace, self.cluster_domain);
        let addresses = service.as_deref().map(|one| addresses(one, host));
        let addresses = addresses.unwrap_or_default();
        let programmed = match failed {
            Some((reason, message)) => Verdict::no(reason, message),
            None => programmed(get(Made::Deployment).as_deref(), &addresses),
        };
        Outcome {
            refused,
            programmed,
            addresses,
        }
    }
}

/// The number of replicas, where we have said it and do not any more, because an autoscaler is to: said once more by
/// another name, which keeps it until the autoscaler says another. What nobody says any more goes back to one replica.
fn left_to_others(live: &Value, wanted: &Value) -> Option<Value> {
    let replicas = live["spec"]["replicas"].as_u64()?;
    if !wanted["spec"]["replicas"].is_null() {
        return None;
    }
    let managers = live["metadata"]["managedFields"].as_array();
    let own = managers.into_iter().flatten().any(|one| {
        one["manager"] == MANAGER && one["fieldsV1"]["f:spec"]["f:replicas"].is_object()
    });
    own.then(|| {
        serde_json::json!({
            "apiVersion": wanted["apiVersion"],
            "kind": wanted["kind"],
            "metadata": {"name": wanted["metadata"]["name"], "namespace": wanted["metadata"]["namespace"]},
            "spec": {"replicas": replicas},
        })
    })
}

/// Who says how many replicas there are after us, and before an autoscaler does.
const LEAVER: &str = "keelson-replicas";

fn clash(key: &Key) -> Failure {
    let (made, namespace, name) = key;
    let kind = made.names().2;
    Failure {
        reason: "Invalid",
        message: format!(
            "there is a {kind} {namespace}/{name} that was not made for this Gateway; it is left as it is"
        ),
    }
}

/// Whether a gateway serves, as its Deployment says.
fn programmed(deployment: Option<&Value>, addresses: &[(&'static str, String)]) -> Verdict {
    let Some(deployment) = deployment else {
        return Verdict::no("Pending", "its pods are not there yet".to_owned());
    };
    let status = &deployment["status"];
    let available = status["availableReplicas"].as_u64().unwrap_or_default();
    if available == 0 {
        let conditions = status["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let refused =
            conditions.find(|one| one["type"] == "ReplicaFailure" && one["status"] == "True");
        if let Some(message) = refused.and_then(|one| one["message"].as_str()) {
            return Verdict::no("NoResources", message.to_owned());
        }
        return Verdict::no("Pending", "none of its pods is ready".to_owned());
    }
    if addresses.is_empty() {
        let message = "its Service has no address yet".to_owned();
        return Verdict::no("AddressNotAssigned", message);
    }
    Verdict::yes("Programmed")
}

/// Where a gateway is reached: where its load balancer is, or by the name of its Service.
fn addresses(service: &Value, host: String) -> Vec<(&'static str, String)> {
    if service["spec"]["type"] != "LoadBalancer" {
        return vec![("Hostname", host)];
    }
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
    let found = ingress.into_iter().flatten().filter_map(|one| {
        let text = |field: &str| one[field].as_str().map(str::to_owned);
        let ip = text("ip").map(|ip| ("IPAddress", ip));
        ip.or_else(|| text("hostname").map(|host| ("Hostname", host)))
    });
    found.collect()
}

/// What of an object is not said by the server alone.
fn content(object: &Value) -> u64 {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["resourceVersion", "managedFields", "generation"] {
            metadata.remove(field);
        }
    }
    digest(&object.to_string())
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn failure(error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => Failure {
            reason: match status.code {
                409 | 422 | 400 => "Invalid",
                _ => "NoResources",
            },
            message: status.message.clone(),
        },
        error => Failure {
            reason: "Pending",
            message: error.to_string(),
        },
    }
}

/// How long after so many failures in a row it is tried again.
pub(crate) fn pause(failures: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << failures.min(8).saturating_sub(1))
        .min(LAST_PAUSE)
}

/// How often it is looked whether there is something to do.
const EVERY: Duration = Duration::from_millis(500);
/// What comes right behind is seen to together.
const SETTLE: Duration = Duration::from_millis(50);
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// How often a ConfigMap that a Gateway names is read.
const PARAMETERS_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
