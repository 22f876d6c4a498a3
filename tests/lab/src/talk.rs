//! Talking over TCP from and to pods: serving, dialling, and how an attempt ended.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::Pod;
use testkit::{Behaviour, Peer};

/// How an attempt to talk to an echo ended, as the client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The bytes came back.
    Answered,
    /// `connect` said `ECONNREFUSED`.
    Refused,
    /// `ECONNRESET` or `EPIPE`, during or after `connect`.
    Reset,
    /// An orderly end without an answer.
    Closed,
    /// Neither an answer nor an end in time.
    Hung,
    /// Something else, such as an unreachable network.
    Other(ErrorKind),
}

impl Ended {
    /// How an attempt ended that failed with such an error.
    #[must_use]
    pub fn by(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::UnexpectedEof => Self::Closed,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Hung,
            other => Self::Other(other),
        }
    }

    /// Whether the client was told at once that this cannot be.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Refused | Self::Reset)
    }

    /// The same, where it does not matter whether a refusal came before or after the connection was there.
    #[must_use]
    pub fn or_refused(self) -> Self {
        if self.is_refusal() {
            Self::Refused
        } else {
            self
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Listens on one address of a pod.
///
/// # Errors
/// It is taken, or is none of the pod's.
pub fn listen_on(pod: &Pod, address: SocketAddr) -> Result<TcpListener> {
    let listener = pod.run(|| TcpListener::bind(address))?;
    listener.with_context(|| format!("listening on {address} in {}", pod.key()))
}

/// Listens on `[::]:port` of a pod, which takes IPv4 too.
///
/// # Errors
/// The port is taken.
pub fn listen(pod: &Pod, port: u16) -> Result<TcpListener> {
    listen_on(pod, SocketAddr::from(([0; 16], port)))
}

/// Serves on all addresses of a pod.
///
/// # Errors
/// The port is taken.
pub fn serve(pod: &Pod, port: u16, behaviour: Behaviour) -> Result<Peer> {
    Peer::serve(listen(pod, port)?, behaviour)
}

/// Echoes on all addresses of a pod.
///
/// # Errors
/// The port is taken.
pub fn echo(pod: &Pod, port: u16) -> Result<Peer> {
    serve(pod, port, Behaviour::Echo)
}

/// Connects from a pod. Connecting, and each read and write of the connection, end after `patience`.
///
/// # Errors
/// The connection could not be made.
pub fn dial(from: &Pod, to: SocketAddr, patience: Duration) -> Result<TcpStream> {
    let stream = from.run(|| TcpStream::connect_timeout(&to, patience))?;
    let stream = stream.with_context(|| format!("{} connects to {to}", from.key()))?;
    make_patient(&stream, patience)?;
    Ok(stream)
}

/// Makes reads and writes that hang fail after `patience`.
///
/// # Errors
/// The socket has been closed.
pub fn make_patient(stream: &TcpStream, patience: Duration) -> Result<()> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream.set_nodelay(true)?)
}

/// Sends some bytes over an open connection to an echo.
pub fn exchange(mut stream: &TcpStream, message: &[u8], patience: Duration) -> Ended {
    let mut attempt = || -> std::io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(message)?;
        let mut answer = vec![0; message.len()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    match attempt() {
        Ok(answer) if answer == message => Ended::Answered,
        Ok(_) => Ended::Other(ErrorKind::InvalidData),
        Err(error) => Ended::by(error.kind()),
    }
}

/// Sends some bytes over a new connection to an echo, from the namespace of the calling thread.
#[must_use]
pub fn call_here(to: SocketAddr, message: &[u8], patience: Duration) -> Ended {
    match TcpStream::connect_timeout(&to, patience) {
        Ok(stream) => exchange(&stream, message, patience),
        Err(error) => Ended::by(error.kind()),
    }
}
