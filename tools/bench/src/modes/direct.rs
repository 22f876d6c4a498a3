//! No mesh.

use anyhow::Result;

use super::{BASE, Mode, Setup};
use crate::site::Site;

/// Pods, nodes and kernel alone.
#[derive(Debug)]
pub struct Direct;

impl Mode for Direct {
    fn name(&self) -> &'static str {
        BASE
    }

    fn title(&self) -> &'static str {
        "no mesh"
    }

    fn encrypts(&self) -> bool {
        false
    }

    fn start(&self, _setup: &Setup) -> Result<Site> {
        Site::settle(Site::nodes(&[])?)
    }
}
