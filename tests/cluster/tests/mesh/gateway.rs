//! The door into the mesh: a Gateway of class `keelson`, reached from outside.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests_cluster::{Namespace, SERVER, eventually, kubectl, nodes, pod};

use crate::installed::Installed;
use crate::kinds::{Kinds, until_said};
use crate::ordinary::doors::address;

/// A certificate that is its own authority.
pub(crate) struct Certificate {
    pem: String,
    key: String,
}

impl Certificate {
    pub(crate) fn make() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ])
            .args([
                "-subj",
                "/CN=shop.example.com",
                "-addext",
                "subjectAltName=DNS:shop.example.com",
            ])
            .args(["-keyout", &path("key"), "-out", &path("pem")])
            .output()
            .context("openssl")?;
        ensure!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        Ok(Self {
            pem: std::fs::read_to_string(path("pem"))?,
            key: std::fs::read_to_string(path("key"))?,
        })
    }

    /// A shell command that asks by HTTPS at this port, and takes this certificate alone.
    pub(crate) fn ask(&self, to: &str, port: u64) -> String {
        format!(
            "cat > /tmp/ca.pem <<'END'\n{}END\ncurl -s -S -m 5 --cacert /tmp/ca.pem --resolve shop.example.com:{port}:{to} https://shop.example.com:{port}/cgi-bin/who",
            self.pem
        )
    }

    pub(crate) fn secret(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": self.pem, "tls.key": self.key},
        })
    }
}

fn gateway(name: &str, listeners: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "annotations": {"networking.istio.io/service-type": "NodePort"}},
        "spec": {"gatewayClassName": "keelson", "listeners": listeners},
    })
}

/// A part of a Gateway.
fn at(namespace: &Namespace, name: &str, pointer: &str) -> Result<Value> {
    let gateway = namespace.get(&["gateway", name])?;
    Ok(gateway.pointer(pointer).cloned().unwrap_or_default())
}

