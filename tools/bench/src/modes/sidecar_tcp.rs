//! The same Envoys, told that the application's protocol is TCP.

use anyhow::Result;

use super::envoy::{self, Protocol};
use super::{Mode, Setup};
use crate::site::Site;

/// Two Envoys per connection, with TCP proxies.
#[derive(Debug)]
pub struct SidecarTcp;

impl Mode for SidecarTcp {
    fn name(&self) -> &'static str {
        "sidecar-tcp"
    }

    fn title(&self) -> &'static str {
        "Envoy sidecars, TCP"
    }

    fn encrypts(&self) -> bool {
        true
    }

    fn needs_envoy(&self) -> bool {
        true
    }

    fn start(&self, setup: &Setup) -> Result<Site> {
        envoy::start(setup, Protocol::Tcp)
    }
}
