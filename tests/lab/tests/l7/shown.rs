//! What `keelson proxy-config` shows of a waypoint's pod.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::Lab;
use serde_json::Value;

use crate::fixture::{APPLIES, SHOP, apply};

/// The list that `keelson proxy-config WHAT POD` answers with.
pub(crate) fn asked(lab: &Lab, what: &str, pod: &str) -> Result<Vec<Value>> {
    let at = format!("--lab={}", lab.id());
    let output = Command::new(lab::find_program("keelson")?)
        .args(["proxy-config", what, pod, "-o", "json", &at])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let list = serde_json::from_slice(&output.stdout);
    list.with_context(|| format!("{what}: {said}"))
}

/// A62, F55, F118, F119: rules, clusters and endpoints of a waypoint, each with the object that made it.
#[test]
fn a62_what_a_waypoint_routes_by_is_shown_with_its_objects() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let pod = "shop/waypoint-n1";
    let rules =
        "- match: [{uri: {prefix: /shown}}]\n  route: [{destination: {host: cart, subset: v2}}]\n";
    apply(lab, rules, || {
        let routes = asked(lab, "route", pod)?;
        let rule = routes
            .iter()
            .find(|one| one["object"] == "VirtualService shop/cart rule 0")
            .with_context(|| format!("{routes:?}"))?;
        ensure!(rule["on"] == "shop/cart.shop.svc.cluster.local", "{rule}");
        ensure!(rule["when"][0] == "path /shown*", "{rule}");
        ensure!(
            rule["to"][0] == "outbound|*|v2|cart.shop.svc.cluster.local",
            "{rule}"
        );
        Ok(())
    })?;
    let clusters = asked(lab, "cluster", pod)?;
    for subset in [Value::Null, "v1".into(), "v2".into(), "v3".into()] {
        let found = clusters.iter().find(|one| {
            one["subset"] == subset && one["service"] == "shop/cart.shop.svc.cluster.local"
        });
        let found = found.with_context(|| format!("no {subset}: {clusters:?}"))?;
        let object = found["object"].as_str().unwrap_or_default();
        assert!(object.starts_with("DestinationRule shop/cart"), "{found}");
    }
    testkit::eventually("both endpoints are shown", APPLIES, || {
        let all = asked(lab, "endpoint", pod)?;
        let v1 = all.iter().find(|one| one["subset"] == "v1");
        let v1 = v1.context("a subset")?;
        let endpoints = v1["endpoints"].as_array().context("endpoints")?;
        ensure!(endpoints.len() == 1, "{v1}");
        let address = format!("{}:8080", lab.pod("shop/cart-v1")?.v4()?);
        ensure!(endpoints[0]["address"] == address, "{v1}");
        ensure!(endpoints[0]["ready"] == true, "{v1}");
        Ok(())
    })?;
    // A pod that is no waypoint has no such page.
    ensure!(asked(lab, "route", "shop/front").is_err());
    Ok(())
}
