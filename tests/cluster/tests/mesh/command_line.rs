//! `keelson` on a cluster: it installs and asks, its answers are held against real connections, Helm takes over from it and
//! it from Helm, and what it uninstalls is gone.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests_cluster::{CLIENT, Namespace, eventually, get, helm, helm_with, kubectl, kubectl_with};
use tests_cluster::{nodes, pod};

use crate::installed::{AGENT, CONTROLLER, Installed, NAMESPACE, RELEASE, chart_directory};
use crate::network_policy::blocking;
use crate::pair::Pair;

/// Runs the program with the caller's kubeconfig.
fn keelson(args: &[&str], input: &str) -> Result<Output> {
    let mut child = Command::new(lab::find_program("keelson")?)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    Ok(child.wait_with_output()?)
}

/// The same, with its exit code, its answer for programs, and what it says to people beside.
pub(crate) fn asked(args: &[&str], input: &str) -> Result<(i32, Value, String)> {
    let output = keelson(&[args, &["-o", "json"]].concat(), input)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().context("it was killed")?;
    let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Ok((code, answer, said))
}

/// The same, of a command that must succeed.
pub(crate) fn good(args: &[&str], input: &str) -> Result<Value> {
    let (code, answer, said) = asked(args, input)?;
    ensure!(code == 0, "{args:?}: {code}: {answer:#} {said}");
    Ok(answer)
}

/// The same, of a command that says in one sentence why it cannot.
fn refused(args: &[&str], input: &str, sentence: &str) -> Result<()> {
    let (code, answer, said) = asked(args, input)?;
    ensure!(
        code == 2 && said.contains(sentence),
        "{args:?}: {code}: {answer:#} {said}"
    );
    Ok(())
}

/// How many changes of a kind an installation names.
fn changes(report: &Value, action: &str) -> Vec<String> {
    let changes = report["changes"].as_array().into_iter().flatten();
    let of_kind = changes.filter(|change| change["action"] == action);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    of_kind
        .map(|change| format!("{} {}", text(&change["kind"]), text(&change["name"])))
        .collect()
}

/// A66: what `kubectl get pods` shows.
fn every_pod_runs() -> Result<()> {
    let pods = get(&["-n", NAMESPACE, "pods"])?;
    let items = pods["items"].as_array().context("a list")?;
    ensure!(items.len() >= 3, "a controller and an agent a node");
    for pod in items {
        let phase = &pod["status"]["phase"];
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(
            *phase == "Running" && *restarts == 0 && pod["metadata"]["deletionTimestamp"].is_null(),
            "{pod:#}"
        );
    }
    Ok(())
}

