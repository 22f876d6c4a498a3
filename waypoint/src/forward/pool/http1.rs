//! HTTP/1.1: one request at a time on a connection, which is kept for the next.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;

use super::{Outgoing, Place, Pool, SendError, Target, connect, is_over};
use crate::balance::count::Held;
use crate::balance::state::ClusterState;

/// A connection that no request uses.
#[derive(Debug)]
pub(super) struct Idle {
    sender: SendRequest<Outgoing>,
    served: u32,
    pub(super) until: Instant,
    /// When it has lived for as long as it may.
    pub(super) ends: Option<Instant>,
}

impl Idle {
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// A connection that a request uses; it is kept when the request has ended.
#[derive(Debug)]
pub(crate) struct Lease {
    idle: Option<Idle>,
    place: Rc<Place>,
    cluster: Arc<ClusterState>,
    /// Requests that the connection serves.
    most: u32,
    /// For how long it is kept without one.
    kept_for: Duration,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut idle) = self.idle.take() else {
            return;
        };
        let is_used_up = idle.served >= self.most || is_over(idle.ends);
        if idle.is_closed() || is_used_up {
            return;
        }
        let place = &self.place;
        if place.waiting.get() == 0 && self.cluster.pending.now() > 0 {
            // Somebody elsewhere waits for room.
            return;
        }
        let mut kept = place.idle.borrow_mut();
        if kept.len() < MOST_IDLE {
            idle.until = Instant::now() + self.kept_for;
            kept.push(idle);
            place.returned.notify_one();
        }
    }
}

pub(super) async fn send(
    pool: &Pool,
    place: &Rc<Place>,
    target: &Target,
    mut request: Request<Outgoing>,
) -> Result<(Response<Incoming>, Lease), SendError> {
    loop {
        let mut idle = obtain(pool, place, target).await?;
        let reused = idle.served > 0;
        match idle.sender.try_send_request(request).await {
            Ok(response) => {
                idle.served += 1;
                let lease = Lease {
                    idle: Some(idle),
                    place: Rc::clone(place),
                    cluster: Arc::clone(&target.cluster),
                    most: target.limits.requests_per_connection,
                    kept_for: target.limits.idle,
                };
                return Ok((response, lease));
            }
            Err(mut error) => {
                let unsent = error.take_message();
                let source = error.into_error();
                let address = target.address;
                match unsent {
                    // It had been closed while it was idle, and nothing has been written.
                    Some(unsent) if reused => request = unsent,
                    Some(_unsent) => return Err(SendError::NotProcessed { address, source }),
                    None => {
                        return Err(SendError::Broken {
                            address,
                            reused,
                            source,
                        });
                    }
                }
            }
        }
    }
}

/// A connection for one request: a kept one, a new one if the cluster may have more, or the next that comes back.
async fn obtain(pool: &Pool, place: &Place, target: &Target) -> Result<Idle, SendError> {
    if let Some(idle) = kept(place) {
        return Ok(idle);
    }
    let cluster = &target.cluster;
    if let Some(held) = cluster.connections.take(target.limits.connections) {
        return open(target, held).await;
    }
    let _pending = cluster
        .pending
        .take(target.limits.pending)
        .ok_or(SendError::Overflow)?;
    place.waiting.set(place.waiting.get() + 1);
    let _waiting = Waiting(place);
    pool.ask_others(cluster.id);
    loop {
        tokio::select! {
            biased;
            () = place.returned.notified() => if let Some(idle) = kept(place) {
                return Ok(idle);
            },
            held = cluster.connections.wait(target.limits.connections) => {
                return open(target, held).await;
            }
        }
    }
}

struct Waiting<'a>(&'a Place);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get().saturating_sub(1));
    }
}

async fn open(target: &Target, held: Held) -> Result<Idle, SendError> {
    let mut sender = connect::http1(target, held).await?;
    let ready = sender.ready().await;
    ready.map_err(|source| SendError::Handshake {
        address: target.address,
        source,
    })?;
    Ok(Idle {
        sender,
        served: 0,
        until: Instant::now(),
        ends: target.limits.ends(),
    })
}

/// The connection that was used last, of those that are ready: one may still be ending its last request.
fn kept(place: &Place) -> Option<Idle> {
    let mut kept = place.idle.borrow_mut();
    kept.retain(|idle| !idle.is_closed() && !is_over(idle.ends));
    let ready = kept.iter().rposition(|idle| idle.sender.is_ready())?;
    Some(kept.remove(ready))
}

/// Idle connections that are kept to one endpoint.
const MOST_IDLE: usize = 256;
