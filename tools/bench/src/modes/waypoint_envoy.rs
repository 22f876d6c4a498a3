//! Envoy in the place of Keelson's waypoint: the same agents, the same hand-over, the same rules.

use std::fs;

use anyhow::{Context as _, Result};
use lab::PodSpec;

use super::l7::{self, SERVERS};
use super::{Mode, Setup, ambient, envoy, waypoint};
use crate::site::{NAMESPACE, Proxies, Site};

/// Keelson's agents, and Envoy as the waypoint.
#[derive(Debug)]
pub struct WaypointEnvoy;

impl Mode for WaypointEnvoy {
    fn name(&self) -> &'static str {
        "waypoint-envoy"
    }

    fn title(&self) -> &'static str {
        "Keelson, Envoy as waypoint"
    }

    fn encrypts(&self) -> bool {
        true
    }

    fn needs_envoy(&self) -> bool {
        true
    }

    fn start(&self, setup: &Setup) -> Result<Site> {
        let program = setup
            .envoy
            .as_ref()
            .context("Envoy has not been installed")?;
        let site = ambient::start(setup, &[])?;
        let lab = site.lab();
        let file = lab.run_dir().join("envoy-waypoint.json");
        let servers = site.server_addresses()?;
        let listeners = SERVERS.map(|server| envoy::hop::Matched {
            name: server.name,
            dialled: Some(server.service),
        });
        let config = envoy::hop::waypoint(&listeners, &servers);
        fs::write(&file, config.to_string())?;
        let spec = PodSpec::new(NAMESPACE, "waypoint-envoy", l7::NODE)
            .label("gateway.networking.k8s.io/gateway-name", "waypoint")
            .label(
                "gateway.networking.k8s.io/gateway-class-name",
                "keelson-waypoint",
            );
        let command = envoy::hop::command(program, &file)?;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        l7::proxy_pod(lab, "waypoint", spec, &command)?;
        waypoint::begin(&site, "", &[])?;
        let site = l7::by_service(site.with(Proxies::AgentsAndPod(POD.to_owned())));
        l7::settled(site)
    }
}

const POD: &str = "bench/waypoint-envoy";
