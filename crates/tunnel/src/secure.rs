//! How a TCP connection becomes a TLS connection whose peer is known, before any byte of HTTP/2.
//!
//! 1. `Connection::handshake` moves rustls' handshake over the socket, alone: nobody else polls it. A refusal of
//!    ours is sent as an alert and waited for, so that the peer learns why.
//! 2. The peer's certificate is held against whom we expect (client) or our trust domain (server). Only then is
//!    anything of the connection shown to anybody.
//! 3. ALPN has decided what is spoken. HBONE: HTTP/2 owns the `Connection` and reads and writes it; its flushes are
//!    left to a `Flush`, which the driver polls after HTTP/2, so that many frames are one record and one system call.
//!    Our own framing: the `Connection` is taken apart into a `Link`, whose user is shown plaintext where it was
//!    decrypted.
//! 4. Records are made and opened by a `Layer`: rustls' own by default, or ours with the keys that rustls has
//!    agreed on.
//!
//! Nothing here spawns a task or sets a timer. Whoever polls is woken by the socket alone; a failure to write is left
//! for the next read, which may find the alert that says why.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use model::{Identity, Reason};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use thiserror::Error;
use tls::{
    PeerError, TlsFailure, WorkloadCert, classify, classify_io, peer_identity, server_name,
    valid_until, verify_expected,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

mod connection;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod layer;
mod link;
mod protection;
mod records;
#[cfg(test)]
mod tests;

use connection::Connection;
pub(crate) use connection::Flush;
pub(crate) use link::{FLIGHT, Link};
use records::Session;

use crate::life::Certificates;
use crate::settings::{RecordLayer, Settings};

/// Why there is no TLS connection to go on with.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum SecureError {
    /// The handshake failed, or the peer is not whom we expect.
    #[error(transparent)]
    Tls(TlsFailure),
    /// The peer chose nothing that we speak (RFC 7301).
    #[error("the peer did not agree to speak h2")]
    Alpn,
    /// The session does not give away its keys.
    #[error("the keys of the session cannot be had")]
    Keys,
}

impl SecureError {
    /// The word for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Tls(failure) => failure.reason(),
            Self::Alpn => Reason::Alpn,
            Self::Keys => Reason::Keys,
        }
    }
}

/// A TLS connection and what the two agreed to speak in it.
pub(crate) enum Secured<IO> {
    /// HBONE's HTTP/2.
    Http2(IO),
    /// The framing of [`crate::thin`].
    Thin(Link),
}

/// Who the peer of a connection is.
pub(crate) struct Peer {
    pub(crate) identity: Identity,
    pub(crate) certificates: Certificates,
}

/// The client's TLS connection. It remembers how it failed: in TLS 1.3 a server's refusal of our
/// certificate comes after the handshake, and HTTP/2 keeps only its text.
pub struct ClientIo {
    tls: Connection<UnbufferedClientConnection>,
    failure: Failure,
}

/// The server's TLS connection.
pub struct ServerIo(Connection<UnbufferedServerConnection>);

/// How a connection failed, once it has.
pub(crate) type Failure = Arc<OnceLock<TlsFailure>>;

/// Handshakes with a peer that must be one of `expected`.
pub(crate) async fn connect(
    tcp: TcpStream,
    cert: &WorkloadCert,
    expected: &[Identity],
    settings: &Settings,
) -> Result<(Secured<ClientIo>, Peer), SecureError> {
    no_delay(&tcp);
    let config = match (settings.thin, settings.records) {
        (false, _) => cert.hbone_client(),
        (true, RecordLayer::Rustls) => cert.client(),
        (true, RecordLayer::Own) => cert.client_with_keys(),
    };
    let session = UnbufferedClientConnection::new(config, server_name())
        .map_err(|error| SecureError::Tls(classify(&error)))?;
    let tls = Connection::handshake(tcp, session)
        .await
        .map_err(|(error, _tcp)| SecureError::Tls(classify_io(&error)))?;
    let peer = tls
        .with(|session| {
            let chain = session.peer_certificates().unwrap_or_default();
            Peer::new(verify_expected(chain, expected)?, chain, cert)
        })
        .map_err(|error| SecureError::Tls(TlsFailure::Peer(error)))?;
    let failure = Failure::default();
    let secured = agreed(tls, settings, |tls| ClientIo { tls, failure })?;
    Ok((secured, peer))
}