/// Issue 12 B4, B8, A50, F47, F51: HTTP and HTTPS reach a service of the mesh from a node, by a route; a certificate is
/// swapped live; what stands in the way is said on the status; with the Gateway all goes.
#[test]
fn a_gateway_that_is_asked_for_is_reached_swaps_its_certificate_and_goes() -> Result<()> {
    // Whoever has the installation has the cluster to itself, with the kinds that another test would take away.
    let mesh = Installed::install()?;
    let _kinds = Kinds::apply()?;
    let namespace = Namespace::create("gateway")?;
    let other = Namespace::create("other")?;
    let all = nodes()?;
    let [here, there] = all.as_slice() else {
        bail!("two nodes are needed, not {all:?}");
    };
    kubectl(&[
        "label",
        "namespace",
        namespace.name(),
        "keelson.io/mesh=enabled",
    ])?;
    let (first, second) = (Certificate::make()?, Certificate::make()?);
    other.apply(&[first.secret("theirs")])?;
    let listeners = json!([
        {"name": "http", "port": 80, "protocol": "HTTP"},
        {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "shop.example.com",
         "tls": {"certificateRefs": [{"name": "cert"}]}},
        {"name": "theirs", "port": 8443, "protocol": "HTTPS",
         "tls": {"certificateRefs": [{"name": "theirs", "namespace": other.name()}]}},
        {"name": "missing", "port": 9443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "missing"}]}},
    ]);
    let mut asked = gateway("door", &listeners);
    asked["spec"]["infrastructure"] = json!({
        "labels": {"team": "edge"}, "parametersRef": {"group": "", "kind": "ConfigMap", "name": "door"},
    });
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "shop"},
        "spec": {
            "parentRefs": [{"name": "door"}], "hostnames": ["shop.example.com"],
            "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "/cgi-bin"}}],
                       "backendRefs": [{"name": "server", "port": 8080}]}],
        },
    });
    namespace.apply(&[
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "door"},
               "data": {"service": "spec: {externalTrafficPolicy: Local}"}}),
        first.secret("cert"),
        pod("server", Some(there), SERVER),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
               "spec": {"selector": {"app": "server"}, "ports": [{"name": "http", "port": 8080}]}}),
        asked,
        route,
    ])?;
    namespace.wait_ready("server")?;
    until_said(
        || at(&namespace, "door", "/status/conditions"),
        "Programmed",
        ("True", "Programmed"),
    )?;

    // What is said of its listeners.
    let of_listener = |index: usize| {
        at(
            &namespace,
            "door",
            &format!("/status/listeners/{index}/conditions"),
        )
    };
    until_said(|| of_listener(0), "Programmed", ("True", "Programmed"))?;
    until_said(|| of_listener(1), "ResolvedRefs", ("True", "ResolvedRefs"))?;
    until_said(
        || of_listener(2),
        "ResolvedRefs",
        ("False", "RefNotPermitted"),
    )?;
    until_said(
        || of_listener(3),
        "ResolvedRefs",
        ("False", "InvalidCertificateRef"),
    )?;
    let attached = eventually("a route is attached", || {
        let status = at(&namespace, "door", "/status")?;
        let attached = status["listeners"][0]["attachedRoutes"].as_u64();
        ensure!(attached == Some(1), "{status}");
        Ok(status)
    })?;
    println!("status of the Gateway: {attached}");

    // From outside of the mesh, by the Service.
    let service = namespace.get(&["service", "door-keelson"])?;
    ensure!(
        service["spec"]["externalTrafficPolicy"] == "Local",
        "{service}"
    );
    ensure!(service["metadata"]["labels"]["team"] == "edge", "{service}");
    let port = |of: u64| -> Result<u64> {
        let ports = service["spec"]["ports"].as_array().context("ports")?;
        let one = ports.iter().find(|port| port["port"] == of);
        one.and_then(|port| port["nodePort"].as_u64())
            .context("a node's port")
    };
    let (http, https) = (port(80)?, port(443)?);
    let to = address(there)?;
    let ask = |path: &str| {
        let ask = format!(
            "curl -s -m 5 -w ' %{{http_code}}' -H 'Host: shop.example.com' http://{to}:{http}{path}"
        );
        mesh.on(here, &ask)
    };
    eventually("HTTP from another node", || {
        let answer = ask("/cgi-bin/who")?;
        ensure!(
            answer.starts_with("server ") && answer.ends_with(" 200"),
            "{answer}"
        );
        Ok(())
    })?;
    ensure!(ask("/elsewhere")?.ends_with("404"));
    let secure = |certificate: &Certificate| mesh.on(here, &certificate.ask(&to, https));
    eventually("HTTPS with the Secret's certificate", || {
        let answer = secure(&first)?;
        ensure!(answer.starts_with("server "), "{answer}");
        Ok(())
    })?;

    // The certificate is swapped while plain requests go on.
    ensure!(
        secure(&second).is_err(),
        "it has the second certificate already"
    );
    let swapped = std::time::Instant::now();
    namespace.apply(&[second.secret("cert")])?;
    eventually("HTTPS with the new certificate", || secure(&second))?;
    println!(
        "a new certificate in the Secret is shown after {:?}",
        swapped.elapsed()
    );
    ensure!(
        secure(&first).is_err(),
        "the old certificate is still shown"
    );
    namespace.apply(&[first.secret("missing")])?;
    until_said(|| of_listener(3), "ResolvedRefs", ("True", "ResolvedRefs"))?;

    // What stands in the way.
    let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
    let own = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken-keelson"},
                     "spec": {"selector": {"app": "server"}, "ports": [{"port": 1}]}});
    namespace.apply(&[own, gateway("taken", &listeners)])?;
    let why = until_said(
        || at(&namespace, "taken", "/status/conditions"),
        "Programmed",
        ("False", "Invalid"),
    )?;
    ensure!(why.contains("taken-keelson"), "{why}");
    let kept = namespace.get(&["service", "taken-keelson"])?;
    ensure!(kept["spec"]["ports"][0]["port"] == 1, "{kept}");
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"},
                       "spec": {"hard": {"count/deployments.apps": "0"}}});
    other.apply(&[quota])?;
    eventually("the quota counts", || {
        let quota = other.get(&["resourcequota", "few"])?;
        ensure!(quota["status"]["hard"].is_object(), "{quota}");
        Ok(())
    })?;
    other.apply(&[gateway("many", &listeners)])?;
    let conditions = || at(&other, "many", "/status/conditions");
    let why = until_said(conditions, "Programmed", ("False", "NoResources"))?;
    println!("with a quota of no Deployment: {why}");
    ensure!(why.contains("exceeded quota"), "{why}");
    other.kubectl(&["delete", "resourcequota", "few"])?;
    other.kubectl(&["delete", "gateway", "many"])?;

    // With the Gateway all goes.
    namespace.kubectl(&["delete", "gateway", "door", "taken"])?;
    eventually("everything that was made is gone", || {
        let left = namespace.kubectl(&[
            "get",
            MADE,
            "-l",
            "gateway.networking.k8s.io/gateway-name",
            "-o",
            "name",
        ])?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })?;
    ensure!(ask("/cgi-bin/who").is_err(), "somebody still answers");
    Ok(())
}

const MADE: &str = "pods,deployments,services,serviceaccounts,configmaps,poddisruptionbudgets";
