//! Makes a companion of each NetworkPolicy of a namespace of the mesh: a policy for the same pods that lets port 15008 pass, by which
//! all connections between captured pods of two nodes come. The mesh itself holds the first policy against real peers and ports, so
//! nothing is opened by that.
//!
//! A companion belongs to its policy and goes with it. It selects no pod that is kept out of the mesh by its own label: behind
//! the port of such a pod there is no agent that would ask. Every replica does this: who comes second finds it done.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use compile::index::{AmbientLabel, enrolment};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::gateways::objects::{MANAGED_BY, MANAGER};
use crate::source::kubernetes::patient;

/// Does so for ever.
pub(crate) async fn keep(client: Client, ambient: AmbientLabel) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let policies: Api<NetworkPolicy> = Api::all(client.clone());
    let mut of_namespaces = pin!(patient(watcher(namespaces, watcher::Config::default())));
    let mut of_policies = pin!(patient(watcher(policies, watcher::Config::default())));
    let mut known = Known {
        ambient,
        ..Known::default()
    };
    let mut due = tokio::time::Instant::now() + SETTLED;
    loop {
        let heard = tokio::select! {
            Some(event) = of_namespaces.next() => event.map(|event| known.namespace(event)),
            Some(event) = of_policies.next() => event.map(|event| known.policy(event)),
            () = tokio::time::sleep_until(due) => {
                due = tokio::time::Instant::now() + AGAIN;
                for step in known.steps() {
                    take(&client, step).await;
                }
                continue;
            }
        };
        match heard {
            // Agents hear of a policy too, and hold it before tunnels pass.
            Ok(()) => due = due.min(tokio::time::Instant::now() + SETTLED),
            Err(error) => {
                warn!(%error, "cannot follow NetworkPolicy objects; companions stay as they are")
            }
        }
    }
}

async fn take(client: &Client, step: Step) {
    let (at, name) = match &step {
        Step::Apply {
            namespace, name, ..
        }
        | Step::Remove { namespace, name } => (namespace, name),
    };
    let api: Api<NetworkPolicy> = Api::namespaced(client.clone(), at);
    let done = match &step {
        Step::Apply { object, .. } => {
            let params = PatchParams::apply(MANAGER).force();
            api.patch(name, &params, &Patch::Apply(object))
                .await
                .map(drop)
        }
        Step::Remove { .. } => match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop),
        },
    };
    match done {
        Ok(()) => info!(
            namespace = at,
            name,
            "companion of a NetworkPolicy: {}",
            step.word()
        ),
        Err(error) => {
            warn!(namespace = at, name, %error, "cannot keep the companion of a NetworkPolicy; trying again")
        }
    }
}

/// What is due.
#[derive(Debug, PartialEq)]
enum Step {
    Apply {
        namespace: String,
        name: String,
        object: Value,
    },
    Remove {
        namespace: String,
        name: String,
    },
}

impl Step {
    const fn word(&self) -> &'static str {
        match self {
            Self::Apply { .. } => "made",
            Self::Remove { .. } => "removed",
        }
    }
}

/// Namespace and name.
type Key = (String, String);

/// Namespaces of the mesh, policies, and the companions that there are.
#[derive(Debug, Default)]
struct Known {
    ambient: AmbientLabel,
    namespaces: BTreeMap<String, bool>,
    policies: BTreeMap<Key, NetworkPolicy>,
    companions: BTreeMap<Key, NetworkPolicySpec>,
    /// Both lists have been read.
    read: (bool, bool),
}

impl Known {
    fn namespace(&mut self, event: Event<Namespace>) {
        match event {
            Event::Init => {
                self.namespaces.clear();
                self.read.0 = false;
            }
            Event::Apply(namespace) | Event::InitApply(namespace) => {
                let in_mesh = enrolment::enrols(namespace.labels(), self.ambient);
                let ends = namespace.metadata.deletion_timestamp.is_some();
                self.namespaces
                    .insert(namespace.name_any(), in_mesh && !ends);
            }
            Event::Delete(namespace) => drop(self.namespaces.remove(&namespace.name_any())),
            Event::InitDone => self.read.0 = true,
        }
    }

