//! Whether the peer of a tunnel still lives: an HTTP/2 PING now and then.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::settings::Settings;

pub(crate) struct Keepalive {
    ping: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
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
            interval: settings.keepalive_interval,
            timeout: settings.keepalive_timeout,
        }
    }

    /// Ready when the peer did not answer in time. A connection that ended says so itself.
    pub(crate) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ping) = &mut self.ping else {
            return Poll::Pending;
        };
        loop {
            if self.waiting {
                match ping.poll_pong(cx) {
                    Poll::Ready(Ok(_pong)) => {
                        self.waiting = false;
                        self.timer.as_mut().reset(Instant::now() + self.interval);
                    }
                    Poll::Ready(Err(_ended)) => return Poll::Pending,
                    Poll::Pending => {
                        ready!(self.timer.as_mut().poll(cx));
                        return Poll::Ready(());
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
