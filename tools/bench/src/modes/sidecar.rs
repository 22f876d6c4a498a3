//! What most meshes are today: an Envoy beside every application, speaking HTTP on both sides.

use anyhow::Result;

use super::envoy::{self, Protocol};
use super::{Mode, Setup};
use crate::site::Site;

/// Two Envoys per connection, with HTTP connection managers.
#[derive(Debug)]
pub struct Sidecar;

impl Mode for Sidecar {
    fn name(&self) -> &'static str {
        "sidecar"
    }

    fn title(&self) -> &'static str {
        "Envoy sidecars, HTTP"
    }

    fn encrypts(&self) -> bool {
        true
    }

    fn needs_envoy(&self) -> bool {
        true
    }

    fn start(&self, setup: &Setup) -> Result<Site> {
        envoy::start(setup, Protocol::Http)
    }
}