    fn policy(&mut self, event: Event<NetworkPolicy>) {
        match event {
            Event::Init => {
                self.policies.clear();
                self.companions.clear();
                self.read.1 = false;
            }
            Event::Apply(policy) | Event::InitApply(policy) => {
                let key = key(&policy);
                if is_companion(&policy) {
                    self.companions.insert(key, policy.spec.unwrap_or_default());
                } else {
                    self.policies.insert(key, policy);
                }
            }
            Event::Delete(policy) => {
                let key = key(&policy);
                self.policies.remove(&key);
                self.companions.remove(&key);
            }
            Event::InitDone => self.read.1 = true,
        }
    }

    /// Nothing until everything has been read.
    fn steps(&self) -> Vec<Step> {
        if self.read != (true, true) {
            return Vec::new();
        }
        let is_in_mesh = |namespace: &String| self.namespaces.get(namespace) == Some(&true);
        let wanted: BTreeMap<Key, (Value, NetworkPolicySpec)> = self
            .policies
            .iter()
            .filter(|((namespace, _), policy)| {
                is_in_mesh(namespace) && policy.metadata.deletion_timestamp.is_none()
            })
            .filter_map(|((namespace, _), policy)| {
                let object = companion(policy)?;
                let spec = serde_json::from_value(object["spec"].clone()).ok()?;
                let name = object["metadata"]["name"].as_str()?.to_owned();
                Some(((namespace.clone(), name), (object, spec)))
            })
            .collect();
        let missing = wanted
            .iter()
            .filter(|(key, (_, spec))| self.companions.get(key) != Some(spec))
            .map(|((namespace, name), (object, _))| Step::Apply {
                namespace: namespace.clone(),
                name: name.clone(),
                object: object.clone(),
            });
        let left = self
            .companions
            .keys()
            .filter(|key| !wanted.contains_key(key));
        let left = left.map(|(namespace, name)| Step::Remove {
            namespace: namespace.clone(),
            name: name.clone(),
        });
        missing.chain(left).collect()
    }
}

fn key(policy: &NetworkPolicy) -> Key {
    (policy.namespace().unwrap_or_default(), policy.name_any())
}

fn is_companion(policy: &NetworkPolicy) -> bool {
    policy.name_any().starts_with(PREFIX)
        && policy
            .labels()
            .get(MANAGED_BY)
            .is_some_and(|by| by == MANAGER)
}

/// The companion of a policy; none of one that the API server has not stored.
fn companion(policy: &NetworkPolicy) -> Option<Value> {
    let uid = policy.uid()?;
    let spec = policy.spec.as_ref()?;
    // What the API server fills in where nothing is said.
    let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    let types = spec.policy_types.clone().unwrap_or_else(|| {
        let egress = has_egress.then(|| "Egress".to_owned());
        std::iter::once("Ingress".to_owned())
            .chain(egress)
            .collect()
    });
    let mut selector = spec.pod_selector.clone().unwrap_or_default();
    let kept_out = OPT_OUT.map(|(key, value)| {
        let one = json!({"key": key, "operator": "NotIn", "values": [value]});
        serde_json::from_value(one)
    });
    let kept_out = kept_out.into_iter().collect::<Result<Vec<_>, _>>().ok()?;
    selector
        .match_expressions
        .get_or_insert_default()
        .extend(kept_out);
    let mut made = json!({"podSelector": selector, "policyTypes": types});
    let ports = json!([{"port": 15008, "protocol": "TCP"}]);
    let is_about = |name: &str| types.iter().any(|one| one == name);
    if is_about("Ingress") {
        made["ingress"] = json!([{"ports": ports}]);
    }
    if is_about("Egress") {
        // To pods alone: a policy that keeps a pod from the world outside keeps it from that port there too.
        made["egress"] = json!([{"ports": ports, "to": [{"namespaceSelector": {}}]}]);
    }
    Some(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": format!("{PREFIX}{uid}"),
            "namespace": policy.namespace(),
            "labels": {MANAGED_BY: MANAGER},
            "annotations": {"keelson.io/companion-of": policy.name_any()},
            "ownerReferences": [{
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "name": policy.name_any(), "uid": uid,
            }],
        },
        "spec": made,
    }))
}

