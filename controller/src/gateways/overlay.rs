//! What a ConfigMap that a Gateway names in `spec.infrastructure.parametersRef` adds to the objects that are made for it, as
//! in Istio: the keys `deployment`, `service`, `serviceAccount`, `podDisruptionBudget` and `horizontalPodAutoscaler`, each a
//! part of such an object in YAML.
//!
//! Whoever may write a Gateway need not be somebody who may make pods. So only fields that give a pod no further rights
//! can be said, as many pods as the installation allows, and the priorities that it names: a pod of a high priority has those
//! of others evicted.

use std::collections::BTreeMap;

use serde_json::Value;

use super::objects::{CONTAINER, Made};

/// The key by which an autoscaler is asked for.
pub(super) const AUTOSCALER: &str = "horizontalPodAutoscaler";

/// The parts by their keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overlays {
    /// Each read and found to be in order.
    pub of: BTreeMap<&'static str, Value>,
}

/// How far a ConfigMap may go.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'s> {
    /// Pods of one Gateway.
    pub max_replicas: u32,
    /// Names of PriorityClasses.
    pub priority_classes: &'s [String],
}

impl Overlays {
    /// Reads the data of a ConfigMap.
    ///
    /// # Errors
    /// A key, or a field, that cannot be said, as a sentence.
    pub fn read(data: &BTreeMap<String, String>, bounds: Bounds<'_>) -> Result<Self, String> {
        let mut overlays = Self::default();
        for (key, text) in data {
            let known = Made::ALL.into_iter().filter_map(key_of);
            let known = known.into_iter().find(|known| known == key);
            let Some(known) = known else {
                return Err(format!(
                    "{key} is no kind of object that is made for a Gateway"
                ));
            };
            let mut overlay: Value =
                serde_saphyr::from_str(text).map_err(|error| format!("{key}: {error}"))?;
            if overlay.is_null() {
                overlay = Value::Object(serde_json::Map::new());
            }
            if !overlay.is_object() {
                return Err(format!("{key}: a part of an object is expected"));
            }
            if let Some(field) = forbidden(known, &overlay) {
                return Err(format!("{key}: {field} cannot be set for a Gateway"));
            }
            bounds
                .check(&overlay)
                .map_err(|error| format!("{key}: {error}"))?;
            overlays.of.insert(known, overlay);
        }
        Ok(overlays)
    }

    /// Adds what is said of this kind.
    pub fn apply(&self, made: Made, object: &mut Value) {
        let Some(overlay) = key_of(made).and_then(|key| self.of.get(key)) else {
            return;
        };
        merge(object, overlay);
        // One of the two counts.
        if made == Made::PodDisruptionBudget
            && overlay.pointer("/spec/minAvailable").is_some()
            && let Some(spec) = object["spec"].as_object_mut()
        {
            spec.remove("maxUnavailable");
        }
    }
}

impl Bounds<'_> {
    fn check(self, overlay: &Value) -> Result<(), String> {
        for field in ["replicas", "minReplicas", "maxReplicas"] {
            let asked = &overlay["spec"][field];
            let is_fine = asked
                .as_u64()
                .is_some_and(|asked| asked <= u64::from(self.max_replicas));
            if !asked.is_null() && !is_fine {
                return Err(format!(
                    "spec.{field}: {asked} is not within 0 to {}, the installation's gateways.maxReplicas",
                    self.max_replicas
                ));
            }
        }
        let class = overlay.pointer("/spec/template/spec/priorityClassName");
        let Some(class) = class.filter(|class| !class.is_null()) else {
            return Ok(());
        };
        let mut allowed = self.priority_classes.iter();
        if allowed.any(|allowed| class == allowed.as_str()) {
            return Ok(());
        }
        Err(format!(
            "spec.template.spec.priorityClassName: {class} is not among the installation's gateways.priorityClassNames"
        ))
    }
}

fn key_of(made: Made) -> Option<&'static str> {
    match made {
        Made::Deployment => Some("deployment"),
        Made::Service => Some("service"),
        Made::ServiceAccount => Some("serviceAccount"),
        Made::PodDisruptionBudget => Some("podDisruptionBudget"),
        Made::HorizontalPodAutoscaler => Some(AUTOSCALER),
        Made::ConfigMap => None,
    }
}

