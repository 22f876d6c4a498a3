//! The pages of agents and controller as types: who writes a page and who reads it share them.
//!
//! A field that is new has a default, so that a reader understands the page of a program that is one version older;
//! what a reader does not know it leaves out. Nothing here asks for a page.

mod certificate;
mod configuration;
mod connection;
mod explanation;
mod health;
mod hook;
mod pod;
mod proxy;
mod sync;

pub use certificate::Certificate;
pub use configuration::{ConfigDump, Configuration, TypeState};
pub use connection::{ConnectionEnd, Description, Direction, LiveView, Refused};
pub use explanation::{
    Decision, Endpoint, InboundAnswer, OutboundAnswer, Path, RequestAnswer, RequestEndpoint,
};
pub use health::Health;
pub use hook::{Attached, Hook};
pub use pod::{Pod, PodState, WantedPod};
pub use proxy::{ProxyCluster, ProxyConfig, ProxyEndpoint, ProxyListener, ProxyRoute};
pub use sync::{StreamStatus, TypeStatus};

/// Where the agent's pages are.
pub mod page {
    /// [`crate::ConfigDump`].
    pub const CONFIG_DUMP: &str = "/config_dump";
    /// A list of [`crate::Certificate`].
    pub const CERTIFICATES: &str = "/certs";
    /// A list of [`crate::LiveView`].
    pub const CONNECTIONS: &str = "/connections";
    /// A list of [`crate::Refused`].
    pub const REFUSALS: &str = "/refusals";
    /// [`crate::OutboundAnswer`] with `?pod=NAMESPACE/NAME&to=ADDRESS:PORT`, [`crate::InboundAnswer`] with
    /// `?to=ADDRESS:PORT&from=ADDRESS`, and `&identity=` if the client has one. A waypoint gives [`crate::RequestAnswer`]
    /// for the second, with `&service=`, `&method=`, `&path=`, `&host=` and `&headers=`, a `NAME: VALUE` a line, of the
    /// request.
    pub const EXPLAIN: &str = "/explain";
    /// A list of [`crate::Hook`].
    pub const HOOKS: &str = "/hooks";
    /// Read by [`crate::Health::read`].
    pub const HEALTH: &str = "/healthz/ready";
    /// A waypoint's or a gateway's [`crate::ProxyConfig`].
    pub const PROXY_CONFIG: &str = "/proxy_config";
    /// The log's filter, as text.
    pub const LOGGING: &str = "/logging";
    /// Metrics, as OpenMetrics text.
    pub const METRICS: &str = "/stats/prometheus";
    /// The controller's list of [`crate::StreamStatus`], by a number of each stream.
    pub const SYNC: &str = "/debug/synz";
    /// The controller's findings.
    pub const DIAGNOSTICS: &str = "/debug/diagnostics";
    /// The controller's list of pods that no agent says it has captured, by node.
    pub const UNREPORTED: &str = "/debug/unreported";
}
