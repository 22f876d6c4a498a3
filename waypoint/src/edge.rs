//! Where a gateway takes clients that are not in the mesh: plain HTTP, and TLS that ends here.
//!
//! Which ports these are is configuration, as are the certificates: both are followed while connections go on.

mod secure;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use l7::request::host;
use model::Reason;
use proto::proxy_protocol::Header;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

pub(crate) use self::secure::Secured;
use crate::accept::{self, Spoken};
use crate::active::Active;
use crate::caller::{Caller, Dialled};
use crate::worker::Worker;

/// The listener by which a client came in.
#[derive(Clone, Debug)]
pub(crate) struct EdgePort {
    port: u16,
    /// Of a client that speaks TLS, the listener whose certificate it was shown.
    secured_by: Option<Arc<str>>,
}

impl EdgePort {
    /// As the client sees it.
    pub(crate) fn scheme(&self) -> &'static str {
        match self.secured_by {
            Some(_) => "https",
            None => "http",
        }
    }

    /// The virtual host that a request is for; `None` if none of the listener's hosts is meant.
    pub(crate) fn dialled(&self, active: &Active, authority: &str) -> Option<Dialled> {
        let host = host(authority);
        let listener = match &self.secured_by {
            Some(name) => {
                let here = active.l7.listeners().get(&self.port)?;
                here.iter().find(|one| one.name == *name)
            }
            None => active.l7.listener(self.port, false, host),
        };
        let key = listener?.virtual_host(host)?.clone();
        Some(Dialled::Service {
            key,
            port: self.port,
        })
    }
}

/// Keeps every port open that the newest configuration names, until the worker takes no more connections.
pub(crate) async fn keep(worker: Rc<Worker>) {
    let mut changes = worker.shared.newest.changes();
    let mut open: BTreeMap<u16, oneshot::Sender<()>> = BTreeMap::new();
    loop {
        let active = worker.shared.newest.load();
        let wanted = active.l7.listeners();
        // Who takes connections there stops when its sender is gone.
        open.retain(|port, _| wanted.contains_key(port));
        let mut failed = false;
        for port in wanted.keys().filter(|port| **port > 0) {
            if open.contains_key(port) {
                continue;
            }
            match listen(*port) {
                Ok(listener) => {
                    let (stop, stopped) = oneshot::channel();
                    let serving = accept(Rc::clone(&worker), listener, *port, stopped);
                    tokio::task::spawn_local(serving);
                    open.insert(*port, stop);
                }
                Err(error) => {
                    tracing::warn!(port, %error, "cannot listen");
                    failed = true;
                }
            }
        }
        drop(active);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(AGAIN), if failed => {}
            () = worker.shared.closed() => return,
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    // One socket takes both families; where there is no IPv6, IPv4 alone.
    let both = accept::listen((Ipv6Addr::UNSPECIFIED, port).into());
    let listener = both.or_else(|_| accept::listen((Ipv4Addr::UNSPECIFIED, port).into()))?;
    TcpListener::from_std(listener)
}

async fn accept(
    worker: Rc<Worker>,
    listener: TcpListener,
    port: u16,
    mut stopped: oneshot::Receiver<()>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => return,
            () = worker.shared.closed() => return,
        };
        match accepted {
            Ok((stream, client)) => {
                let drain = worker.shared.drain.clone();
                let worker = Rc::clone(&worker);
                drain.spawn_local("connection", begin(worker, stream, client, port));
            }
            Err(error) => {
                tracing::warn!(port, %error, "cannot accept a connection");
                tokio::time::sleep(accept::PAUSE).await;
            }
        }
    }
}

/// Ends TLS where it is spoken, and serves what comes.
async fn begin(worker: Rc<Worker>, stream: TcpStream, client: SocketAddr, port: u16) {
    let Ok(local) = stream
        .local_addr()
        .and_then(|local| stream.set_nodelay(true).map(|()| local))
    else {
        return;
    };
    let caller = |secured_by| {
        let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        let header = Header {
            client: canonical(client),
            dialled: canonical(local),
            identity: None,
            service: None,
        };
        Rc::new(Caller::at_edge(header, EdgePort { port, secured_by }))
    };
    let active = worker.shared.newest.load();
    let speaks_tls = active.l7.listeners().get(&port);
    let speaks_tls = speaks_tls.is_some_and(|here| here.iter().any(|one| one.tls.is_some()));
    drop(active);
    if speaks_tls {
        // In a box, which goes with the handshake.
        let shaking = Box::pin(handshake(&worker, stream, port));
        let shaken = tokio::time::timeout(HANDSHAKE, shaking).await;
        match shaken {
            Ok(Ok((stream, listener))) => {
                let spoken = match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => Spoken::Http2,
                    _ => Spoken::Http1,
                };
                let caller = caller(Some(listener));
                accept::converse(&worker, &caller, (BytesMut::new(), stream), spoken).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(%client, port, %error, "no TLS");
                worker.shared.telemetry.refuse(Reason::TlsIo);
            }
            Err(_elapsed) => worker.shared.telemetry.refuse(Reason::HandshakeTimeout),
        }
        return;
    }
    let (mut stream, mut before) = (stream, BytesMut::new());
    let within = worker.shared.limits.head_timeout;
    match accept::first_bytes(&mut stream, &mut before, within).await {
        accept::First::Nothing => {}
        accept::First::Spoken(spoken) => {
            // What is no HTTP gets hyper's answer.
            let spoken = match spoken {
                Spoken::Http2 => Spoken::Http2,
                _ => Spoken::Http1,
            };
            accept::converse(&worker, &caller(None), (before, stream), spoken).await;
        }
    }
}

/// The stream behind TLS, and the name of the listener that the client asked for.
async fn handshake(
    worker: &Worker,
    stream: TcpStream,
    port: u16,
) -> io::Result<(TlsStream<TcpStream>, Arc<str>)> {
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let hello = start.client_hello();
    let name = hello.server_name().unwrap_or_default();
    let active = worker.shared.newest.load();
    let listener = active
        .l7
        .listener(port, true, name)
        .ok_or_else(|| io::Error::other(format!("no listener has the name {name:?}")))?;
    let config = worker.secured.of(listener).map_err(io::Error::other)?;
    let name = Arc::clone(&listener.name);
    drop(active);
    Ok((start.into_stream(config).await?, name))
}

/// How soon a port that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Time for a client's handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
