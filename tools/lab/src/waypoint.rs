//! What a controller makes in a cluster for a `Gateway` of class `keelson-waypoint`, or of class `keelson` at the edge: a
//! Service, and a pod on every node that runs the waypoint's program.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::objects::{self, documents, files, kind, name, namespace};
use crate::programs;
use crate::run_dir::RunDir;
use crate::yaml;

/// The class of gateways that are waypoints, and that of those at the edge of the mesh.
const CLASSES: [&str; 3] = ["keelson-waypoint", "istio-waypoint", "keelson"];
/// An annotation of the Gateway: the nodes that get a pod, separated by commas; all if it is not there, none if it is empty.
pub const WAYPOINT_NODES: &str = "keelson.io/waypoint-nodes";
/// An annotation of the Gateway: further arguments of its pods' program, separated by spaces, instead of `--workers 1`.
pub const WAYPOINT_ARGS: &str = "keelson.io/waypoint-args";
const PREFIX: &str = "waypoint-of-";
const PROGRAM: &str = "keelson-waypoint";

/// Where the programs that the lab starts find each other.
pub(crate) struct Place<'a> {
    pub(crate) run_dir: &'a RunDir,
    /// Names of the nodes.
    pub(crate) nodes: &'a [String],
    /// `https://` and the controller's address.
    pub(crate) controller: String,
}

/// Writes Service and pods of every waypoint into the folder, and removes those of waypoints that are gone.
pub(crate) fn complete(folder: &Path, place: &Place<'_>) -> Result<()> {
    let mut wanted = Vec::new();
    for file in files(folder)? {
        for gateway in documents(&file).unwrap_or_default() {
            let class = class(&gateway).filter(|class| CLASSES.contains(class));
            if kind(&gateway) == "Gateway" && class.is_some() {
                let own = format!("{PREFIX}{}-{}.yaml", namespace(&gateway), name(&gateway));
                let file = folder.join(own);
                if !file.exists() {
                    let made = make(&gateway, place);
                    let made = made.with_context(|| format!("waypoint {}", name(&gateway)))?;
                    objects::write(&file, &yaml::emit(&made))?;
                }
                wanted.push(file);
            }
        }
    }
    for file in files(folder)? {
        let own = file.file_name().and_then(|name| name.to_str());
        let is_ours = own.is_some_and(|name| name.starts_with(PREFIX));
        if is_ours && !wanted.contains(&file) {
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

fn class(gateway: &Value) -> Option<&str> {
    gateway.pointer("/spec/gatewayClassName")?.as_str()
}

fn make(gateway: &Value, place: &Place<'_>) -> Result<Vec<Value>> {
    let (namespace, name) = (namespace(gateway), name(gateway));
    let mut labels = json!({
        "gateway.networking.k8s.io/gateway-name": name,
        "gateway.networking.k8s.io/gateway-class-name": class(gateway),
        // Whatever its namespace says: a waypoint is in the mesh.
        "keelson.io/mesh": "enabled",
    });
    let wished = gateway.pointer("/spec/infrastructure/labels");
    for (key, value) in wished.and_then(Value::as_object).into_iter().flatten() {
        objects::set(&mut labels, &[key], value.clone());
    }
    let mut made = vec![json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "clusterIP": "None",
            "selector": {"gateway.networking.k8s.io/gateway-name": name},
            "ports": [{"name": "mesh", "port": 15008, "appProtocol": "tcp"}],
        },
    })];
    let annotations = gateway.pointer("/metadata/annotations");
    let annotation = |name: &str| annotations.and_then(|all| all.get(name)?.as_str());
    let nodes: Vec<String> = match annotation(WAYPOINT_NODES) {
        // Somebody else makes the pods where no node is named.
        Some(text) => text
            .split(',')
            .map(|node| node.trim().to_owned())
            .filter(|node| !node.is_empty())
            .collect(),
        None => place.nodes.to_vec(),
    };
    let args = annotation(WAYPOINT_ARGS).unwrap_or("--workers 1");
    for node in &nodes {
        let pod = format!("{name}-{node}");
        let token = token(place.run_dir, (namespace, name), node)?;
        let program = programs::find(PROGRAM)?;
        let root = place.run_dir.controller().join("root-cert.pem");
        let mut command = vec![
            json!(program),
            json!("--gateway"),
            json!(format!("{namespace}/{name}")),
            json!("--pod"),
            json!(pod),
            json!("--node"),
            json!(node),
            json!("--controller"),
            json!(place.controller),
            json!("--controller-ca"),
            json!(root),
            json!("--token-file"),
            json!(token),
            json!("--drain-deadline"),
            json!("5s"),
        ];
        command.extend(args.split_whitespace().map(|arg| json!(arg)));
        made.push(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod, "namespace": namespace, "labels": labels},
            "spec": {
                "nodeName": node,
                "serviceAccountName": name,
                "containers": [{"name": "waypoint", "image": "lab", "command": command}],
            },
        }));
    }
    Ok(made)
}

/// The file with the token by which the controller knows a waypoint; a new one is told to the controller.
fn token(run_dir: &RunDir, (namespace, name): (&str, &str), node: &str) -> Result<PathBuf> {
    let directory = run_dir.controller().join("waypoints");
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{namespace}-{name}-{node}"));
    if !path.exists() {
        let mut random = [0; 16];
        fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(&path, &token)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let line = format!("{token} {node} spiffe://cluster.local/ns/{namespace}/sa/{name}\n");
        let mut lines = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(directory.join("tokens"))?;
        lines.write_all(line.as_bytes())?;
        let known = run_dir.controller().join("node-tokens");
        if known.exists() {
            let mut known = fs::OpenOptions::new().append(true).open(known)?;
            known.write_all(line.as_bytes())?;
        }
    }
    Ok(path)
}

/// What the controller's list of tokens says of the waypoints that there are.
pub(crate) fn tokens(run_dir: &RunDir) -> String {
    fs::read_to_string(run_dir.controller().join("waypoints").join("tokens")).unwrap_or_default()
}
