//! What happens to a cluster's own programs, and the mesh in it.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests_cluster::{CLIENT, eventually, kubectl, nodes, pod};

use crate::command_line::good;
use crate::installed::{Installed, NAMESPACE};
use crate::pair::{Kept, Pair};

/// An API server that answers nobody: its process, and etcd's, stand still.
struct Away<'m>(&'m Installed);

impl<'m> Away<'m> {
    fn new(mesh: &'m Installed) -> Result<Self> {
        let away = Self(mesh);
        // Whoever kills this test leaves a cluster that comes back by itself.
        let last = AWAY.as_secs() + 60;
        let later = format!("setsid sh -c 'sleep {last}; {GO_ON}' < /dev/null > /dev/null 2>&1 &");
        mesh.on("control", &later)?;
        mesh.on(
            "control",
            "kill -STOP $(pgrep -x kube-apiserver) $(pgrep -x etcd)",
        )?;
        Ok(away)
    }
}

impl Drop for Away<'_> {
    #[expect(
        clippy::print_stderr,
        reason = "every test after this one would fail for it"
    )]
    fn drop(&mut self) {
        let go_on = eventually("the API server goes on", || self.0.on("control", GO_ON));
        if let Err(error) = go_on {
            eprintln!("{error:#}");
        }
    }
}

/// Has each go on that is there, and fails while one stands still.
const GO_ON: &str = "for name in kube-apiserver etcd; do pkill -CONT -x $name; done; ! ps -eo stat=,comm= | grep -E '^T.* (kube-apiserver|etcd)$'";

/// Runs a shell command in a container by the runtime, where there is no API server to ask.
fn on_node(mesh: &Installed, node: &str, pod: &str, command: &str) -> Result<String> {
    let id = format!(
        "ctr -n k8s.io containers ls -q 'labels.\"io.kubernetes.pod.name\"=={pod},labels.\"io.kubernetes.container.name\"==main'"
    );
    let id = mesh.on(node, &id)?;
    let id = id.lines().next().context("a container")?;
    let pid = format!("ctr -n k8s.io tasks ls | awk '$1 == \"{id}\" {{ print $2 }}'");
    let pid = mesh.on(node, &pid)?;
    let root = format!("nsenter -t {pid} -n -m -- /bin/sh -c '{command}'");
    mesh.on(node, &root)
}

/// Section C of issue 11, and promise 7 of the design: without an API server everything goes on that is there.
#[test]
#[ignore = "nightly: minutes"]
fn without_an_api_server_for_minutes_kept_and_new_connections_go_on_encrypted() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "apiaway")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    pair.keep_asking()?;
    let here = nodes()?.into_iter().next().context("a node")?;
    let asked = |word: &str| {
        on_node(
            &mesh,
            &here,
            "client",
            &format!("grep -c {word} /tmp/asked || true"),
        )
    };
    let began = Instant::now();
    let away = Away::new(&mesh)?;
    let before: u64 = asked("good")?.parse()?;
    while began.elapsed() < AWAY {
        sleep(Duration::from_secs(5));
        let rules = on_node(&mesh, &here, "client", "ip rule list")?;
        ensure!(rules.contains("fwmark"), "it was let go: {rules}");
        ensure!(asked("bad")? == "0", "after {:?}", began.elapsed());
    }
    let after: u64 = asked("good")?.parse()?;
    println!(
        "{} new connections in {AWAY:?} without an API server",
        after - before
    );
    ensure!(after > before + 100, "{before} {after}");
    drop(away);
    eventually("the API server answers", || kubectl(&["get", "nodes"]))?;
    pair.stop_asking("no API server answered", Kept::GoesOn)?;
    eventually("every node is in step", || good(&["status"], ""))?;
    pair.until_readable(false)?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    Ok(())
}

