//! Least rights: the mesh does all that it ever asks the API server for, and each right of the chart is one that it used.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests_cluster::{Namespace, eventually, kubectl, kubectl_with, nodes};

use crate::audit::{Log, Right, rights, unused};
use crate::away::{with_agents, without_agents};
use crate::command_line::good;
use crate::gateway::Certificate;
use crate::installed::{AGENT, CONTROLLER, Installed, NAMESPACE};
use crate::kinds::{Kinds, until_said};
use crate::pair::Pair;

/// Rights that are needed and that this test has no occasion for: account, verb and resource, with the reason.
const EXCEPTIONS: [(&str, &str, &str, &str); 8] = [
    (
        AGENT,
        "create",
        "events",
        "of a node that cannot be served: a_node_that_cannot_be_served_is_said_in_readiness_event_metric_and_by_wait",
    ),
    (
        CONTROLLER,
        "get",
        "tlsroutes.gateway.networking.k8s.io",
        OF_OTHER_ROUTES,
    ),
    (
        CONTROLLER,
        "patch",
        "tlsroutes.gateway.networking.k8s.io/status",
        OF_OTHER_ROUTES,
    ),
    (
        CONTROLLER,
        "get",
        "tcproutes.gateway.networking.k8s.io",
        OF_OTHER_ROUTES,
    ),
    (
        CONTROLLER,
        "patch",
        "tcproutes.gateway.networking.k8s.io/status",
        OF_OTHER_ROUTES,
    ),
    (
        CONTROLLER,
        "create",
        "gateways.gateway.networking.k8s.io",
        OF_AUTO,
    ),
    (
        CONTROLLER,
        "patch",
        "gateways.gateway.networking.k8s.io",
        OF_AUTO,
    ),
    (
        CONTROLLER,
        "delete",
        "gateways.gateway.networking.k8s.io",
        OF_AUTO,
    ),
];
const OF_OTHER_ROUTES: &str = "statuses of TLSRoutes and TCPRoutes, of which this test makes none";
const OF_AUTO: &str = "`keelson.io/l7: auto`: the conformance suite runs with it";

/// Section C of issue 11: what is used and what is allowed are the same.
#[test]
#[ignore = "nightly: minutes"]
fn every_right_that_the_chart_gives_is_used_and_none_is_missing() -> Result<()> {
    let mut mesh = Installed::nothing()?;
    let log = Log::begin(&mesh)?;
    mesh.install_now(json!({
        "agent": {"startupTaint": true}, "mesh": {"networkPolicies": "enforce"},
    }))?;
    let rights = rights()?;
    ensure!(rights.len() > 50, "{} rights were read", rights.len());
    let kinds = Kinds::apply()?;
    let pair = Pair::create(&mesh, "rights")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    policies(&pair.namespace)?;
    a_gateway(&pair.namespace)?;
    traffic(&pair.namespace)?;
    nodes_that_come_and_go(&mesh)?;
    a_rotation()?;
    // An agent that is stopped asks whether it is meant to be there, and by the other account if its own token is refused.
    without_agents(&mesh, &["--force", "--grace-period=0"])?;
    with_agents()?;
    eventually("every node is in step", || good(&["status"], ""))?;
    // Those that run are deleted in peace.
    with_agents()?;
    eventually("every node is in step", || good(&["status"], ""))?;

    let exempt = |right: &Right| {
        EXCEPTIONS.iter().any(|(account, verb, resource, _)| {
            right.account == *account && right.verb == *verb && right.resource == *resource
        })
    };
    eventually("every right is used", || {
        let deeds = log.deeds(&mesh)?;
        let refused: Vec<String> = deeds
            .iter()
            .filter_map(|deed| Some(format!("{deed}: {}", deed.refusal.as_ref()?)))
            .collect();
        ensure!(refused.is_empty(), "missing: {}", refused.join("\n"));
        let idle = unused(&rights, &deeds);
        let idle: Vec<String> = idle
            .into_iter()
            .filter(|right| !exempt(right))
            .map(Right::to_string)
            .collect();
        ensure!(
            idle.is_empty(),
            "{} of {} rights are not used:\n{}",
            idle.len(),
            rights.len(),
            idle.join("\n")
        );
        Ok(())
    })?;
    println!("{} rights, each of them used", rights.len());
    drop(kinds);
    Ok(())
}

