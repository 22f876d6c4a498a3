//! Which of a pod's servers take connections on one interface only (`SO_BINDTODEVICE`): the agent's leg has
//! to arrive there, and not on `lo`.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use crate::host::{netns::Netns, sock_diag};

/// Between two looks at the servers of a pod: whoever dials a port on which nobody listens makes us look, and
/// the kernel walks its whole table of listening sockets for it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The ports of one pod that are bound to an interface, as of the last look.
#[derive(Debug, Default)]
pub(crate) struct Bound(Mutex<Look>);

#[derive(Debug, Default)]
struct Look {
    interfaces: BTreeMap<u16, u32>,
    at: Option<Instant>,
}

impl Bound {
    /// The interface that the port's server was bound to at the last look.
    #[must_use]
    pub(crate) fn interface(&self, port: u16) -> Option<u32> {
        self.0.lock().interfaces.get(&port).copied()
    }

    /// Looks, in its turn, unless somebody has looked since this was called.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses the request.
    pub(crate) async fn look(&self, netns: &Netns) -> io::Result<()> {
        let asked = Instant::now();
        loop {
            let rest = match self.turn(asked) {
                Turn::Over => return Ok(()),
                Turn::Now(mut look) => {
                    look.interfaces = netns.with(sock_diag::bound_listeners)??;
                    look.at = Some(Instant::now());
                    return Ok(());
                }
                Turn::In(rest) => rest,
            };
            tokio::time::sleep(rest).await;
        }
    }

    fn turn(&self, asked: Instant) -> Turn<'_> {
        let look = self.0.lock();
        match look.at {
            Some(at) if at >= asked => Turn::Over,
            Some(at) if at.elapsed() < LOOK_AGAIN => {
                Turn::In(LOOK_AGAIN.saturating_sub(at.elapsed()))
            }
            _ => Turn::Now(look),
        }
    }
}

/// Whose turn it is to look.
enum Turn<'l> {
    /// Somebody has looked.
    Over,
    /// The caller's, in a moment.
    In(Duration),
    /// The caller's.
    Now(MutexGuard<'l, Look>),
}