/// Section C of issue 11: what a watch has not heard yet is forgotten, so lists are made anew.
#[test]
#[ignore = "nightly"]
fn after_etcd_is_compacted_while_watches_are_cut_changes_arrive() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "compact")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    pair.keep_asking()?;
    let etcd = "http://127.0.0.1:2379/v3/kv";
    let ask = format!("curl -s {etcd}/range -d '{{\"key\": \"AA==\"}}'");
    let header: serde_json::Value = serde_json::from_str(&mesh.on("control", &ask)?)?;
    let revision = header["header"]["revision"]
        .as_str()
        .context("a revision")?;
    let compact = format!("curl -s {etcd}/compaction -d '{{\"revision\": \"{revision}\"}}'");
    let said = mesh.on("control", &compact)?;
    ensure!(said.contains("header"), "{said}");
    // It is started again, with nothing of its watch cache.
    mesh.on("control", "kill -9 $(pgrep -x kube-apiserver)")?;
    eventually("the API server answers", || kubectl(&["get", "nodes"]))?;
    let namespace = &pair.namespace;
    namespace.apply(&[pod("later", None, CLIENT)])?;
    namespace.wait_ready("later")?;
    let answer = eventually("it is served", || namespace.exec("later", &pair.ask))?;
    ensure!(answer.starts_with("server "), "{answer}");
    pair.label("keelson.io/mesh-")?;
    pair.until_readable(true)?;
    pair.stop_asking("etcd was compacted and the API server killed", Kept::GoesOn)?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    Ok(())
}

/// Section C of issue 11: the node's other programs start again beside a mesh that does not notice.
#[test]
#[ignore = "nightly"]
fn a_kubelet_and_a_containerd_that_start_again_fail_no_request() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "restart")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    pair.keep_asking()?;
    for node in nodes()? {
        for program in ["kubelet", "containerd"] {
            let pid = mesh.on(&node, &format!("pgrep -ox {program}"))?;
            mesh.on(&node, &format!("kill -9 {pid}"))?;
            eventually("it is started again", || {
                let now = mesh.on(&node, &format!("pgrep -ox {program}"))?;
                ensure!(now != pid, "{now}");
                Ok(())
            })?;
        }
        eventually("pods can be made", || {
            let name = format!("after-{node}");
            pair.namespace.apply(&[pod(&name, Some(&node), CLIENT)])?;
            pair.namespace.wait_ready(&name)?;
            let rules = pair.namespace.exec(&name, "ip rule list")?;
            ensure!(rules.contains("fwmark"), "{rules}");
            Ok(())
        })?;
    }
    pair.stop_asking("kubelets and containerds were killed", Kept::GoesOn)?;
    pair.until_readable(false)?;
    eventually("every node is in step", || good(&["status"], ""))?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    Ok(())
}

/// Section C of issue 11, promise 7: after a reboot no captured pod speaks before capture, and all is as before.
#[test]
#[ignore = "nightly"]
fn pods_of_a_node_that_is_rebooted_never_speak_in_the_clear() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "reboot")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    let here = nodes()?.into_iter().next().context("a node")?;
    // It asks from its first moment on, and what the far end sees is counted there.
    let ask = format!("while true; do {} > /dev/null; done", pair.ask);
    pair.namespace.apply(&[pod("eager", Some(&here), &ask)])?;
    pair.namespace.wait_ready("eager")?;
    pair.watch_from_now();
    mesh.standing()?.reboot(&here)?;
    let began = Instant::now();
    eventually("its pods run again", || {
        pair.namespace.wait_ready("eager")?;
        pair.namespace.exec("client", "true")
    })?;
    println!(
        "a rebooted node's pods run again after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    eventually("an answer", || pair.namespace.exec("client", &pair.ask))?;
    let seen = pair.seen_in_the_clear()?;
    ensure!(seen == 0, "{seen} requests were readable");
    eventually("every node is in step", || good(&["status"], ""))?;
    pair.until_readable(false)
}