/// Statuses and events: a policy that is in order, and one that is stored and cannot be held, twice.
fn policies(namespace: &Namespace) -> Result<()> {
    let strict = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "strict"}, "spec": {"mtls": {"mode": "STRICT"}},
    });
    let policy = |rules: Value| {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "guard"}, "spec": {"rules": rules},
        })
    };
    let own = json!([{"from": [{"source": {"namespaces": [namespace.name()]}}]}]);
    eventually("a controller answers", || {
        namespace.apply(&[strict.clone(), policy(own.clone())])
    })?;
    let accepted = |wanted: &str| {
        eventually(&format!("accepted: {wanted}"), || {
            let guard = namespace.get(&["authorizationpolicy", "guard"])?;
            let said = crate::kinds::condition(&guard["status"]["conditions"], ACCEPTED)?;
            ensure!(said.0 == wanted, "{said:?}");
            Ok(())
        })
    };
    accepted("True")?;
    let webhooks = format!("validatingwebhookconfiguration/keelson-{NAMESPACE}");
    // What admission would refuse comes past it, as it may have been stored before.
    let reviewed = |operations: &[&str]| -> Result<()> {
        let patch = json!([{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": operations}]);
        kubectl(&["patch", &webhooks, "--type=json", "-p", &patch.to_string()]).map(drop)
    };
    reviewed(&["CONNECT"])?;
    for round in 0..2 {
        let broken = json!([{"form": [{"round": round}]}]);
        eventually("it is stored", || {
            namespace.apply(&[policy(broken.clone())])
        })?;
        accepted("False")?;
        namespace.apply(&[policy(own.clone())])?;
        accepted("True")?;
    }
    namespace.kubectl(&["delete", "authorizationpolicy", "guard"])?;
    reviewed(&["CREATE", "UPDATE"])
}

/// The statuses of Istio's traffic objects.
fn traffic(namespace: &Namespace) -> Result<()> {
    let object = |kind: &str, spec: Value| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": "traffic"}, "spec": spec,
        })
    };
    let port = |protocol: &str| json!({"number": 80, "name": "http", "protocol": protocol});
    namespace.apply(&[
        object(
            "VirtualService",
            json!({"hosts": ["shop"], "http": [{"route": [{"destination": {"host": "shop"}}]}]}),
        ),
        object("DestinationRule", json!({"host": "shop"})),
        object(
            "Gateway",
            json!({"selector": {"app": "door"}, "servers": [{"port": port("HTTP"), "hosts": ["*"]}]}),
        ),
        object(
            "ServiceEntry",
            json!({"hosts": ["a.example.com"], "ports": [port("HTTP")], "resolution": "DNS"}),
        ),
    ])?;
    for kind in [
        "virtualservices",
        "destinationrules",
        "gateways",
        "serviceentries",
    ] {
        let of_istio = format!("{kind}.networking.istio.io");
        eventually(&format!("{kind} are told of"), || {
            let object = namespace.get(&[&of_istio, "traffic"])?;
            let said = crate::kinds::condition(&object["status"]["conditions"], ACCEPTED)?;
            ensure!(said.0 == "True", "{said:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Everything that is made for a Gateway, written, found changed, and removed when it gets another class.
fn a_gateway(namespace: &Namespace) -> Result<()> {
    let certificate = Certificate::make()?;
    let listeners = json!([
        {"name": "http", "port": 80, "protocol": "HTTP"},
        {"name": "https", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "cert"}]}},
    ]);
    let gateway = |class: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "door"},
            "spec": {
                "gatewayClassName": class, "listeners": listeners,
                "infrastructure": {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "door"}},
            },
        })
    };
    let class = format!("{}-door", namespace.name());
    let route = |kind: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": "route"},
            "spec": {"parentRefs": [{"name": "door"}], "rules": [{"backendRefs": [{"name": "shop", "port": 8080}]}]},
        })
    };
    namespace.apply(&[
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "door"},
               "data": {"horizontalPodAutoscaler": "spec: {maxReplicas: 2}", "service": "spec: {type: ClusterIP}"}}),
        certificate.secret("cert"),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop"},
               "spec": {"selector": {"app": "server"}, "ports": [{"port": 8080}]}}),
        gateway("keelson"),
        route("HTTPRoute"),
        route("GRPCRoute"),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": class},
               "spec": {"controller": "keelson.io/ingress-controller",
                        "parameters": {"apiGroup": "gateway.networking.k8s.io", "kind": "Gateway", "name": "door",
                                       "namespace": namespace.name(), "scope": "Namespace"}}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "web"},
               "spec": {"ingressClassName": class,
                        "defaultBackend": {"service": {"name": "shop", "port": {"number": 8080}}}}}),
    ])?;
    let conditions = || {
        let gateway = namespace.get(&["gateway", "door"])?;
        Ok(gateway["status"]["conditions"].clone())
    };
    until_said(conditions, "Programmed", ("True", "Programmed"))?;
    for kind in ["httproute", "grpcroute"] {
        let conditions = || {
            let route = namespace.get(&[kind, "route"])?;
            Ok(route["status"]["parents"][0]["conditions"].clone())
        };
        until_said(conditions, "Accepted", ("True", "Accepted"))?;
    }
    eventually("the Ingress has the Gateway's address", || {
        let at = |object: Value, pointer: &str| object.pointer(pointer).cloned();
        let ingress = namespace.get(&["ingress", "web"])?;
        // By its name, where the cluster gives no address to load balancers.
        let first = &ingress["status"]["loadBalancer"]["ingress"][0];
        let of_ingress = first.get("ip").or_else(|| first.get("hostname")).cloned();
        let of_gateway = at(
            namespace.get(&["gateway", "door"])?,
            "/status/addresses/0/value",
        );
        ensure!(
            of_ingress.is_some() && of_ingress == of_gateway,
            "{of_ingress:?}, {of_gateway:?}"
        );
        Ok(())
    })?;
    kubectl(&["delete", "ingressclass", &class])?;
    namespace.apply(&[gateway("another")])?;
    eventually("what was made is removed", || {
        let label = "gateway.networking.k8s.io/gateway-name=door";
        let left = namespace.kubectl(&["get", MADE, "-l", label, "-o", "name"])?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })
}

