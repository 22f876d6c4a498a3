//! What the copies need of a TCP socket: reads and writes that never wait and never ask the kernel
//! twice, FIN, and RST unless all went well.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::ops::Deref;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BufMut;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::{End, Side};

/// A socket that is reset when it is dropped, unless it was finished. (The flag is atomic only
/// because futures watch the socket by reference.)
pub(crate) struct Closing {
    tcp: TcpStream,
    finished: AtomicBool,
}

impl Closing {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        // Only latency suffers where it fails, on a socket that is dead anyway.
        let _dead = tcp.set_nodelay(true).is_err();
        Self {
            tcp,
            finished: AtomicBool::new(false),
        }
    }

    /// Lets the socket close in an orderly way.
    pub(crate) fn finish(&self) {
        self.finished.store(true, Ordering::Relaxed);
    }
}

impl Deref for Closing {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.tcp
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if !*self.finished.get_mut() {
            arm_reset(&self.tcp);
        }
    }
}

/// Closes a connection with RST: for one that was accepted and cannot be served.
pub fn reset(tcp: TcpStream) {
    arm_reset(&tcp);
}

fn arm_reset(tcp: &TcpStream) {
    // It fails only on what is not a socket.
    let _not_a_socket = tcp.set_zero_linger().is_err();
}

/// Passes on that no more bytes follow. A connection that the application has already reset is no
/// error here: reading it will tell.
pub(crate) fn finish_writing(tcp: &TcpStream) {
    let _reset_already = SockRef::from(tcp).shutdown(Shutdown::Write).is_err();
}

/// Reads at most `limit` bytes, more than none, into `buffer`, which has room for them; from the socket of a
/// tunnel.
///
/// A read that leaves room has emptied the socket, so tokio is told to wait for the next event
/// instead of finding EAGAIN with a system call.
pub(crate) fn read(tcp: &TcpStream, buffer: &mut impl BufMut, limit: usize) -> io::Result<usize> {
    read_until(tcp, buffer, limit, |_| false)
}

/// Reads as [`read`] does, from the socket of an application. Applications send urgent bytes, and the kernel ends a
/// read before such a byte also where more has arrived, so it is asked what is left.
pub(crate) fn read_application(
    tcp: &TcpStream,
    buffer: &mut impl BufMut,
    limit: usize,
) -> io::Result<usize> {
    read_until(tcp, buffer, limit, has_more)
}

fn read_until(
    tcp: &TcpStream,
    buffer: &mut impl BufMut,
    limit: usize,
    has_more: impl Fn(&TcpStream) -> bool,
) -> io::Result<usize> {
    let mut short = None;
    let result = tcp.try_io(Interest::READABLE, || {
        let read = tcp.try_read_buf(&mut (&mut *buffer).limit(limit))?;
        if read > 0 && read < limit && !has_more(tcp) {
            short = Some(read);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(read)
    });
    short.map_or(result, Ok)
}

/// Whether bytes wait in the socket. Unlike another read this takes away no error, which has to be found by whoever
/// looks next.
#[expect(unsafe_code, reason = "a question that no safe library asks")]
fn has_more(tcp: &TcpStream) -> bool {
    let mut left: libc::c_int = 0;
    // SAFETY: FIONREAD writes one `int` to the address, which is that of one and outlives the call.
    let result = unsafe { libc::ioctl(tcp.as_raw_fd(), libc::FIONREAD, &raw mut left) };
    // It fails on what is not a socket, or listens. Reading tells then.
    result != 0 || left > 0
}

/// Writes what fits of `slices`, which hold `total` bytes. The same holds for a write that leaves
/// something.
pub(crate) fn write(tcp: &TcpStream, slices: &[IoSlice<'_>], total: usize) -> io::Result<usize> {
    let mut short = None;
    let result = tcp.try_io(Interest::WRITABLE, || {
        let written = tcp.try_write_vectored(slices)?;
        if written > 0 && written < total {
            short = Some(written);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(written)
    });
    short.map_or(result, Ok)
}

/// How a socket failed that was reported to have an error.
pub(crate) fn failure(tcp: &TcpStream, side: Side) -> End {
    let kind = match tcp.take_error() {
        Ok(Some(error)) | Err(error) => error.kind(),
        Ok(None) => io::ErrorKind::ConnectionReset,
    };
    End::Tcp { side, kind }
}
