//! The objects that are made for one Gateway. Pure.

use std::collections::BTreeMap;

use compile::index::view::{EDGE_CLASS, GatewayView, is_waypoint_class};
use manifest::NamespacedName;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::overlay::{self, Bounds, Overlays};

/// What all gateways have in common: the flag `--gateways`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The waypoint's image.
    pub image: String,
    /// When nodes fetch it.
    #[serde(default = "if_not_present")]
    pub pull_policy: String,
    /// Secrets to fetch it with, as pods name them.
    #[serde(default)]
    pub pull_secrets: Vec<Value>,
    /// Pods of each gateway.
    #[serde(default = "two")]
    pub replicas: u32,
    /// The most that a ConfigMap of a Gateway may ask for.
    #[serde(default = "ten")]
    pub max_replicas: u32,
    /// PriorityClasses that a ConfigMap of a Gateway may name.
    #[serde(default)]
    pub priority_class_names: Vec<String>,
    /// Resources of each pod.
    #[serde(default)]
    pub resources: Value,
    /// What is logged.
    #[serde(default = "info")]
    pub log: String,
    /// How log lines look.
    #[serde(default = "text")]
    pub log_format: String,
    /// Who gets spans of requests; nobody if it is not there.
    #[serde(default)]
    pub trace: Option<Trace>,
    /// The controller, as `https://HOST:PORT`.
    pub controller: String,
    /// For whom the tokens are by which pods prove who they are.
    pub audience: String,
}

impl Settings {
    /// How far the ConfigMap of a Gateway may go.
    pub fn bounds(&self) -> Bounds<'_> {
        Bounds {
            // An installation's own number is within its own bounds.
            max_replicas: self.max_replicas.max(self.replicas),
            priority_classes: &self.priority_class_names,
        }
    }
}

/// Who gets spans of requests.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// A collector that speaks OTLP over gRPC, as `http://HOST:PORT`.
    pub endpoint: String,
    /// Of a hundred requests whose client has not decided, how many are sampled.
    pub percent: f64,
}

fn if_not_present() -> String {
    "IfNotPresent".to_owned()
}

fn two() -> u32 {
    2
}

fn ten() -> u32 {
    10
}

fn info() -> String {
    "info".to_owned()
}

fn text() -> String {
    "text".to_owned()
}

/// A kind that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each variant is the kind of its name")]
pub enum Made {
    ServiceAccount,
    ConfigMap,
    Service,
    PodDisruptionBudget,
    HorizontalPodAutoscaler,
    Deployment,
}

impl Made {
    /// All of them, in the order in which they are made.
    pub const ALL: [Self; 6] = [
        Self::ServiceAccount,
        Self::ConfigMap,
        Self::Service,
        Self::PodDisruptionBudget,
        Self::HorizontalPodAutoscaler,
        Self::Deployment,
    ];

    /// Group, version, kind and plural.
    pub fn names(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::ServiceAccount => ("", "v1", "ServiceAccount", "serviceaccounts"),
            Self::ConfigMap => ("", "v1", "ConfigMap", "configmaps"),
            Self::Service => ("", "v1", "Service", "services"),
            Self::PodDisruptionBudget => (
                "policy",
                "v1",
                "PodDisruptionBudget",
                "poddisruptionbudgets",
            ),
            Self::HorizontalPodAutoscaler => (
                "autoscaling",
                "v2",
                "HorizontalPodAutoscaler",
                "horizontalpodautoscalers",
            ),
            Self::Deployment => ("apps", "v1", "Deployment", "deployments"),
        }
    }
}

/// What is to be there for a Gateway.
pub type Wanted = BTreeMap<(Made, String), Value>;

/// The name of what is made for a Gateway: its own for a waypoint, and with the class behind it at the edge, so that it is
/// not that of a Service of the application.
pub fn name_of(gateway: &GatewayView) -> String {
    let name = gateway.object.metadata.name.as_deref().unwrap_or_default();
    match gateway.object.spec.gateway_class_name.as_str() {
        EDGE_CLASS => format!("{name}-{EDGE_CLASS}"),
        _ => name.to_owned(),
    }
}

/// The objects of a Gateway, for a mesh with these roots (PEM).
///
/// # Errors
/// Why none can be made, as a sentence.
pub fn wanted(
    gateway: &GatewayView,
    settings: &Settings,
    overlays: &Overlays,
    roots: &str,
) -> Result<Wanted, String> {
    let maker = Maker::new(gateway, settings)?;
    let mut all = vec![
        (
            Made::ServiceAccount,
            maker.object(Made::ServiceAccount, json!({})),
        ),
        (Made::ConfigMap, maker.root(roots)),
        (Made::Service, maker.service()),
        (Made::PodDisruptionBudget, maker.budget()),
    ];
    let scales = overlays.of.contains_key(overlay::AUTOSCALER);
    if scales {
        all.push((Made::HorizontalPodAutoscaler, maker.autoscaler()));
    }
    all.push((Made::Deployment, maker.deployment(!scales)));
    let named = all.into_iter().map(|(made, mut object)| {
        overlays.apply(made, &mut object);
        maker.fix(&mut object);
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        ((made, name.to_owned()), object)
    });
    Ok(named.collect())
}