/// A node that comes with the startup taint, and what was written of one that is gone.
fn nodes_that_come_and_go(mesh: &Installed) -> Result<()> {
    let all = nodes()?;
    let node = all.last().context("a node")?;
    kubectl(&[
        "taint",
        "node",
        node,
        "keelson.io/agent-not-ready=:NoSchedule",
    ])?;
    let gone = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "keelson-node-gone", "namespace": NAMESPACE,
                     "labels": {"keelson.io/kept": "captured-pods", "app.kubernetes.io/part-of": "keelson"}},
        "data": {"node": "gone", "pods": "[]"},
    });
    kubectl_with(&["apply", "-f", "-"], &gone.to_string())?;
    eventually("the taint is taken off", || {
        let left = nodes()?;
        ensure!(left == all, "{left:?}");
        Ok(())
    })?;
    // They look every two minutes.
    let gone = || {
        eventually("it is removed", || {
            let words = ["-n", NAMESPACE, "get", "configmap", "keelson-node-gone"];
            match kubectl(&words) {
                Ok(_) => bail!("it is still there\n{}", mesh.logs(CONTROLLER)),
                Err(_) => Ok(()),
            }
        })
    };
    gone().or_else(|_| gone()).or_else(|_| gone())
}

/// The first step of a root that follows another.
fn a_rotation() -> Result<()> {
    let secret = ["-n", NAMESPACE, "annotate", "secret", "keelson-ca"];
    kubectl(&[&secret[..], &["keelson.io/rotate-root=1h"]].concat())?;
    eventually("the step is made", || {
        let secret = tests_cluster::get(&["-n", NAMESPACE, "secret", "keelson-ca"])?;
        let notes = &secret["metadata"]["annotations"];
        ensure!(notes["keelson.io/new-root-signs-at"].is_string(), "{notes}");
        Ok(())
    })
}

const ACCEPTED: &str = "keelson.io/Accepted";
const MADE: &str =
    "deployments,services,serviceaccounts,configmaps,poddisruptionbudgets,horizontalpodautoscalers";
