//! Clients that ask without a pause: HTTP/1.1 and HTTP/2 at the port of HTTP, gRPC calls and streams at that of gRPC.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use lab::{Lab, Pod};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::STOCK;
use super::stock::{MESSAGE, MESSAGES};

/// A request that got no whole answer.
#[derive(Debug)]
#[expect(dead_code, reason = "a failed test shows all of it")]
pub(super) struct Failure {
    pub(super) began: Instant,
    client: String,
    kind: &'static str,
    after: Duration,
    error: String,
}

/// What came of all requests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// By kind.
    pub(super) asked: BTreeMap<&'static str, usize>,
    pub(super) failed: Vec<Failure>,
    /// Asked once more, as every client does: the connection was closed while it was idle (RFC 9110 section 9.2.2), or the
    /// server's GOAWAY said that the request was not looked at (RFC 9113 section 8.7).
    pub(super) again: usize,
}

impl Tally {
    /// # Errors
    /// A request failed.
    pub(super) fn is_whole(&self) -> Result<()> {
        let (asked, again) = (&self.asked, self.again);
        ensure!(
            self.failed.is_empty(),
            "of {asked:?} requests (asked again: {again}) {} failed: {:#?}",
            self.failed.len(),
            self.failed
        );
        Ok(())
    }

    /// # Errors
    /// A request failed that began later.
    pub(super) fn is_whole_after(&self, then: Instant) -> Result<()> {
        let later = self.failed.iter().filter(|failure| failure.began > then);
        let later: Vec<_> = later.collect();
        ensure!(
            later.is_empty(),
            "of {:?} requests {} failed that began later: {later:#?}",
            self.asked,
            later.len()
        );
        Ok(())
    }

    fn add(&mut self, other: Self) {
        for (kind, count) in other.asked {
            *self.asked.entry(kind).or_default() += count;
        }
        self.failed.extend(other.failed);
        self.again += other.again;
    }
}

/// Clients at work.
pub(super) struct Load {
    over: Arc<AtomicBool>,
    runtime: Runtime,
    clients: Vec<JoinHandle<Result<Tally>>>,
}

impl Load {
    pub(super) fn begin(lab: &Lab, pods: &[&str]) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let mut clients = Vec::new();
        for key in pods {
            for kind in [
                Kind::Http1,
                Kind::Http1,
                Kind::Http2,
                Kind::Call,
                Kind::Stream,
            ] {
                let client = Client {
                    pod: lab.pod(key)?,
                    kind,
                    over: Arc::clone(&over),
                };
                clients.push(runtime.spawn(client.run()));
            }
        }
        Ok(Self {
            over,
            runtime,
            clients,
        })
    }

    pub(super) fn end(self) -> Result<Tally> {
        self.over.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for client in self.clients {
            let tally = self.runtime.block_on(async {
                let within = Duration::from_secs(30);
                tokio::time::timeout(within, client).await
            });
            all.add(tally.context("a client hangs")???);
        }
        Ok(all)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Http1,
    Http2,
    Call,
    Stream,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Call => "gRPC call",
            Self::Stream => "gRPC stream",
        }
    }
}

/// What became of one request.
enum Outcome {
    Whole,
    /// Nobody has looked at it.
    Unseen,
    Failed(anyhow::Error),
}

enum Connection {
    Http1 { stream: TcpStream, is_new: bool },
    Http2(SendRequest<Bytes>),
}

struct Client {
    pod: Pod,
    kind: Kind,
    over: Arc<AtomicBool>,
}

impl Client {
    async fn run(self) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut connection = None;
        while !self.over.load(Ordering::Relaxed) {
            let began = Instant::now();
            let mut outcome = self.ask(&mut connection).await;
            if matches!(outcome, Outcome::Unseen) {
                tally.again += 1;
                connection = None;
                outcome = self.ask(&mut connection).await;
            }
            *tally.asked.entry(self.kind.name()).or_default() += 1;
            let error = match outcome {
                Outcome::Whole => continue,
                Outcome::Unseen => anyhow::anyhow!("refused twice"),
                Outcome::Failed(error) => error,
            };
            connection = None;
            tally.failed.push(Failure {
                began,
                client: self.pod.key(),
                kind: self.kind.name(),
                after: began.elapsed(),
                error: format!("{error:#}"),
            });
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(tally)
    }

