//! The TCP connection under a tunnel, for whoever has a stream in it and asks how it fares.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;

/// The TCP connection of a tunnel. It says nothing any more when the tunnel has ended.
#[derive(Debug)]
pub struct Line(Mutex<Option<RawFd>>);

/// Whoever has the connection. Dropping it takes the socket out of the [`Line`], so it is dropped before the
/// socket is closed.
#[derive(Debug)]
pub(crate) struct LineOwner(Arc<Line>);

/// A TCP connection that bytes take without a tunnel, and its line.
#[derive(Debug)]
pub struct Lined {
    /// In front of the socket that it speaks of.
    owner: LineOwner,
    socket: TcpStream,
}

impl Lined {
    /// The line of a connection.
    pub fn new(socket: TcpStream) -> Self {
        Self {
            owner: LineOwner::of(&socket),
            socket,
        }
    }

    /// What can be asked for as long as it is copied to and from.
    pub fn line(&self) -> &Arc<Line> {
        self.owner.line()
    }

    /// Its parts. The owner of the line must go before the socket.
    pub(crate) fn apart(self) -> (TcpStream, LineOwner) {
        (self.socket, self.owner)
    }
}

/// What decides whether a tunnel outlasts a peer that answers no ping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience<'l> {
    /// Whether there are connections in it that the peer has made.
    pub(crate) carries: bool,
    pub(crate) line: &'l Line,
}

/// The longest pause of a TCP connection between two attempts to send the same again (kernel: `TCP_RTO_MAX`).
/// After an outage a peer's answer may be behind something that it sends again only then.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

impl Patience<'_> {
    /// For how long more an answer that is overdue is waited for, if at all. `outage` is whether the last answer to
    /// this question was that there is an outage.
    ///
    /// A tunnel that carries something is not given up where the peer's whole node, or the way to it, is silent:
    /// without a tunnel a connection would not end for that either, but when the kernel has retransmitted for long
    /// enough, or its application has had enough.
    pub(crate) fn extend(&self, outage: &mut bool, interval: Duration) -> Option<Duration> {
        let was = std::mem::replace(outage, self.carries && self.line.is_dead());
        if *outage {
            return Some(interval);
        }
        (was && self.carries).then_some(LONGEST_PAUSE)
    }
}

/// What a TCP connection has heard of its peer (`TCP_INFO`, `tcp(7)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// For how long nothing has come.
    pub quiet: Duration,
    /// Whether something was sent, or asked, that the peer's kernel has not acknowledged.
    pub owes: bool,
}

impl Line {
    /// What the connection has heard of its peer; `None` once the tunnel has ended or the kernel does not say.
    pub fn heard(&self) -> Option<Heard> {
        let info = self.ask(tcp_info)?.ok()?;
        let quiet = info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv);
        Some(Heard {
            quiet: Duration::from_millis(quiet.into()),
            owes: info.tcpi_unacked > 0 || info.tcpi_probes > 0,
        })
    }

    /// Whether the peer's kernel acknowledges nothing: its node or the network has gone, perhaps for a while. A peer
    /// whose kernel does and who says nothing all the same hangs.
    pub(crate) fn is_dead(&self) -> bool {
        self.heard().is_some_and(|heard| heard.owes)
    }

    /// Asks the socket something; `None` once the tunnel has ended.
    pub fn ask<T>(&self, question: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the owner empties the place under this lock before it closes the socket.
        #[expect(unsafe_code, reason = "the socket's owner is a library's I/O object")]
        let socket = unsafe { BorrowedFd::borrow_raw((*socket)?) };
        Some(question(socket))
    }
}

impl LineOwner {
    /// The line of a socket that has not been given away yet. The caller keeps the owner beside whatever the
    /// socket becomes a part of, in front of it, as fields are dropped in their order.
    pub(crate) fn of(socket: &TcpStream) -> Self {
        let socket = Some(socket.as_raw_fd());
        Self(Arc::new(Line(Mutex::new(socket))))
    }

    /// A tunnel over something else than a socket.
    pub(crate) fn of_nothing() -> Self {
        Self(Arc::new(Line(Mutex::new(None))))
    }

    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.0
    }
}

#[expect(unsafe_code, reason = "no safe library reads TCP_INFO")]
fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the value outlives the call and its size is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is made of integers, all of whose bytes are values; an older kernel writes fewer of them.
    Ok(unsafe { info.assume_init() })
}

impl Drop for LineOwner {
    fn drop(&mut self) {
        let mut socket = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *socket = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_answers_until_its_owner_goes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let socket = TcpStream::connect(to).await.unwrap();
        let owner = LineOwner::of(&socket);
        let line = Arc::clone(owner.line());
        assert_eq!(line.ask(|fd| fd.as_raw_fd()), Some(socket.as_raw_fd()));
        assert!(!line.heard().unwrap().owes);
        drop(owner);
        assert!(line.ask(|_socket| ()).is_none());
        assert!(line.heard().is_none());
        assert!(LineOwner::of_nothing().line().ask(|_socket| ()).is_none());
    }
}
