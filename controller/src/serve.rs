//! The one TLS port: discovery, certificates and node reports, for callers with a valid token.

pub mod admission;
pub mod auth;
pub mod ca;
mod codec;
pub mod discovery;
#[cfg(fuzzing)]
mod fuzzing;
mod node;
mod stream;
pub mod sync;
pub mod tls;
mod visitor;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::TrustDomain;
use parking_lot::Mutex;
use proto::agent::node_service_server::NodeServiceServer;
use proto::istio::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

#[cfg(fuzzing)]
pub use self::fuzzing::subscriptions;

use self::auth::Authenticator;
use self::sync::SyncStatus;
use crate::metrics::Metrics;
use crate::pipeline::{Published, Report};
use crate::signer::Signer;

/// What the services need.
#[derive(Clone)]
pub struct Services {
    /// Who callers are.
    pub authenticator: Arc<dyn Authenticator>,
    /// What is served.
    pub published: watch::Receiver<Arc<Published>>,
    /// Where reports go.
    pub reports: mpsc::Sender<Report>,
    /// What signs.
    pub signer: Signer,
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The longest life of a certificate.
    pub cert_ttl: Duration,
    /// What clients took.
    pub status: Arc<Mutex<SyncStatus>>,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether agents have another control plane, and are told nothing here but which pods are to be captured.
    pub captures_only: bool,
    /// Ends discovery streams, which never end by themselves.
    pub stopping: CancellationToken,
}

/// Serves until [`Services::stopping`] says otherwise, and a little longer for calls that are open.
///
/// # Errors
/// What the transport says when it cannot go on.
pub async fn serve(
    listener: TcpListener,
    certificates: Arc<tls::ServingCertificates>,
    services: Services,
) -> Result<(), tonic::transport::Error> {
    let stop = services.stopping.clone().cancelled_owned();
    let incoming = tls::incoming(listener, certificates, services.metrics.clone());
    let discovery = discovery::DiscoveryServer::new(services.clone());
    let certificate = (!services.captures_only)
        .then(|| IstioCertificateServiceServer::new(ca::CertificateService::new(&services)));
    let node = NodeServiceServer::new(node::Reports::new(&services))
        .max_decoding_message_size(MAX_REQUEST);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .add_service(discovery)
        .add_optional_service(certificate)
        .add_service(node)
        .serve_with_incoming_shutdown(incoming, stop)
        .await
}

/// Binds the port.
///
/// # Errors
/// What the system says.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// A node that lists 50,000 workloads it still has sends about 5 MiB.
const MAX_REQUEST: usize = 64 << 20;
/// A node that is cut off is noticed within interval and timeout together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests are small; the first one of a large mesh is not.
const WINDOW: u32 = 4 << 20;
