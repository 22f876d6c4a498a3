//! Keelson as it talks to other makes: what the framing of our own brings.

use anyhow::Result;

use super::{Mode, Setup, ambient};
use crate::site::Site;

/// Keelson with `--tunnel-framing hbone`.
#[derive(Debug)]
pub struct AmbientHbone;

impl Mode for AmbientHbone {
    fn name(&self) -> &'static str {
        "ambient-hbone"
    }

    fn title(&self) -> &'static str {
        "Keelson, HBONE between its own agents too"
    }

    fn encrypts(&self) -> bool {
        true
    }

    fn start(&self, setup: &Setup) -> Result<Site> {
        ambient::start(setup, &["--tunnel-framing", "hbone"])
    }
}