struct Maker<'a> {
    gateway: &'a GatewayView,
    settings: &'a Settings,
    /// Of the Gateway.
    key: NamespacedName,
    class: &'a str,
    service_type: &'a str,
    name: String,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
}

impl<'a> Maker<'a> {
    fn new(gateway: &'a GatewayView, settings: &'a Settings) -> Result<Self, String> {
        let key = NamespacedName::of(&gateway.object.metadata);
        let class = gateway.object.spec.gateway_class_name.as_str();
        let name = name_of(gateway);
        if name.len() > LONGEST_NAME {
            return Err(format!(
                "{name} would be the name of a Service and is longer than {LONGEST_NAME} characters: choose a shorter name"
            ));
        }
        let annotations = gateway.object.metadata.annotations.as_ref();
        let service_type = annotations.and_then(|all| all.get(SERVICE_TYPE));
        let service_type = service_type.map_or("LoadBalancer", |asked| asked);
        if !["LoadBalancer", "NodePort", "ClusterIP"].contains(&service_type) {
            return Err(format!(
                "{SERVICE_TYPE}: {service_type} is not supported; LoadBalancer, NodePort and ClusterIP are"
            ));
        }
        let infrastructure = gateway.object.spec.infrastructure.as_ref();
        let map = |field: &str| {
            let map = infrastructure.and_then(|all| all.get(field)?.as_object());
            map.cloned().unwrap_or_default()
        };
        let mut maker = Self {
            gateway,
            settings,
            class,
            service_type,
            name,
            labels: map("labels"),
            annotations: map("annotations"),
            key,
        };
        let fixed = maker.fixed();
        maker.labels.extend(fixed);
        Ok(maker)
    }

