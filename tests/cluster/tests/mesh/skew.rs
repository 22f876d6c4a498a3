//! A mesh of two versions: an upgrade and a rollback by Helm, each stopped halfway.

use std::env;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests_cluster::{CLIENT, eventually, get, helm, helm_with, kubectl, nodes, pod};

use crate::command_line::good;
use crate::installed::{
    AGENT, CONTROLLER, Installed, NAMESPACE, RELEASE, chart_directory, istio_kinds,
};
use crate::pair::{Kept, Pair};

/// Installs or upgrades by Helm.
fn helm_to(chart: &str, tag: &str, mut values: Value) -> Result<()> {
    values["image"] = json!({"tag": tag});
    let words = [
        "upgrade",
        "--install",
        RELEASE,
        chart,
        "-n",
        NAMESPACE,
        "--create-namespace",
        "--timeout",
        "120s",
        "-f",
        "-",
    ];
    helm_with(&words, &values.to_string())?;
    rolled_out(&format!("deployment/{CONTROLLER}"))
}

fn rolled_out(what: &str) -> Result<()> {
    let words = ["-n", NAMESPACE, "rollout", "status", what, "--timeout=120s"];
    kubectl(&words).map(drop)
}

/// Whether new agents take the places of old ones by themselves.
fn agents_roll(roll: bool) -> Result<()> {
    let strategy = match roll {
        true => {
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
        }
        false => json!({"type": "OnDelete", "rollingUpdate": null}),
    };
    let patch = json!({"spec": {"updateStrategy": strategy}}).to_string();
    let words = [
        "-n",
        NAMESPACE,
        "patch",
        "daemonset",
        AGENT,
        "--patch",
        &patch,
    ];
    kubectl(&words)?;
    if roll {
        rolled_out(&format!("daemonset/{AGENT}"))?;
    }
    Ok(())
}

/// The tags of the images that controllers and agents run.
fn running() -> Result<(Vec<String>, Vec<String>)> {
    let of = |name: &str| -> Result<Vec<String>> {
        let label = format!("app.kubernetes.io/name={name}");
        let pods = get(&["-n", NAMESPACE, "pods", "-l", &label])?;
        let pods = pods["items"].as_array().context("a list")?.clone();
        let living = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let mut tags: Vec<String> = living
            .filter_map(|pod| {
                let image = pod["spec"]["containers"][0]["image"].as_str()?;
                Some(image.rsplit_once(':')?.1.to_owned())
            })
            .collect();
        tags.sort();
        tags.dedup();
        Ok(tags)
    };
    Ok((of(CONTROLLER)?, of(AGENT)?))
}

/// What a mesh is for, while controllers and agents are of these versions: a new pod is captured and reaches the server, and a
/// policy by kubectl is in effect on both nodes and then no more.
#[expect(clippy::print_stdout, reason = "which part of a long test is done")]
fn it_works(pair: &Pair, controllers: &str, agents: &str) -> Result<()> {
    let wanted = (vec![controllers.to_owned()], vec![agents.to_owned()]);
    eventually("these versions run", || {
        let now = running()?;
        ensure!(now == wanted, "{now:?} and not {wanted:?}");
        Ok(())
    })?;
    pair.until_readable(false)?;
    let namespace = &pair.namespace;
    let name = format!(
        "new-{}-{}",
        controllers.replace('.', ""),
        agents.replace('.', "")
    );
    let last = nodes()?.pop();
    namespace.apply(&[pod(&name, last.as_deref(), CLIENT)])?;
    namespace.wait_ready(&name)?;
    let rules = namespace.exec(&name, "ip rule list")?;
    ensure!(rules.contains("fwmark"), "{rules}");
    let answer = eventually("the new pod is served", || namespace.exec(&name, &pair.ask))?;
    ensure!(answer.starts_with("server "), "{answer}");
    let deny = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "deny"},
        "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["8081"]}}]}]},
    });
    eventually("a controller answers", || {
        namespace.apply(std::slice::from_ref(&deny))
    })?;
    eventually("the policy is in effect on all nodes", || {
        let policy = namespace.get(&["authorizationpolicy", "deny"])?;
        let conditions = policy["status"]["conditions"].as_array().cloned();
        let conditions = conditions.unwrap_or_default();
        ensure!(
            conditions.len() == 2 && conditions.iter().all(|one| one["status"] == "True"),
            "{policy}"
        );
        Ok(())
    })?;
    namespace.kubectl(&["delete", "authorizationpolicy", "deny"])?;
    println!("controllers {controllers}, agents {agents}: in step");
    Ok(())
}

/// Issue 11, B15: agents of one version with controllers of the other, both ways, while requests go on.
#[test]
#[ignore = "nightly: Helm, and an earlier version is compiled"]
fn an_upgrade_and_a_rollback_that_stop_halfway_fail_no_request() -> Result<()> {
    let earlier = env::var("KEELSON_EARLIER_CHART")
        .context("no earlier version was made: `cargo xtask test --cluster --nightly` makes one")?;
    let mesh = Installed::nothing()?;
    let values = mesh.values()?;
    istio_kinds()?;
    helm_to(&earlier, OLD, values.clone())?;
    rolled_out(&format!("daemonset/{AGENT}"))?;
    let pair = Pair::create(&mesh, "skew")?;
    pair.label("keelson.io/mesh=enabled")?;
    it_works(&pair, OLD, OLD)?;
    pair.keep_asking()?;

    agents_roll(false)?;
    helm_to(&chart_directory(), NEW, values)?;
    it_works(&pair, NEW, OLD)?;
    agents_roll(true)?;
    it_works(&pair, NEW, NEW)?;
    eventually("every node is in step", || good(&["status"], ""))?;

    agents_roll(false)?;
    helm(&["rollback", RELEASE, "1", "-n", NAMESPACE])?;
    rolled_out(&format!("deployment/{CONTROLLER}"))?;
    it_works(&pair, OLD, NEW)?;
    agents_roll(true)?;
    it_works(&pair, OLD, OLD)?;
    pair.stop_asking("versions were mixed", Kept::EndsWithItsAgent)?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    helm(&["uninstall", RELEASE, "-n", NAMESPACE, "--wait"])?;
    pair.until_readable(true)
}

const OLD: &str = "earlier";
/// The tag of the images of this version: the chart's default.
const NEW: &str = "0.0.0";
