//! What is said of Ingresses of our classes: the addresses of the Gateway that serves each, and events where something of
//! it is wrong.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use compile::index::view::{IngressView, View};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use manifest::{Kind, NamespacedName};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{MANAGER, short};
use crate::gateways::{Outcome, pause};
use crate::source::kubernetes::resource;

/// Writes what has changed since it wrote last.
pub(crate) struct Ingresses {
    client: Client,
    recorder: Recorder,
    known: HashMap<NamespacedName, Known>,
    /// Whether it is known what an earlier writer has left.
    recalled: bool,
}

/// What was written of an Ingress.
struct Known {
    uid: Arc<str>,
    status: Option<Value>,
    wrong: String,
    failures: u32,
    /// Not before then, after a failure.
    next: Option<Instant>,
}

impl Known {
    fn new(uid: Arc<str>) -> Self {
        Self {
            uid,
            status: None,
            wrong: String::new(),
            failures: 0,
            next: None,
        }
    }

    fn waits(&self) -> bool {
        self.next.is_some_and(|next| next > Instant::now())
    }

    /// The status could not be written: not before some time, then.
    fn failed(&mut self, name: &NamespacedName, error: &kube::Error) {
        self.failures += 1;
        if self.failures == 1 {
            warn!(kind = "Ingress", %name, %error, "cannot write the status; it is tried again");
        }
        self.next = Some(Instant::now() + pause(self.failures));
    }
}

impl Ingresses {
    pub(crate) fn new(client: Client) -> Self {
        let reporter = Reporter {
            controller: MANAGER.to_owned(),
            instance: None,
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            known: HashMap::new(),
            recalled: false,
        }
    }

    /// Another replica writes by now.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
        self.recalled = false;
    }

    /// Writes the status of each Ingress whose Gateway has been looked after, and an event for each that has something new
    /// wrong with it.
    pub(crate) async fn write(
        &mut self,
        view: &View,
        outcomes: &BTreeMap<NamespacedName, Outcome>,
    ) {
        if !self.recalled {
            match self.recall().await {
                Ok(()) => self.recalled = true,
                Err(error) => debug!(%error, "cannot list Ingresses; it is tried again"),
            }
        }
        let gone: Vec<_> = self
            .known
            .extract_if(|name, known| !view.ingresses.contains_key(name) && !known.waits())
            .collect();
        for (name, mut known) in gone {
            if known.status.is_some() {
                // It is of another class by now, or deleted: then there is nobody to tell.
                match self.put(&name, &known.uid, None).await {
                    Ok(()) => {}
                    Err(kube::Error::Api(answer)) if GONE.contains(&answer.code) => {}
                    Err(error) => {
                        known.failed(&name, &error);
                        self.known.insert(name, known);
                    }
                }
            }
        }
        for (name, ingress) in &view.ingresses {
            let outcome = match &ingress.gateway {
                Some(gateway) => outcomes.get(gateway),
                None => None,
            };
            // What becomes of its Gateway is not known yet.
            if ingress.gateway.is_some() && outcome.is_none() {
                continue;
            }
            self.one(name, ingress, outcome.map(status)).await;
        }
    }

    /// Notes the Ingresses that carry a status of an earlier writer, which may be true no more: what it says is not known, so it
    /// is written anew or taken back.
    async fn recall(&mut self) -> kube::Result<()> {
        let resource = resource(Kind::Ingress);
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let all = api.list_metadata(&ListParams::default()).await?;
        for ingress in all {
            let metadata = ingress.metadata;
            let mut managed = metadata.managed_fields.iter().flatten();
            let is_ours = managed.any(|part| {
                part.manager.as_deref() == Some(MANAGER)
                    && part.subresource.as_deref() == Some("status")
            });
            let (Some(namespace), Some(name), Some(uid)) =
                (metadata.namespace, metadata.name, metadata.uid)
            else {
                continue;
            };
            if is_ours {
                let known = Known {
                    status: Some(Value::Null),
                    ..Known::new(uid.into())
                };
                let name = NamespacedName::new(&namespace, &name);
                self.known.entry(name).or_insert(known);
            }
        }
        Ok(())
    }

    async fn one(&mut self, name: &NamespacedName, ingress: &IngressView, status: Option<Value>) {
        let mut known = self.known.remove(name);
        known = known.filter(|known| known.uid == ingress.uid);
        let mut known = known.unwrap_or_else(|| Known::new(Arc::clone(&ingress.uid)));
        if known.wrong != ingress.wrong {
            known.wrong.clone_from(&ingress.wrong);
            if !ingress.wrong.is_empty() {
                self.say(name, ingress).await;
            }
        }
        if known.status != status && !known.waits() {
            match self.put(name, &ingress.uid, status.as_ref()).await {
                Ok(()) => {
                    known.status = status;
                    known.failures = 0;
                    known.next = None;
                }
                // Gone, or another of its name: there is news of it soon.
                Err(kube::Error::Api(answer)) if GONE.contains(&answer.code) => {
                    debug!(%name, "the Ingress is gone");
                }
                Err(error) => known.failed(name, &error),
            }
        }
        self.known.insert(name.clone(), known);
    }

    /// Applies a status; none takes back what was applied.
    async fn put(
        &self,
        name: &NamespacedName,
        uid: &str,
        status: Option<&Value>,
    ) -> kube::Result<()> {
        let resource = resource(Kind::Ingress);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &name.namespace, &resource);
        let mut patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"uid": uid},
        });
        if let Some(status) = status {
            patch["status"] = status.clone();
        }
        let params = PatchParams::apply(MANAGER).force();
        api.patch_status(&name.name, &params, &Patch::Apply(&patch))
            .await?;
        Ok(())
    }

    /// What its author has to notice, where `kubectl describe` shows it: an Ingress has no conditions.
    async fn say(&self, name: &NamespacedName, ingress: &IngressView) {
        let resource = resource(Kind::Ingress);
        let event = Event {
            type_: EventType::Warning,
            reason: "Invalid".to_owned(),
            note: Some(short(&ingress.wrong)),
            action: "Compile".to_owned(),
            secondary: None,
        };
        let about = ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            namespace: Some(name.namespace.to_string()),
            name: Some(name.name.to_string()),
            uid: Some(ingress.uid.to_string()),
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &about).await {
            debug!(%name, %error, "cannot write an event");
        }
    }
}

/// `status` of an Ingress that a Gateway serves.
fn status(outcome: &Outcome) -> Value {
    let addresses = outcome.addresses.iter().map(|(kind, value)| match *kind {
        "IPAddress" => json!({"ip": value}),
        _ => json!({"hostname": value}),
    });
    json!({"loadBalancer": {"ingress": addresses.collect::<Vec<_>>()}})
}

/// The answers to a write about an object that is gone, or whose name another one has by now.
const GONE: [u16; 2] = [404, 409];

#[cfg(test)]
mod tests;
