//! Gateways of Istio's class of waypoints, which are ours where the cluster has no other controller for that class.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use compile::index::view::{ISTIO_CLASS, View};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use manifest::{Kind, NamespacedName};
use tracing::{debug, warn};

use super::classes::Holder;
use super::objects::MANAGER;
use crate::source::kubernetes::resource;

/// Those that are another controller's, and who has been told so.
pub(super) struct Foreign {
    recorder: Recorder,
    told: BTreeSet<Arc<str>>,
}

/// The Gateways of Istio's class.
pub(super) fn of_istio(view: &View) -> BTreeMap<NamespacedName, Arc<str>> {
    let named = view
        .gateways
        .iter()
        .filter(|(_, gateway)| gateway.object.spec.gateway_class_name == ISTIO_CLASS);
    named
        .map(|(name, gateway)| (name.clone(), Arc::clone(&gateway.uid)))
        .collect()
}

impl Foreign {
    pub(super) fn new(client: Client) -> Self {
        let reporter = Reporter {
            controller: MANAGER.to_owned(),
            instance: None,
        };
        Self {
            recorder: Recorder::new(client, reporter),
            told: BTreeSet::new(),
        }
    }

    /// Another replica does it by now.
    pub(super) fn forget(&mut self) {
        self.told.clear();
    }

    /// The view without those that are another controller's, and without those of which that is not known: nothing is made of
    /// them, and nothing written on them.
    pub(super) async fn without(
        &mut self,
        view: &Arc<View>,
        named: BTreeMap<NamespacedName, Arc<str>>,
        holder: Option<&Holder>,
    ) -> Arc<View> {
        if let Some(Holder::Another(controller)) = holder {
            for (name, uid) in &named {
                if self.told.insert(Arc::clone(uid)) {
                    self.tell(name, uid, controller).await;
                }
            }
        }
        rest(view, &named, holder)
    }

    async fn tell(&self, name: &NamespacedName, uid: &Arc<str>, controller: &str) {
        let note = sentence(controller);
        warn!(gateway = %name, "{note}");
        let event = Event {
            type_: EventType::Warning,
            reason: "AnotherController".to_owned(),
            note: Some(note),
            action: "Make".to_owned(),
            secondary: None,
        };
        let resource = resource(Kind::Gateway);
        let about = ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            namespace: Some(name.namespace.to_string()),
            name: Some(name.name.to_string()),
            uid: Some(uid.to_string()),
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &about).await {
            debug!(gateway = %name, %error, "cannot write an event");
        }
    }
}

fn rest(
    view: &Arc<View>,
    named: &BTreeMap<NamespacedName, Arc<str>>,
    holder: Option<&Holder>,
) -> Arc<View> {
    if named.is_empty() || holder == Some(&Holder::Ours) {
        return Arc::clone(view);
    }
    let mut rest = View::clone(view);
    rest.gateways.retain(|name, _| !named.contains_key(name));
    Arc::new(rest)
}

fn sentence(controller: &str) -> String {
    format!(
        "GatewayClass {ISTIO_CLASS} is of controller {controller:?}: Keelson makes no pods of this Gateway, and refuses connections to what names it as its waypoint. Make one of class keelson-waypoint, or delete that GatewayClass if nobody keeps it any more"
    )
}

#[cfg(test)]
mod tests {
    use compile::index::view::GatewayView;
    use k8s_api::Gateway;
    use serde_json::json;

    use super::*;

    fn view() -> Arc<View> {
        let gateway = |class: &str| {
            let object: Gateway = serde_json::from_value(json!({
                "metadata": {"name": "wp", "namespace": "shop"}, "spec": {"gatewayClassName": class},
            }))
            .expect("a Gateway");
            GatewayView {
                object: Arc::new(object),
                uid: class.into(),
                generation: 1,
                refused: None,
                notes: Vec::new(),
                listeners: Vec::new(),
                ports: BTreeSet::new(),
            }
        };
        let mut view = View::default();
        for class in ["keelson-waypoint", "istio-waypoint"] {
            let name = NamespacedName::new("shop", class);
            view.gateways.insert(name, gateway(class));
        }
        Arc::new(view)
    }

    /// Issue 12 B3: Istio's class is ours where Istio's controller is absent, and else nothing is made of it.
    #[test]
    fn a_gateway_of_istios_class_is_ours_unless_another_controller_has_the_class() {
        let another = Holder::Another("istio.io/mesh-controller".to_owned());
        for (holder, expected) in [(Some(Holder::Ours), 2), (Some(another), 1), (None, 1)] {
            let view = view();
            let rest = rest(&view, &of_istio(&view), holder.as_ref());
            assert_eq!(rest.gateways.len(), expected, "{holder:?}");
            let keeps = NamespacedName::new("shop", "keelson-waypoint");
            assert!(rest.gateways.contains_key(&keeps));
        }
        let said = sentence("istio.io/mesh-controller");
        assert!(
            said.len() < 1000 && said.contains("istio.io/mesh-controller"),
            "{said}"
        );
    }
}
