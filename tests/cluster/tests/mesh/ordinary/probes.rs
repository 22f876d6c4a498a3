//! The kubelet's probes, of every kind, by every way.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests_cluster::{Namespace, SERVER, container, nodes};

use super::{Strict, restarts, template};
use crate::installed::Installed;

/// Section C of issue 11: who asks a pod whether it lives is on the pod's node, outside of the mesh, and is let in all the same.
#[test]
#[ignore = "nightly"]
fn probes_of_every_kind_pass_under_strict_and_nothing_is_restarted() -> Result<()> {
    let mesh = Installed::install()?;
    let strict = Strict::create(&mesh, "probes")?;
    let namespace = &strict.pair.namespace;
    let all = nodes()?;
    for node in &all {
        namespace.apply(&[probed(node)])?;
    }
    for node in &all {
        namespace.wait_ready(&name(node))?;
    }
    let before = counts(namespace, &all)?;
    sleep(WHILE);
    for (before, after) in before.iter().zip(counts(namespace, &all)?) {
        for (kind, count) in KINDS.iter().zip(after.iter().zip(before)) {
            let (after, before) = count;
            // Liveness and readiness, each once a second, on a machine that does much else.
            ensure!(*after >= before + 4, "{kind}: {before}, {after}");
        }
    }
    for node in &all {
        let name = name(node);
        ensure!(restarts(namespace, &name)? == 0, "{name} was started again");
        let pod = namespace.get(&["pod", &name])?;
        let ready = pod["status"]["conditions"].as_array().cloned();
        let is_ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
        ensure!(ready.unwrap_or_default().iter().any(is_ready), "{pod:#}");
    }
    strict.has_stayed_so()?;
    // The same from a pod outside is refused.
    for node in &all {
        let ip = namespace.pod_ip(&name(node))?;
        strict.refuses(&tests_cluster::who_at(ip))?;
    }
    Ok(())
}

fn name(node: &str) -> String {
    format!("probed-{node}")
}

/// How many probes each container of each pod has seen.
fn counts(namespace: &Namespace, nodes: &[String]) -> Result<Vec<[u64; 3]>> {
    let count = |node: &String, container: &str| -> Result<u64> {
        let words = ["exec", &name(node), "-c", container, "--"];
        let count = ["sh", "-c", "wc -l < /tmp/probes"];
        Ok(namespace
            .kubectl(&[&words[..], &count].concat())?
            .trim()
            .parse()?)
    };
    nodes
        .iter()
        .map(|node| {
            Ok([
                count(node, "http")?,
                count(node, "exec")?,
                count(node, "grpc")?,
            ])
        })
        .collect()
}

/// A container for each way to ask, with each kind of question.
fn probed(node: &str) -> Value {
    let one = |name: &str, command: &str, mut how: Value| {
        let mut one = container(command);
        one["name"] = json!(name);
        for (field, value) in [
            ("periodSeconds", 1),
            ("timeoutSeconds", 5),
            ("failureThreshold", 3),
        ] {
            how[field] = json!(value);
        }
        one["livenessProbe"] = how.clone();
        one["readinessProbe"] = how.clone();
        how["failureThreshold"] = json!(30);
        one["startupProbe"] = how;
        one
    };
    let serve = SERVER.replace("printf", "echo >> /tmp/probes; printf");
    let containers = [
        one(
            "http",
            &serve,
            json!({"httpGet": {"path": "/cgi-bin/who", "port": 8080}}),
        ),
        one(
            "tcp",
            "exec nc -ll -p 8082 -e cat",
            json!({"tcpSocket": {"port": 8082}}),
        ),
        one(
            "exec",
            "sleep 86400",
            json!({"exec": {"command": ["sh", "-c", "echo >> /tmp/probes"]}}),
        ),
        one("grpc", &grpc(), json!({"grpc": {"port": 8083}})),
    ];
    let mut pod = template("probed", node, &json!({"containers": containers}));
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!(name(node));
    pod
}

/// A server of gRPC's health protocol that knows one answer: to the first request of each connection, that it serves.
fn grpc() -> String {
    format!(
        "cat > /tmp/serve <<'END'
#!/bin/sh
echo >> /tmp/probes
printf '{SETTINGS}'
sleep 0.3
printf '{ACKNOWLEDGED}{HEADERS}{ANSWER}{TRAILERS}'
exec cat > /dev/null
END
chmod +x /tmp/serve && exec nc -ll -p 8083 -e /tmp/serve"
    )
}

// Frames of HTTP/2, RFC 9113, as printf reads them: length, kind, flags, stream.
const SETTINGS: &str = r"\0\0\0\4\0\0\0\0\0";
const ACKNOWLEDGED: &str = r"\0\0\0\4\1\0\0\0\0";
/// `:status: 200` of the static table, and `content-type: application/grpc`, a literal with a name of it.
const HEADERS: &str = r"\0\0\24\1\4\0\0\0\1\210\17\20\20application/grpc";
/// A message of two bytes: `status = SERVING`.
const ANSWER: &str = r"\0\0\7\0\0\0\0\0\1\0\0\0\0\2\10\1";
/// `grpc-status: 0`, both literal; the stream ends.
const TRAILERS: &str = r"\0\0\17\1\5\0\0\0\1\0\13grpc-status\0010";
const KINDS: [&str; 3] = ["http", "exec", "grpc"];
const WHILE: Duration = Duration::from_secs(12);
