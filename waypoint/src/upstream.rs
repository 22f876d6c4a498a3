//! Connections to endpoints: TCP, and TLS in it where a `DestinationRule` asks for that.

mod verify;

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use l7::backend::{Cluster, Keepalive, Roots, TlsMode};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use self::verify::{Anyone, Named};

/// A connection to an endpoint.
pub(crate) enum Upstream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// How TLS is spoken to the endpoints of a cluster.
#[derive(Clone)]
pub(crate) struct Secured {
    /// The same for all that say the same, so that connections are kept over configurations.
    pub(crate) id: u64,
    name: ServerName<'static>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    opaque: Arc<ClientConfig>,
}

/// TLS to the endpoints of a cluster, if it is asked for; or why there can be none.
pub(crate) type MaySecured = Option<Arc<Result<Secured, String>>>;

/// What is spoken inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Inside {
    Http1,
    Http2,
    /// Whatever the client speaks.
    Opaque,
}

/// What a policy asks for.
pub(crate) fn secured(cluster: &Cluster) -> MaySecured {
    let Some(TlsMode::Simple {
        sni,
        names,
        insecure,
        roots,
    }) = &cluster.policy.tls
    else {
        return None;
    };
    let asked = sni.as_ref().unwrap_or(&cluster.key.service.hostname);
    let made = make(asked, names, *insecure, roots).map(|mut made| {
        let mut hasher = DefaultHasher::new();
        (asked, names, insecure).hash(&mut hasher);
        match roots {
            Roots::Machine => 0.hash(&mut hasher),
            Roots::Given(pem) => (1, pem).hash(&mut hasher),
            Roots::Named(name) => (2, name).hash(&mut hasher),
        }
        made.id = hasher.finish().max(1);
        made
    });
    Some(Arc::new(made))
}

fn make(asked: &str, names: &[Arc<str>], insecure: bool, roots: &Roots) -> Result<Secured, String> {
    let server = |name: &str| {
        let read = ServerName::try_from(name.to_owned());
        read.map_err(|error| format!("{name:?} is no name that TLS can ask for: {error}"))
    };
    let name = server(asked)?;
    let names = names.iter().map(|name| server(name));
    let mut names = names.collect::<Result<Vec<_>, _>>()?;
    if names.is_empty() {
        names.push(name.clone());
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous();
    let config = if insecure {
        builder.with_custom_certificate_verifier(Arc::new(Anyone(provider)))
    } else {
        let roots = trusted(roots)?;
        let verifier = Named::new(roots, provider, names)?;
        builder.with_custom_certificate_verifier(Arc::new(verifier))
    };
    let config = config.with_no_client_auth();
    let speaking = |alpn: &[&[u8]]| {
        let mut config = config.clone();
        config.alpn_protocols = alpn.iter().map(|one| one.to_vec()).collect();
        Arc::new(config)
    };
    Ok(Secured {
        id: 0,
        name,
        http1: speaking(&[b"http/1.1"]),
        http2: speaking(&[b"h2"]),
        opaque: speaking(&[]),
    })
}

/// The roots that are believed.
fn trusted(roots: &Roots) -> Result<Arc<RootCertStore>, String> {
    /// They are read once: those of the machine do not change under a program.
    static MACHINE: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    match roots {
        Roots::Machine => {
            let known = MACHINE.get_or_init(|| {
                let mut store = RootCertStore::empty();
                let found = rustls_native_certs::load_native_certs();
                for error in &found.errors {
                    tracing::warn!(%error, "a root certificate of this machine cannot be read");
                }
                let (_added, _ignored) = store.add_parsable_certificates(found.certs);
                Arc::new(store)
            });
            match known.is_empty() {
                true => Err("this machine has no root certificates; name a Secret with some in credentialName".to_owned()),
                false => Ok(Arc::clone(known)),
            }
        }
        Roots::Given(pem) => {
            let mut store = RootCertStore::empty();
            for root in CertificateDer::pem_slice_iter(pem) {
                let root = root.map_err(|error| format!("a root cannot be read: {error}"))?;
                let added = store.add(root);
                added.map_err(|error| format!("a root cannot be used: {error}"))?;
            }
            match store.is_empty() {
                true => Err("there are no roots: the Secret that credentialName names has no ca.crt, or the rule has an error".to_owned()),
                false => Ok(Arc::new(store)),
            }
        }
        Roots::Named(name) => Err(format!("the roots of Secret {name} have not arrived")),
    }
}

/// Connects, and begins TLS where that is asked for.
///
/// # Errors
/// One of both failed.
pub(crate) async fn connect(
    address: SocketAddr,
    secured: &MaySecured,
    inside: Inside,
) -> io::Result<Upstream> {
    let secured = match secured.as_deref() {
        None => None,
        Some(Ok(secured)) => Some(secured),
        Some(Err(why)) => return Err(io::Error::other(format!("TLS: {why}"))),
    };
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let Some(secured) = secured else {
        return Ok(Upstream::Plain(stream));
    };
    let config = match inside {
        Inside::Http1 => &secured.http1,
        Inside::Http2 => &secured.http2,
        Inside::Opaque => &secured.opaque,
    };
    let connector = TlsConnector::from(Arc::clone(config));
    let stream = connector.connect(secured.name.clone(), stream).await;
    let stream = stream.map_err(|error| io::Error::new(error.kind(), format!("TLS: {error}")))?;
    Ok(Upstream::Tls(Box::new(stream)))
}

/// Has TCP look whether the other end is still there, as a policy says, and about once a minute where it says nothing.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn keep_alive(socket: &TcpStream, said: Option<Keepalive>) -> io::Result<()> {
    let said = said.unwrap_or_default();
    // The kernel counts in seconds, and takes none for an error.
    let time = |said: Option<Duration>| said.unwrap_or(KEEPALIVE).max(Duration::from_secs(1));
    let mut probes = TcpKeepalive::new()
        .with_time(time(said.time))
        .with_interval(time(said.interval));
    if let Some(most) = said.probes.filter(|most| *most > 0) {
        probes = probes.with_retries(most);
    }
    SockRef::from(socket).set_tcp_keepalive(&probes)
}

impl Upstream {
    /// The socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Tls(_) => "Tls",
        })
    }
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secured").field(&self.name).finish()
    }
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

/// Time for TCP, and TLS or HTTP in it, where nothing is said.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tcp_looks_as_often_as_is_said() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap());
        let socket = socket.await.unwrap();
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let said = Keepalive {
            probes: Some(3),
            time: seconds(7),
            interval: seconds(5),
        };
        for (said, time, interval) in [
            (None, 60, 60),
            (Some(said), 7, 5),
            (
                Some(Keepalive {
                    time: seconds(0),
                    ..said
                }),
                1,
                5,
            ),
        ] {
            keep_alive(&socket, said).unwrap();
            let kernel = SockRef::from(&socket);
            assert!(kernel.keepalive().unwrap());
            assert_eq!(kernel.tcp_keepalive_time().unwrap().as_secs(), time);
            assert_eq!(kernel.tcp_keepalive_interval().unwrap().as_secs(), interval);
        }
        assert_eq!(SockRef::from(&socket).tcp_keepalive_retries().unwrap(), 3);
    }
}