    async fn ask(&self, connection: &mut Option<Connection>) -> Outcome {
        let asked = tokio::time::timeout(Duration::from_secs(10), async {
            if let Some(Connection::Http2(sending)) = connection.take()
                && let Ok(sending) = sending.ready().await
            {
                *connection = Some(Connection::Http2(sending));
            }
            let open = match connection {
                Some(open) => open,
                None => match self.dial().await {
                    Ok(dialled) => connection.insert(dialled),
                    Err(error) => return (Outcome::Failed(error.context("dialling")), false),
                },
            };
            match open {
                Connection::Http1 { stream, is_new } => http1(stream, is_new).await,
                Connection::Http2(sending) => (http2(self.kind, sending).await, true),
            }
        });
        let Ok((outcome, goes_on)) = asked.await else {
            return Outcome::Failed(anyhow::anyhow!("no answer in ten seconds"));
        };
        if !goes_on {
            *connection = None;
        }
        outcome
    }

    async fn dial(&self) -> Result<Connection> {
        let port = match self.kind {
            Kind::Http1 | Kind::Http2 => 80,
            Kind::Call | Kind::Stream => 81,
        };
        let to: SocketAddr = format!("{STOCK}:{port}").parse()?;
        let pod = self.pod.clone();
        let dialling = tokio::task::spawn_blocking(move || {
            pod.run(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)))
        });
        let stream = dialling.await???;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let stream = TcpStream::from_std(stream)?;
        if matches!(self.kind, Kind::Http1) {
            let is_new = true;
            return Ok(Connection::Http1 { stream, is_new });
        }
        let (sending, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(Connection::Http2(sending.ready().await?))
    }
}

/// Says too whether the connection takes another request.
async fn http1(stream: &mut TcpStream, is_new: &mut bool) -> (Outcome, bool) {
    let mut read = Vec::new();
    let asked = async {
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: stock\r\n\r\n")
            .await?;
        while !read.ends_with(b"\r\n\r\nok") {
            if stream.read_buf(&mut read).await? == 0 {
                bail!("closed");
            }
            ensure!(
                read.starts_with(&b"HTTP/1.1 200"[..read.len().min(12)]),
                "no 200"
            );
        }
        Ok(())
    }
    .await;
    let text = String::from_utf8_lossy(&read).to_lowercase();
    let outcome = match asked {
        Ok(()) => Outcome::Whole,
        Err(_) if read.is_empty() && !*is_new => Outcome::Unseen,
        Err(error) => Outcome::Failed(error.context(format!("{text:?}"))),
    };
    *is_new = false;
    let goes_on = matches!(outcome, Outcome::Whole) && !text.contains("connection: close");
    (outcome, goes_on)
}

async fn http2(kind: Kind, sending: &mut SendRequest<Bytes>) -> Outcome {
    let path = match kind {
        Kind::Stream => "/stock.Stock/List",
        _ => "/stock.Stock/Get",
    };
    let asked = async {
        let uri = format!("http://stock{path}");
        let request = Request::builder().uri(uri).header("te", "trailers");
        let (answer, _) = sending.send_request(request.body(())?, true)?;
        let answer = answer.await?;
        ensure!(answer.status() == 200, "status {}", answer.status());
        let mut body = answer.into_body();
        let mut length = 0;
        while let Some(data) = body.data().await {
            let data = data?;
            length += data.len();
            body.flow_control().release_capacity(data.len())?;
        }
        let trailers = body.trailers().await?;
        let wanted = match kind {
            Kind::Http1 | Kind::Http2 => return Ok(()),
            Kind::Call => MESSAGE.len(),
            Kind::Stream => MESSAGES * MESSAGE.len(),
        };
        ensure!(length == wanted, "{length} bytes of {wanted}");
        let trailers = trailers.context("no trailers")?;
        ensure!(trailers["grpc-status"] == "0", "{trailers:?}");
        Ok(())
    };
    match asked.await {
        Ok(()) => Outcome::Whole,
        Err(error) => {
            let cause = error.downcast_ref::<h2::Error>();
            let is_unseen = cause.is_some_and(|cause| {
                let by_peer = cause.is_remote() && cause.is_go_away();
                by_peer || cause.reason() == Some(h2::Reason::REFUSED_STREAM)
            });
            match is_unseen {
                true => Outcome::Unseen,
                false => Outcome::Failed(error),
            }
        }
    }
}
