//! Where a gateway takes clients that are not in the mesh: plain HTTP, TLS that ends here or passes, and other connections.
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
use l7::Listener;
use l7::listener::Reads;
use l7::request::host;
use model::Reason;
use proto::proxy_protocol::Header;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

pub(crate) use self::secure::Secured;
use crate::accept::{self, Rewound, Spoken, Watch};
use crate::active::Active;
use crate::caller::{Caller, Dialled};
use crate::tcp;
use crate::worker::Worker;

/// The listener by which a client came in.
#[derive(Clone, Debug)]
pub(crate) struct EdgePort {
    port: u16,
    by: By,
}

/// How it was found.
#[derive(Clone, Debug)]
enum By {
    /// Each request says it, by its Host.
    Requests,
    /// TLS ends there: this one's certificate was shown.
    Certificate(Arc<str>),
    /// What comes is no HTTP: this one, asked for by a name where TLS passes.
    Connection(Arc<str>, String),
}

impl EdgePort {
    /// As the client sees it.
    pub(crate) fn scheme(&self) -> &'static str {
        match self.by {
            By::Certificate(_) => "https",
            By::Requests | By::Connection(..) => "http",
        }
    }

    /// What a connection is for that is not read as HTTP; `None` if it is, or nothing is meant by its name any more.
    pub(crate) fn connection(&self, active: &Active) -> Option<Dialled> {
        let By::Connection(listener, name) = &self.by else {
            return None;
        };
        let here = active.l7.listeners().get(&self.port)?;
        let listener = here.iter().find(|one| one.name == *listener)?;
        let key = listener.virtual_host(name)?.clone();
        Some(Dialled::Service {
            key,
            port: self.port,
        })
    }

    /// The virtual host that a request is for; `None` if none of the listener's hosts is meant.
    pub(crate) fn dialled(&self, active: &Active, authority: &str) -> Option<Dialled> {
        let host = host(authority);
        let listener = match &self.by {
            By::Certificate(name) | By::Connection(name, _) => {
                let here = active.l7.listeners().get(&self.port)?;
                here.iter().find(|one| one.name == *name)
            }
            By::Requests => active.l7.listener(self.port, false, host),
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

/// Ends TLS where it is to end, and serves what comes.
async fn begin(worker: Rc<Worker>, mut stream: TcpStream, client: SocketAddr, port: u16) {
    let Ok(local) = stream
        .local_addr()
        .and_then(|local| stream.set_nodelay(true).map(|()| local))
    else {
        return;
    };
    let caller = |by| {
        let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        let header = Header {
            client: canonical(client),
            dialled: canonical(local),
            identity: None,
            service: None,
        };
        Rc::new(Caller::at_edge(header, EdgePort { port, by }))
    };
    let mut before = BytesMut::new();
    // What another kind of connection needs is in boxes, so that an idle one does not have room for it.
    let passed = match there(&worker, port) {
        There::Requests => None,
        There::Nothing(listener) => Some((listener, String::new())),
        There::Tls { names: false } => {
            return Box::pin(shake(&worker, (before, stream), port, caller)).await;
        }
        There::Tls { names: true } => {
            let asked = Box::pin(tcp::server_name(&mut stream, &mut before, HANDSHAKE));
            let name = asked.await;
            match passes(&worker, port, name.as_deref().unwrap_or_default()) {
                None => return Box::pin(shake(&worker, (before, stream), port, caller)).await,
                passed => passed,
            }
        }
    };
    if let Some((listener, name)) = passed {
        let caller = caller(By::Connection(listener, name));
        return Box::pin(tcp::serve(&worker, &caller, stream, before)).await;
    }
    let within = worker.shared.limits.head_timeout;
    match accept::first_bytes(&mut stream, &mut before, within).await {
        accept::First::Nothing => {}
        accept::First::Spoken(spoken) => {
            // What is no HTTP gets hyper's answer.
            let spoken = match spoken {
                Spoken::Http2 => Spoken::Http2,
                _ => Spoken::Http1,
            };
            let caller = caller(By::Requests);
            accept::converse(&worker, &caller, (before, stream), spoken).await;
        }
    }
}

/// What comes to a port.
enum There {
    /// Plain HTTP.
    Requests,
    /// What is not read, for this listener.
    Nothing(Arc<str>),
    /// TLS, of which some may pass by the name that it asks for.
    Tls { names: bool },
}

fn there(worker: &Worker, port: u16) -> There {
    let active = worker.shared.newest.load();
    let here = active.l7.listeners().get(&port);
    let here = here.map_or(&[][..], Vec::as_slice);
    let is_plain = |one: &&Arc<Listener>| one.reads == Reads::Nothing && !one.speaks_tls();
    if let Some(one) = here.iter().find(is_plain) {
        return There::Nothing(Arc::clone(&one.name));
    }
    match here.iter().any(|one| one.speaks_tls()) {
        true => There::Tls {
            names: here.iter().any(|one| one.reads == Reads::Names),
        },
        false => There::Requests,
    }
}

/// The listener that lets TLS for a name pass, with the name; `None` if another, or none, has the name.
fn passes(worker: &Worker, port: u16, name: &str) -> Option<(Arc<str>, String)> {
    let active = worker.shared.newest.load();
    let listener = active.l7.listener(port, true, name)?;
    let is_for_names = listener.reads == Reads::Names;
    is_for_names.then(|| (Arc::clone(&listener.name), name.to_owned()))
}

/// TLS that ends here.
type Ended = TlsStream<Rewound<TcpStream>>;

impl tcp::Carried for Ended {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0.get_ref()
    }
}

/// Ends TLS, and serves the requests that come in it, or carries what comes in it.
async fn shake(
    worker: &Rc<Worker>,
    (before, stream): (BytesMut, TcpStream),
    port: u16,
    caller: impl FnOnce(By) -> Rc<Caller>,
) {
    let stream = Rewound::new(before.freeze(), stream, Watch::default());
    let shaking = Box::pin(handshake(worker, stream, port));
    match tokio::time::timeout(HANDSHAKE, shaking).await {
        Ok(Ok((stream, listener))) => {
            if listener.reads == Reads::Nothing {
                let name = stream.get_ref().1.server_name().map(str::to_owned);
                let asked = name.clone().unwrap_or_default();
                let caller = caller(By::Connection(Arc::clone(&listener.name), asked));
                let carrying = tcp::carry(worker, &caller, (BytesMut::new(), stream), name);
                return Box::pin(carrying).await;
            }
            let spoken = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Spoken::Http2,
                _ => Spoken::Http1,
            };
            let caller = caller(By::Certificate(Arc::clone(&listener.name)));
            accept::converse(worker, &caller, (BytesMut::new(), stream), spoken).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(port, %error, "no TLS");
            worker.shared.telemetry.refuse(Reason::TlsIo);
        }
        Err(_elapsed) => worker.shared.telemetry.refuse(Reason::HandshakeTimeout),
    }
}

/// The stream behind TLS, and the listener that the client asked for.
async fn handshake(
    worker: &Worker,
    stream: Rewound<TcpStream>,
    port: u16,
) -> io::Result<(Ended, Arc<Listener>)> {
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let hello = start.client_hello();
    let name = hello.server_name().unwrap_or_default();
    let active = worker.shared.newest.load();
    let listener = active
        .l7
        .listener(port, true, name)
        .ok_or_else(|| io::Error::other(format!("no listener has the name {name:?}")))?;
    let config = worker.secured.of(listener).map_err(io::Error::other)?;
    let listener = Arc::clone(listener);
    drop(active);
    Ok((start.into_stream(config).await?, listener))
}

/// How soon a port that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Time for a client's handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
