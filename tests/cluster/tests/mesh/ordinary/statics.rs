//! Pods that a kubelet runs from files on its node, and of which the API server only has a copy.

use anyhow::{Result, ensure};
use serde_json::json;
use tests_cluster::{SERVER, eventually, nodes, pod, who_at};

use super::Strict;
use crate::installed::Installed;

/// Issue 11, B4: a static pod is captured before its containers start, as any other. Its node knows it by another UID than the API
/// server.
#[test]
#[ignore = "nightly"]
fn a_static_pod_is_captured_and_strict_like_any_other() -> Result<()> {
    let mesh = Installed::install()?;
    let strict = Strict::create(&mesh, "static")?;
    let namespace = &strict.pair.namespace;
    let node = &nodes()?[1];
    let mut manifest = pod("kept", None, SERVER);
    manifest["apiVersion"] = json!("v1");
    manifest["kind"] = json!("Pod");
    manifest["metadata"]["namespace"] = json!(namespace.name());
    let path = format!("{STATIC}/{}.json", namespace.name());
    let write = format!("cat > {path} <<'END'\n{manifest}\nEND");
    mesh.on(node, &write)?;
    let name = format!("kept-{node}");
    namespace.wait_ready(&name)?;
    let ask = who_at(namespace.pod_ip(&name)?);
    let client = namespace.pod_ip("client")?;
    let asked = eventually("the static pod answers", || namespace.exec("client", &ask));
    let checked = asked.and_then(|answer| {
        ensure!(answer.trim() == format!("{name} {client}"), "{answer}");
        strict.refuses(&ask)?;
        strict.has_stayed_so()
    });
    mesh.on(node, &format!("rm {path}"))?;
    checked
}

const STATIC: &str = "/keelson/config/static";