/// F1, F2, F75, F117, F130, F131, F133-F135, A1, A61, A66, P51, P52.
#[test]
fn keelson_installs_asks_upgrades_and_leaves_nothing() -> Result<()> {
    let mesh = Installed::nothing()?;
    let values = mesh.values()?.to_string();
    refused(
        &["status"],
        "",
        "Keelson is not installed in the cluster at",
    )?;
    refused(&["upgrade"], "", "there is nothing to upgrade")?;
    good(&["check", "--before"], "")?;
    let dry = good(&["install", "--dry-run", "-f", "-"], &values)?;
    ensure!(changes(&dry, "created").len() > 10, "{dry:#}");
    let namespace = kubectl(&["get", "namespace", NAMESPACE]);
    ensure!(namespace.is_err(), "the namespace was made");

    let anothers = another_ones_kinds()?;
    let began = Instant::now();
    let first = good(&["install", "--crds", "--wait", "-f", "-"], &values)?;
    println!(
        "keelson install, two nodes: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    ensure!(changes(&first, "created").len() > 10, "{first:#}");
    every_pod_runs()?;
    // F135: again is nothing new; what somebody has broken is put right.
    let again = good(&["install", "--wait", "-f", "-"], &values)?;
    ensure!(
        changes(&again, "created").is_empty() && changes(&again, "configured").is_empty(),
        "{again:#}"
    );
    kubectl(&["-n", NAMESPACE, "delete", "service", CONTROLLER])?;
    let mended = good(&["install", "--wait", "-f", "-"], &values)?;
    ensure!(
        changes(&mended, "created") == [format!("Service {CONTROLLER}")],
        "{mended:#}"
    );

    let pair = Pair::create(&mesh, "cli")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    answers_are_true(&pair)?;

    // The values of the last time stay.
    let upgraded = good(&["upgrade", "--set", "agent.logLevel=debug", "--wait"], "")?;
    ensure!(
        changes(&upgraded, "configured") == [format!("DaemonSet {AGENT}")],
        "{upgraded:#}"
    );
    let agents = get(&["-n", NAMESPACE, "daemonset", AGENT])?.to_string();
    ensure!(agents.contains("--log=debug"), "{agents}");
    let root = mesh.values()?["agent"]["cgroup"]["root"].clone();
    ensure!(
        agents.contains(root.as_str().context("a path")?),
        "{agents}"
    );
    every_pod_runs()?;
    pair.until_readable(false)?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");

    // What an older version had and this one has not.
    let old = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "keelson-of-old", "namespace": NAMESPACE, "labels": {
            "app.kubernetes.io/part-of": "keelson", "app.kubernetes.io/instance": RELEASE,
        }},
    });
    kubectl_with(&["apply", "-f", "-"], &old.to_string())?;
    let pruned = good(&["upgrade"], "")?;
    ensure!(
        changes(&pruned, "removed") == ["ConfigMap keelson-of-old"],
        "{pruned:#}"
    );

    let began = Instant::now();
    let gone = good(&["uninstall"], "")?;
    println!("keelson uninstall: {:.1} s", began.elapsed().as_secs_f64());
    ensure!(gone["left"] == json!([]), "{gone:#}");
    nothing_is_left(&mesh)?;
    ensure!(
        another_ones_kinds()? == anothers,
        "kinds of another's were written over or removed"
    );
    // And at once: the agents are gone when the command is.
    ensure!(pair.is_readable()?, "pods talk on, without the mesh");
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    refused(
        &["uninstall"],
        "",
        "nothing of the release keelson is in namespace",
    )?;
    Ok(())
}

/// Istio's kinds as somebody else has made them, B5 of issue 11: with a mark, and what the API server counts at each change.
fn another_ones_kinds() -> Result<Value> {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/crds/istio-security.yaml"
    );
    let name = "peerauthentications.security.istio.io";
    if kubectl(&["get", "crd", name]).is_err() {
        kubectl(&["create", "-f", file])?;
    }
    kubectl(&[
        "annotate",
        "crd",
        name,
        "--overwrite",
        "example.org/owner=another",
    ])?;
    let kind = get(&["crd", name])?;
    Ok(json!([
        kind["spec"],
        kind["metadata"]["generation"],
        kind["metadata"]["uid"],
        kind["metadata"]["annotations"]
    ]))
}

/// Issue 11, B16: kernel, cgroups and others' programs of each node, by trying; nothing stays.
#[test]
#[ignore = "nightly"]
fn nodes_are_tried_before_anything_is_there_and_nothing_of_it_stays() -> Result<()> {
    let mesh = Installed::nothing()?;
    let values = mesh.values()?.to_string();
    let tried = good(&["check", "--before", "--probe", "-f", "-"], &values)?;
    let findings = tried.as_array().context("a list")?;
    for node in nodes()? {
        for (what, expected) in [
            ("kernel", "with BTF"),
            ("cgroup v2", "writable"),
            ("programs", "the kernel takes every program"),
            ("hooks", "programs"),
        ] {
            let what = format!("node {node}: {what}");
            let found = findings.iter().find(|one| one["what"] == *what);
            let found = found.with_context(|| format!("{what}: {tried:#}"))?;
            let said = found["said"].as_str().unwrap_or_default();
            ensure!(found["good"] == true && said.contains(expected), "{found}");
        }
        mesh.on(&node, "test -z \"$(ls /sys/fs/bpf | grep keelson)\"")?;
    }
    let namespace = kubectl(&["get", "namespace", "keelson-probe"]);
    ensure!(namespace.is_err(), "the namespace of the probes is left");
    // A node that no agent can serve is known before one tries.
    let (code, tried, _) = asked(
        &[
            "check",
            "--before",
            "--probe",
            "-f",
            "-",
            "--set",
            "agent.cgroup.root=/nowhere",
        ],
        &values,
    )?;
    ensure!(
        code == 1 && tried.to_string().contains("--cgroup-root"),
        "{tried:#}"
    );
    Ok(())
}

