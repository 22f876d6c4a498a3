//! What reaches the waypoint: a header that says who calls, then HTTP or anything else.
//!
//! Connections come from the node's agent, over the pod's own loopback, or are led to a door of the waypoint by the kernel
//! (`doors`). One that does not begin with the agent's header is closed without a byte, because nobody has proved who calls.

mod detect;
mod early;
mod patience;
mod rewound;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use model::Reason;
use model::service::AppProtocol;
use proto::proxy_protocol::{self, Header};
use rand::RngExt as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

pub(crate) use self::detect::Spoken;
use self::detect::detect;
pub(crate) use self::early::passing;
use self::patience::Exhausted;
pub(crate) use self::patience::Watch;
pub(crate) use self::patience::{Abandoned, Answering};
pub(crate) use self::rewound::Rewound;
use crate::caller::Caller;
use crate::doors;
use crate::local::LocalExecutor;
use crate::serve;
use crate::tcp;
use crate::worker::Worker;

/// A listening socket that the workers share: the kernel spreads connections over them.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Connections have it from here. The kernel keeps little of what a client does not take: so one that reads slowly is
    // seen to go on, and is not taken for one that has stopped.
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Takes connections until the worker is told to take no more.
pub(crate) async fn accept(worker: Rc<Worker>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = worker.shared.closed() => return,
        };
        match accepted {
            Ok((stream, _agent)) => {
                let drain = worker.shared.drain.clone();
                let worker = Rc::clone(&worker);
                drain.spawn_local("connection", begin(worker, stream));
            }
            Err(error) => {
                worker.shared.telemetry.recorder.metrics.accept_failed();
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Reads who calls, finds out what is spoken, and serves it.
async fn begin(worker: Rc<Worker>, mut stream: TcpStream) {
    let telemetry = &worker.shared.telemetry;
    let read = tokio::time::timeout(HEADER_TIMEOUT, read_header(&mut stream)).await;
    let (header, before) = match read {
        Ok(Ok(Begun::Connection(header, before))) => (header, before),
        Ok(Ok(Begun::Conversation(before))) => {
            return Box::pin(doors::converse(worker, stream, before)).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a connection without a header of the agent");
            return telemetry.refuse(error.reason());
        }
        Err(_elapsed) => return telemetry.refuse(Reason::AgentHeaderIncomplete),
    };
    proceed(worker, stream, header, before).await;
}

/// Finds out what is spoken on a connection of which it is known who calls, and serves it.
pub(crate) async fn proceed(
    worker: Rc<Worker>,
    mut stream: TcpStream,
    header: Header,
    mut before: BytesMut,
) {
    let telemetry = &worker.shared.telemetry;
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let caller = Rc::new(Caller::new(header));
    let active = worker.shared.newest.load();
    let dialled = caller.known(&active).dialled;
    let declared = active.l7.protocol(dialled.as_destination());
    drop(active);
    let spoken = match declared {
        AppProtocol::Tcp | AppProtocol::Tls => Spoken::Tcp,
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => {
            let within = worker.shared.limits.head_timeout;
            match first_bytes(&mut stream, &mut before, within).await {
                // What is no HTTP gets hyper's answer: the port is HTTP's.
                First::Spoken(Spoken::Http2) => Spoken::Http2,
                First::Spoken(_) => Spoken::Http1,
                First::Nothing => return,
            }
        }
        AppProtocol::Unknown => {
            let within = worker.shared.limits.detect_timeout;
            match first_bytes(&mut stream, &mut before, within).await {
                First::Spoken(spoken) => spoken,
                // Who says nothing waits for the server to begin.
                First::Nothing => Spoken::Tcp,
            }
        }
    };
    match spoken {
        Spoken::Tcp => {
            telemetry.connections.inc();
            Box::pin(tcp::serve(&worker, &caller, stream, before)).await;
            telemetry.connections.dec();
        }
        spoken => converse(&worker, &caller, (before, stream), spoken).await,
    }
}

/// Serves HTTP on a connection of which some bytes have been read.
pub(crate) async fn converse<S: Stream>(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    (before, stream): (BytesMut, S),
    spoken: Spoken,
) {
    let telemetry = &worker.shared.telemetry;
    telemetry.connections.inc();
    let watch = Watch::default();
    let io = Rewound::new(before.freeze(), stream, watch.clone());
    // Each in a box of its own, so that an idle connection takes memory for what it speaks and for nothing else.
    match spoken {
        Spoken::Http2 => Box::pin(http2(worker, caller, io, watch)).await,
        Spoken::Http1 | Spoken::Tcp => Box::pin(http1(worker, caller, io, watch)).await,
    }
    telemetry.connections.dec();
}

/// Why a connection is not one of the agent's.
#[derive(Debug, thiserror::Error)]
enum Unproved {
    #[error(transparent)]
    Header(#[from] proxy_protocol::HeaderError),
    #[error("the connection ended within the header")]
    Short,
    #[error("the connection broke within the header")]
    Io(#[from] io::Error),
}

impl Unproved {
    fn reason(&self) -> Reason {
        match self {
            Self::Header(proxy_protocol::HeaderError::Signature) => Reason::AgentHeaderMissing,
            Self::Header(_) => Reason::AgentHeaderMalformed,
            Self::Short | Self::Io(_) => Reason::AgentHeaderIncomplete,
        }
    }
}

/// What the agent has begun, and what came after that.
enum Begun {
    Connection(Header, BytesMut),
    Conversation(BytesMut),
}

async fn read_header(stream: &mut TcpStream) -> Result<Begun, Unproved> {
    let mut bytes = BytesMut::with_capacity(512);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(Unproved::Short);
        }
        match proxy_protocol::is_conversation(&bytes) {
            None => continue,
            Some(true) => {
                let rest = bytes.split_off(proxy_protocol::CONVERSATION.len());
                return Ok(Begun::Conversation(rest));
            }
            Some(false) => {}
        }
        if let Some((header, length)) = Header::parse(&bytes)? {
            let rest = bytes.split_off(length);
            return Ok(Begun::Connection(header, rest));
        }
    }
}

/// What comes first on a connection.
pub(crate) enum First {
    Spoken(Spoken),
    Nothing,
}

/// What the client's first bytes say; they are kept.
pub(crate) async fn first_bytes(
    stream: &mut TcpStream,
    before: &mut BytesMut,
    within: Duration,
) -> First {
    let deadline = tokio::time::Instant::now() + within;
    loop {
        if let Some(spoken) = detect(before).filter(|_| !before.is_empty()) {
            return First::Spoken(spoken);
        }
        match tokio::time::timeout_at(deadline, stream.read_buf(before)).await {
            Ok(Ok(0) | Err(_)) | Err(_) if before.is_empty() => return First::Nothing,
            Ok(Ok(0) | Err(_)) | Err(_) => return First::Spoken(Spoken::Tcp),
            Ok(Ok(_more)) => {}
        }
    }
}

/// What HTTP is served on.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

async fn http1<S: Stream>(worker: &Rc<Worker>, caller: &Rc<Caller>, io: Rewound<S>, watch: Watch) {
    let limits = &worker.shared.limits;
    let service = service_fn(|request| {
        let answering = watch.begin();
        let (worker, caller) = (Rc::clone(worker), Rc::clone(caller));
        // In a box, so that a connection has no room for a request while it has none.
        Box::pin(async move {
            Ok::<_, Infallible>(serve::serve(worker, caller, request, answering).await)
        })
    });
    let connection = http1::Builder::new()
        .half_close(true)
        .max_headers(limits.header_count)
        .max_buf_size(limits.head_bytes.max(SMALLEST_BUFFER))
        // Not `pipeline_flush`: with it hyper takes all of an answer that the client does not read.
        .writev(false)
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    tokio::pin!(connection);
    let (head, idle) = (limits.head_timeout, limits.idle_timeout);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        exhausted = watch.exhausted(head, idle) => {
            if exhausted == Exhausted::Head {
                return worker.shared.telemetry.refuse(Reason::RequestHeadTimeout);
            }
            connection.as_mut().graceful_shutdown();
            // What was written last may never be taken.
            tokio::select! {
                ended = connection => ended,
                () = watch.quiet(head) => return,
            }
        }
        () = watch.deserted() => return,
        // Until then answers ask for the end of the connection.
        () = worker.shared.closed() => {
            connection.as_mut().graceful_shutdown();
            cut(worker, connection).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, client = %caller.client, "a connection ended early");
    }
}

async fn http2<S: Stream>(worker: &Rc<Worker>, caller: &Rc<Caller>, io: Rewound<S>, watch: Watch) {
    let limits = &worker.shared.limits;
    let service = service_fn(|request| {
        let answering = watch.begin();
        let (worker, caller) = (Rc::clone(worker), Rc::clone(caller));
        async move { Ok::<_, Infallible>(serve::serve(worker, caller, request, answering).await) }
    });
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.streams)
        .enable_connect_protocol()
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    // Spread, so that the connections of a client do not all move at once.
    let age = limits.http2_age.mul_f64(rand::rng().random_range(0.8..1.2));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(age) => {
            // Streams that are open go on; the client opens new ones elsewhere.
            connection.as_mut().graceful_shutdown();
            cut(worker, connection).await
        }
        _ = watch.exhausted(limits.idle_timeout, limits.idle_timeout) => {
            connection.as_mut().graceful_shutdown();
            cut(worker, connection).await
        }
        () = worker.shared.drain.draining() => {
            connection.as_mut().graceful_shutdown();
            cut(worker, connection).await
        }
        () = watch.deserted() => return,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, client = %caller.client, "a connection ended early");
    }
}

/// To its end, or until the drain is over.
async fn cut<F: Future<Output = Result<(), hyper::Error>>>(
    worker: &Worker,
    connection: F,
) -> Result<(), hyper::Error> {
    tokio::select! {
        ended = connection => ended,
        () = worker.shared.drain.cut() => Ok(()),
    }
}

const BACKLOG: i32 = 4096;
/// Bytes that the kernel has not sent to a client, beyond which it takes no more.
const UNSENT: u32 = 256 << 10;
/// After accepting has failed.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);
/// The agent writes it at once.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// hyper takes no smaller one.
const SMALLEST_BUFFER: usize = 8192;
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_BUFFER: usize = 256 << 10;
/// Streams that a client has reset before they were looked at (rapid reset).
const PENDING_RESETS: usize = 20;
/// Streams that were reset because of what the client sent.
const LOCAL_RESETS: usize = 256;
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
