//! One hop of plain HTTP/1.1 without a mesh: what a proxy for requests costs by itself. The client, the proxy and one of
//! the servers are on one node.

use std::fs;

use anyhow::{Context as _, Result};
use lab::{ControllerOptions, PodSpec};

use super::l7::{self, SERVERS};
use super::{Mode, Setup, envoy};
use crate::budget::FEW_ROUTES;
use crate::site::{NAMESPACE, Proxies, Site, tune};

/// hyper without any rule: the floor.
#[derive(Debug)]
pub struct Bare;

/// Keelson's waypoint in the role of a gateway, with so many routes.
#[derive(Debug)]
pub struct Keelson(pub usize);

/// Envoy with so many routes.
#[derive(Debug)]
pub struct Envoy(pub usize);

impl Mode for Bare {
    fn name(&self) -> &'static str {
        "hop-bare"
    }

    fn title(&self) -> &'static str {
        "one hop: bare hyper"
    }

    fn encrypts(&self) -> bool {
        false
    }

    fn start(&self, _setup: &Setup) -> Result<Site> {
        let site = Site::settle(Site::nodes(&[])?)?;
        let servers = site.server_addresses()?;
        let mut command = vec!["keelson-bench-hop".to_owned()];
        for (server, address) in SERVERS.iter().zip(servers) {
            command.extend(["--hop".to_owned(), format!("{}={address}", server.port)]);
        }
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        started(site, "bare", &command)
    }
}

impl Mode for Envoy {
    fn name(&self) -> &'static str {
        if self.0 == FEW_ROUTES {
            "hop-envoy"
        } else {
            "hop-envoy-10k"
        }
    }

    fn title(&self) -> &'static str {
        if self.0 == FEW_ROUTES {
            "one hop: Envoy"
        } else {
            "one hop: Envoy, 10,000 routes"
        }
    }

    fn encrypts(&self) -> bool {
        false
    }

    fn needs_envoy(&self) -> bool {
        true
    }

    fn start(&self, setup: &Setup) -> Result<Site> {
        let program = setup
            .envoy
            .as_ref()
            .context("Envoy has not been installed")?;
        let site = Site::settle(Site::nodes(&[])?)?;
        let file = site.lab().run_dir().join("envoy-hop.json");
        let ports = SERVERS.map(|server| (server.name, server.port));
        let config = envoy::hop::plain(&ports, &site.server_addresses()?, self.0);
        fs::write(&file, config.to_string())?;
        let command = envoy::hop::command(program, &file)?;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        started(site, "envoy", &command)
    }
}

fn started(site: Site, name: &str, command: &[&str]) -> Result<Site> {
    let spec = PodSpec::new(NAMESPACE, name, l7::NODE);
    l7::proxy_pod(site.lab(), name, spec, command)?;
    let pod = format!("{NAMESPACE}/{name}");
    let site = l7::by_port(site.with(Proxies::Pod(pod.clone())), &pod)?;
    l7::settled(site)
}

impl Mode for Keelson {
    fn name(&self) -> &'static str {
        if self.0 == FEW_ROUTES {
            "hop-waypoint"
        } else {
            "hop-waypoint-10k"
        }
    }

    fn title(&self) -> &'static str {
        if self.0 == FEW_ROUTES {
            "one hop: Keelson's waypoint"
        } else {
            "one hop: Keelson's waypoint, 10,000 routes"
        }
    }

    fn encrypts(&self) -> bool {
        false
    }

    fn start(&self, _setup: &Setup) -> Result<Site> {
        let site = Site::settle(Site::nodes(&[])?)?;
        let lab = site.lab();
        lab.start_controller(&ControllerOptions::default())?;
        lab.apply("services.yaml", &l7::services())?;
        let mut listeners = String::new();
        let mut routes = String::new();
        for server in SERVERS {
            let (name, port) = (server.name, server.port);
            listeners += &format!("  - {{name: {name}, port: {port}, protocol: HTTP}}\n");
            let prefixes = (1..self.0).map(l7::other_prefix);
            let prefixes: Vec<String> = prefixes.chain(["/".to_owned()]).collect();
            for (number, some) in prefixes.chunks(RULES).enumerate() {
                routes += &format!(
                    "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                     metadata: {{name: {name}-{number}, namespace: {NAMESPACE}}}\nspec:\n  \
                     parentRefs: [{{name: door, sectionName: {name}}}]\n  rules:\n"
                );
                for prefix in some {
                    routes += &format!(
                        "  - matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]\n    \
                         backendRefs: [{{name: {name}, port: {}}}]\n",
                        l7::SERVICE_PORT
                    );
                }
            }
        }
        lab.apply(
            "gateway.yaml",
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: door\n  \
                 namespace: {NAMESPACE}\n  annotations:\n    keelson.io/waypoint-nodes: n1\n    \
                 keelson.io/waypoint-args: \"--workers 0 --log info,access=off\"\nspec:\n  \
                 gatewayClassName: keelson\n  listeners:\n{listeners}{routes}---\n\
                 apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: door, namespace: {NAMESPACE}}}\nspec:\n  \
                 targetRefs: [{{kind: Gateway, group: gateway.networking.k8s.io, name: door}}]\n  \
                 action: ALLOW\n  rules:\n  \
                 - to: [{{operation: {{methods: [POST, GET], paths: [/load, /bulk]}}}}]\n"
            ),
        )?;
        let pod = format!("{NAMESPACE}/door-n1");
        tune(lab.pod(&pod)?.netns())?;
        let site = l7::by_port(site.with(Proxies::Pod(pod.clone())), &pod)?;
        l7::settled(site)
    }
}

/// Rules that an HTTPRoute may have.
const RULES: usize = 16;