/// Fields that may be said, each with all that is below it.
fn allowed(key: &str) -> &'static [&'static str] {
    match key {
        "deployment" => &[
            "spec.replicas",
            "spec.strategy",
            "spec.minReadySeconds",
            "spec.revisionHistoryLimit",
            "spec.progressDeadlineSeconds",
            "spec.template.metadata.labels",
            "spec.template.metadata.annotations",
            "spec.template.spec.nodeSelector",
            "spec.template.spec.tolerations",
            "spec.template.spec.affinity",
            "spec.template.spec.topologySpreadConstraints",
            "spec.template.spec.imagePullSecrets",
            "spec.template.spec.priorityClassName",
            "spec.template.spec.terminationGracePeriodSeconds",
            "spec.template.spec.containers.name",
            "spec.template.spec.containers.resources",
        ],
        "service" => &[
            "spec.type",
            "spec.externalTrafficPolicy",
            "spec.internalTrafficPolicy",
            "spec.allocateLoadBalancerNodePorts",
            "spec.loadBalancerClass",
            "spec.loadBalancerIP",
            "spec.loadBalancerSourceRanges",
            "spec.healthCheckNodePort",
            "spec.ipFamilies",
            "spec.ipFamilyPolicy",
            "spec.sessionAffinity",
            "spec.sessionAffinityConfig",
            "spec.trafficDistribution",
            "spec.ports.name",
            "spec.ports.port",
            "spec.ports.nodePort",
            "spec.ports.appProtocol",
        ],
        "podDisruptionBudget" => &[
            "spec.minAvailable",
            "spec.maxUnavailable",
            "spec.unhealthyPodEvictionPolicy",
        ],
        AUTOSCALER => &[
            "spec.minReplicas",
            "spec.maxReplicas",
            "spec.metrics",
            "spec.behavior",
        ],
        _ => &[],
    }
}

const OF_ALL: [&str; 2] = ["metadata.labels", "metadata.annotations"];

/// The first field that may not be said.
fn forbidden(key: &str, overlay: &Value) -> Option<String> {
    let mut fields = Vec::new();
    leaves("", overlay, &mut fields);
    let may = |field: &str| {
        let mut all = OF_ALL.iter().chain(allowed(key));
        all.any(|allowed| {
            let below = field.strip_prefix(allowed);
            below.is_some_and(|below| below.is_empty() || below.starts_with('.'))
        })
    };
    if let Some(field) = fields.iter().find(|field| !may(field)) {
        return Some(field.clone());
    }
    let containers = overlay.pointer("/spec/template/spec/containers");
    let mut containers = containers.and_then(Value::as_array).into_iter().flatten();
    let other = containers.find(|container| container["name"] != CONTAINER)?;
    Some(format!("a container {} beside {CONTAINER}", other["name"]))
}

/// The paths of all values that are no objects. Of lists, those of their items.
fn leaves(path: &str, value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let path = match path {
                    "" => name.clone(),
                    path => format!("{path}.{name}"),
                };
                leaves(&path, value, into);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().for_each(|item| leaves(path, item, into));
        }
        // Nothing is said.
        Value::Object(_) if path.is_empty() => {}
        _ => into.push(path.to_owned()),
    }
}

