//! A backend whose answers take their time: HTTP/1.1 on port 8080, HTTP/2 with gRPC's trailers on port 8081.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};
use lab::{Lab, PodSpec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

/// How long an answer takes, and each of the messages of a stream.
pub(super) const TAKES: Duration = Duration::from_millis(100);
/// Messages of a stream.
pub(super) const MESSAGES: usize = 8;
/// Of which messages consist.
pub(super) const MESSAGE: &[u8] = b"\0\0\0\0\x02ok";

/// A pod with its servers, which run in this process and in the pod's network namespace.
pub(super) struct Backend {
    key: String,
    runtime: Runtime,
}

impl Backend {
    pub(super) fn start(lab: &Lab, name: &str, node: &str) -> Result<Self> {
        let key = format!("depot/{name}");
        if lab.pod(&key).is_ok() {
            lab.delete_pod(&key)?;
        }
        // It listens before it is an endpoint.
        let spec = PodSpec::new("depot", name, node).service_account("stock");
        let pod = lab.create(&spec)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        for port in [8080, 8081] {
            let listener = pod.run(|| {
                let any = SocketAddr::from(([0; 16], port));
                let listener = TcpListener::bind(any)?;
                listener.set_nonblocking(true)?;
                std::io::Result::Ok(listener)
            })??;
            let _entered = runtime.enter();
            let listener = tokio::net::TcpListener::from_std(listener)?;
            runtime.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    match port {
                        8080 => drop(tokio::spawn(http1(stream))),
                        _ => drop(tokio::spawn(http2(stream))),
                    }
                }
            });
        }
        lab.label_pod(&key, "app", Some("stock"))?;
        Ok(Self { key, runtime })
    }

    /// Its processes are gone from one moment to the next; the pod stays, and is still said to be ready.
    pub(super) fn kill(self) {
        self.runtime.shutdown_background();
    }

    /// Ends it as a kubelet does whose pod has a `preStop` hook: it serves on for a while, then its connections are closed
    /// as they are, then the pod is removed.
    pub(super) fn end(self, lab: &Lab) -> Result<()> {
        let Self { key, runtime } = self;
        std::thread::scope(|scope| {
            let lasting = 2 * longest();
            let after = lasting + Duration::from_secs(1);
            let removing = scope.spawn(move || lab.end_pod(&key, after, Duration::ZERO));
            std::thread::sleep(lasting);
            runtime.shutdown_background();
            let removed = removing.join();
            removed.map_err(|_panic| anyhow::anyhow!("who removes has panicked"))?
        })
        .context("the end of a backend")
    }
}

/// The longest answer.
fn longest() -> Duration {
    TAKES * u32::try_from(MESSAGES).unwrap_or(u32::MAX)
}

async fn http1(mut stream: TcpStream) -> Result<()> {
    let mut read = Vec::new();
    loop {
        while !read.windows(4).any(|four| four == b"\r\n\r\n") {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        read.clear();
        tokio::time::sleep(TAKES).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await?;
    }
}

async fn http2(stream: TcpStream) -> Result<()> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, answering) = request?;
        let is_stream = request.uri().path() == "/stock.Stock/List";
        tokio::spawn(answer(answering, is_stream));
    }
    Ok(())
}

async fn answer(mut answering: SendResponse<Bytes>, is_stream: bool) -> Result<()> {
    let messages = if is_stream { MESSAGES } else { 1 };
    let head = Response::builder().header("content-type", "application/grpc");
    let mut sending = answering.send_response(head.body(())?, false)?;
    for _ in 0..messages {
        tokio::time::sleep(TAKES).await;
        sending.send_data(Bytes::from_static(MESSAGE), false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    sending.send_trailers(trailers)?;
    Ok(())
}