const PREFIX: &str = "keelson-tunnels-";
/// Labels by which a pod stays out of the mesh whatever its namespace says.
const OPT_OUT: [(&str, &str); 2] = [
    ("keelson.io/mesh", "disabled"),
    ("istio.io/dataplane-mode", "none"),
];
/// After a change, and after the start.
const SETTLED: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(labels: Value) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": "shop", "labels": labels}}))
            .expect("a namespace")
    }

    fn policy(name: &str, spec: Value) -> NetworkPolicy {
        let metadata = json!({"name": name, "namespace": "shop", "uid": format!("uid-of-{name}")});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a policy")
    }

    fn known(policies: Vec<NetworkPolicy>, labels: Value) -> Known {
        let mut known = Known::default();
        known.namespace(Event::Init);
        known.namespace(Event::InitApply(namespace(labels)));
        known.policy(Event::Init);
        for policy in policies {
            known.policy(Event::InitApply(policy));
        }
        assert!(known.steps().is_empty(), "nothing before all is read");
        known.namespace(Event::InitDone);
        known.policy(Event::InitDone);
        known
    }

    fn applied(known: &Known) -> Vec<Value> {
        let steps = known.steps().into_iter();
        let objects = steps.filter_map(|step| match step {
            Step::Apply { object, .. } => Some(object),
            Step::Remove { .. } => None,
        });
        objects.collect()
    }

    #[test]
    fn a_companion_lets_tunnels_pass_to_the_same_pods_and_no_others() {
        let one = policy(
            "allow",
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"ports": [{"port": 8080}]}]}),
        );
        let known = known(vec![one], json!({"keelson.io/mesh": "enabled"}));
        let objects = applied(&known);
        let ports = json!([{"port": 15008, "protocol": "TCP"}]);
        assert_eq!(objects.len(), 1);
        let spec = &objects[0]["spec"];
        assert_eq!(spec["ingress"], json!([{"ports": ports}]));
        let to_pods = json!([{"ports": ports, "to": [{"namespaceSelector": {}}]}]);
        assert_eq!(spec["egress"], to_pods, "and to nothing outside");
        let selector = &spec["podSelector"];
        assert_eq!(selector["matchLabels"], json!({"app": "web"}));
        assert_eq!(
            selector["matchExpressions"],
            json!([
                {"key": "keelson.io/mesh", "operator": "NotIn", "values": ["disabled"]},
                {"key": "istio.io/dataplane-mode", "operator": "NotIn", "values": ["none"]},
            ])
        );
        let owner = &objects[0]["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["name"], &owner["uid"]),
            (&json!("allow"), &json!("uid-of-allow"))
        );
    }

    #[test]
    fn a_policy_about_what_comes_in_opens_nothing_that_goes_out() {
        for spec in [
            json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
            json!({"podSelector": {}, "egress": []}),
        ] {
            let known = known(
                vec![policy("in", spec)],
                json!({"keelson.io/mesh": "enabled"}),
            );
            let spec = applied(&known)[0]["spec"].clone();
            assert_eq!(spec["policyTypes"], json!(["Ingress"]));
            assert!(spec["egress"].is_null());
        }
    }

    #[test]
    fn what_is_there_is_left_alone_and_what_is_wrong_or_of_no_use_is_not() {
        let one = policy("allow", json!({"podSelector": {}}));
        let enabled = json!({"keelson.io/mesh": "enabled"});
        let mut known = known(vec![one], enabled);
        let made: NetworkPolicy =
            serde_json::from_value(applied(&known).remove(0)).expect("a policy");
        known.policy(Event::Apply(made.clone()));
        assert!(known.steps().is_empty(), "{:?}", known.steps());
        let mut changed = made.clone();
        changed.spec = Some(NetworkPolicySpec::default());
        known.policy(Event::Apply(changed));
        assert_eq!(applied(&known).len(), 1);
        known.policy(Event::Apply(made));
        known.namespace(Event::Apply(namespace(json!({}))));
        let left = Step::Remove {
            namespace: "shop".to_owned(),
            name: "keelson-tunnels-uid-of-allow".to_owned(),
        };
        assert_eq!(known.steps(), [left]);
    }

    #[test]
    fn outside_of_the_mesh_nothing_is_opened() {
        let one = policy("allow", json!({"podSelector": {}}));
        assert!(known(vec![one], json!({})).steps().is_empty());
    }
}