/// As Kubernetes merges: objects field by field, `null` takes a field away; of lists of ports and containers the items with
/// the same key are merged, other lists are replaced.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                if value.is_null() {
                    into.remove(name);
                    continue;
                }
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) => {
            let key = ["port", "name"].into_iter().find(|key| {
                let has = |item: &Value| item.get(key).is_some();
                !from.is_empty() && into.iter().chain(from).all(has)
            });
            let Some(key) = key else {
                into.clone_from(from);
                return;
            };
            for item in from {
                match into.iter_mut().find(|known| known[key] == item[key]) {
                    Some(known) => merge(known, item),
                    None => into.push(item.clone()),
                }
            }
        }
        (into, from) => into.clone_from(from),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(key: &str, text: &str) -> Result<Overlays, String> {
        let classes = ["edge".to_owned()];
        let bounds = Bounds {
            max_replicas: 10,
            priority_classes: &classes,
        };
        Overlays::read(&[(key.to_owned(), text.to_owned())].into(), bounds)
    }

    /// Issue 12 B4: who may write a Gateway evicts nobody's pods and fills no cluster with its own, unless the installation
    /// says so.
    #[test]
    fn pods_are_no_more_and_no_more_important_than_the_installation_allows() {
        for (key, text, refused) in [
            ("deployment", "spec: {replicas: 10}", None),
            (
                "deployment",
                "spec: {replicas: 11}",
                Some("spec.replicas: 11"),
            ),
            (
                "deployment",
                "spec: {replicas: -1}",
                Some("spec.replicas: -1"),
            ),
            (
                "deployment",
                "spec: {replicas: many}",
                Some("spec.replicas: \"many\""),
            ),
            (AUTOSCALER, "spec: {maxReplicas: 10}", None),
            (
                AUTOSCALER,
                "spec: {minReplicas: 1, maxReplicas: 1000}",
                Some("spec.maxReplicas: 1000"),
            ),
            (
                AUTOSCALER,
                "spec: {minReplicas: 12}",
                Some("spec.minReplicas: 12"),
            ),
            (
                "deployment",
                "spec: {template: {spec: {priorityClassName: edge}}}",
                None,
            ),
            (
                "deployment",
                "spec: {template: {spec: {priorityClassName: system-node-critical}}}",
                Some("gateways.priorityClassNames"),
            ),
        ] {
            match (read(key, text), refused) {
                (Ok(_), None) => {}
                (Err(error), Some(part)) => assert!(error.contains(part), "{error}"),
                (read, _) => panic!("{text}: {read:?}"),
            }
        }
    }

    /// Issue 12 B4: what is said in the ConfigMap is in the object, and the rest of the object stays.
    #[test]
    fn parts_are_merged_into_objects() {
        let mut deployment = json!({"spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "waypoint", "image": "i"}]}}}});
        let text = "spec: {replicas: 5, template: {spec: {nodeSelector: {a: b}, containers: [{name: waypoint, resources: {limits: {cpu: 1}}}]}}}";
        read("deployment", text)
            .unwrap()
            .apply(Made::Deployment, &mut deployment);
        let container =
            json!({"name": "waypoint", "image": "i", "resources": {"limits": {"cpu": 1}}});
        let expected = json!({"spec": {"replicas": 5, "template": {"spec": {"nodeSelector": {"a": "b"}, "containers": [container]}}}});
        assert_eq!(deployment, expected);

        let mut service = json!({"spec": {"type": "LoadBalancer", "ports": [{"name": "port-80", "port": 80}, {"name": "port-443", "port": 443}]}});
        let text = "spec: {externalTrafficPolicy: Local, type: NodePort, ports: [{port: 443, nodePort: 30443}]}";
        read("service", text)
            .unwrap()
            .apply(Made::Service, &mut service);
        let ports = json!([{"name": "port-80", "port": 80}, {"name": "port-443", "port": 443, "nodePort": 30443}]);
        assert_eq!(
            service,
            json!({"spec": {"type": "NodePort", "externalTrafficPolicy": "Local", "ports": ports}})
        );
    }

    /// Issue 12 B4: by a Gateway nobody gets a pod that may more than a gateway's.
    #[test]
    fn what_would_give_a_pod_more_rights_is_refused_by_name() {
        for (key, text, field) in [
            (
                "deployment",
                "spec: {template: {spec: {hostNetwork: true}}}",
                "spec.template.spec.hostNetwork",
            ),
            (
                "deployment",
                "spec: {template: {spec: {serviceAccountName: admin}}}",
                "spec.template.spec.serviceAccountName",
            ),
            (
                "deployment",
                "spec: {template: {spec: {volumes: [{name: a, hostPath: {path: /}}]}}}",
                "spec.template.spec.volumes",
            ),
            (
                "deployment",
                "spec: {template: {spec: {containers: [{name: waypoint, image: mine}]}}}",
                "spec.template.spec.containers.image",
            ),
            (
                "deployment",
                "spec: {template: {spec: {containers: [{name: waypoint, securityContext: {privileged: true}}]}}}",
                "spec.template.spec.containers.securityContext.privileged",
            ),
            (
                "deployment",
                "spec: {template: {spec: {containers: [{name: mine}]}}}",
                "a container \"mine\"",
            ),
            ("deployment", "spec: {selector: null}", "spec.selector"),
            (
                "service",
                "spec: {externalIPs: [10.0.0.1]}",
                "spec.externalIPs",
            ),
            ("service", "metadata: {name: other}", "metadata.name"),
            (
                "horizontalPodAutoscaler",
                "spec: {scaleTargetRef: {name: other}}",
                "spec.scaleTargetRef.name",
            ),
        ] {
            let error = read(key, text).unwrap_err();
            assert!(error.contains(field) && error.starts_with(key), "{error}");
        }
        assert!(read("configMap", "{}").is_err());
        assert!(read("deployment", "[").is_err());
        assert!(read("deployment", "- a").is_err());
    }

    #[test]
    fn an_empty_part_asks_for_the_object_alone() {
        let overlays = read(AUTOSCALER, "").unwrap();
        assert!(overlays.of.contains_key(AUTOSCALER));
    }
}
