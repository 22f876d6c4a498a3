//! The classes of gateways: made where the cluster has the Gateway API, and said to be accepted.

use std::time::{Duration, Instant};

use compile::index::view::{EDGE_CLASS, ISTIO_CLASS, WAYPOINT_CLASS};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tracing::{debug, warn};

use super::objects::MANAGER;
use crate::status::gateways::{CONTROLLER_NAME, conditions};
use compile::index::Verdict;

/// The classes, and when they were last looked at.
pub(super) struct Classes {
    api: Api<DynamicObject>,
    next: Instant,
    is_told: bool,
    /// Who has Istio's class of waypoints; nobody known before it was looked at.
    istio: Option<Holder>,
    /// Whether a Gateway named it when it was looked at last.
    named: bool,
}

/// Whose a class is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Ours,
    /// The controller of this name.
    Another(String),
}

impl Classes {
    pub(super) fn new(client: Client) -> Self {
        let resource = ApiResource {
            group: GROUP.to_owned(),
            version: "v1".to_owned(),
            api_version: format!("{GROUP}/v1"),
            kind: "GatewayClass".to_owned(),
            plural: "gatewayclasses".to_owned(),
        };
        Self {
            api: Api::all_with(client, &resource),
            next: Instant::now(),
            is_told: false,
            istio: None,
            named: false,
        }
    }

    /// Who has Istio's class of waypoints.
    pub(super) fn istio(&self) -> Option<&Holder> {
        self.istio.as_ref()
    }

    /// Puts them right from time to time. Istio's class is made where a Gateway names it (`names_istio`) and nobody has it.
    pub(super) async fn keep(&mut self, names_istio: bool) {
        let is_urgent = names_istio && !std::mem::replace(&mut self.named, names_istio);
        if Instant::now() < self.next && !is_urgent {
            return;
        }
        self.next = Instant::now() + EVERY;
        let mut failed = false;
        for (name, description) in [
            (EDGE_CLASS, "Gateways into the mesh"),
            (WAYPOINT_CLASS, "Proxies for requests inside the mesh"),
        ] {
            match self.one(name, description).await {
                Ok(true) => {}
                Ok(false) => {
                    if !std::mem::replace(&mut self.is_told, true) {
                        warn!(
                            class = name,
                            "the GatewayClass of this name is another controller's"
                        );
                    }
                }
                Err(error) => {
                    debug!(class = name, %error, "cannot keep the GatewayClass");
                    failed = true;
                }
            }
        }
        if names_istio {
            match self.look_at_istio().await {
                Ok(holder) => self.istio = Some(holder),
                Err(error) => {
                    debug!(class = ISTIO_CLASS, %error, "cannot look at the GatewayClass");
                    failed = true;
                }
            }
        }
        if failed {
            // The cluster has no such kind yet, or its server was away: who adds it waits for the classes.
            self.next = Instant::now() + AGAIN;
        }
        if let Err(error) = self.refuse_others().await {
            debug!(%error, "cannot look at the other GatewayClasses");
        }
    }

    /// Istio's class is ours where the cluster has no other controller for it.
    async fn look_at_istio(&self) -> kube::Result<Holder> {
        if self.one(ISTIO_CLASS, "Istio's class of waypoints").await? {
            return Ok(Holder::Ours);
        }
        let there = self.api.get_opt(ISTIO_CLASS).await?;
        let holder = there.and_then(|there| {
            let name = there.data["spec"]["controllerName"].as_str()?;
            Some(name.to_owned())
        });
        Ok(Holder::Another(holder.unwrap_or_default()))
    }

    /// Says of classes with other names that name this controller that nothing is made of them.
    async fn refuse_others(&self) -> kube::Result<()> {
        for class in self.api.list(&ListParams::default()).await? {
            let name = class.metadata.name.as_deref().unwrap_or_default();
            let is_ours = class.data["spec"]["controllerName"] == CONTROLLER_NAME;
            if is_ours && ![EDGE_CLASS, WAYPOINT_CLASS, ISTIO_CLASS].contains(&name) {
                let message = format!(
                    "a class of another name is not supported: Gateways name {EDGE_CLASS} or {WAYPOINT_CLASS}"
                );
                let refused = Verdict::no("Unsupported", message);
                self.say(name, &class, refused).await?;
            }
        }
        Ok(())
    }

    /// Whether it is ours.
    async fn one(&self, name: &str, description: &str) -> kube::Result<bool> {
        let there = match self.api.get_opt(name).await? {
            Some(there) => there,
            None => {
                let class = json!({
                    "apiVersion": format!("{GROUP}/v1"),
                    "kind": "GatewayClass",
                    "metadata": {"name": name},
                    "spec": {"controllerName": CONTROLLER_NAME, "description": description},
                });
                let params = PatchParams::apply(MANAGER);
                self.api.patch(name, &params, &Patch::Apply(&class)).await?
            }
        };
        if there.data["spec"]["controllerName"] != CONTROLLER_NAME {
            return Ok(false);
        }
        let accepted = match &there.data["spec"]["parametersRef"] {
            Value::Null => Verdict::yes("Accepted"),
            _ => {
                let message = "parametersRef of a class is not supported".to_owned();
                Verdict::no("InvalidParameters", message)
            }
        };
        self.say(name, &there, accepted).await?;
        Ok(true)
    }

    /// Writes whether a class is accepted, unless that is written there.
    async fn say(&self, name: &str, there: &DynamicObject, accepted: Verdict) -> kube::Result<()> {
        let known = there.data["status"]["conditions"].as_array();
        let wanted = conditions(
            known.map_or(&[][..], Vec::as_slice),
            &[("Accepted", accepted)],
            there.metadata.generation.unwrap_or_default(),
        );
        if known != Some(&wanted) {
            let patch = json!({
                "metadata": {"resourceVersion": there.metadata.resource_version},
                "status": {"conditions": wanted},
            });
            let params = PatchParams::default();
            self.api
                .patch_status(name, &params, &Patch::Merge(&patch))
                .await?;
        }
        Ok(())
    }
}

const GROUP: &str = "gateway.networking.k8s.io";
const EVERY: Duration = Duration::from_secs(10);
/// After it has failed.
const AGAIN: Duration = Duration::from_secs(1);
