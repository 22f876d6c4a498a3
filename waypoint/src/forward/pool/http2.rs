//! HTTP/2: many requests on one connection, and a further connection when its streams run out.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::ext::Protocol;
use tokio::sync::watch;

use super::connect::{self, Allowed};
use super::{Outgoing, Place, SendError, Target, is_over};

/// A connection that requests share.
#[derive(Debug)]
pub(super) struct Shared {
    sender: SendRequest<Outgoing>,
    use_of: Rc<Use>,
    served: u32,
    most: u32,
    streams: usize,
    idle: Duration,
    /// When it has lived for as long as it may.
    ends: Option<Instant>,
    used: Cell<Instant>,
}

/// What requests do with a connection.
#[derive(Debug)]
struct Use {
    allowed: Allowed,
    streams: Cell<u32>,
    /// An answer has come, and with it what the endpoint allows.
    is_answered: Cell<bool>,
}

impl Shared {
    /// Whether one more stream would not wait. `known` is what the endpoint allowed other connections: this one may not
    /// have heard of it yet.
    fn has_room(&self, known: usize) -> bool {
        let streams = usize::try_from(self.use_of.streams.get()).unwrap_or(usize::MAX);
        let allowed = self.use_of.allowed.streams();
        let allowed = if self.use_of.is_answered.get() {
            allowed
        } else {
            allowed.min(known)
        };
        self.sender.is_ready()
            && !self.sender.is_closed()
            && self.served < self.most
            && streams < allowed.min(self.streams)
            && !is_over(self.ends)
    }

    pub(super) fn is_in_use(&self, now: Instant) -> bool {
        let is_used_up = self.served >= self.most || is_over(self.ends);
        let open = !self.sender.is_closed() && !is_used_up;
        self.use_of.streams.get() > 0 || (open && now < self.used.get() + self.idle)
    }
}

/// A stream of a connection.
#[derive(Debug)]
pub(crate) struct Lease(Rc<Use>);

impl Lease {
    fn new(of: &Rc<Use>) -> Self {
        of.streams.set(of.streams.get() + 1);
        Self(Rc::clone(of))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let streams = &self.0.streams;
        streams.set(streams.get().saturating_sub(1));
    }
}

/// Becomes true when a connection that is being opened is open, or cannot be opened.
pub(super) type Opening = watch::Receiver<bool>;

pub(super) async fn send(
    place: &Rc<Place>,
    target: &Target,
    mut request: Request<Outgoing>,
) -> Result<(Response<Incoming>, Lease), SendError> {
    let address = target.address;
    loop {
        let (mut sender, lease, reused) = obtain(place, target).await?;
        if request.extensions().get::<Protocol>().is_some() {
            let use_of = &lease.0;
            let has_spoken = use_of.is_answered.get();
            if !use_of.allowed.named_protocols(has_spoken).await {
                return Err(SendError::NoWebSocket { address });
            }
        }
        match sender.try_send_request(request).await {
            Ok(response) => {
                lease.0.is_answered.set(true);
                return Ok((response, lease));
            }
            Err(mut error) => {
                let unsent = error.take_message();
                let source = error.into_error();
                match unsent {
                    Some(unsent) if reused => request = unsent,
                    _ if is_refused(&source) => {
                        return Err(SendError::NotProcessed { address, source });
                    }
                    _ => {
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

/// The endpoint says that it has not looked at the request.
fn is_refused(error: &hyper::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        cause = error.source();
    }
    false
}

/// A connection with room for one more stream.
async fn obtain(
    place: &Rc<Place>,
    target: &Target,
) -> Result<(SendRequest<Outgoing>, Lease, bool), SendError> {
    loop {
        if let Some(found) = with_room(place) {
            return Ok(found);
        }
        let opening = place.opening.borrow().clone();
        if let Some(mut opening) = opening {
            // Whether it opened is seen by looking again; its own time limit bounds the wait.
            drop(opening.wait_for(|done| *done).await);
            if let Some(found) = with_room(place) {
                return Ok(found);
            }
            if place.opening.borrow().is_some() {
                continue;
            }
        }
        return open(place, target).await;
    }
}

fn with_room(place: &Place) -> Option<(SendRequest<Outgoing>, Lease, bool)> {
    let mut shared = place.shared.borrow_mut();
    shared.retain(|one| !one.sender.is_closed() || one.use_of.streams.get() > 0);
    let told = shared.iter().filter(|one| one.use_of.is_answered.get());
    let known = told.map(|one| one.use_of.allowed.streams()).min();
    let known = known.unwrap_or(usize::MAX);
    let one = shared.iter_mut().find(|one| one.has_room(known))?;
    one.served += 1;
    one.used.set(Instant::now());
    Some((one.sender.clone(), Lease::new(&one.use_of), one.served > 1))
}

/// Opens a connection; whoever comes meanwhile waits for it.
async fn open(
    place: &Rc<Place>,
    target: &Target,
) -> Result<(SendRequest<Outgoing>, Lease, bool), SendError> {
    let cluster = &target.cluster;
    let held = cluster
        .connections
        .take(target.limits.connections)
        .ok_or(SendError::Overflow)?;
    let (done, opening) = watch::channel(false);
    *place.opening.borrow_mut() = Some(opening);
    // Also when the one who opens goes away.
    let _end = End { place, done };
    let (sender, allowed) = connect::http2(target, held).await?;
    let use_of = Rc::new(Use {
        allowed,
        streams: Cell::default(),
        is_answered: Cell::default(),
    });
    let lease = Lease::new(&use_of);
    place.shared.borrow_mut().push(Shared {
        sender: sender.clone(),
        use_of,
        served: 1,
        most: target.limits.requests_per_connection,
        streams: target.limits.streams,
        idle: target.limits.idle,
        ends: target.limits.ends(),
        used: Cell::new(Instant::now()),
    });
    Ok((sender, lease, false))
}

struct End<'a> {
    place: &'a Place,
    done: watch::Sender<bool>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        *self.place.opening.borrow_mut() = None;
        self.done.send_replace(true);
    }
}
