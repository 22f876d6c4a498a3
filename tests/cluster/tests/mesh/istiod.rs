//! Under Istio's own control plane, installed by its own chart: the agents take ztunnel's place.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests_cluster::{CLIENT, Namespace, eventually, get, helm, helm_with, kubectl, nodes, pod};

use crate::installed::{Installed, NAMESPACE};
use crate::pair::{Kept, Pair};

/// Issue 12, istiod: what `docs/migrate-from-istio.md` says under "Keep istiod", on two nodes.
#[test]
#[ignore = "nightly: Istio's control plane and Helm"]
fn agents_take_ztunnels_place_under_a_real_istiod() -> Result<()> {
    let mut mesh = Installed::nothing()?;
    let istiod = Istiod::install(&mesh)?;
    let pair = Pair::create(&mesh, "istiod")?;
    let outside = Namespace::create("outside")?;
    outside.apply(&[pod("visitor", None, CLIENT)])?;
    outside.wait_ready("visitor")?;
    ensure!(pair.is_readable()?, "nothing is captured");

    istiod.trust_us()?;
    mesh.install_now(json!({
        "istiod": {"enabled": true},
        "mesh": {"certificateLife": LIFE},
        // Its requests are for a cluster of its own.
        "controller": {"replicas": 2},
    }))?;
    ensure!(pair.is_readable()?, "without a label nothing is encrypted");
    let namespace = pair.namespace.name();
    documented("kubectl label namespace shop istio.io/dataplane-mode=ambient")?;
    pair.label("istio.io/dataplane-mode=ambient")?;
    pair.until_readable(false)?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    for name in ["client", "server"] {
        eventually("istiod is told", || marked(&pair.namespace, name, true))?;
    }
    // One that starts afterwards is captured before it runs.
    pair.namespace.apply(&[pod("later", None, CLIENT)])?;
    pair.namespace.wait_ready("later")?;
    eventually("istiod is told of a new pod", || {
        marked(&pair.namespace, "later", true)
    })?;
    pair.namespace.exec("later", &pair.ask)?;

    signed_by_istiod(&mesh, &istiod, namespace)?;
    denied(&pair)?;
    strict(&pair, &outside)?;
    rotated(&mesh, &pair)?;
    restarted(&pair)?;

    pair.label("istio.io/dataplane-mode-")?;
    pair.until_readable(true)?;
    for name in ["client", "server", "later"] {
        eventually("istiod is told that it is let go", || {
            marked(&pair.namespace, name, false)
        })?;
    }
    pair.label("istio.io/dataplane-mode=ambient")?;
    pair.until_readable(false)?;
    mesh.uninstall()?;
    pair.until_readable(true)?;
    for name in ["client", "server", "later"] {
        marked(&pair.namespace, name, false)?;
    }
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    Ok(())
}

/// Its policies refuse here, by its own objects.
fn denied(pair: &Pair) -> Result<()> {
    let deny = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny"},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}},
            "action": "DENY",
            "rules": [{"from": [{"source": {"principals": [
                format!("cluster.local/ns/{}/sa/default", pair.namespace.name()),
            ]}}]}],
        },
    });
    pair.namespace.apply(&[deny])?;
    refused("the client is refused by its identity", || {
        pair.namespace.exec("client", &pair.ask)
    })?;
    pair.namespace
        .kubectl(&["delete", "authorizationpolicy", "deny"])?;
    eventually("the client is let in again", || {
        pair.namespace.exec("client", &pair.ask)
    })?;
    Ok(())
}

fn strict(pair: &Pair, outside: &Namespace) -> Result<()> {
    outside.exec("visitor", &pair.ask)?;
    let strict = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "strict"}, "spec": {"mtls": {"mode": "STRICT"}},
    });
    pair.namespace.apply(&[strict])?;
    refused("a plain client is refused", || {
        outside.exec("visitor", &pair.ask)
    })?;
    for _ in 0..5 {
        ensure!(!pair.is_readable()?, "the mesh's own go on");
        assert!(
            outside.exec("visitor", &pair.ask).is_err(),
            "plain is let in"
        );
    }
    pair.namespace
        .kubectl(&["delete", "peerauthentication", "strict"])?;
    eventually("the visitor is let in again", || {
        outside.exec("visitor", &pair.ask)
    })?;
    Ok(())
}

