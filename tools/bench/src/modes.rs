//! The ways in which the same traffic can go, one file each.
//!
//! A further mode is a file here that implements [`Mode`], and a line in [`ALL`].

pub mod ambient;
pub mod ambient_asleep;
pub mod ambient_hbone;
pub mod ambient_mtls;
pub mod direct;
pub mod envoy;
pub mod hop;
mod l7;
pub mod sidecar;
pub mod sidecar_tcp;
pub mod waypoint;
pub mod waypoint_envoy;

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;

use crate::budget::{FEW_ROUTES, MANY_ROUTES};
use crate::site::Site;

/// One way.
pub trait Mode: Sync {
    /// As `--modes` and results name it.
    fn name(&self) -> &'static str;

    /// As charts name it.
    fn title(&self) -> &'static str;

    /// Whether nothing of the load may be readable between the nodes.
    fn encrypts(&self) -> bool;

    /// Whether Envoy is needed.
    fn needs_envoy(&self) -> bool {
        false
    }

    /// Why it cannot run here, if it cannot.
    fn missing(&self, _setup: &Setup) -> Option<String> {
        None
    }

    /// Starts it. Traffic passes in the mode's way when this returns.
    ///
    /// # Errors
    /// It could not be started.
    fn start(&self, setup: &Setup) -> Result<Site>;
}

impl fmt::Debug for dyn Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What modes are started with.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Envoy's program.
    pub envoy: Option<PathBuf>,
    /// Threads of an agent that carry traffic; 0 is one per core.
    pub workers: usize,
}

/// All modes, in the order of tables.
pub const ALL: [&dyn Mode; 14] = [
    &direct::Direct,
    &ambient::Ambient,
    &ambient_mtls::AmbientMtls,
    &ambient_hbone::AmbientHbone,
    &ambient_asleep::AmbientAsleep,
    &sidecar::Sidecar,
    &sidecar_tcp::SidecarTcp,
    &waypoint::Waypoint,
    &waypoint_envoy::WaypointEnvoy,
    &hop::Bare,
    &hop::Keelson(FEW_ROUTES),
    &hop::Envoy(FEW_ROUTES),
    &hop::Keelson(MANY_ROUTES),
    &hop::Envoy(MANY_ROUTES),
];

/// The mode that others are compared with.
pub const BASE: &str = "direct";