/// Holds what is said of connections against the connections.
fn answers_are_true(pair: &Pair) -> Result<()> {
    let namespace = pair.namespace.name();
    let (client, server) = (format!("{namespace}/client"), format!("{namespace}/server"));
    let at = format!("{}:8080", pair.namespace.pod_ip("server")?);
    let status = eventually("every node is in step", || good(&["status"], ""))?;
    let of_nodes = status["nodes"].as_array().context("nodes")?;
    let names: Vec<&str> = of_nodes
        .iter()
        .filter_map(|one| one["node"].as_str())
        .collect();
    ensure!(names == nodes()?, "{status:#}");
    for node in of_nodes {
        ensure!(node["in_step"] == "synced", "{status:#}");
        ensure!(
            node["pods_wanted"] == 1 && node["pods_captured"] == 1,
            "{status:#}"
        );
    }
    good(&["check"], "")?;

    let said = good(&["explain", &client, &at], "")?;
    ensure!(said["ways"][0]["path"] == "tunnel", "{said:#}");
    ensure!(!pair.is_readable()?, "and it is");
    let own = good(&["explain", &client, &format!("{client}:8080")], "")?;
    ensure!(own["verdict"] == "allowed", "{own:#}");

    // A client outside of the mesh, and a policy of its own.
    let outside = Namespace::create("outside")?;
    outside.apply(&[pod("visitor", None, CLIENT)])?;
    outside.wait_ready("visitor")?;
    let visitor = format!("{}/visitor", outside.name());
    let said = good(&["explain", &visitor, &at], "")?;
    ensure!(said["ways"][0]["path"] == "plain", "{said:#}");
    outside.exec("visitor", &pair.ask)?;
    let strict = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "strict"}, "spec": {"mtls": {"mode": "STRICT"}},
    });
    let deny = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny-9090"}, "spec": {
            "action": "DENY", "rules": [{"to": [{"operation": {"ports": ["9090"]}}]}],
        },
    });
    pair.namespace.apply(&[strict, deny])?;
    let explain_refused = |from: &str, to: &str, object: &str| {
        let (code, said, _) = asked(&["explain", from, to], "")?;
        ensure!(code == 1 && said["ways"][0]["object"] == object, "{said:#}");
        Ok(())
    };
    let strict = format!("PeerAuthentication {namespace}/strict");
    eventually("the visitor is refused", || {
        match outside.exec("visitor", &pair.ask) {
            Ok(answer) => bail!("it got {answer}"),
            Err(_) => explain_refused(&visitor, &at, &strict),
        }
    })?;
    let denied = format!("AuthorizationPolicy {namespace}/deny-9090");
    let other = at.replace(":8080", ":9090");
    eventually("the port is denied", || {
        explain_refused(&client, &other, &denied)
    })?;
    good(&["explain", &client, &at], "")?;
    ensure!(!pair.is_readable()?, "the mesh's own go on");

    tunnels_that_a_policy_of_the_network_blocks(pair)?;
    let workloads = good(&["proxy-config", "workload", "-n", namespace], "")?.to_string();
    ensure!(workloads.contains("server"), "{workloads}");
    let certificates = good(&["proxy-config", "certificate"], "")?.to_string();
    ensure!(
        certificates.contains(&format!("ns/{namespace}/sa/default")),
        "{certificates}"
    );
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
                         "spec": {"selector": {"app": "server"}, "ports": [{"port": 8080}]}});
    pair.namespace.apply(&[service])?;
    eventually("the service takes mTLS alone", || {
        let said = good(&["tls-check", &server], "")?;
        let port = &said[0];
        ensure!(
            port["client"] == "mTLS"
                && port["server"] == "mTLS (STRICT)"
                && port["objects"][0] == strict,
            "{said:#}"
        );
        Ok(())
    })?;
    let policies = good(&["proxy-config", "policy"], "")?.to_string();
    ensure!(policies.contains("deny-9090"), "{policies}");
    let version = good(&["version"], "")?;
    ensure!(
        version["controllers"]
            .as_object()
            .is_some_and(|all| !all.is_empty()),
        "{version:#}"
    );
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report.tar");
    let report = report.to_str().context("UTF-8")?;
    good(&["bug-report", "--file", report], "")?;
    let report = std::fs::read(report)?;
    let has = |text: &str| {
        report
            .windows(text.len())
            .any(|bytes| bytes == text.as_bytes())
    };
    ensure!(has(&server) || has("\"server\""), "the pods are inside");
    ensure!(has("controllers/keelson-controller-"), "controllers too");
    ensure!(!has("PRIVATE KEY"), "no key");
    refused(
        &["explain", "shop/nobody", &at],
        "",
        "there is no pod shop/nobody",
    )
}

