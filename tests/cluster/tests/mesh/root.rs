//! One root follows another while pods talk.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests_cluster::{eventually, get, kubectl, nodes};

use crate::command_line::good;
use crate::installed::{CONTROLLER, Installed, NAMESPACE};
use crate::pair::{Kept, Pair};

/// The roots that are published for agents, as PEM blocks.
fn published() -> Result<BTreeSet<String>> {
    let map = get(&["-n", NAMESPACE, "configmap", "keelson-ca-root"])?;
    let text = map["data"]["root-cert.pem"].as_str().context("a text")?;
    let blocks = text.split_inclusive("-----END CERTIFICATE-----\n");
    let blocks = blocks.map(|block| block.trim().to_owned());
    Ok(blocks.filter(|block| !block.is_empty()).collect())
}

/// Sets an annotation of the root's Secret.
fn annotate(name: &str, value: &str) -> Result<()> {
    let note = format!("keelson.io/{name}={value}");
    kubectl(&[
        "-n",
        NAMESPACE,
        "annotate",
        "secret",
        "keelson-ca",
        "--overwrite",
        &note,
    ])
    .map(drop)
}

/// The certificates of a pair's pods on all nodes, by their serial numbers.
fn serials(pair: &Pair) -> Result<BTreeSet<String>> {
    let all = good(&["proxy-config", "certificate"], "")?;
    let identity = format!("/ns/{}/", pair.namespace.name());
    let ours = all.as_array().context("a list")?.iter();
    let ours = ours.filter(|one| one.to_string().contains(&identity));
    let serial = |one: &Value| one["serial"].as_str().map(str::to_owned);
    let serials: BTreeSet<String> = ours.filter_map(serial).collect();
    ensure!(serials.len() == nodes()?.len(), "{all:#}");
    Ok(serials)
}

/// Waits until every certificate of the pair is another one: it came with what its issuer says of roots now.
fn until_renewed(pair: &Pair) -> Result<()> {
    let before = serials(pair)?;
    eventually("certificates are renewed", || {
        let now = serials(pair)?;
        ensure!(now.is_disjoint(&before), "{before:?} {now:?}");
        Ok(())
    })
}

/// Issue 8: a root's end is no flag day. The steps follow the times in the Secret, which are moved here.
#[test]
#[ignore = "nightly"]
fn a_root_follows_another_without_a_failed_request_and_the_old_one_is_trusted_no_more() -> Result<()>
{
    let mesh = Installed::install_with(json!({"mesh": {"certificateLife": "40s"}}))?;
    let pair = Pair::create(&mesh, "root")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    pair.keep_asking()?;
    let old = published()?;
    ensure!(old.len() == 1, "{old:?}");

    annotate("rotate-root", "1h")?;
    let both = eventually("both are trusted", || {
        let both = published()?;
        ensure!(both.len() == 2 && both.is_superset(&old), "{both:?}");
        Ok(both)
    })?;
    let secret = get(&["-n", NAMESPACE, "secret", "keelson-ca"])?;
    let notes = &secret["metadata"]["annotations"];
    ensure!(
        notes["keelson.io/rotate-root"].is_null()
            && notes["keelson.io/new-root-signs-at"].is_string(),
        "{notes}"
    );
    until_renewed(&pair)?;
    // The kubelet looks after files of ConfigMaps once a minute, or somewhat later.
    let files = "/var/lib/kubelet/pods/*/volumes/kubernetes.io~configmap/root/root-cert.pem";
    let until_mounted = |roots: usize| -> Result<()> {
        let attempt = || {
            for node in nodes()? {
                let count = format!("grep -h BEGIN {files} | wc -l");
                let count: usize = mesh.on(&node, &count)?.parse()?;
                ensure!(count == roots, "{count} on {node}");
            }
            Ok(())
        };
        eventually("mounted", attempt).or_else(|_| eventually("mounted after all", attempt))
    };
    until_mounted(2)?;

    // The new one signs, for workloads and for controllers.
    annotate("new-root-signs-at", "2020-01-01T00:00:00Z")?;
    until_renewed(&pair)?;
    ensure!(published()? == both, "both are trusted still");
    let deployment = format!("deployment/{CONTROLLER}");
    kubectl(&["-n", NAMESPACE, "rollout", "restart", &deployment])?;
    let words = [
        "-n",
        NAMESPACE,
        "rollout",
        "status",
        &deployment,
        "--timeout=120s",
    ];
    kubectl(&words)?;
    eventually("agents know the new controllers", || good(&["status"], ""))?;
    until_renewed(&pair)?;

    annotate("old-root-ends-at", "2020-01-01T00:00:00Z")?;
    let new = eventually("the old one is gone", || {
        let new = published()?;
        ensure!(new.len() == 1 && new.is_disjoint(&old), "{new:?}");
        Ok(new)
    })?;
    ensure!(new.is_subset(&both), "{new:?}");
    until_renewed(&pair)?;
    pair.until_readable(false)?;
    pair.stop_asking("one root followed another", Kept::GoesOn)?;
    let secret = get(&["-n", NAMESPACE, "secret", "keelson-ca"])?;
    ensure!(
        secret["data"]
            .as_object()
            .is_some_and(|data| data.len() == 2)
    );
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    Ok(())
}
