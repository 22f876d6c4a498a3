//! Addresses, parents and grants that are not a tenant's to name.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests_cluster::{Namespace, SERVER, eventually, kubectl, pod, who, who_at};

use crate::installed::Installed;
use crate::kinds::{Kinds, until_said};
use crate::pair::Pair;

/// CVE-2020-8554 and its kin: a Service with somebody else's address as an external one, endpoints that are somebody else's Service,
/// a route at somebody else's Gateway, and a grant for oneself.
#[test]
#[ignore = "nightly"]
fn a_tenants_external_address_foreign_parent_or_forged_grant_takes_nothing_of_anothers()
-> Result<()> {
    let mesh = Installed::install()?;
    let _kinds = Kinds::apply()?;
    let victim = Pair::create(&mesh, "victim")?;
    victim.label("keelson.io/mesh=enabled")?;
    victim.namespace.apply(&[
        service("server", &json!({"selector": {"app": "server"}})),
        gateway("door"),
        route(
            "own",
            &json!([{"name": "door"}]),
            &json!({"name": "server", "port": 8080}),
        ),
    ])?;
    victim.until_readable(false)?;
    let tenant = Namespace::create("tenant")?;
    kubectl(&[
        "label",
        "namespace",
        tenant.name(),
        "keelson.io/mesh=enabled",
    ])?;
    tenant.apply(&[pod("mallory", None, SERVER)])?;
    tenant.wait_ready("mallory")?;
    let cluster_ip = victim.namespace.kubectl(&[
        "get",
        "service",
        "server",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ])?;
    let server = victim.namespace.pod_ip("server")?;
    let (of_victim, of_tenant) = (victim.namespace.name(), tenant.name());
    let own = format!("cluster.local/ns/{of_victim}/sa/default");
    let allow = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "own"},
        "spec": {"selector": {"matchLabels": {"app": "server"}},
                 "rules": [{"from": [{"source": {"principals": [own]}}]}]},
    });
    eventually("a controller answers", || {
        victim.namespace.apply(std::slice::from_ref(&allow))
    })?;
    let refused = |ask: &str| match tenant.exec("mallory", ask) {
        Ok(answer) => bail!("the tenant got {answer}"),
        Err(_) => Ok(()),
    };
    eventually("the tenant is refused", || refused(&victim.ask))?;

    tenant.apply(&[
        // The pod's own address, for the tenant's pod.
        service("claims", &json!({"selector": {"app": "mallory"}, "externalIPs": [server.to_string()]})),
        // The way to the victim's Service by the tenant's.
        service("leads", &json!({})),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "leads-a", "labels": {"kubernetes.io/service-name": "leads"}},
            "ports": [{"port": 8080}],
            "endpoints": [{"addresses": [cluster_ip], "conditions": {"ready": true}}],
        }),
        // A grant that only the victim can give.
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant", "metadata": {"name": "mine"},
            "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": of_tenant}],
                     "to": [{"group": "", "kind": "Service"}]},
        }),
        gateway("window"),
        route("foreign-parent", &json!([{"name": "door", "namespace": of_victim}]), &json!({"name": "mallory", "port": 8080})),
        route("foreign-backend", &json!([{"name": "window"}]), &json!({"name": "server", "namespace": of_victim, "port": 8080})),
        service("mallory", &json!({"selector": {"app": "mallory"}})),
    ])?;
    let said_of = |route: &'static str| {
        let tenant = &tenant;
        move || Ok(tenant.get(&["httproute", route])?["status"]["parents"][0]["conditions"].clone())
    };
    until_said(
        said_of("foreign-parent"),
        "Accepted",
        ("False", "NotAllowedByListeners"),
    )?;
    until_said(
        said_of("foreign-backend"),
        "ResolvedRefs",
        ("False", "RefNotPermitted"),
    )?;
    for _ in 0..3 {
        // The victim's own reach the victim's own, encrypted, by address and by name.
        ensure!(!victim.is_readable()?, "the pod's address, encrypted");
        let answer = victim.namespace.exec("client", &who("server"))?;
        ensure!(answer.starts_with("server "), "{answer}");
        for ask in [who_at(server), who("leads"), who(&cluster_ip)] {
            refused(&ask)?;
        }
    }
    let routes = || -> Result<Value> {
        let door = victim.namespace.get(&["gateway", "door"])?;
        let routes = door.pointer("/status/listeners/0/attachedRoutes");
        routes.cloned().context("a listener")
    };
    eventually("only its own route is at the victim's door", || {
        let routes = routes()?;
        ensure!(routes == 1, "{routes}");
        Ok(())
    })
}

fn service(name: &str, rest: &Value) -> Value {
    let mut spec = rest.clone();
    spec["ports"] = json!([{"port": 8080}]);
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn gateway(name: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "annotations": {"networking.istio.io/service-type": "ClusterIP"}},
        "spec": {"gatewayClassName": "keelson", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]},
    })
}

fn route(name: &str, parents: &Value, backend: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
        "spec": {"parentRefs": parents, "rules": [{"backendRefs": [backend]}]},
    })
}
