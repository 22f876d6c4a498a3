//! How an application stands up from its own files: one program with many roles is in the place of its images.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tests_cluster::Namespace;

/// A waypoint of a namespace, and a gateway whose pods have the label that Istio's Gateways select.
pub(crate) fn gateways(waypoint_is_for: &str) -> [Value; 2] {
    let gateway = |name: &str, class: &str, listener: Value| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": name},
            "spec": {"gatewayClassName": class, "listeners": [listener]},
        })
    };
    let mut waypoint = gateway(
        "waypoint",
        "keelson-waypoint",
        json!({"name": "mesh", "port": 15008, "protocol": "HBONE"}),
    );
    waypoint["metadata"]["labels"] = json!({"istio.io/waypoint-for": waypoint_is_for});
    let mut door = gateway(
        "door",
        "keelson",
        json!({"name": "own", "port": 9999, "protocol": "HTTP"}),
    );
    door["spec"]["infrastructure"] = json!({"labels": {"istio": "ingressgateway"}});
    [waypoint, door]
}

/// Applies a file as it is.
pub(crate) fn apply(namespace: &Namespace, text: &str) -> Result<()> {
    with_file(namespace, "apply", text)
}

/// Deletes what is in a file.
pub(crate) fn delete(namespace: &Namespace, text: &str) -> Result<()> {
    with_file(namespace, "delete", text)
}

fn with_file(namespace: &Namespace, verb: &str, text: &str) -> Result<()> {
    let mut file = NamedTempFile::new()?;
    file.write_all(text.as_bytes())?;
    let path = file.path().display().to_string();
    namespace.kubectl(&[verb, "-f", &path]).map(drop)
}

/// Puts the program in the place of a Deployment's image, as a page with these arguments.
pub(crate) fn take_the_place_of_its_image(deployment: &mut Value, words: &[&str]) -> Result<()> {
    let mut all = vec!["page", "--pod", "$(POD)"];
    all.extend(words);
    let all = json!(all);
    let pod = json!({"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}});
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array_mut();
    for container in containers.context("containers")? {
        container["image"] = "keelson.io/test/application:test".into();
        container["imagePullPolicy"] = "Never".into();
        container["args"] = all.clone();
        match container["env"].as_array_mut() {
            Some(env) => env.push(pod.clone()),
            None => container["env"] = json!([pod]),
        }
        if let Some(fields) = container.as_object_mut() {
            fields.remove("command");
        }
    }
    Ok(())
}
