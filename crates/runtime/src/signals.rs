//! Which signals ask a daemon to stop: SIGTERM from a service manager, SIGINT from a person.

use std::fmt;
use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// The signal that asked for the stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Listens for both signals from the moment it is made, so that none is lost before the wait begins.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Stream,
    interrupt: Stream,
}

impl StopSignals {
    /// Takes over SIGTERM and SIGINT; call it inside a tokio runtime.
    ///
    /// # Errors
    /// The handlers could not be installed.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next signal. A second one usually means "now": call it again while draining.
    pub async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Terminate,
            _ = self.interrupt.recv() => Stop::Interrupt,
        }
    }
}