fn refused(what: &str, ask: impl Fn() -> Result<String>) -> Result<()> {
    eventually(what, || match ask() {
        Ok(answer) => bail!("it got {answer}"),
        Err(_) => Ok(()),
    })
}

/// Each node's certificates are in memory there: their chains end in istiod's root.
fn signed_by_istiod(mesh: &Installed, istiod: &Istiod, namespace: &str) -> Result<()> {
    let root = get(&["-n", namespace, "configmap", "istio-ca-root-cert"])?;
    let root = root["data"]["root-cert.pem"].as_str().context("a root")?;
    let ours = kubectl(&[
        "-n",
        NAMESPACE,
        "get",
        "configmap",
        "keelson-ca-root",
        "-o",
        "json",
    ])?;
    ensure!(!ours.contains(root.trim()), "another root than ours");
    for node in nodes()? {
        mesh.on(
            &node,
            &format!("cat > /tmp/istiod.pem <<'END'\n{root}\nEND"),
        )?;
        let verify = "for key in /run/keelson/keys/*; do openssl verify -CAfile /tmp/istiod.pem -untrusted $key $key; done";
        let said = mesh.on(&node, verify)?;
        ensure!(
            said.lines().count() > 0 && said.lines().all(|line| line.ends_with(": OK")),
            "{node}: {said}"
        );
    }
    let issued = istiod.issued()?;
    ensure!(issued >= 2, "istiod has signed {issued}");
    Ok(())
}

/// Certificates are renewed by istiod while requests go on, each before its end, and it has no reason to end an agent's stream.
fn rotated(mesh: &Installed, pair: &Pair) -> Result<()> {
    let node = &nodes()?[0];
    let serials = || -> Result<Vec<String>> {
        let page = "curl -sf http://127.0.0.1:15000/certs";
        let page: Value = serde_json::from_str(&mesh.on(node, page)?)?;
        let certificates = page.as_array().context("a list of certificates")?;
        let serials = certificates.iter().filter_map(|one| one["serial"].as_str());
        Ok(serials.map(str::to_owned).collect())
    };
    let before = serials()?;
    ensure!(!before.is_empty(), "there is a certificate");
    let of_istiod = || kubectl(&["-n", ISTIO, "logs", "--tail=-1", "-l", "app=istiod"]);
    let ended = || -> Result<usize> {
        let log = of_istiod()?;
        let of_agents = |line: &&str| line.contains("node-agent") && line.ends_with("terminated");
        Ok(log.lines().filter(of_agents).count())
    };
    let ended_before = ended()?;
    pair.keep_asking()?;
    eventually("every certificate is another", || {
        let now = serials()?;
        ensure!(
            !now.is_empty() && now.iter().all(|serial| !before.contains(serial)),
            "{before:?}, {now:?}"
        );
        Ok(())
    })?;
    // Beyond the life of those that there were.
    std::thread::sleep(std::time::Duration::from_secs(90));
    let ended = ended()?.saturating_sub(ended_before);
    ensure!(ended == 0, "{ended} streams of agents ended");
    pair.stop_asking("certificates were renewed", Kept::GoesOn)?;
    pair.until_readable(false)
}

/// A control plane that goes and comes back drops nothing.
fn restarted(pair: &Pair) -> Result<()> {
    pair.keep_asking()?;
    let of_istiod = ["-n", ISTIO, "scale", "deployment/istiod"];
    kubectl(&[&of_istiod[..], &["--replicas=0"]].concat())?;
    eventually("istiod is gone", || {
        let pods = kubectl(&["-n", ISTIO, "get", "pods", "-o", "name"])?;
        ensure!(pods.trim().is_empty(), "{pods}");
        Ok(())
    })?;
    std::thread::sleep(std::time::Duration::from_secs(10));
    kubectl(&[&of_istiod[..], &["--replicas=1"]].concat())?;
    ready()?;
    std::thread::sleep(std::time::Duration::from_secs(10));
    pair.stop_asking("istiod was away and came back", Kept::GoesOn)?;
    // And its word counts again.
    denied(pair)
}

fn marked(namespace: &Namespace, pod: &str, captured: bool) -> Result<()> {
    let pod = namespace.get(&["pod", pod])?;
    let says = &pod["metadata"]["annotations"]["ambient.istio.io/redirection"];
    ensure!((says == "enabled") == captured, "{says}");
    Ok(())
}