/// Issue 11, B12: `check` names the policy, with a connection that it lets pass without the mesh.
fn tunnels_that_a_policy_of_the_network_blocks(pair: &Pair) -> Result<()> {
    let namespace = pair.namespace.name();
    let policy = |name: &str, port: u16| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
            "spec": {
                "podSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": port}]}],
            },
        })
    };
    pair.namespace.apply(&[policy("allow-8080", 8080)])?;
    let said = blocking()?;
    let expected = format!(
        "NetworkPolicy {namespace}/allow-8080 allows {namespace}/client to connect to {namespace}/server at port 8080"
    );
    ensure!(
        said.len() == 1 && said[0].starts_with(&expected),
        "{said:?}"
    );
    pair.namespace.apply(&[policy("tunnels", 15008)])?;
    let said = blocking()?;
    ensure!(said.is_empty(), "{said:?}");
    let words = ["delete", "networkpolicy", "allow-8080", "tunnels"];
    pair.namespace.kubectl(&words).map(drop)
}

/// A66, F134.
fn nothing_is_left(mesh: &Installed) -> Result<()> {
    let namespace = kubectl(&["get", "namespace", NAMESPACE]);
    ensure!(namespace.is_err(), "the namespace is still there");
    for kind in [
        "clusterroles",
        "clusterrolebindings",
        "validatingwebhookconfigurations",
    ] {
        let left = kubectl(&[
            "get",
            kind,
            "-o",
            "name",
            "-l",
            "app.kubernetes.io/part-of=keelson",
        ])?;
        ensure!(left.trim().is_empty(), "{left}");
    }
    for node in nodes()? {
        for path in [
            "/sys/fs/bpf/keelson",
            "/etc/cni/net.d/00-keelson.conflist",
            "/opt/cni/bin/keelson-cni",
        ] {
            mesh.on(&node, &format!("test ! -e {path}"))?;
        }
    }
    Ok(())
}

