//! From `helm install` to `helm uninstall`.

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Capture, CaptureOptions, Netns};
use serde_json::{Value, json};
use tests_cluster::{CLIENT, Namespace, SERVER, eventually, kubectl, nodes, pod, who_at};

use crate::installed::{Installed, NAMESPACE};

const REQUEST: &[u8] = b"GET /cgi-bin/who";
const TUNNEL: u16 = 15008;

/// A client on one node and a server on another.
struct Pair {
    namespace: Namespace,
    ask: String,
    link: Capture,
}

impl Pair {
    fn create(mesh: &Installed, about: &str) -> Result<Self> {
        let namespace = Namespace::create(about)?;
        let nodes = nodes()?;
        let [here, there] = nodes.as_slice() else {
            bail!("two nodes are needed, not {nodes:?}");
        };
        namespace.apply(&[
            pod("client", Some(here), CLIENT),
            pod("server", Some(there), SERVER),
        ])?;
        namespace.wait_ready("client")?;
        namespace.wait_ready("server")?;
        let netns = Netns::of_process(mesh.standing.pid(there)?)?;
        let options = CaptureOptions {
            needles: vec![REQUEST.to_vec()],
            ..CaptureOptions::default()
        };
        let link = Capture::start_with(&netns, "eth0", options)?;
        let ask = who_at(namespace.pod_ip("server")?);
        Ok(Self {
            namespace,
            ask,
            link,
        })
    }

    fn label(&self, value: &str) -> Result<()> {
        let name = self.namespace.name();
        kubectl(&["label", "namespace", name, "--overwrite", value]).map(drop)
    }

    /// Asks once and says whether the link showed the request.
    fn is_readable(&self) -> Result<bool> {
        self.link.clear();
        let answer = self.namespace.exec("client", &self.ask)?;
        let client = self.namespace.pod_ip("client")?;
        ensure!(answer.trim() == format!("server {client}"), "{answer}");
        let counts = self.link.counts();
        ensure!(counts.lost == 0, "the capture lost frames");
        let readable = counts.hits.iter().sum::<u64>() > 0;
        let tunnel = self.link.count_port(6, TUNNEL);
        ensure!(
            readable != (tunnel > 0),
            "readable: {readable}, {tunnel} packets of the tunnel"
        );
        Ok(readable)
    }

    fn until_readable(&self, wanted: bool) -> Result<()> {
        eventually(&format!("the link shows requests: {wanted}"), || {
            let readable = self.is_readable()?;
            ensure!(readable == wanted, "readable: {readable}");
            Ok(())
        })?;
        // And from then on always.
        for _ in 0..5 {
            ensure!(self.is_readable()? == wanted, "it changed its mind");
        }
        Ok(())
    }

    fn restarts(&self) -> Result<u64> {
        let pods = self.namespace.get(&["pods"])?;
        let items = pods["items"].as_array().context("a list of pods")?;
        let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        Ok(items.iter().filter_map(restarts).sum())
    }
}

/// F1, A1, A33: the main job, on a cluster.
#[test]
fn a_label_captures_running_pods_and_their_traffic_between_nodes_is_tls_until_it_goes() -> Result<()>
{
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "label")?;
    ensure!(pair.is_readable()?, "without a label nothing is encrypted");
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    pair.label("keelson.io/mesh-")?;
    pair.until_readable(true)?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    Ok(())
}

/// F5, A35: applied by kubectl, to running pods.
#[test]
fn a_strict_peer_authentication_refuses_a_pod_outside_of_the_mesh_and_no_other() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "strict")?;
    let outside = Namespace::create("outside")?;
    outside.apply(&[pod("visitor", None, CLIENT)])?;
    outside.wait_ready("visitor")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    outside.exec("visitor", &pair.ask)?;

    let strict = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "strict"}, "spec": {"mtls": {"mode": "STRICT"}},
    });
    pair.namespace.apply(&[strict])?;
    eventually("the visitor is refused", || {
        match outside.exec("visitor", &pair.ask) {
            Ok(answer) => bail!("it got {answer}"),
            Err(_) => Ok(()),
        }
    })?;
    for _ in 0..5 {
        ensure!(!pair.is_readable()?, "the mesh's own go on");
        outside.exec("visitor", &pair.ask).unwrap_err();
    }
    pair.namespace
        .kubectl(&["delete", "peerauthentication", "strict"])?;
    eventually("the visitor is let in again", || {
        outside.exec("visitor", &pair.ask)
    })?;
    Ok(())
}

/// F130, F134, A66, P52: removed means that pods are let go, talk on, and that nothing is left.
#[test]
fn helm_uninstall_lets_pods_go_and_leaves_nothing_on_the_nodes() -> Result<()> {
    let mut mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "gone")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    for node in nodes()? {
        mesh.on(&node, "test -d /sys/fs/bpf/keelson")?;
        mesh.on(&node, "test -e /etc/cni/net.d/00-keelson.conflist")?;
    }
    let rules = "ip rule list; ip route list table 15001 2>/dev/null | sed 's/^/ours: /'";
    ensure!(
        pair.namespace.exec("server", rules)?.contains("fwmark"),
        "rules of a captured pod"
    );

    mesh.uninstall()?;

    pair.until_readable(true)?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    for name in ["client", "server"] {
        let left = pair.namespace.exec(name, rules)?;
        ensure!(
            !left.contains("fwmark") && !left.contains("ours"),
            "{name}: {left}"
        );
    }
    for node in nodes()? {
        for (what, command) in [
            // The kernel's own are there always.
            ("pins", "ls -A /sys/fs/bpf | grep -v '[.]debug$' || true"),
            ("state", "find /run/keelson /var/lib/keelson -mindepth 1"),
            (
                "CNI",
                "ls -A /etc/cni/net.d /opt/cni/bin | grep keelson || true",
            ),
            ("filters", "tc qdisc show | grep clsact || true"),
            ("programs", "pgrep -x keelson-node-ag || true"),
        ] {
            let left = mesh.on(&node, command)?;
            ensure!(left.is_empty(), "{what} of {node}: {left}");
        }
    }
    // Pods come and go without us.
    pair.namespace.apply(&[pod("later", None, "sleep 1000")])?;
    pair.namespace.wait_ready("later")?;
    pair.namespace
        .kubectl(&["delete", "pod", "later", "client", "--timeout=60s"])?;
    let roles = kubectl(&["get", "clusterroles,clusterrolebindings", "-o", "name"])?;
    ensure!(!roles.contains("keelson"), "{roles}");
    let left = kubectl(&["-n", NAMESPACE, "get", "all", "-o", "name"])?;
    ensure!(left.trim().is_empty(), "{left}");
    Ok(())
}
