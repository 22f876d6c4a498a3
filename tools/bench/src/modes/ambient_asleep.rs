//! Keelson whose workers sleep whenever there is nothing to do: what staying awake brings and costs.

use anyhow::Result;

use super::{Mode, Setup, ambient};
use crate::site::Site;

/// Keelson with `--busy-poll 0s`.
#[derive(Debug)]
pub struct AmbientAsleep;

impl Mode for AmbientAsleep {
    fn name(&self) -> &'static str {
        "ambient-asleep"
    }

    fn title(&self) -> &'static str {
        "Keelson, workers that never wait awake"
    }

    fn encrypts(&self) -> bool {
        true
    }

    fn start(&self, setup: &Setup) -> Result<Site> {
        ambient::start(setup, &["--busy-poll", "0s"])
    }
}
