//! The manifest of a pod, said in a line of a test.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::objects::POD_IPS;

/// A pod to be made by [`crate::Lab::create`]. Without a container it is a bare sandbox.
#[derive(Debug, Clone)]
pub struct PodSpec {
    namespace: String,
    name: String,
    manifest: Value,
}

impl PodSpec {
    /// The pod `name` in `namespace` on the node `node`.
    #[must_use]
    pub fn new(namespace: &str, name: &str, node: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            manifest: json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}, "annotations": {}},
                "spec": {"nodeName": node, "containers": []},
            }),
        }
    }

    /// The pod that a Deployment makes of its template, on the node `node`; every container runs `command` in the place
    /// of its image.
    #[must_use]
    pub fn from_template(
        (namespace, name): (&str, &str),
        node: &str,
        template: &Value,
        command: &[String],
    ) -> Self {
        let mut this = Self::new(namespace, name, node);
        for part in ["labels", "annotations"] {
            if let Some(given) = template.pointer(&format!("/metadata/{part}")) {
                this = this.with(&["metadata", part], given.clone());
            }
        }
        if let Some(spec) = template.get("spec") {
            this = this.with(&["spec"], spec.clone());
            this = this.with(&["spec", "nodeName"], json!(node));
        }
        let containers = this.manifest.pointer_mut("/spec/containers");
        for container in containers
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            crate::objects::set(container, &["command"], json!(command));
            crate::objects::set(container, &["args"], json!([]));
        }
        this
    }

    /// Its service account; `default` if not said.
    #[must_use]
    pub fn service_account(self, name: &str) -> Self {
        self.with(&["spec", "serviceAccountName"], json!(name))
    }

    /// One label; `app` is the pod's name if not said.
    #[must_use]
    pub fn label(self, key: &str, value: &str) -> Self {
        self.with(&["metadata", "labels", key], json!(value))
    }

    /// One annotation.
    #[must_use]
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.with(&["metadata", "annotations", key], json!(value))
    }

    /// Its addresses; the next free ones of both families if not said.
    #[must_use]
    pub fn ips(self, ips: &[IpAddr]) -> Self {
        let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
        self.annotation(POD_IPS, &ips.join(","))
    }

    /// One more container, with the command it runs.
    #[must_use]
    pub fn container(mut self, name: &str, command: &[&str]) -> Self {
        if let Some(containers) = self
            .manifest
            .pointer_mut("/spec/containers")
            .and_then(Value::as_array_mut)
        {
            containers.push(json!({"name": name, "image": "lab", "command": command}));
        }
        self
    }

    /// Ports on which the kubelet probes it: those of sidecars, which the lab does not run.
    #[must_use]
    pub fn probed(self, ports: &[u16]) -> Self {
        let sidecar = |port: &u16| {
            json!({
                "name": format!("probed-{port}"), "image": "lab", "restartPolicy": "Always",
                "readinessProbe": {"tcpSocket": {"port": port}},
            })
        };
        let sidecars: Vec<Value> = ports.iter().map(sidecar).collect();
        self.with(&["spec", "initContainers"], json!(sidecars))
    }

    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The manifest's file, for [`crate::Lab::delete`].
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("pod-{}-{}.yaml", self.namespace, self.name)
    }

    pub(crate) fn manifest(&self) -> Value {
        self.manifest.clone()
    }

    fn with(mut self, path: &[&str], value: Value) -> Self {
        crate::objects::set(&mut self.manifest, path, value);
        self
    }
}
