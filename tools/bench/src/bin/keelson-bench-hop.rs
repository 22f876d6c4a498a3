//! The floor that proxies for requests are compared with: hyper without any rule, one current-thread runtime on each
//! processor, each with listening sockets and a pool of connections of its own.

use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context as _, Result};
use clap::Parser;
use http::Uri;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// Forwards what comes in on each port to one server.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// A port, and the server behind it.
    #[arg(long = "hop", value_name = "PORT=ADDR:PORT", required = true)]
    hops: Vec<Hop>,
}

#[derive(Debug, Clone, Copy)]
struct Hop {
    port: u16,
    server: SocketAddr,
}

impl FromStr for Hop {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (port, server) = text.split_once('=').context("PORT=ADDR:PORT")?;
        Ok(Self {
            port: port.parse()?,
            server: server.parse()?,
        })
    }
}

fn main() -> Result<()> {
    let Arguments { hops } = Arguments::parse();
    let workers = std::thread::available_parallelism()?.get();
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let hops = hops.clone();
            std::thread::spawn(move || work(&hops))
        })
        .collect();
    for thread in threads {
        thread
            .join()
            .map_err(|_panic| anyhow::anyhow!("a worker has ended"))??;
    }
    Ok(())
}

fn work(hops: &[Hop]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    runtime.block_on(async {
        let mut serving = tokio::task::JoinSet::new();
        for hop in hops {
            serving.spawn(serve(listen(hop.port)?, hop.server, client.clone()));
        }
        while let Some(ended) = serving.join_next().await {
            ended??;
        }
        Ok(())
    })
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    socket
        .bind(&address.into())
        .with_context(|| format!("listening on port {port}"))?;
    socket.listen(4096)?;
    Ok(TcpListener::from_std(socket.into())?)
}

async fn serve(
    listener: TcpListener,
    server: SocketAddr,
    client: Client<HttpConnector, Incoming>,
) -> Result<()> {
    loop {
        let (stream, _client) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let client = client.clone();
        let forward = service_fn(move |mut request: http::Request<Incoming>| {
            let path = request.uri().path_and_query().cloned();
            let uri = Uri::builder()
                .scheme("http")
                .authority(server.to_string())
                .path_and_query(path.map_or_else(|| "/".to_owned(), |path| path.to_string()))
                .build();
            let client = client.clone();
            async move {
                *request.uri_mut() = uri?;
                Ok::<_, anyhow::Error>(client.request(request).await?)
            }
        });
        tokio::spawn(async move {
            // How a connection ends is its client's to tell.
            let served = hyper::server::conn::http1::Builder::new()
                .pipeline_flush(true)
                .serve_connection(TokioIo::new(stream), forward);
            drop(served.await);
        });
    }
}
