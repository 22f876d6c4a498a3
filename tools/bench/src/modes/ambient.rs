//! Keelson as it is installed: an agent per node, strict mTLS, nothing in the pods.

use std::time::Duration;

use anyhow::Result;
use lab::{AgentOptions, ControllerOptions};

use super::{Mode, Setup};
use crate::site::{NAMESPACE, Proxies, Site};

/// Keelson.
#[derive(Debug)]
pub struct Ambient;

impl Mode for Ambient {
    fn name(&self) -> &'static str {
        "ambient"
    }

    fn title(&self) -> &'static str {
        "Keelson"
    }

    fn encrypts(&self) -> bool {
        true
    }

    fn start(&self, setup: &Setup) -> Result<Site> {
        start(setup, &[])
    }
}

/// Starts controller and agents, the agents with further arguments, and waits for the tunnels.
pub(super) fn start(setup: &Setup, args: &[&str]) -> Result<Site> {
    let lab = Site::nodes(&[("keelson.io/mesh", "enabled")])?;
    lab.apply(
        "strict.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: default, namespace: {NAMESPACE}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
        ),
    )?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in lab.nodes() {
        // A line per connection is left out, as the sidecars' is. Hooks are for this node's pods
        // only: the other nodes and the other modes' labs stand on the same machine.
        let mut all = vec!["--log".to_owned(), "info,access=off".to_owned()];
        let own = node.cgroup().path().display().to_string();
        all.extend(["--cgroup-root".to_owned(), own]);
        // All connections of `idle` are one pod's; its share of what is derived would be less.
        all.extend(["--max-connections".to_owned(), MAX_CONNECTIONS.to_owned()]);
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let options = AgentOptions {
            workers: setup.workers,
            args: all,
            ..AgentOptions::default()
        };
        lab.start_agent(node.name(), &options)?;
    }
    let site = Site::settle(lab)?.with(Proxies::Agents);
    lab::wait_until("traffic between the nodes is encrypted", READY, || {
        Ok(!site.is_readable()?)
    })?;
    Ok(site)
}

/// More than the connections of `idle`.
const MAX_CONNECTIONS: &str = "30000";

const READY: Duration = Duration::from_secs(30);
