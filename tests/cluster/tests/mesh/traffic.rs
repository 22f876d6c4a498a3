//! Istio's traffic objects on a cluster: refused, warned of, told what becomes of them; and what is left of all when it goes.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests_cluster::{Namespace, eventually, get, kubectl, kubectl_with};

use crate::installed::{Installed, NAMESPACE};
use crate::kinds::{Kinds, until_said};

const HOST: &str = "shop.example.com";

fn virtual_service(name: &str, rest: &Value) -> Value {
    let mut spec =
        json!({"hosts": [HOST], "http": [{"route": [{"destination": {"host": "shop"}}]}]});
    for (field, value) in rest.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": name}, "spec": spec,
    })
}

/// A64, P18, P21; issue 12 B5: a bad object is refused with the field named; two owners of a host hear of each other, one that
/// is bound nowhere says so, and what is in order is accepted.
#[test]
#[ignore = "nightly"]
fn traffic_objects_are_refused_warned_of_and_told_what_becomes_of_them() -> Result<()> {
    let _mesh = Installed::install()?;
    let _kinds = Kinds::apply()?;
    let namespace = Namespace::create("traffic")?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop"},
        "spec": {"selector": {"app": "shop"}, "ports": [{"name": "http", "port": 8080}]},
    });
    namespace.apply(&[service])?;

    // The kinds' own definitions let this through; the webhook does not.
    let bad = virtual_service(
        "bad",
        &json!({"http": [{"timeout": "-3s", "route": [{"destination": {"host": "shop"}}]}]}),
    );
    let refused = namespace.apply(&[bad]);
    let why = refused.err().context("it was stored")?;
    ensure!(
        format!("{why:#}").contains("spec.http[0].timeout"),
        "{why:#}"
    );

    namespace.apply(&[virtual_service("one", &json!({}))])?;
    let conditions = |name: &str| -> Result<Value> {
        let object = namespace.get(&["virtualservices.networking.istio.io", name])?;
        Ok(object["status"]["conditions"].clone())
    };
    until_said(
        || conditions("one"),
        "keelson.io/Accepted",
        ("True", "Accepted"),
    )?;
    namespace.apply(&[virtual_service("two", &json!({}))])?;
    for (name, other) in [("one", "two"), ("two", "one")] {
        let said = until_said(
            || conditions(name),
            "keelson.io/Accepted",
            ("True", "AcceptedWithWarnings"),
        )?;
        let named = format!(
            "VirtualService {}/{other} has the host {HOST} at mesh too",
            namespace.name()
        );
        ensure!(said.contains(&named), "{said}");
    }
    let unbound = json!({"hosts": ["other.example.com"], "gateways": ["nowhere"]});
    namespace.apply(&[virtual_service("three", &unbound)])?;
    let said = until_said(
        || conditions("three"),
        "keelson.io/Accepted",
        ("True", "AcceptedWithWarnings"),
    )?;
    ensure!(said.contains("not bound: there is no Gateway"), "{said}");
    // What is put right is told so.
    namespace.kubectl(&["delete", "virtualservices.networking.istio.io", "two"])?;
    until_said(
        || conditions("one"),
        "keelson.io/Accepted",
        ("True", "Accepted"),
    )?;
    Ok(())
}

/// Issue 12 B3: a Gateway of Istio's class gets pods where nobody else has the class, and is left alone where somebody has.
#[test]
#[ignore = "nightly"]
fn a_gateway_of_istios_class_is_ours_where_nobody_else_has_the_class() -> Result<()> {
    let _mesh = Installed::install()?;
    let _kinds = Kinds::apply()?;
    let namespace = Namespace::create("class")?;
    let gateway = |name: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": name},
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
        })
    };
    namespace.apply(&[gateway("ours")])?;
    let conditions = || -> Result<Value> {
        Ok(namespace.get(&["gateway", "ours"])?["status"]["conditions"].clone())
    };
    until_said(conditions, "Programmed", ("True", "Programmed"))?;
    let class = get(&["gatewayclass", "istio-waypoint"])?;
    ensure!(
        class["spec"]["controllerName"] == "keelson.io/gateway-controller",
        "{class}"
    );

    namespace.kubectl(&["delete", "gateway", "ours"])?;
    kubectl(&["delete", "gatewayclass", "istio-waypoint"])?;
    let theirs = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "istio-waypoint"},
        "spec": {"controllerName": "istio.io/mesh-controller"},
    });
    kubectl_with(&["create", "-f", "-"], &theirs.to_string())?;
    namespace.apply(&[gateway("theirs")])?;
    eventually("an event names the other controller", || {
        let events = namespace.kubectl(&["get", "events", "-o", "json"])?;
        ensure!(events.contains("AnotherController"), "{events}");
        Ok(())
    })?;
    // What was made before the class was known to be another's goes again.
    eventually("nothing is made of it", || {
        let made = namespace.kubectl(&["get", "deployments,services", "-o", "name"])?;
        ensure!(!made.contains("theirs"), "{made}");
        Ok(())
    })?;
    Ok(())
}

/// Issue 11 B11: what was made for Gateways, the classes and the taint go with the installation.
#[test]
#[ignore = "nightly"]
fn what_was_made_outside_of_the_namespace_is_removed_too() -> Result<()> {
    let mut mesh = Installed::install()?;
    let _kinds = Kinds::apply()?;
    let namespace = Namespace::create("outside")?;
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "waypoint"},
        "spec": {"gatewayClassName": "keelson-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
    });
    namespace.apply(&[gateway])?;
    let ours = "app.kubernetes.io/managed-by=keelson-controller";
    let made = || {
        let kinds = "deployments,services,serviceaccounts,poddisruptionbudgets,configmaps";
        namespace.kubectl(&["get", kinds, "-l", ours, "-o", "name"])
    };
    eventually("it is made", || {
        let all = made()?;
        ensure!(all.lines().count() == 5, "{all}");
        Ok(())
    })?;
    mesh.uninstall()?;
    let left = made()?;
    ensure!(left.trim().is_empty(), "{left}");
    let classes = kubectl(&["get", "gatewayclasses", "-o", "name"])?;
    ensure!(!classes.contains("keelson"), "{classes}");
    // Its author has written it.
    namespace.get(&["gateway", "waypoint"])?;
    Ok(())
}

/// Issue 11 B11: who deletes the namespace is left with policies that can be written.
#[test]
#[ignore = "nightly"]
fn with_the_namespace_goes_what_would_refuse_every_policy() -> Result<()> {
    let _mesh = Installed::install()?;
    let namespace = Namespace::create("deleted")?;
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "default"},
        "spec": {"mtls": {"mode": "PERMISSIVE"}},
    });
    namespace.apply(std::slice::from_ref(&policy))?;
    kubectl(&["delete", "namespace", NAMESPACE, "--timeout=120s"])?;
    namespace.kubectl(&["delete", "peerauthentications.security.istio.io", "default"])?;
    eventually("a policy can be written", || {
        namespace.apply(std::slice::from_ref(&policy))
    })?;
    let webhooks = kubectl(&["get", "validatingwebhookconfigurations", "-o", "name"])?;
    ensure!(!webhooks.contains("keelson"), "{webhooks}");
    Ok(())
}
