//! What an operator asks a running daemon over HTTP: readiness, metrics, log level, and pages that the program adds.
//!
//! The server speaks HTTP/1.1 and binds to loopback unless it is told otherwise. Pages are for root and for the user
//! that the program runs as, which the kernel knows of every connection on this host; readiness, metrics and the list of
//! pages are for every user. A GET changes nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::ALLOW;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use crate::drain::DrainSignal;
use crate::guests::{Guest, Guests, Limits};
use crate::log::LogHandle;
use crate::metrics::{self, Metrics};

mod caller;
mod readiness;
mod reply;

use caller::Stranger;
pub use readiness::{Condition, Readiness};
pub use reply::{Query, Reply};

type Handler = Arc<dyn Fn(Query) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync>;

/// Who may reach the admin page.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Exposure {
    /// Only this host (or this network namespace).
    #[default]
    Loopback,
    /// Everybody who can route to the address.
    AnyAddress,
}

/// Why the admin server does not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address is not a loopback address.
    #[error(
        "the admin address {0} is not loopback; its pages show configuration without asking who reads them, so use 127.0.0.1 or [::1]"
    )]
    NotLoopback(SocketAddr),
    /// The socket could not be bound.
    #[error("cannot listen on the admin address {address}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

struct Route {
    audience: Audience,
    methods: &'static [Method],
    help: &'static str,
    handler: Handler,
}

/// Who may read a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Audience {
    /// Every user, so that probes and scrapers need no rights. It is answered however busy the server is.
    Anyone,
    /// Root, and the user that this program runs as.
    Owner,
}

/// A bound admin server that does not answer yet; add pages, then [`Server::run`] it.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    routes: BTreeMap<&'static str, Route>,
}

impl Server {
    /// Binds `address`; port 0 picks a free one.
    ///
    /// # Errors
    /// [`AdminError::NotLoopback`] under [`Exposure::Loopback`], [`AdminError::Bind`] from the system.
    pub async fn bind(address: SocketAddr, exposure: Exposure) -> Result<Self, AdminError> {
        allow(address, exposure)?;
        Self::from_listener(address, TcpListener::bind(address).await)
    }

