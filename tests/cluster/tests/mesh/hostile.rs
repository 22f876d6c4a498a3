//! Tenants with rights in one namespace, and what applies to another.

mod addresses;
mod masses;

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tests_cluster::{CLIENT, Namespace, eventually, kubectl, pod};

use crate::command_line::good;
use crate::installed::Installed;
use crate::pair::Pair;

/// kubernetes#103675: slices that tenants write name what is not theirs. In one namespace it changes nothing of another's.
#[test]
#[ignore = "nightly"]
fn a_tenants_endpoint_slice_that_names_a_foreign_pod_changes_nothing_of_that_pod() -> Result<()> {
    let mesh = Installed::install()?;
    let victim = Pair::create(&mesh, "victim")?;
    victim.label("keelson.io/mesh=enabled")?;
    victim.until_readable(false)?;
    let tenant = Namespace::create("tenant")?;
    let label = [
        "label",
        "namespace",
        tenant.name(),
        "keelson.io/mesh=enabled",
    ];
    kubectl(&label)?;
    tenant.apply(&[pod("mallory", None, CLIENT)])?;
    tenant.wait_ready("mallory")?;
    let server = victim.namespace.pod_ip("server")?;
    let own = format!("cluster.local/ns/{}/sa/default", victim.namespace.name());
    let allow = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "own"},
        "spec": {"rules": [{"from": [{"source": {"principals": [own]}}]}]},
    });
    eventually("a controller answers", || {
        victim.namespace.apply(std::slice::from_ref(&allow))
    })?;
    eventually("the tenant is refused", || {
        match tenant.exec("mallory", &victim.ask) {
            Ok(answer) => anyhow::bail!("{answer}"),
            Err(_) => Ok(()),
        }
    })?;
    let workloads = || {
        let of = ["proxy-config", "workload", "-n", victim.namespace.name()];
        let mut all = good(&of, "")?;
        // That the tenant's service leads to it is what the slice says, with a mesh and without.
        for one in all.as_array_mut().into_iter().flatten() {
            if let Some(services) = one["services"].as_object_mut() {
                services.retain(|name, _| !name.contains(tenant.name()));
            }
        }
        Ok::<_, anyhow::Error>(all.to_string())
    };
    let before = workloads()?;

    // A service of the tenant's whose endpoints are the foreign pod, by address and by reference, and one that says it is of
    // the victim's node, zone and name.
    let reference = json!({"kind": "Pod", "name": "server", "namespace": victim.namespace.name()});
    tenant.apply(&[
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "trap"},
            "spec": {"ports": [{"port": 8080}]},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "trap-a", "labels": {"kubernetes.io/service-name": "trap"}},
            "ports": [{"port": 8080}],
            "endpoints": [{"addresses": [server.to_string()], "conditions": {"ready": true}, "targetRef": reference}],
        }),
        // Policies of a tenant that select what the victim's pod is labelled with.
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "mine"},
            "spec": {"selector": {"matchLabels": {"app": "server"}}, "rules": [{}]},
        }),
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "mine"},
            "spec": {"selector": {"matchLabels": {"app": "server"}}, "mtls": {"mode": "PERMISSIVE"}},
        }),
    ])?;
    let trap = tests_cluster::who(&format!("trap.{}", tenant.name()));
    let nothing_has_changed = || -> Result<()> {
        for _ in 0..10 {
            tenant.exec("mallory", &trap).unwrap_err();
            tenant.exec("mallory", &victim.ask).unwrap_err();
            ensure!(!victim.is_readable()?, "the victim's own go on, encrypted");
            sleep(Duration::from_millis(300));
        }
        let after = workloads()?;
        ensure!(after == before, "{before}\n{after}");
        Ok(())
    };
    nothing_has_changed()?;
    // The same service, to somebody who may.
    let answer = eventually("the service leads there", || {
        victim.namespace.exec("client", &trap)
    })?;
    ensure!(answer.starts_with("server "), "{answer}");

    // The tenant's own pod as the waypoint of that service, and a policy on it that lets everybody in.
    let open = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "open"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "trap"}], "rules": [{}]},
    });
    let gate = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "gate"},
        "spec": {"selector": {"app": "mallory"}, "ports": [{"port": 15008}]},
    });
    tenant.apply(&[gate, open])?;
    tenant.kubectl(&["label", "service", "trap", "istio.io/use-waypoint=gate"])?;
    eventually("nodes know of the waypoint", || {
        let services = good(&["proxy-config", "service", "-n", tenant.name()], "")?.to_string();
        ensure!(
            services.contains("gate.") && services.contains("15008"),
            "{services}"
        );
        Ok(())
    })?;
    nothing_has_changed()
}
