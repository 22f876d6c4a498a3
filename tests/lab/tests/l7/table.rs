//! What leads through a waypoint, by what the waypoint is for, what is dialled and who dials: the table of
//! docs/waypoint.md.

use anyhow::{Context as _, Result, ensure};
use lab::Lab;
use serde_json::Value;

use crate::fixture::{APPLIES, CART, SHOP, apply, curl, gateway};

/// What `istio.io/waypoint-for` says; then where a mesh client comes that dials the service and the pod, and a plain one.
const TABLE: [(&str, [&str; 4]); 4] = [
    ("service", ["waypoint", "pod", "pod", "pod"]),
    ("workload", ["waypoint", "waypoint", "refused", "refused"]),
    ("all", ["waypoint", "waypoint", "refused", "refused"]),
    ("none", ["pod", "pod", "pod", "pod"]),
];

#[test]
fn the_table_of_what_leads_through_a_waypoint() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    apply(lab, "- route: [{destination: {host: cart}}]\n", || Ok(()))?;
    let checked = TABLE
        .iter()
        .try_for_each(|(is_for, expected)| row(lab, is_for, expected));
    lab.apply("gateway.yaml", &gateway("shop", "all"))?;
    checked?;
    assert!(lab.agent_log("n1").contains("waypoint_required"));
    Ok(())
}

fn row(lab: &Lab, is_for: &str, expected: &[&str; 4]) -> Result<()> {
    lab.apply("gateway.yaml", &gateway("shop", is_for))?;
    let service = format!("http://{CART}/");
    // Neighbours on a node, and of two.
    for pod in ["cart-v1", "cart-v2"] {
        let pod = format!("http://{}:8080/", lab.pod(&format!("shop/{pod}"))?.v4()?);
        let cells = [
            ("front", &service),
            ("front", &pod),
            ("outside/plain", &service),
            ("outside/plain", &pod),
        ];
        for ((from, url), expected) in cells.into_iter().zip(expected) {
            let what = format!("waypoint-for {is_for}: {from} to {url}: {expected}");
            testkit::eventually(&what, APPLIES, || {
                let seen = comes_to(lab, from, url)?;
                ensure!(seen == *expected, "{what}, and not {seen}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Who connects to the server, by the address that it sees: the waypoint, or the client itself.
fn comes_to(lab: &Lab, from: &str, url: &str) -> Result<&'static str> {
    let answer = curl(lab, from, url, &[])?;
    if answer.status == 0 {
        return Ok("refused");
    }
    ensure!(answer.status == 200, "{answer:?}");
    let body: Value = serde_json::from_str(&answer.body)?;
    let peer = body.get("peer").and_then(Value::as_str).context("a peer")?;
    for waypoint in ["shop/waypoint-n1", "shop/waypoint-n2"] {
        if lab.pod(waypoint)?.v4()?.to_string() == peer {
            return Ok("waypoint");
        }
    }
    Ok("pod")
}