    /// Labels by which others know what belongs to which Gateway.
    fn fixed(&self) -> Map<String, Value> {
        let pairs = [
            (GATEWAY_NAME, &*self.key.name),
            (GATEWAY_CLASS_NAME, self.class),
            (MANAGED_BY, MANAGER),
        ];
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value.into()));
        pairs.into_iter().collect()
    }

    fn selector(&self) -> Value {
        json!({GATEWAY_NAME: &*self.key.name})
    }

    fn object(&self, made: Made, rest: Value) -> Value {
        let (group, version, kind, _) = made.names();
        let api_version = match group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        let mut object = json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {
                "name": self.name,
                "namespace": &*self.key.namespace,
                "labels": self.labels,
            },
        });
        if !self.annotations.is_empty() {
            object["metadata"]["annotations"] = self.annotations.clone().into();
        }
        if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
            object.extend(rest);
        }
        object
    }

    /// Whatever an overlay says, an object belongs to its Gateway.
    fn fix(&self, object: &mut Value) {
        let metadata = &mut object["metadata"];
        metadata["ownerReferences"] = json!([{
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "name": &*self.key.name,
            "uid": &*self.gateway.uid,
            "controller": true,
        }]);
        for (key, value) in self.fixed() {
            metadata["labels"][key] = value;
        }
        if let Some(labels) = object.pointer_mut("/spec/template/metadata/labels") {
            for (key, value) in self.fixed() {
                labels[key] = value;
            }
            // Whatever its namespace says: a waypoint is in the mesh.
            labels["keelson.io/mesh"] = "enabled".into();
        }
    }

    fn root(&self, roots: &str) -> Value {
        let mut object = self.object(Made::ConfigMap, json!({"data": {ROOT_FILE: roots}}));
        object["metadata"]["name"] = format!("{}-mesh-root", self.name).into();
        object
    }

    fn service(&self) -> Value {
        let selector = self.selector();
        let spec = if is_waypoint_class(self.class) {
            // Agents look for its pods by its name; nobody dials it.
            json!({
                "clusterIP": "None",
                "selector": selector,
                "ports": [{"name": "mesh", "port": 15008, "protocol": "TCP", "appProtocol": "tcp"}],
            })
        } else {
            let listeners = &self.gateway.object.spec.listeners;
            let ports = self.gateway.ports.iter().map(|port| {
                // Listeners' names are those of ports too: no two are alike.
                let named = listeners.iter().find(|one| one.port == Some(*port));
                let named = named.map(|one| one.name.clone());
                let name = named.filter(|name| name.len() < 64 && !name.contains('.'));
                let name = name.unwrap_or_else(|| format!("port-{port}"));
                json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"})
            });
            json!({
                "type": self.service_type,
                "selector": selector,
                "ports": ports.collect::<Vec<_>>(),
            })
        };
        self.object(Made::Service, json!({"spec": spec}))
    }

    fn budget(&self) -> Value {
        // One goes at a time. A single pod must not keep a node from being drained.
        let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": self.selector()}});
        self.object(Made::PodDisruptionBudget, json!({"spec": spec}))
    }

    fn autoscaler(&self) -> Value {
        let spec = json!({
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": self.name},
            "minReplicas": self.settings.replicas.max(1),
            "maxReplicas": (self.settings.replicas.max(1) * 5).min(self.settings.bounds().max_replicas.max(1)),
        });
        self.object(Made::HorizontalPodAutoscaler, json!({"spec": spec}))
    }

    fn deployment(&self, says_replicas: bool) -> Value {
        let settings = self.settings;
        let mut security = json!({
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        if self.class == EDGE_CLASS {
            // Ports below 1024 without a capability: one of Kubernetes' safe sysctls.
            security["sysctls"] =
                json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]);
        }
        let mut command = vec![
            "/keelson-waypoint".to_owned(),
            format!("--gateway={}", self.key),
            format!("--controller={}", settings.controller),
            format!("--controller-ca=/etc/keelson/{ROOT_FILE}"),
            "--token-file=/var/run/secrets/keelson/token".to_owned(),
            "--state-dir=/var/lib/keelson".to_owned(),
            "--admin=[::]:15020".to_owned(),
            format!("--log={}", settings.log),
            format!("--log-format={}", settings.log_format),
        ];
        if let Some(trace) = &settings.trace {
            command.push(format!("--trace-endpoint={}", trace.endpoint));
            command.push(format!("--trace-percent={}", trace.percent));
        }
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let container = json!({
            "name": CONTAINER,
            "image": settings.image,
            "imagePullPolicy": settings.pull_policy,
            "command": command,
            "env": [field("POD_NAME", "metadata.name"), field("NODE_NAME", "spec.nodeName")],
            "ports": [{"name": "admin", "containerPort": 15020, "protocol": "TCP"}],
            "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": "admin"}, "periodSeconds": 2},
            // While it drains it is not ready, and lives.
            "livenessProbe": {"tcpSocket": {"port": "admin"}, "periodSeconds": 10},
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "resources": match &settings.resources {
                Value::Null => json!({}),
                resources => resources.clone(),
            },
            "volumeMounts": [
                {"name": "root", "mountPath": "/etc/keelson", "readOnly": true},
                {"name": "token", "mountPath": "/var/run/secrets/keelson", "readOnly": true},
                {"name": "state", "mountPath": "/var/lib/keelson"},
            ],
        });
        let mut template = json!({
            "metadata": {"labels": self.labels},
            "spec": {
                "serviceAccountName": self.name,
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 40,
                "securityContext": security,
                "topologySpreadConstraints": [{
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": self.selector()},
                }],
                "containers": [container],
                "volumes": [
                    {"name": "root", "configMap": {"name": format!("{}-mesh-root", self.name)}},
                    {"name": "token", "projected": {"sources": [{"serviceAccountToken": {
                        "audience": settings.audience, "expirationSeconds": 3600, "path": "token",
                    }}]}},
                    {"name": "state", "emptyDir": {"sizeLimit": "64Mi"}},
                ],
            },
        });
        if !settings.pull_secrets.is_empty() {
            template["spec"]["imagePullSecrets"] = settings.pull_secrets.clone().into();
        }
        if !self.annotations.is_empty() {
            template["metadata"]["annotations"] = self.annotations.clone().into();
        }
        let mut spec = json!({
            "selector": {"matchLabels": self.selector()},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": template,
        });
        if says_replicas {
            spec["replicas"] = settings.replicas.into();
        }
        self.object(Made::Deployment, json!({"spec": spec}))
    }
}

/// The container of a gateway's pods.
pub const CONTAINER: &str = "waypoint";
/// Who makes what is made.
pub const MANAGER: &str = "keelson-controller";
/// The label that says so.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The label of the Gateway API that names the Gateway.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
const GATEWAY_CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// Istio's annotation of a Gateway: of which type its Service is.
const SERVICE_TYPE: &str = "networking.istio.io/service-type";
const ROOT_FILE: &str = "root-cert.pem";
/// Of a Service.
const LONGEST_NAME: usize = 63;
