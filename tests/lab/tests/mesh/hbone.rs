//! Foreign HBONE peers, written from the wire facts with h2 and rustls: no code of the mesh.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use lab::Pod;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The port of HBONE.
pub(crate) const HBONE: u16 = 15008;

/// Runs a future to its end on a thread inside a pod, as a process there.
pub(crate) fn inside<T, F>(pod: &Pod, work: impl FnOnce() -> F + Send) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
{
    pod.run(|| block_on(work()))?
}

/// Runs a future on the calling thread; no test of a peer takes longer than half a minute.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let done = tokio::time::timeout(Duration::from_secs(30), work).await;
        done.context("a foreign peer waits for something that does not come")?
    })
}

/// The client's end of one tunnel.
pub(crate) struct Tunnel {
    requests: client::SendRequest<Bytes>,
    /// What the peer presented, leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// What was negotiated.
    pub(crate) alpn: Option<Vec<u8>>,
}

/// One CONNECT that was answered with 200.
pub(crate) struct Stream {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) receive: RecvStream,
}

impl Tunnel {
    /// TCP, TLS, HTTP/2.
    pub(crate) async fn dial(to: SocketAddr, config: Arc<ClientConfig>) -> Result<Self> {
        let tls = tls(to, config).await?;
        let (_, session) = tls.get_ref();
        let chain = session.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
        let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
        let handshake = client::Builder::new()
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .enable_push(false)
            .handshake(tls);
        let (requests, connection) = handshake.await.context("the HTTP/2 handshake")?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self {
            requests,
            chain,
            alpn,
        })
    }

    /// Sends a request without a body's end and returns the answer's head, whatever it is.
    pub(crate) async fn request(
        &self,
        request: Request<()>,
    ) -> Result<(StatusCode, HeaderMap, SendStream<Bytes>, RecvStream)> {
        let mut requests = self.requests.clone().ready().await?;
        let (answer, send) = requests.send_request(request, false)?;
        let (head, receive) = answer.await.context("waiting for the answer")?.into_parts();
        Ok((head.status, head.headers, send, receive))
    }

    /// CONNECT to `authority`; only the status of the answer.
    pub(crate) async fn status(&self, authority: &str) -> Result<StatusCode> {
        Ok(self.request(connect_request(authority)?).await?.0)
    }

    /// CONNECT to `authority`; anything but 200 is an error.
    pub(crate) async fn open(&self, authority: &str) -> Result<Stream> {
        let (status, headers, send, receive) = self.request(connect_request(authority)?).await?;
        if status != StatusCode::OK {
            bail!("CONNECT {authority} was answered with {status}: {headers:?}");
        }
        Ok(Stream { send, receive })
    }
}

impl Stream {
    /// Sends bytes, in as many parts as the peer's window allows.
    pub(crate) fn write(&mut self, bytes: &[u8], end: bool) -> Result<()> {
        Ok(self.send.send_data(Bytes::copy_from_slice(bytes), end)?)
    }

    /// Reads exactly this many bytes.
    pub(crate) async fn read(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut read = Vec::new();
        while read.len() < length {
            match self.chunk().await? {
                Some(chunk) => read.extend_from_slice(&chunk),
                None => bail!("the stream ended after {} of {length} bytes", read.len()),
            }
        }
        Ok(read)
    }

    /// Reads to the end of the stream.
    pub(crate) async fn read_to_end(&mut self) -> Result<Vec<u8>> {
        let mut read = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            read.extend_from_slice(&chunk);
        }
        Ok(read)
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let Some(chunk) = self.receive.data().await else {
            return Ok(None);
        };
        let chunk = chunk?;
        self.receive.flow_control().release_capacity(chunk.len())?;
        Ok(Some(chunk))
    }
}

/// CONNECT as the facts describe it: `:authority` and nothing else.
pub(crate) fn connect_request(authority: &str) -> Result<Request<()>> {
    let uri: Uri = authority.parse().context("the authority")?;
    Ok(Request::builder()
        .method(Method::CONNECT)
        .uri(uri)
        .body(())?)
}

/// TCP and TLS only.
pub(crate) async fn tls(
    to: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(to).await?;
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    Ok(TlsConnector::from(config).connect(name, tcp).await?)
}

/// What a request to a foreign server looked like.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) request: Request<()>,
    /// What the client presented, leaf first.
    pub(crate) client: Vec<CertificateDer<'static>>,
    pub(crate) alpn: Option<Vec<u8>>,
    /// Where the tunnel comes from.
    pub(crate) from: SocketAddr,
}

/// A pod's HBONE end that is not ours: it answers each CONNECT and echoes what comes.
pub(crate) struct Server {
    seen: Arc<Mutex<Vec<Seen>>>,
    tunnels: Arc<Mutex<u32>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on port 15008 of one address of a pod.
    pub(crate) fn start(
        pod: &Pod,
        ip: IpAddr,
        config: Arc<ServerConfig>,
        answer: StatusCode,
    ) -> Result<Self> {
        let listener = pod.run(|| TcpListener::bind((ip, HBONE)))??;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let tunnels = Arc::new(Mutex::new(0));
        let (log, count) = (Arc::clone(&seen), Arc::clone(&tunnels));
        let thread = std::thread::Builder::new().spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let accepting = async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                loop {
                    let (tcp, from) = listener.accept().await?;
                    let (log, count, config) =
                        (Arc::clone(&log), Arc::clone(&count), Arc::clone(&config));
                    tokio::spawn(async move {
                        drop(converse(tcp, from, config, answer, log, count).await);
                    });
                }
            };
            if let Ok(runtime) = runtime {
                runtime.block_on(async {
                    tokio::select! {
                        ended = accepting => drop::<std::io::Result<()>>(ended),
                        stopped = stopped => drop(stopped),
                    }
                });
            }
        })?;
        Ok(Self {
            seen,
            tunnels,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The requests so far; each is told once.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many TLS handshakes succeeded.
    pub(crate) fn tunnels(&self) -> u32 {
        *self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn converse(
    tcp: TcpStream,
    from: SocketAddr,
    config: Arc<ServerConfig>,
    answer: StatusCode,
    seen: Arc<Mutex<Vec<Seen>>>,
    tunnels: Arc<Mutex<u32>>,
) -> Result<()> {
    let tls = TlsAcceptor::from(config).accept(tcp).await?;
    *tunnels.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    let (_, session) = tls.get_ref();
    let client: Vec<_> = session
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|der| der.clone().into_owned())
        .collect();
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    let mut connection = server::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .handshake::<_, Bytes>(tls)
        .await?;
    while let Some(request) = connection.accept().await {
        let (request, mut reply) = request?;
        let (head, body) = request.into_parts();
        seen.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Seen {
                request: Request::from_parts(head, ()),
                client: client.clone(),
                alpn: alpn.clone(),
                from,
            });
        let refused = answer != StatusCode::OK;
        let mut head = Response::new(());
        *head.status_mut() = answer;
        let send = reply.send_response(head, refused)?;
        if !refused {
            tokio::spawn(async move { drop(echo(body, send).await) });
        }
    }
    Ok(())
}

async fn echo(mut body: RecvStream, mut send: SendStream<Bytes>) -> Result<()> {
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        send.send_data(chunk, false)?;
    }
    Ok(send.send_data(Bytes::new(), true)?)
}
