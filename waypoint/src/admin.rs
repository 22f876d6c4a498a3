//! What an operator sees of a waypoint: what it decides with, and which endpoints it leaves alone.

use std::sync::Arc;

use http::StatusCode;
use runtime::admin::{Reply, Server};
use serde_json::{Value, json};

use crate::active::Active;
use crate::balance::state;
use crate::explain;
use crate::feed::Feed;
use crate::program::Core;

/// Adds the pages.
pub(crate) fn pages(server: Server, core: &Core, feed: Feed) -> Server {
    let newest = Arc::clone(&core.newest);
    let registry = Arc::clone(&core.registry);
    let known = Arc::clone(&core.registry);
    let telemetry = Arc::clone(&core.telemetry);
    let (active, states) = (Arc::clone(&core.newest), Arc::clone(&core.registry));
    server
        .page(
            "/config_dump",
            "services, clusters and endpoints (JSON)",
            move |_| json_page(&dump(&newest.load())),
        )
        .page(
            admin_api::page::PROXY_CONFIG,
            "listeners, routes, clusters and endpoints, with the objects that made them (JSON)",
            move |_| json_page(&json!(feed.shown(&known))),
        )
        .page(
            admin_api::page::EXPLAIN,
            "what becomes of a request: ?to=ADDRESS:PORT&from=ADDRESS&identity=SPIFFE_ID&method=GET&path=/ (JSON)",
            move |query| match explain::answer(query, &active.load(), &states) {
                Ok(answer) => json_page(&json!(answer)),
                Err(why) => Reply::text(why + "\n").status(StatusCode::BAD_REQUEST),
            },
        )
        .page(
            "/ejections",
            "endpoints that are left alone now (JSON)",
            move |_| json_page(&json!(registry.ejections())),
        )
        .page(
            admin_api::page::REFUSALS,
            "the last connections that were refused, with the reason (JSON)",
            move |_| json_page(&json!(telemetry.recorder.refusals.list())),
        )
}

fn json_page(value: &Value) -> Reply {
    Reply::new("application/json", format!("{value:#}\n"))
}

fn dump(active: &Active) -> Value {
    let services = active.l7.services().map(|service| {
        json!({
            "service": service.key.to_string(),
            "addresses": service.addresses,
            "ports": service.ports.iter().map(|port| port.port).collect::<Vec<_>>(),
            "attached": service.attached,
        })
    });
    let clusters = active.l7.clusters().map(|cluster| {
        let members = cluster.members.iter().map(|member| {
            json!({
                "workload": member.endpoint.uid.to_string(),
                "address": member.address,
                "ready": member.ready,
                "weight": member.endpoint.weight,
            })
        });
        json!({
            "cluster": state::name(&cluster.key),
            "object": cluster.origin.as_ref().map(ToString::to_string),
            "members": members.collect::<Vec<_>>(),
        })
    });
    json!({
        "generation": active.generation,
        "services": services.collect::<Vec<_>>(),
        "clusters": clusters.collect::<Vec<_>>(),
        "workloads_known": active.mesh.workloads().len(),
    })
}