/// Section C of issue 11: addresses are given out again and again, each time to somebody else.
#[test]
#[ignore = "nightly: minutes"]
fn three_hundred_pods_come_and_go_and_leave_no_identity_namespace_link_or_entry() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "churn")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    let namespace = &pair.namespace;
    for account in ["friend", "stranger"] {
        namespace.kubectl(&["create", "serviceaccount", account])?;
    }
    let friend = format!("cluster.local/ns/{}/sa/friend", namespace.name());
    let own = format!("cluster.local/ns/{}/sa/default", namespace.name());
    let allow = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "friends"},
        "spec": {"selector": {"matchLabels": {"app": "server"}}, "rules": [{"from": [{"source": {"principals": [friend, own]}}]}]},
    });
    eventually("a controller answers", || {
        namespace.apply(std::slice::from_ref(&allow))
    })?;
    let here = nodes()?.into_iter().next().context("a node")?;
    let before = traces(&mesh, &here)?;
    let mut last_had = BTreeMap::new();
    let mut given_again = 0;
    for round in 0..CHURN_ROUNDS {
        let names: Vec<String> = (0..CHURN).map(|number| format!("c{number}")).collect();
        let accounts = ["friend", "stranger"];
        let account = |number: usize| accounts[(number + round) % 2];
        let pods = names.iter().enumerate().map(|(number, name)| {
            let mut pod = pod(name, Some(&here), CLIENT);
            pod["spec"]["serviceAccountName"] = json!(account(number));
            pod
        });
        namespace.apply(&pods.collect::<Vec<_>>())?;
        namespace.kubectl(&[
            "wait",
            "--for=condition=Ready",
            "pod",
            "--all",
            "--timeout=120s",
        ])?;
        // Of each kind one is tried in each round, and with them some whose address was another account's before.
        let mut tried = vec![round % CHURN, (round + 1) % CHURN];
        let mut others = 0;
        for (number, name) in names.iter().enumerate() {
            let before = last_had.insert(namespace.pod_ip(name)?, account(number));
            if before.is_some_and(|before| before != account(number)) && others < 4 {
                tried.push(number);
                others += 1;
            }
        }
        given_again += others;
        for number in tried {
            let name = &names[number];
            let asked = namespace.exec(name, &pair.ask);
            let may = account(number) == "friend";
            ensure!(
                asked.is_ok() == may,
                "round {round}, {name}: may {may}: {asked:?}"
            );
        }
        let words = [
            "delete",
            "pod",
            "--wait=true",
            "--grace-period=0",
            "--force",
        ];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        namespace.kubectl(&[&words[..], &names].concat())?;
    }
    println!(
        "{} pods came and went; {given_again} of those that were tried had an address of another account's before",
        CHURN * CHURN_ROUNDS
    );
    ensure!(given_again > 0, "no address was given out again");
    eventually("the node is as before", || {
        let now = traces(&mesh, &here)?;
        ensure!(now == before, "{before:?} {now:?}");
        Ok(())
    })?;
    eventually("every node is in step", || good(&["status"], ""))?;
    pair.until_readable(false)
}

/// What pods leave on a node, by number: network namespaces, interfaces, entries of maps, sandboxes that are remembered.
fn traces(mesh: &Installed, node: &str) -> Result<Vec<(String, u64)>> {
    let counts = [
        ("namespaces", "ls /run/netns | wc -l"),
        ("interfaces", "ip -o link | grep -c veth || true"),
        ("qdiscs", "tc qdisc show | grep -c clsact || true"),
        (
            "sandboxes",
            "grep -o '\"netns\"' /run/keelson/pods.json | wc -l",
        ),
        ("pins", "find /sys/fs/bpf/keelson | wc -l"),
    ];
    let mut all = Vec::new();
    for (what, command) in counts {
        all.push((what.to_owned(), mesh.on(node, command)?.parse()?));
    }
    let maps = "curl -s http://127.0.0.1:15000/stats/prometheus | grep '^keelson_map_entries{'";
    for line in mesh.on(node, maps)?.lines() {
        let (map, count) = line.rsplit_once(' ').context("a count")?;
        all.push((map.to_owned(), count.parse()?));
    }
    let words = [
        "-n",
        NAMESPACE,
        "get",
        "configmap",
        &format!("keelson-node-{node}"),
        "-o",
        "json",
    ];
    let kept = kubectl(&words)?;
    all.push((
        "kept pods".to_owned(),
        kept.matches("pod_uid").count() as u64,
    ));
    Ok(all)
}

const AWAY: Duration = Duration::from_secs(300);
const CHURN: usize = 20;
const CHURN_ROUNDS: usize = 15;