/// Handshakes with a peer that must be of our trust domain.
pub(crate) async fn accept(
    tcp: TcpStream,
    cert: &WorkloadCert,
    settings: &Settings,
) -> Result<(Secured<ServerIo>, Peer), SecureError> {
    no_delay(&tcp);
    let config = match (settings.thin, settings.records) {
        (false, _) => cert.hbone_server(),
        (true, RecordLayer::Rustls) => cert.server(),
        (true, RecordLayer::Own) => cert.server_with_keys(),
    };
    let session = UnbufferedServerConnection::new(config)
        .map_err(|error| SecureError::Tls(classify(&error)))?;
    let tls = match Connection::handshake(tcp, session).await {
        Ok(tls) => tls,
        Err((error, tcp)) => {
            deliver_alert(tcp).await;
            return Err(SecureError::Tls(classify_io(&error)));
        }
    };
    let own = &cert.identity().trust_domain;
    let peer = tls
        .with(|session| {
            let chain = session.peer_certificates().unwrap_or_default();
            Peer::new(peer_identity(chain, own)?, chain, cert)
        })
        .map_err(|error| SecureError::Tls(TlsFailure::Peer(error)))?;
    Ok((agreed(tls, settings, ServerIo)?, peer))
}

impl Peer {
    fn new(
        identity: Identity,
        chain: &[CertificateDer<'_>],
        own: &WorkloadCert,
    ) -> Result<Self, PeerError> {
        Ok(Self {
            identity,
            certificates: Certificates {
                ends: valid_until(chain)?.min(own.info().not_after),
                clock: own.clock(),
            },
        })
    }
}

/// How long a refused peer may take to hang up.
const ALERT_LINGER: Duration = Duration::from_secs(1);

/// How much of what a refused peer still sends is read.
const ALERT_LINGER_BYTES: u64 = 64 << 10;

/// Waits until a refused peer has hung up. Closing at once would be a reset, because its first
/// HTTP/2 bytes are unread, and a reset can overtake the alert that tells it why.
async fn deliver_alert(mut tcp: TcpStream) {
    let delivered = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(ALERT_LINGER_BYTES), &mut tokio::io::sink()).await
    };
    let _gone = timeout(ALERT_LINGER, delivered).await.is_err();
}

fn no_delay(tcp: &TcpStream) {
    // Only latency suffers where it fails, on a socket that is dead anyway.
    let _dead = tcp.set_nodelay(true).is_err();
}

fn agreed<S: Session, IO>(
    tls: Connection<S>,
    settings: &Settings,
    http2: impl FnOnce(Connection<S>) -> IO,
) -> Result<Secured<IO>, SecureError> {
    let chosen = tls.with(|session| session.alpn_protocol().map(<[u8]>::to_vec));
    match chosen.as_deref() {
        Some(tls::HBONE) => Ok(Secured::Http2(http2(tls))),
        Some(tls::THIN) => tls
            .into_link(settings.records)
            .map(Secured::Thin)
            .ok_or(SecureError::Keys),
        _ => Err(SecureError::Alpn),
    }
}

impl ServerIo {
    /// Leaves flushing to whoever polls HTTP/2.
    pub(crate) fn defer(&self) -> Flush {
        self.0.defer()
    }
}

impl ClientIo {
    /// Leaves flushing to whoever polls HTTP/2.
    pub(crate) fn defer(&self) -> Flush {
        self.tls.defer()
    }

    pub(crate) fn failure(&self) -> Failure {
        Arc::clone(&self.failure)
    }

    fn remember<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result {
            self.failure.get_or_init(|| classify_io(error));
        }
        result
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.tls).poll_read(cx, buffer);
        self.remember(result)
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.tls).poll_write(cx, bytes);
        self.remember(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.tls).poll_write_vectored(cx, slices);
        self.remember(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.tls).poll_flush(cx);
        self.remember(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.tls).poll_shutdown(cx);
        self.remember(result)
    }
}

impl AsyncRead for ServerIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ServerIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
