//! The server of the load: answers every request with [`super::MESSAGE`] bytes, and one path
//! without end.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::message;

/// Serves on `port` of all addresses of both families until the process is killed.
///
/// # Errors
/// The port cannot be had, or the system refuses to wait.
pub fn serve(port: u16) -> Result<()> {
    let listener = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
    listener.set_only_v6(false)?;
    listener.set_reuse_address(true)?;
    let address = std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    listener
        .bind(&address.into())
        .with_context(|| format!("listening on port {port}"))?;
    listener.listen(BACKLOG)?;
    let listener = TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    let mut server = Server {
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        connections: HashMap::new(),
        next: 1,
        buffer: vec![0; 64 << 10],
        answer: message::answer(),
        bulk: message::answer()
            .into_iter()
            .cycle()
            .take(256 << 10)
            .collect(),
    };
    let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
    server.epoll.add(listener.as_fd(), event)?;
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = server.epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in events.iter().take(count) {
            if event.data() == LISTENER {
                server.accept(&listener)?;
            } else if server.step(event.data()).is_err() {
                // The client has gone, in whatever way; it knows better why.
                server.connections.remove(&event.data());
            }
        }
    }
}

struct Server {
    epoll: Epoll,
    connections: HashMap<u64, Served>,
    next: u64,
    buffer: Vec<u8>,
    answer: Vec<u8>,
    bulk: Vec<u8>,
}

/// One client's connection.
struct Served {
    stream: TcpStream,
    /// The beginning of a request that came in pieces; empty as a rule.
    partial: Vec<u8>,
    bulk: bool,
}

impl Server {
    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accepting"),
            };
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, self.next);
            self.epoll.add(stream.as_fd(), event)?;
            let served = Served {
                stream,
                partial: Vec::new(),
                bulk: false,
            };
            self.connections.insert(self.next, served);
            self.next += 1;
        }
    }

    fn step(&mut self, key: u64) -> Result<()> {
        let served = self.connections.get_mut(&key).context("gone")?;
        if served.bulk {
            return served.pour(&self.bulk);
        }
        let count = match served.stream.read(&mut self.buffer) {
            Ok(0) => bail!("ended"),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let came = self.buffer.get(..count).unwrap_or_default();
        if served.partial.is_empty() {
            let rest = served.answer(came, &self.answer)?;
            served.partial.extend_from_slice(rest);
        } else {
            let mut all = std::mem::take(&mut served.partial);
            all.extend_from_slice(came);
            let rest = served.answer(&all, &self.answer)?;
            served.partial = rest.to_vec();
        }
        if served.bulk {
            let mut event = EpollEvent::new(EpollFlags::EPOLLOUT, key);
            self.epoll.modify(served.stream.as_fd(), &mut event)?;
        }
        Ok(())
    }
}

impl Served {
    /// Answers each complete request and returns what is left.
    fn answer<'a>(&mut self, mut bytes: &'a [u8], answer: &[u8]) -> Result<&'a [u8]> {
        while let Some(head) = message::parse(bytes)? {
            if head.bulk {
                self.bulk = true;
                self.stream.write_all(&message::bulk_head())?;
                return Ok(&[]);
            }
            let Some(rest) = bytes.get(head.total..) else {
                break;
            };
            // A client has one request under way, so there is room for an answer.
            self.stream.write_all(answer)?;
            bytes = rest;
        }
        Ok(bytes)
    }

    /// Fills the socket.
    fn pour(&mut self, data: &[u8]) -> Result<()> {
        match self.stream.write(data) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

const LISTENER: u64 = 0;
const BACKLOG: i32 = 4096;
