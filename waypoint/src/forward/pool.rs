//! The connections of one worker to endpoints: kept, shared by requests, and never more than their cluster may have.
//!
//! hyper-util's pool keeps one HTTP/2 connection for an address and waits when its streams run out; this one opens
//! another. A handshake that stalls ends by its time limit and holds up nobody who has another connection to use.

mod connect;
mod http1;
mod http2;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use l7::backend::{Keepalive, Limits};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use super::body::Outgoing;
use crate::balance::state::ClusterState;
use crate::upstream::CONNECT_TIMEOUT;
use crate::upstream::MaySecured;

/// Where a request goes, and what its connection may be.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) cluster: Arc<ClusterState>,
    pub(crate) address: SocketAddr,
    pub(crate) http2: bool,
    /// TLS, where it is asked for.
    pub(crate) secured: MaySecured,
    pub(crate) limits: ConnectionLimits,
}

/// What connections of a cluster may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    pub(crate) connect_timeout: Duration,
    /// Connections over all workers.
    pub(crate) connections: u32,
    /// Requests over all workers that wait for one.
    pub(crate) pending: u32,
    /// Requests that one connection serves.
    pub(crate) requests_per_connection: u32,
    /// Streams that one HTTP/2 connection has at once.
    pub(crate) streams: usize,
    /// A connection without a request is closed after this time.
    pub(crate) idle: Duration,
    /// A connection takes no request after this time, whatever it has served.
    pub(crate) life: Option<Duration>,
    /// How an endpoint that is gone is found where nothing is sent.
    pub(crate) keepalive: Option<Keepalive>,
}

impl ConnectionLimits {
    /// As a policy says, and as is usual where it says nothing.
    pub(crate) fn of(said: &Limits) -> Self {
        let requests = said.requests_per_connection.filter(|most| *most > 0);
        let streams = said.streams_per_connection.filter(|most| *most > 0);
        let streams = streams.and_then(|most| usize::try_from(most).ok());
        Self {
            connect_timeout: said.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            connections: said.connections.unwrap_or(u32::MAX),
            pending: said.pending.unwrap_or(PENDING),
            requests_per_connection: requests.unwrap_or(u32::MAX),
            streams: streams.unwrap_or(STREAMS),
            idle: said.idle_timeout.unwrap_or(IDLE),
            life: said.connection_life,
            keepalive: said.keepalive,
        }
    }

    /// When a connection that is opened now has lived for long enough.
    fn ends(&self) -> Option<Instant> {
        self.life.map(|life| Instant::now() + life)
    }
}

/// Whether a connection has lived for as long as it may.
fn is_over(ends: Option<Instant>) -> bool {
    ends.is_some_and(|ends| ends <= Instant::now())
}

/// Why a request got no answer.
#[derive(Debug, Error)]
pub(crate) enum SendError {
    /// TCP failed.
    #[error("cannot connect to {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// TCP or the handshake took too long.
    #[error("{address} did not take the connection within {within:?}")]
    ConnectTimeout {
        address: SocketAddr,
        within: Duration,
    },
    /// HTTP could not be begun.
    #[error("{address} does not speak HTTP")]
    Handshake {
        address: SocketAddr,
        #[source]
        source: hyper::Error,
    },
    /// The cluster has all the connections and waiting requests that it may have.
    #[error("the limit of connections or of waiting requests is reached")]
    Overflow,
    /// The endpoint of HTTP/2 does not take a CONNECT for a WebSocket (RFC 8441, 3).
    #[error("{address} takes no WebSocket over HTTP/2")]
    NoWebSocket { address: SocketAddr },
    /// The endpoint did not begin to process the request: it can be sent again, whatever it is.
    #[error("{address} did not take the request")]
    NotProcessed {
        address: SocketAddr,
        #[source]
        source: hyper::Error,
    },
    /// The connection broke after the request was sent, before an answer came.
    #[error("{address} closed the connection without an answer")]
    Broken {
        address: SocketAddr,
        /// The connection had served others before.
        reused: bool,
        #[source]
        source: hyper::Error,
    },
}

/// What was sent and has not ended keeps its place here.
#[derive(Debug)]
pub(crate) enum Lease {
    Http1 { _lease: http1::Lease },
    Http2 { _lease: http2::Lease },
}

/// The connections of a worker.
#[derive(Debug)]
pub(crate) struct Pool {
    places: RefCell<HashMap<Key, Rc<Place>>>,
    /// Asks the pools of other workers to let go of an idle connection of a cluster.
    others: Vec<UnboundedSender<u32>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    cluster: u32,
    address: SocketAddr,
    http2: bool,
    /// Connections by other TLS, or none, are others.
    secured: u64,
}

/// The connections to one endpoint.
#[derive(Debug, Default)]
struct Place {
    idle: RefCell<Vec<http1::Idle>>,
    /// A connection has come back.
    returned: Notify,
    waiting: Cell<u32>,
    shared: RefCell<Vec<http2::Shared>>,
    opening: RefCell<Option<http2::Opening>>,
}

impl Pool {
    /// A pool that may ask these others for connections.
    pub(crate) fn new(others: Vec<UnboundedSender<u32>>) -> Self {
        Self {
            places: RefCell::default(),
            others,
        }
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// There is none.
    pub(crate) async fn send(
        &self,
        target: &Target,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        let place = self.place(target);
        if target.http2 {
            // In a box, so that requests by HTTP/1.1 do not have room for it.
            let sending = Box::pin(http2::send(&place, target, request));
            let (response, lease) = sending.await?;
            Ok((response, Lease::Http2 { _lease: lease }))
        } else {
            let (response, lease) = http1::send(self, &place, target, request).await?;
            Ok((response, Lease::Http1 { _lease: lease }))
        }
    }

    fn place(&self, target: &Target) -> Rc<Place> {
        let key = Key {
            cluster: target.cluster.id,
            address: target.address,
            http2: target.http2,
            secured: match target.secured.as_deref() {
                Some(Ok(secured)) => secured.id,
                _ => 0,
            },
        };
        Rc::clone(self.places.borrow_mut().entry(key).or_default())
    }

    /// Lets go of one idle connection of a cluster, if there is one.
    pub(crate) fn release(&self, cluster: u32) {
        let places = self.places.borrow();
        let of_cluster = places.iter().filter(|(key, _)| key.cluster == cluster);
        for (_, place) in of_cluster {
            if place.idle.borrow_mut().pop().is_some() {
                return;
            }
        }
    }

    /// Somebody waits for a connection of a cluster that has no more room.
    fn ask_others(&self, cluster: u32) {
        self.release(cluster);
        for other in &self.others {
            // One that has ended has none.
            let _ended = other.send(cluster);
        }
    }

    /// Closes what has been idle for too long, and forgets places without connections.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.places.borrow_mut().retain(|_, place| {
            place
                .idle
                .borrow_mut()
                .retain(|idle| !idle.is_closed() && idle.until > now && !is_over(idle.ends));
            place
                .shared
                .borrow_mut()
                .retain(|shared| shared.is_in_use(now));
            Rc::strong_count(place) > 1
                || !place.idle.borrow().is_empty()
                || !place.shared.borrow().is_empty()
        });
    }
}

/// Requests that wait for a connection, where there is a limit of connections and none of this.
const PENDING: u32 = 1024;
/// An endpoint usually closes before.
const IDLE: Duration = Duration::from_secs(60);
/// Streams of one connection where nothing is said, even if the endpoint takes more.
const STREAMS: usize = 100;