    /// As [`Server::bind`], also while another process of this user that did the same still listens
    /// there: for a daemon that takes over from another. Whoever asks meanwhile is answered by either.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn bind_beside(address: SocketAddr, exposure: Exposure) -> Result<Self, AdminError> {
        let listen = || {
            let socket = if address.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }?;
            socket.set_reuseaddr(true)?;
            socket.set_reuseport(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        };
        allow(address, exposure)?;
        Self::from_listener(address, listen())
    }

    fn from_listener(
        address: SocketAddr,
        listener: io::Result<TcpListener>,
    ) -> Result<Self, AdminError> {
        let bind = |source| AdminError::Bind { address, source };
        let listener = listener.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        Ok(Self {
            listener,
            address,
            routes: BTreeMap::new(),
        })
    }

    /// The address in use.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Adds a page for GET, computed at once.
    #[must_use]
    pub fn page(
        self,
        path: &'static str,
        help: &'static str,
        page: impl Fn(&Query) -> Reply + Send + Sync + 'static,
    ) -> Self {
        self.route(path, READ, help, move |query| {
            let reply = page(&query);
            async move { reply }
        })
    }

    /// Adds a route with its methods; the handler may wait, for instance for the answer of another thread.
    #[must_use]
    pub fn route<F>(
        mut self,
        path: &'static str,
        methods: &'static [Method],
        help: &'static str,
        handler: impl Fn(Query) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |query| Box::pin(handler(query)));
        self.routes.insert(
            path,
            Route {
                audience: Audience::Owner,
                methods,
                help,
                handler,
            },
        );
        self
    }

    /// Opens a page to every user of this host.
    fn open_to_anyone(mut self, path: &str) -> Self {
        if let Some(route) = self.routes.get_mut(path) {
            route.audience = Audience::Anyone;
        }
        self
    }

    /// Adds `/healthz/ready`: 200 when every condition holds, else 503 and the list of what is awaited.
    #[must_use]
    pub fn with_readiness(self, readiness: Readiness) -> Self {
        self.page("/healthz/ready", "ready or what is awaited", move |_| {
            readiness.reply()
        })
        .open_to_anyone("/healthz/ready")
    }

    /// Adds `/stats/prometheus`.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        self.page(
            "/stats/prometheus",
            "metrics (OpenMetrics text)",
            move |_| Reply::new(metrics::CONTENT_TYPE, metrics.encode()),
        )
        .open_to_anyone("/stats/prometheus")
    }

    /// Adds `/logging`: shows the filter, and a POST with `?level=` replaces it.
    #[must_use]
    pub fn with_log(self, log: LogHandle) -> Self {
        self.route(
            "/logging",
            READ_WRITE,
            "log filter; POST ?level=debug,h2=info replaces it",
            move |query| {
                let reply = match query.get("level") {
                    None => Reply::text(format!("{}\n", log.current())),
                    Some(_) if !query.may_change() => {
                        Reply::text("use POST to change the filter\n")
                            .status(StatusCode::METHOD_NOT_ALLOWED)
                    }
                    Some(filter) => match log.set(filter) {
                        Ok(()) => Reply::text(format!("{}\n", log.current())),
                        Err(error) => Reply::failure(StatusCode::BAD_REQUEST, &error),
                    },
                };
                async move { reply }
            },
        )
    }

    /// Answers until the drain begins; open requests get to their end.
    pub async fn run(self, drain: DrainSignal) {
        let pages = Arc::new(Pages::new(self.routes));
        let guests = Guests::new(WAITING);
        loop {
            let accepted = tokio::select! {
                () = drain.draining() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Without room the connection that has been idle for longest goes.
                    let (guest, _crowded) = guests.admit(peer.ip());
                    let visit = Visit {
                        peer,
                        local: stream.local_addr().unwrap_or(self.address),
                        guest,
                        pages: Arc::clone(&pages),
                    };
                    let signal = drain.clone();
                    drain.spawn("admin connection", serve(stream, visit, signal));
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin server cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn allow(address: SocketAddr, exposure: Exposure) -> Result<(), AdminError> {
    if exposure == Exposure::Loopback && !address.ip().to_canonical().is_loopback() {
        return Err(AdminError::NotLoopback(address));
    }
    Ok(())
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .field("paths", &self.routes.keys())
            .finish_non_exhaustive()
    }
}

struct Pages {
    routes: BTreeMap<&'static str, Route>,
    help: String,
    /// Who is answered at the same time, beside those who ask what is for everybody.
    slots: Semaphore,
    own_user: u32,
}

impl Pages {
    fn new(routes: BTreeMap<&'static str, Route>) -> Self {
        let mut help = String::new();
        for (path, route) in &routes {
            help.push_str(&format!("{path:<24} {}\n", route.help));
        }
        help.push_str("/help                    this list\n");
        Self {
            routes,
            help,
            slots: Semaphore::new(MAX_ANSWERS),
            own_user: nix::unistd::geteuid().as_raw(),
        }
    }
}

/// One connection.
struct Visit {
    peer: SocketAddr,
    local: SocketAddr,
    guest: Guest,
    pages: Arc<Pages>,
}

impl Visit {
    async fn answer(&self, request: http::Request<Incoming>) -> Response<Full<Bytes>> {
        // Who is being answered is not idle.
        self.guest.stay();
        let response = self.page(request).await;
        self.guest.wait();
        response
    }

    async fn page(&self, request: http::Request<Incoming>) -> Response<Full<Bytes>> {
        if let Err(stranger) = caller::check_headers(request.method(), request.headers()) {
            return refuse(stranger, &request, self.peer);
        }
        let pages = &self.pages;
        let path = request.uri().path();
        if matches!(path, "/" | "/help") {
            return Reply::text(pages.help.clone()).into_response();
        }
        let Some(route) = pages.routes.get(path) else {
            let body = format!("no page {path}; there are:\n{}", pages.help);
            return Reply::text(body)
                .status(StatusCode::NOT_FOUND)
                .into_response();
        };
        let _slot = match route.audience {
            Audience::Anyone => None,
            Audience::Owner if !self.is_owner() => {
                return refuse(Stranger::User, &request, self.peer);
            }
            Audience::Owner => match pages.slots.try_acquire() {
                Ok(slot) => Some(slot),
                Err(_none) => {
                    return Reply::text("too many requests at the same time\n")
                        .status(StatusCode::SERVICE_UNAVAILABLE)
                        .into_response();
                }
            },
        };
        // hyper sends no body in answer to HEAD.
        let asked = match request.method() {
            &Method::HEAD => &Method::GET,
            method => method,
        };
        if !route.methods.contains(asked) {
            return not_allowed(path, route.methods);
        }
        let query = Query::parse(request.uri().query().unwrap_or_default())
            .with_change(*asked != Method::GET);
        match tokio::time::timeout(ANSWER_TIMEOUT, (route.handler)(query)).await {
            Ok(reply) => reply.into_response(),
            Err(elapsed) => Reply::failure(StatusCode::GATEWAY_TIMEOUT, &elapsed).into_response(),
        }
    }

    /// Who cannot be recognised is a stranger.
    fn is_owner(&self) -> bool {
        match caller::user(self.local, self.peer) {
            Ok(user) => user.is_some_and(|user| user == ROOT || user == self.pages.own_user),
            Err(error) => {
                tracing::warn!(%error, "cannot find out who asks for an admin page");
                false
            }
        }
    }
}

fn refuse(
    stranger: Stranger,
    request: &http::Request<Incoming>,
    peer: SocketAddr,
) -> Response<Full<Bytes>> {
    tracing::info!(%peer, method = %request.method(), path = request.uri().path(), reason = %stranger, "refused an admin page");
    let status = match stranger {
        Stranger::Host => StatusCode::MISDIRECTED_REQUEST,
        Stranger::Origin | Stranger::User => StatusCode::FORBIDDEN,
    };
    Reply::failure(status, &stranger).into_response()
}

fn not_allowed(path: &str, methods: &[Method]) -> Response<Full<Bytes>> {
    let allowed = methods
        .iter()
        .map(Method::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    let mut response = Reply::text(format!("{path} takes {allowed}\n"))
        .status(StatusCode::METHOD_NOT_ALLOWED)
        .into_response();
    if let Ok(allowed) = HeaderValue::from_str(&allowed) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

async fn serve(stream: TcpStream, visit: Visit, drain: DrainSignal) {
    let leave = visit.guest.leave();
    let visit = Arc::new(visit);
    let service = service_fn(move |request| {
        let visit = Arc::clone(&visit);
        async move { Ok::<_, Infallible>(visit.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = leave.cancelled() => {
            tracing::debug!("an idle admin connection made room for another");
            return;
        }
        () = drain.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

/// Methods of a page that only shows.
pub const READ: &[Method] = &[Method::GET];
/// Methods of a page that shows and changes.
pub const READ_WRITE: &[Method] = &[Method::GET, Method::POST];

/// Clients that may wait to be accepted.
const BACKLOG: u32 = 128;
/// Connections that are idle, or have not taken their answer yet. They are all of this host, so by source makes no
/// difference.
const WAITING: Limits = Limits {
    total: 64,
    per_source: 64,
};
/// Requests for pages of the owner that are answered at the same time.
const MAX_ANSWERS: usize = 64;
const ROOT: u32 = 0;
/// A client that sends no request head for this long is closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A page that takes longer is answered with 504.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait after a failed accept (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
