//! How the bytes of a TCP connection travel between two nodes: HBONE, that is HTTP/2 CONNECT over
//! mutual TLS 1.3, or between two agents of ours the same in a thinner framing.
//!
//! It knows no policy, no network namespace and no mesh configuration: callers bring connected
//! sockets, TLS configurations and the identities they expect.
//!
//! - [`client`] opens tunnels and streams on them, [`pool`] shares the tunnels of one worker;
//! - [`server`] accepts them and answers each request;
//! - [`copy`] moves the bytes and keeps the promise that matters most: a FIN is passed on only when
//!   the other side really finished, everything else ends in a reset.

pub mod authority;
pub mod client;
pub mod copy;
pub mod forwarded;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod pool;
pub mod proxy_status;
pub mod secure;
pub mod server;
pub mod settings;

mod keepalive;
mod life;
mod line;
mod quoted;
mod stream;
mod thin;

pub use authority::Authority;
pub use client::{ConnectRequest, Tunnel};
pub use line::{Heard, Line, Lined};
pub use proxy_status::{ErrorType, ProxyStatus};
pub use settings::Settings;
pub use stream::TunnelStream;
