//! A controller whose way to the API server is bad, and what it makes of the cluster all the same.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use faults::{Plan, Proxy};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests_cluster::{Namespace, SERVER, eventually, kubectl, pod, upstream};

use crate::controller::Controller;
use crate::replicas::PolicyKinds;

/// A proxy before the API server of KUBECONFIG, and a kubeconfig that leads to it. An account that may do everything is used:
/// the administrator's certificate is no credential that a proxy could hand on.
struct Way {
    proxy: Proxy,
    kubeconfig: String,
    binding: String,
    _folder: TempDir,
}

impl Way {
    fn new(namespace: &Namespace) -> Result<Self> {
        namespace.kubectl(&["create", "serviceaccount", "operator"])?;
        let binding = format!("{}-operator", namespace.name());
        let account = format!("{}:operator", namespace.name());
        kubectl(&[
            "create",
            "clusterrolebinding",
            &binding,
            "--clusterrole=cluster-admin",
            "--serviceaccount",
            &account,
        ])?;
        let token = namespace.kubectl(&["create", "token", "operator"])?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let proxy = Proxy::start(listener, None, upstream()?, SEED)?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "clusters": [{"name": "a", "cluster": {"server": format!("http://{}", proxy.address())}}],
            "users": [{"name": "a", "user": {"token": token.trim()}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        });
        std::fs::write(&path, config.to_string())?;
        Ok(Self {
            proxy,
            kubeconfig: path.display().to_string(),
            binding,
            _folder: folder,
        })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        drop(kubectl(&["delete", "clusterrolebinding", &self.binding]));
    }
}

/// A round's objects: what is there in one round is changed or gone in another.
fn objects(round: usize) -> Vec<Value> {
    let mut all = Vec::new();
    for number in 0..8 {
        let name = format!("s{number}");
        all.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ports": [{"port": 80 + round % 3, "targetPort": 8080}]},
        }));
        let address = format!("192.0.2.{}", 1 + (number * 7 + round) % 200);
        all.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-a"), "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"port": 8080}], "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        }));
    }
    let mode = ["STRICT", "PERMISSIVE"][round % 2];
    all.push(json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "mode"},
        "spec": {"mtls": {"mode": mode}},
    }));
    for number in 0..4 {
        all.push(json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": format!("p{number}")},
            "spec": {"rules": [{"to": [{"operation": {"ports": [(8000 + round).to_string()]}}]}]},
        }));
    }
    all
}

/// What is served, without the count of changes that led to it.
fn served(controller: &Controller) -> Result<Value> {
    let mut page: Value = serde_json::from_str(&controller.page("/debug/config_dump")?)?;
    page.as_object_mut()
        .context("an object")?
        .remove("generation");
    Ok(page)
}

/// Issue 11, A3: watches that are cut, 410, 429, 5xx, slow lists, late and repeated events, before a real API server. What is
/// known stays meanwhile, and at the end the index is the one that is built from scratch.
#[test]
fn after_faults_of_every_kind_the_index_is_the_one_that_is_built_from_scratch() -> Result<()> {
    let namespace = Namespace::create("faults")?;
    let name = namespace.name();
    let _kinds = PolicyKinds::define()?;
    namespace.apply(&[pod("stays", None, SERVER), pod("goes", None, SERVER)])?;
    namespace.wait_ready("stays")?;
    namespace.wait_ready("goes")?;
    let way = Way::new(&namespace)?;
    let agents = "keelson-system/keelson-node-agent";
    let controller = Controller::start_at(&way.kubeconfig, agents)?;
    let is_known = |pod| Ok::<_, anyhow::Error>(controller.workload(name, pod)?.is_some());
    ensure!(is_known("stays")? && is_known("goes")?);

    way.proxy.set(Plan {
        broken: 0.15,
        busy: 0.15,
        slow: 0.3,
        gone: 0.25,
        cut: 0.05,
        repeat: 0.3,
        late: 0.2,
        delay: Duration::from_millis(200),
    });
    for round in 0..ROUNDS {
        namespace.apply(&objects(round))?;
        if round % 3 == 0 {
            way.proxy.cut_watches();
        }
        if round % 4 == 1 {
            let gone = [
                format!("service/s{}", round % 8),
                format!("authorizationpolicy/p{}", round % 4),
            ];
            namespace.kubectl(&["delete", &gone[0], &gone[1], "--wait=false"])?;
            let label = ["label", "namespace", name, "--overwrite"];
            let value = format!("keelson.io/mesh={}", ["enabled", "disabled"][round / 4 % 2]);
            kubectl(&[&label[..], &[&value]].concat())?;
        }
        ensure!(
            is_known("stays")?,
            "round {round}: a pod that is there is gone"
        );
    }
    namespace.kubectl(&["delete", "pod", "goes", "--wait=true"])?;
    let counts = way.proxy.counts();
    println!("{ROUNDS} rounds: {counts:?}");
    let all = [
        counts.broken,
        counts.busy,
        counts.slow,
        counts.gone,
        counts.cut,
    ];
    let all = all.into_iter().chain([counts.repeated, counts.late]);
    ensure!(all.into_iter().all(|count| count > 0), "{counts:?}");

    way.proxy.set(Plan::default());
    let fresh = Controller::start(agents)?;
    eventually("the index is the one from scratch", || {
        let (one, other) = (served(&controller)?, served(&fresh)?);
        ensure!(one == other, "{one}\n{other}");
        Ok(())
    })?;
    ensure!(is_known("stays")? && !is_known("goes")?);
    let policies = served(&controller)?["authorizations"].to_string();
    ensure!(
        policies.contains(&format!("{}", 8000 + ROUNDS - 1)),
        "{policies}"
    );
    Ok(())
}

const ROUNDS: usize = 14;
/// Which answers are hit.
const SEED: u64 = 11;
