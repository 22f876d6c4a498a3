//! Opens TCP connections to endpoints, and begins HTTP on them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{Outgoing, SendError, Target};
use crate::balance::count::Held;
use crate::local::LocalExecutor;
use crate::upstream::{self, Inside, Upstream};

/// A connection that has served nobody yet.
pub(super) async fn http1(
    target: &Target,
    held: Held,
) -> Result<http1::SendRequest<Outgoing>, SendError> {
    within(target, async {
        let stream = open(target, Inside::Http1).await?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(MOST_HEADERS)
            .max_buf_size(LARGEST_HEAD)
            .preserve_header_case(false)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| handshake(target, source))?;
        tokio::task::spawn_local(async move {
            let _held = held;
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an endpoint broke");
            }
        });
        Ok(sender)
    })
    .await
}

/// An HTTP/2 connection, which knows how many streams the endpoint lets it have.
type Http2 = http2::Connection<TokioIo<Upstream>, Outgoing, LocalExecutor>;

/// What the endpoint allows on a connection now: asked of the connection, which hears of it while nobody polls what this
/// module holds of it.
pub(super) struct Allowed(Rc<RefCell<Option<Pin<Box<Http2>>>>>);

impl Allowed {
    /// How many streams it may have.
    pub(super) fn streams(&self) -> usize {
        // Nobody asks while the connection is polled.
        let Ok(connection) = self.0.try_borrow() else {
            return usize::MAX;
        };
        // One that has ended says nothing of what the endpoint allows others; its senders know that they are closed.
        let open = connection.as_ref();
        open.map_or(usize::MAX, |open| open.current_max_send_streams())
    }

    /// Whether it takes a CONNECT that names a protocol. Until the endpoint has said anything, `has_spoken`, that is waited
    /// for.
    pub(super) async fn named_protocols(&self, has_spoken: bool) -> bool {
        let asked = async {
            loop {
                let taken = match self.0.borrow().as_ref() {
                    Some(open) => open.is_extended_connect_protocol_enabled(),
                    None => return false,
                };
                if taken || has_spoken {
                    return taken;
                }
                // hyper reads it elsewhere and tells nobody.
                tokio::time::sleep(SETTINGS_EVERY).await;
            }
        };
        let taken = tokio::time::timeout(SETTINGS_WITHIN, asked).await;
        taken.unwrap_or(false)
    }
}

impl std::fmt::Debug for Allowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Allowed").field(&self.streams()).finish()
    }
}

/// A connection that has served nobody yet.
pub(super) async fn http2(
    target: &Target,
    held: Held,
) -> Result<(http2::SendRequest<Outgoing>, Allowed), SendError> {
    within(target, async {
        let stream = open(target, Inside::Http2).await?;
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(LARGEST_HEADERS)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| handshake(target, source))?;
        let connection = Rc::new(RefCell::new(Some(Box::pin(connection))));
        let allowed = Allowed(Rc::clone(&connection));
        tokio::task::spawn_local(async move {
            let _held = held;
            let driven = poll_fn(|cx| match connection.borrow_mut().as_mut() {
                Some(open) => open.as_mut().poll(cx),
                None => Poll::Ready(Ok(())),
            });
            if let Err(error) = driven.await {
                tracing::debug!(%error, "a connection to an endpoint broke");
            }
            // Its senders hear of its end when it is dropped, and not before: what they are given until then waits for ever.
            let ended = connection.borrow_mut().take();
            drop(ended);
        });
        Ok((sender, allowed))
    })
    .await
}

async fn open(target: &Target, inside: Inside) -> Result<Upstream, SendError> {
    let failed = |source| SendError::Connect {
        address: target.address,
        source,
    };
    let opened = upstream::connect(target.address, &target.secured, inside).await;
    let stream = opened.map_err(failed)?;
    let kept = upstream::keep_alive(stream.socket(), target.limits.keepalive);
    kept.map_err(failed)?;
    Ok(stream)
}

async fn within<T>(
    target: &Target,
    opening: impl Future<Output = Result<T, SendError>>,
) -> Result<T, SendError> {
    let within = target.limits.connect_timeout;
    match tokio::time::timeout(within, opening).await {
        Ok(opened) => opened,
        Err(_elapsed) => Err(SendError::ConnectTimeout {
            address: target.address,
            within,
        }),
    }
}

fn handshake(target: &Target, source: hyper::Error) -> SendError {
    SendError::Handshake {
        address: target.address,
        source,
    }
}

/// Header lines of an answer.
const MOST_HEADERS: usize = 200;
/// Bytes of an answer's head, and of what is read at once.
const LARGEST_HEAD: usize = 128 << 10;
/// As HTTP/2 counts them, in bytes.
const LARGEST_HEADERS: u32 = 128 << 10;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const SEND_BUFFER: usize = 256 << 10;
/// A dead endpoint is found after both.
const PING_EVERY: Duration = Duration::from_secs(10);
/// An endpoint's first frame says what it takes (RFC 9113, 3.4).
const SETTINGS_WITHIN: Duration = Duration::from_secs(1);
const SETTINGS_EVERY: Duration = Duration::from_millis(1);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
