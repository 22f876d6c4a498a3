//! A client's kept connection: a request goes out, its answer is awaited, both without blocking.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::message::{self, Head};

/// A connection that carries one request at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    received: usize,
    head: Option<Head>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects, and leaves the connection non-blocking.
    pub(crate) fn open(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)
            .with_context(|| format!("connecting to {server}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self::new(stream))
    }

    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            received: 0,
            head: None,
            buffer: vec![0; BUFFER],
        }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends a request; the send buffer of a connection without other requests has room for it.
    pub(crate) fn send(&mut self, request: &[u8]) -> Result<()> {
        self.received = 0;
        self.head = None;
        let sent = (&self.stream).write(request).context("sending a request")?;
        if sent < request.len() {
            bail!(
                "a request of {} bytes did not fit the send buffer",
                request.len()
            );
        }
        Ok(())
    }

    /// Takes what has come; `true` when the answer is complete.
    pub(crate) fn receive(&mut self) -> Result<bool> {
        let room = self.buffer.get_mut(self.received..).unwrap_or_default();
        if room.is_empty() {
            bail!("an answer of more than {BUFFER} bytes");
        }
        match (&self.stream).read(room) {
            Ok(0) => bail!("the server ended the connection"),
            Ok(count) => self.received += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("receiving an answer"),
        }
        if self.head.is_none() {
            self.head = message::parse(self.buffer.get(..self.received).unwrap_or_default())?;
        }
        match self.head {
            Some(head) if head.refused => {
                let text = String::from_utf8_lossy(&self.buffer);
                bail!("answered with {}", text.lines().next().unwrap_or_default());
            }
            Some(head) => Ok(self.received >= head.total),
            None => Ok(false),
        }
    }

    /// One request and its answer, waiting for it.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_read_timeout(Some(PATIENCE))?;
        self.send(request)?;
        while !self.receive()? {}
        self.stream.set_nonblocking(true)?;
        Ok(())
    }
}

/// The congestion control of a socket.
pub(crate) fn congestion(stream: &TcpStream) -> String {
    let name = socket2::SockRef::from(stream).tcp_congestion();
    let name = name.unwrap_or_default();
    let text = String::from_utf8_lossy(&name);
    text.trim_end_matches('\0').to_owned()
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
const BUFFER: usize = 4 << 10;