/// F133, issue 15: one release, whoever comes next.
#[test]
#[ignore = "nightly: Helm"]
fn helm_takes_over_what_keelson_has_installed_and_keelson_what_helm_has() -> Result<()> {
    let mesh = Installed::nothing()?;
    let values = mesh.values()?;
    good(
        &["install", "--crds", "--wait", "-f", "-"],
        &values.to_string(),
    )?;
    let pair = Pair::create(&mesh, "hand")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;

    let mut helms = values.clone();
    helms["agent"]["nodeSelector"] = json!({"kubernetes.io/arch": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64")});
    let chart = chart_directory();
    let upgrade = [
        "upgrade",
        "--install",
        RELEASE,
        &chart,
        "-n",
        NAMESPACE,
        "--wait",
        "--timeout",
        "120s",
        "-f",
        "-",
    ];
    helm_with(&upgrade, &helms.to_string())?;
    ensure!(helm(&["list", "-n", NAMESPACE, "-q"])?.trim() == RELEASE);
    let selector = || -> Result<Value> {
        let agents = get(&["-n", NAMESPACE, "daemonset", AGENT])?;
        Ok(agents["spec"]["template"]["spec"]["nodeSelector"].clone())
    };
    ensure!(
        selector()?.get("kubernetes.io/arch").is_some(),
        "{}",
        selector()?
    );
    pair.until_readable(false)?;

    // Whose values would they be?
    refused(&["upgrade"], "", "helm get values keelson")?;
    good(&["install", "--wait", "-f", "-"], &values.to_string())?;
    ensure!(
        selector()? == json!({"kubernetes.io/os": "linux"}),
        "what only Helm had set is gone: {}",
        selector()?
    );
    every_pod_runs()?;
    pair.until_readable(false)?;
    good(&["upgrade", "--wait"], "")?;
    helm_with(&upgrade, &values.to_string())?;
    pair.until_readable(false)?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    good(&["uninstall"], "")?;
    nothing_is_left(&mesh)
}

/// Issue 10: a node that cannot be served is said, and makes no crash loop; the command ends; run again it mends.
#[test]
#[ignore = "nightly"]
fn a_node_that_cannot_be_served_is_said_in_readiness_event_metric_and_by_wait() -> Result<()> {
    let mesh = Installed::nothing()?;
    let mut values = mesh.values()?;
    let right = values.to_string();
    values["agent"]["cgroup"] = json!({"root": "/nowhere", "kubelet": ""});
    let (code, said, _) = asked(
        &["install", "--crds", "--wait", "-f", "-"],
        &values.to_string(),
    )?;
    let unservable = said["outcome"]["unservable"].as_array().context("a list")?;
    ensure!(code == 1 && unservable.len() == nodes()?.len(), "{said:#}");
    let text = said["outcome"].to_string();
    ensure!(
        text.contains("wanted, cannot") && text.contains("cgroup"),
        "{text}"
    );
    every_pod_runs()?;
    let (code, status, _) = asked(&["status"], "")?;
    ensure!(
        code == 1 && status.to_string().contains("wanted, cannot"),
        "{status:#}"
    );
    let events = eventually("an event", || {
        let events = get(&[
            "-n",
            NAMESPACE,
            "events",
            "--field-selector=reason=NodeUnservable",
        ])?;
        let count = events["items"].as_array().map_or(0, Vec::len);
        ensure!(count == nodes()?.len(), "{events:#}");
        Ok(events)
    })?;
    ensure!(events.to_string().contains("wanted, cannot"), "{events:#}");
    for node in nodes()? {
        let ask = "printf 'GET /stats/prometheus HTTP/1.0\\r\\nHost: 127.0.0.1\\r\\n\\r\\n' | nc 127.0.0.1 15000";
        let ask = format!(
            "if command -v nc > /dev/null; then {ask}; else curl -s http://127.0.0.1:15000/stats/prometheus; fi"
        );
        let metrics = mesh.on(&node, &ask)?;
        ensure!(
            metrics.contains("keelson_node_unservable{because="),
            "{metrics}"
        );
    }
    good(&["install", "--wait", "-f", "-"], &right)?;
    good(&["status"], "")?;
    good(&["uninstall"], "")?;
    nothing_is_left(&mesh)
}

/// Least rights: what somebody may not do is named, and half of it is not done.
#[test]
#[ignore = "nightly"]
fn who_has_no_rights_is_told_which_and_nothing_is_changed() -> Result<()> {
    let _mesh = Installed::nothing()?;
    let namespace = Namespace::create("rights")?;
    namespace.kubectl(&["create", "serviceaccount", "reader"])?;
    let account = format!("{}:reader", namespace.name());
    let binding = format!("{}-reader", namespace.name());
    kubectl(&[
        "create",
        "clusterrolebinding",
        &binding,
        "--clusterrole=view",
        "--serviceaccount",
        &account,
    ])?;
    let outcome = as_reader(&namespace);
    kubectl(&["delete", "clusterrolebinding", &binding])?;
    outcome
}

fn as_reader(namespace: &Namespace) -> Result<()> {
    let token = namespace.kubectl(&["create", "token", "reader"])?;
    let own = kubectl(&["config", "view", "--raw", "--minify", "-o", "json"])?;
    let mut kubeconfig: Value = serde_json::from_str(&own)?;
    kubeconfig["users"][0]["user"] = json!({"token": token.trim()});
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string())?;
    let path = path.to_str().context("UTF-8")?.to_owned();
    let at = ["--kubeconfig", &path];
    refused(
        &[&["install"][..], &at].concat(),
        "",
        "these rights are missing, and nothing was changed: create poddisruptionbudgets.policy in keelson-system",
    )?;
    let namespace = kubectl(&["get", "namespace", NAMESPACE]);
    ensure!(namespace.is_err(), "the namespace was made");
    let (code, before, _) = asked(&[&["check", "--before"][..], &at].concat(), "")?;
    ensure!(
        code == 1 && before.to_string().contains("you may not"),
        "{before:#}"
    );
    kubeconfig["users"][0]["user"] = json!({"token": "no.such.token"});
    std::fs::write(&path, kubeconfig.to_string())?;
    refused(
        &[&["status"][..], &at].concat(),
        "",
        "does not take these credentials (401)",
    )?;
    kubeconfig["clusters"][0]["cluster"]["server"] = json!("https://127.0.0.1:1");
    std::fs::write(&path, kubeconfig.to_string())?;
    refused(
        &[&["status"][..], &at].concat(),
        "",
        "no cluster answers at https://127.0.0.1:1",
    )
}