/// Istio's control plane in the cluster. Dropping it takes it away, with its kinds.
struct Istiod {
    charts: PathBuf,
}

impl Istiod {
    /// As for ambient mode with ztunnel.
    fn install(mesh: &Installed) -> Result<Self> {
        let base = env::var_os("KEELSON_CLUSTER_BASE").context("a cluster of this machine")?;
        let directory = Path::new(&base).join("istiod");
        let image = directory.join("istiod.tar");
        ensure!(
            image.is_file(),
            "{} is missing: cargo xtask cluster build",
            image.display()
        );
        mesh.standing()?.load(&image)?;
        let istiod = Self {
            charts: directory.join("charts").canonicalize()?,
        };
        let chart = |name: &str| istiod.charts.join(name).display().to_string();
        let release = ["--namespace", ISTIO, "--wait", "--timeout", "120s"];
        let base = chart("base");
        let words = [
            "install",
            "istio-base",
            &base,
            "--create-namespace",
            "--take-ownership",
        ];
        helm(&[&words, &release[..]].concat())?;
        let values = json!({
            "profile": "ambient",
            "image": "keelson.io/istio/pilot:test",
            "autoscaleEnabled": false,
            "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        });
        let discovery = chart("istio-control/istio-discovery");
        let words = ["install", "istiod", &discovery, "--values", "-"];
        helm_with(&[&words, &release[..]].concat(), &values.to_string()).map_err(|error| {
            let pods = kubectl(&["-n", ISTIO, "describe", "pods"]).unwrap_or_default();
            error.context(format!("{pods}\n{}", logs()))
        })?;
        ready()?;
        Ok(istiod)
    }

    /// What the guide has people say to istiod's own chart.
    fn trust_us(&self) -> Result<()> {
        let line = "helm upgrade istiod istio/istiod --namespace istio-system --reuse-values --wait \\\n  \
                    --set trustedZtunnelNamespace=keelson-system --set trustedZtunnelName=keelson-node-agent";
        documented(line)?;
        documented("keelson install --set istiod.enabled=true --wait")?;
        let chart = self.charts.join("istio-control/istio-discovery");
        let chart = chart.display().to_string();
        let words = line.replace("\\\n", "").replace("istio/istiod", &chart);
        let words: Vec<&str> = words.split_whitespace().skip(1).collect();
        helm(&words)?;
        ready()
    }

    /// How many certificates it has signed since it started.
    fn issued(&self) -> Result<u64> {
        let path = format!("/api/v1/namespaces/{ISTIO}/services/http:istiod:15014/proxy/metrics");
        let metrics = kubectl(&["get", "--raw", &path])?;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("citadel_server_success_cert_issuance_count "));
        let count: f64 = line.context("it has signed none")?.trim().parse()?;
        Ok(count as u64)
    }
}

impl Drop for Istiod {
    #[expect(clippy::print_stderr, reason = "shown with a test that fails")]
    fn drop(&mut self) {
        eprintln!("{}", logs());
        // A test that fails has its own message.
        for name in ["istiod", "istio-base"] {
            drop(helm(&["uninstall", name, "--namespace", ISTIO, "--wait"]));
        }
        drop(kubectl(&["delete", "namespace", ISTIO, "--timeout=60s"]));
        let kinds = kubectl(&["get", "crd", "-o", "name"]).unwrap_or_default();
        let kinds = kinds.lines().filter(|name| name.ends_with(".istio.io"));
        let words: Vec<&str> = ["delete", "--timeout=60s"]
            .into_iter()
            .chain(kinds)
            .collect();
        if words.len() > 2 {
            drop(kubectl(&words));
        }
    }
}

fn ready() -> Result<()> {
    let words = [
        "-n",
        ISTIO,
        "rollout",
        "status",
        "deployment/istiod",
        "--timeout=120s",
    ];
    kubectl(&words).map(drop)
}

fn logs() -> String {
    let words = ["-n", ISTIO, "logs", "--tail=60", "-l", "app=istiod"];
    kubectl(&words).unwrap_or_else(|error| error.to_string())
}

/// The guide has this command.
fn documented(command: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/migrate-from-istio.md");
    let guide = std::fs::read_to_string(path)?;
    ensure!(guide.contains(command), "the guide does not say {command}");
    Ok(())
}

const ISTIO: &str = "istio-system";
/// istiod says that a certificate is two minutes older than it is.
const LIFE: &str = "60s";
