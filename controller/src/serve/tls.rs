//! The certificate that the controller shows, and connections that got through the handshake.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tls::ca::{Authority, SignError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, error, info, warn};

use super::visitor::{Connection, Reception, Visitor};
use crate::metrics::Metrics;
use crate::signer::Signer;

/// The serving certificate, renewed from the mesh's own authority before it ends, and when that has another root.
#[derive(Debug)]
pub struct ServingCertificates {
    signer: Signer,
    names: Vec<String>,
    shown: Arc<Shown>,
    config: Arc<ServerConfig>,
}

/// Why the controller has no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The authority would not sign it.
    #[error(
        "cannot issue the controller's own certificate; --server-name takes DNS names and IP addresses"
    )]
    Sign(#[from] SignError),
    /// The TLS library would not take it.
    #[error("the controller's own certificate cannot be used")]
    Tls(#[from] rustls::Error),
}

impl ServingCertificates {
    /// Issues the first certificate for `names`.
    ///
    /// # Errors
    /// A name that is none, or an authority that has expired.
    pub fn new(signer: Signer, names: Vec<String>) -> Result<Arc<Self>, ServingError> {
        let shown = Arc::new(Shown(ArcSwap::new(issue(&signer.now(), &names)?)));
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_no_client_auth()
                .with_cert_resolver(Arc::<Shown>::clone(&shown));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(Self {
            signer,
            names,
            shown,
            config: Arc::new(config),
        }))
    }

    /// For a server that shows them and speaks HTTP/1.1.
    pub(super) fn config_of_http1(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// Renews for ever, long before the end and when another root signs.
    pub async fn renew(self: Arc<Self>) {
        let mut changes = self.signer.subscribe();
        loop {
            tokio::select! {
                () = tokio::time::sleep(RENEW_EVERY) => {}
                // It lives as long as this does.
                _changed = changes.changed() => {}
            }
            match issue(&self.signer.now(), &self.names) {
                Ok(key) => {
                    self.shown.0.store(key);
                    info!("renewed the controller's own certificate");
                }
                Err(error) => error!(%error, "cannot renew the controller's own certificate"),
            }
        }
    }
}

/// Accepts connections for ever; handshakes run beside each other, and one that fails is only noted. How many there are
/// of callers that are not known is bounded, and a new one is never what waits.
pub(super) fn incoming(
    listener: TcpListener,
    certificates: Arc<ServingCertificates>,
    metrics: Metrics,
) -> ReceiverStream<std::io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(ACCEPTED);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::clone(&certificates.config));
        let reception = Reception::new(metrics);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let visitor = reception.admit(peer);
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            let reception = reception.clone();
            tokio::spawn(async move {
                let Some(stream) = handshake(&acceptor, tcp, &visitor, &reception).await else {
                    return;
                };
                let connection = visitor.clone().connection(stream);
                // Closed only when the server stops.
                let _stopping = sender.send(Ok(connection)).await;
                reception.watch(visitor).await;
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn handshake(
    acceptor: &TlsAcceptor,
    tcp: TcpStream,
    visitor: &Visitor,
    reception: &Reception,
) -> Option<TlsStream<TcpStream>> {
    let peer = visitor.peer();
    if let Err(error) = tcp.set_nodelay(true) {
        debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    let accepted = tokio::select! {
        accepted = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)) => accepted,
        // Counted where the other one was let in.
        () = visitor.told_to_leave() => return None,
    };
    match accepted {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            info!(%peer, %error, "TLS handshake failed");
            reception.count("handshake_failed");
            None
        }
        Err(_elapsed) => {
            info!(%peer, "TLS handshake took too long");
            reception.count("handshake_timeout");
            None
        }
    }
}

fn issue(authority: &Authority, names: &[String]) -> Result<Arc<CertifiedKey>, ServingError> {
    let certificate = authority.serving_cert(names, SERVING_TTL)?;
    let left = certificate
        .not_after
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    if left < RENEW_EVERY * 2 {
        warn!(
            ?left,
            "the CA certificate ends soon, and the controller's own with it"
        );
    }
    let provider = aws_lc_rs::default_provider();
    let key = provider.key_provider.load_private_key(certificate.key)?;
    Ok(Arc::new(CertifiedKey::new(certificate.chain, key)))
}

/// The certificate in use.
#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Life of the controller's own certificate.
const SERVING_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// Renewed so often that three failures in a row do no harm.
const RENEW_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
/// A client that does not finish its handshake by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that wait for the server to take them.
const ACCEPTED: usize = 64;
/// Out of descriptors: give connections time to close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
