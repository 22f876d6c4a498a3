//! Keelson told to encrypt on one node too, where it otherwise lets packets go directly.

use std::process::Command;

use anyhow::Result;

use super::{Mode, Setup, ambient};
use crate::site::Site;

/// Keelson with `--same-node mtls`.
#[derive(Debug)]
pub struct AmbientMtls;

impl Mode for AmbientMtls {
    fn name(&self) -> &'static str {
        "ambient-mtls"
    }

    fn title(&self) -> &'static str {
        "Keelson, mTLS on one node too"
    }

    fn encrypts(&self) -> bool {
        true
    }

    fn missing(&self, _setup: &Setup) -> Option<String> {
        let agent = match lab::find_program("keelson-node-agent") {
            Ok(agent) => agent,
            Err(error) => return Some(format!("{error:#}")),
        };
        let help = Command::new(agent).arg("--help").output();
        let known = help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains(FLAG));
        (!known).then(|| format!("this agent has no flag {FLAG}: all its traffic is encrypted"))
    }

    fn start(&self, setup: &Setup) -> Result<Site> {
        ambient::start(setup, &[FLAG, "mtls"])
    }
}

const FLAG: &str = "--same-node";
