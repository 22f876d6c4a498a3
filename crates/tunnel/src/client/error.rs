//! Why there is no tunnel, or no stream in it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use thiserror::Error;
use tls::TlsFailure;

use crate::secure::SecureError;

/// What went wrong below, for people.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why a tunnel could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The peer's port could not be reached.
    #[error("cannot connect to {address}")]
    Dial {
        /// The address dialled.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TCP, TLS or HTTP/2 took too long.
    #[error("the peer did not complete the handshake within {0:?}")]
    Timeout(Duration),
    /// There is no TLS connection, or its peer is not whom we expect.
    #[error("no trusted connection to the peer")]
    Secure(#[source] SecureError),
    /// HTTP/2 did not start.
    #[error("the peer does not speak HTTP/2")]
    H2(#[source] h2::Error),
}

/// Why a stream could not be opened.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The request cannot be written as HTTP.
    #[error("{field} cannot be sent in a request")]
    InvalidRequest {
        /// The header or pseudo-header that is not valid.
        field: &'static str,
    },
    /// The peer answered with anything but 200.
    #[error("the peer refused with status {status}: {}", reason.as_deref().unwrap_or("no reason given"))]
    Refused {
        /// The HTTP status: 401 is policy, 400 the request, 503 the application's side.
        status: StatusCode,
        /// The token in `proxy-status`, if there was one.
        error: Option<String>,
        /// The sentence in `proxy-status`, if there was one.
        reason: Option<String>,
    },
    /// The tunnel has as many streams as it may; open another one.
    #[error("the tunnel has no room for another stream")]
    Full,
    /// The tunnel is old, or one of its certificates has ended: another one has to be made.
    #[error("the tunnel is old or one of its certificates has ended")]
    Retired,
    /// The peer did not look at the request: it can be sent again, on another tunnel.
    #[error("the peer did not process the request")]
    Unprocessed(#[source] Cause),
    /// The peer reset the stream instead of answering.
    #[error("the peer reset the request")]
    Reset(#[source] Cause),
    /// The tunnel broke before the answer came.
    #[error("the tunnel was lost before the peer answered")]
    Lost(#[source] Lost),
    /// The peer did not answer in time.
    #[error("the peer did not answer within {0:?}")]
    Timeout(Duration),
}

/// Why a tunnel ended.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Lost {
    /// It was closed in an orderly way.
    #[error("the tunnel was closed")]
    Closed,
    /// The peer answered no ping for this long.
    #[error("the peer did not answer a ping within {0:?}")]
    Unresponsive(Duration),
    /// TLS failed. Most often the peer refused our certificate: in TLS 1.3 that is known only
    /// after the handshake.
    #[error("the tunnel's TLS connection failed")]
    Tls(#[source] TlsFailure),
    /// The connection failed.
    #[error("the tunnel's connection failed")]
    Failed(#[source] Cause),
}

impl OpenError {
    /// Whether the peer certainly did nothing: the same request may go to another tunnel.
    pub fn is_unprocessed(&self) -> bool {
        matches!(self, Self::Full | Self::Retired | Self::Unprocessed(_))
    }

    /// Whether the tunnel broke. No application byte was sent, so a caller that finds its tunnel
    /// stale may try once more on a new one.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }
}
