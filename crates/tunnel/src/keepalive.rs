//! Whether the peer of a tunnel still lives: an HTTP/2 PING now and then.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::line::Patience;
use crate::settings::Settings;

pub(crate) struct Keepalive {
    ping: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    /// A ping has not been answered in time, and nothing has come since.
    silent: bool,
    /// Nor has the peer's kernel acknowledged anything.
    outage: bool,
    interval: Duration,
    timeout: Duration,
}

impl Keepalive {
    /// The first ping goes out after one interval.
    pub(crate) fn new(ping: Option<PingPong>, settings: &Settings) -> Self {
        Self {
            ping,
            timer: Box::pin(sleep(settings.keepalive_interval)),
            waiting: false,
            silent: false,
            outage: false,
            interval: settings.keepalive_interval,
            timeout: settings.keepalive_timeout,
        }
    }

    /// Whether the peer owes an answer: nothing new is asked of it.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Ready when the peer did not answer in time and the tunnel is not to outlast that: see [`Patience`].
    /// A connection that ended says so itself.
    pub(crate) fn poll_dead(&mut self, patience: &Patience<'_>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ping) = &mut self.ping else {
            return Poll::Pending;
        };
        loop {
            if self.waiting {
                match ping.poll_pong(cx) {
                    Poll::Ready(Ok(_pong)) => {
                        self.waiting = false;
                        self.silent = false;
                        self.outage = false;
                        self.timer.as_mut().reset(Instant::now() + self.interval);
                    }
                    Poll::Ready(Err(_ended)) => return Poll::Pending,
                    Poll::Pending => {
                        ready!(self.timer.as_mut().poll(cx));
                        self.silent = true;
                        let Some(more) = patience.extend(&mut self.outage, self.interval) else {
                            return Poll::Ready(());
                        };
                        self.timer.as_mut().reset(Instant::now() + more);
                        continue;
                    }
                }
            }
            ready!(self.timer.as_mut().poll(cx));
            if ping.send_ping(Ping::opaque()).is_err() {
                return Poll::Pending;
            }
            self.waiting = true;
            self.timer.as_mut().reset(Instant::now() + self.timeout);
        }
    }
}
