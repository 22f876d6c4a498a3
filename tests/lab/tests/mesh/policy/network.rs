//! NetworkPolicies: addresses and ports of the application, on the same node and between nodes.

use anyhow::{Context as _, Result};
use tests_lab::turn;

use super::mesh::{FILE, Mesh, mesh};
use crate::fixture::at;

/// The spec of a policy of `shop`, and how calls of cart, web, teller (`bank`) and stranger (`out`) end, to ports 8080 and
/// 8081 of `server` on the other node and to 8080 of `near` on the clients' node.
struct Row {
    spec: &'static str,
    far: [&'static str; 2],
    near: &'static str,
}

const ROWS: [Row; 5] = [
    Row {
        spec: "{podSelector: {}}",
        far: ["RRRR", "RRRR"],
        near: "RRRR",
    },
    Row {
        spec: "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 8080}]}]}",
        far: ["ARRR", "RRRR"],
        near: "AAAA",
    },
    Row {
        spec: "{podSelector: {matchExpressions: [{key: app, operator: In, values: [server, near]}]}, ingress: [{from: [{namespaceSelector: {matchLabels: {keelson.io/mesh: enabled}}}], ports: [{port: 8080, endPort: 8081}]}]}",
        far: ["AAAR", "AAAR"],
        near: "AAAR",
    },
    Row {
        spec: "{podSelector: {matchLabels: {app: near}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [STRANGER_IP/32]}}]}]}",
        far: ["AAAA", "AAAA"],
        near: "AAAR",
    },
    Row {
        spec: "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 8081}]}]}",
        far: ["ARAA", "AAAA"],
        near: "ARAA",
    },
];

/// istio#52742, istio#56659, ztunnel#1229: a NetworkPolicy about the application's port meant something else with a mesh, and
/// something else again on one node.
#[test]
fn a_network_policy_means_real_peers_and_ports_on_one_node_and_between_nodes() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    for row in &ROWS {
        check(&mesh, row).with_context(|| row.spec.to_owned())?;
    }
    mesh.clear()
}

fn check(mesh: &Mesh, row: &Row) -> Result<()> {
    mesh.clear()?;
    let spec = row
        .spec
        .replace("STRANGER_IP", &mesh.stranger.v4()?.to_string());
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: row, namespace: shop}}\nspec: {spec}\n"
    );
    mesh.lab.apply(FILE, &text)?;
    let [far, far_8081] = row.far;
    for (to, expected) in [
        (at(mesh.server.v4()?, 8080), far),
        (at(mesh.server.v4()?, 8081), far_8081),
        (at(mesh.near.v4()?, 8080), row.near),
    ] {
        mesh.wait_verdicts(to, expected)?;
    }
    // And nothing changes any more.
    assert_eq!(mesh.verdicts(at(mesh.near.v4()?, 8080))?, row.near);
    Ok(())
}
