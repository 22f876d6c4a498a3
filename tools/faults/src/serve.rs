//! Connections of clients, each with one of its own to the server.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::answer::{self, Body};
use crate::plan::Faults;

/// The real API server.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Where it is.
    pub address: SocketAddr,
    /// Its name or address in its certificate.
    pub name: String,
    /// Who has signed that, as PEM.
    pub ca: String,
}

/// What the proxy shows to clients that speak TLS: a chain and its key, as PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate, first, and who signed it.
    pub chain: String,
    /// Its key.
    pub key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

pub(crate) struct Server {
    acceptor: Option<TlsAcceptor>,
    connector: TlsConnector,
    name: ServerName<'static>,
    address: SocketAddr,
    faults: Arc<Faults>,
}

impl Server {
    pub(crate) fn new(
        identity: Option<Identity>,
        upstream: Upstream,
        faults: Arc<Faults>,
    ) -> Result<Arc<Self>> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(upstream.ca.as_bytes()) {
            roots.add(certificate.context("the server's authority")?)?;
        }
        let client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let acceptor = identity.map(acceptor).transpose()?;
        Ok(Arc::new(Self {
            acceptor,
            connector: TlsConnector::from(Arc::new(client)),
            name: ServerName::try_from(upstream.name)?,
            address: upstream.address,
            faults,
        }))
    }

    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let server = Arc::clone(&self);
            // A client that goes, or a server that is away, ends its connection alone.
            tokio::spawn(async move { drop(server.carry(stream).await) });
        }
    }

    async fn carry(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        match &self.acceptor {
            Some(acceptor) => self.serve(acceptor.accept(stream).await?).await,
            None => self.serve(stream).await,
        }
    }

    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<()> {
        let upstream = TcpStream::connect(self.address).await?;
        upstream.set_nodelay(true)?;
        let upstream = self.connector.connect(self.name.clone(), upstream).await?;
        let (sender, connection) = client::handshake(TokioIo::new(upstream)).await?;
        let connection = tokio::spawn(connection);
        let sender = Mutex::new(sender);
        let answer = service_fn(|request| self.answer(&sender, request));
        let served = server::Builder::new()
            .serve_connection(TokioIo::new(stream), answer)
            .await;
        connection.abort();
        Ok(served?)
    }

    async fn answer(
        &self,
        sender: &Mutex<client::SendRequest<Incoming>>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>> {
        let asked = answer::Asked::of(&request);
        if let Some(refusal) = answer::instead(&self.faults, &asked).await {
            return Ok(refusal);
        }
        // Events are looked at.
        request.headers_mut().remove("accept-encoding");
        let mut sender = sender.lock().await;
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        drop(sender);
        answer::spoilt(&self.faults, &asked, answer)
    }
}

fn acceptor(identity: Identity) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_slice_iter(identity.chain.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            chain.context("the proxy's certificate")?,
            key.map_err(|error| anyhow!("the proxy's key: {error}"))?,
        )?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
