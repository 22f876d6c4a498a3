//! Keelson with a waypoint: client, waypoint and one server are on one node.

use anyhow::Result;

use super::l7::{self, SERVERS};
use super::{Mode, Setup, ambient};
use crate::budget::FEW_ROUTES;
use crate::site::{NAMESPACE, Proxies, Site, tune};

/// Keelson's agents and waypoint.
#[derive(Debug)]
pub struct Waypoint;

impl Mode for Waypoint {
    fn name(&self) -> &'static str {
        "waypoint"
    }

    fn title(&self) -> &'static str {
        "Keelson, waypoint"
    }

    fn encrypts(&self) -> bool {
        true
    }

    fn start(&self, setup: &Setup) -> Result<Site> {
        let site = ambient::start(setup, &[])?;
        begin(&site, l7::NODE, &["near", "far"])?;
        tune(site.lab().pod(POD)?.netns())?;
        let site = l7::by_service(site.with(Proxies::AgentsAndPod(POD.to_owned())));
        l7::settled(site)
    }
}

/// Services of the servers with a waypoint, whose pods the lab makes on `nodes`, and rules for those in `ruled`.
pub(super) fn begin(site: &Site, nodes: &str, ruled: &[&str]) -> Result<()> {
    let lab = site.lab();
    lab.apply("services.yaml", &l7::services())?;
    for server in SERVERS.iter().filter(|server| ruled.contains(&server.name)) {
        let name = server.name;
        let mut routes = String::new();
        for index in 1..FEW_ROUTES {
            let prefix = l7::other_prefix(index);
            routes += &format!(
                "  - match: [{{uri: {{prefix: {prefix}}}}}]\n    route: [{{destination: {{host: {name}}}}}]\n"
            );
        }
        lab.apply(
            &format!("rules-{name}.yaml"),
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                 metadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  hosts: [{name}]\n  http:\n{routes}  \
                 - route: [{{destination: {{host: {name}}}}}]\n---\n\
                 apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
                 targetRefs: [{{kind: Service, group: \"\", name: {name}}}]\n  action: ALLOW\n  rules:\n  \
                 - from: [{{source: {{principals: [\"*/ns/{NAMESPACE}/sa/client\"]}}}}]\n    \
                 to: [{{operation: {{methods: [POST, GET], paths: [/load, /bulk]}}}}]\n"
            ),
        )?;
    }
    lab.apply(
        "waypoint.yaml",
        &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels:\n    \
             kubernetes.io/metadata.name: {NAMESPACE}\n    keelson.io/mesh: enabled\n    \
             istio.io/use-waypoint: waypoint\n---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: waypoint\n  \
             namespace: {NAMESPACE}\n  annotations:\n    keelson.io/waypoint-nodes: \"{nodes}\"\n    \
             keelson.io/waypoint-args: \"--workers 0 --log info,access=off\"\nspec:\n  \
             gatewayClassName: keelson-waypoint\n  listeners:\n  \
             - {{name: mesh, port: 15008, protocol: HBONE}}\n"
        ),
    )?;
    lab.delete("bench.yaml")
}

const POD: &str = "bench/waypoint-n1";
