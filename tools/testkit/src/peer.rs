//! A TCP server made of threads that behaves in one of the ways a test needs.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;
use socket2::SockRef;

/// What a peer does with each connection.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// Sends back what it reads; closes its side when the client has closed its own.
    Echo,
    /// Speaks first, then echoes: SMTP, MySQL and their like.
    GreetThenEcho(Vec<u8>),
    /// Writes the client's address, as it sees it, and closes.
    TellPeer,
    /// Reads and forgets; closes when the client does.
    Discard,
    /// Accepts and never reads nor writes.
    Silent,
    /// Resets the connection after the first byte it reads.
    Reset,
}

/// A running server; dropping it closes the listener and resets nothing.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    listener: TcpListener,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicU64,
    received: AtomicU64,
    clients: Mutex<Vec<SocketAddr>>,
}

impl Peer {
    /// Serves a listener, wherever it was made.
    ///
    /// # Errors
    /// The listener has no address, or no thread can be started.
    pub fn serve(listener: TcpListener, behaviour: Behaviour) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let address = listener.local_addr()?;
        let (state, accepting) = (Arc::clone(&shared), listener.try_clone()?);
        let acceptor = thread::Builder::new()
            .name("peer".to_owned())
            .spawn(move || accept(&accepting, &behaviour, &state))?;
        Ok(Self {
            address,
            listener,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How many bytes it has read.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// The addresses of its clients, as it saw them, in order.
    #[must_use]
    pub fn clients(&self) -> Vec<SocketAddr> {
        let clients = self.shared.clients.lock();
        clients.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread in accept(2), which then fails.
        drop(SockRef::from(&self.listener).shutdown(Shutdown::Both));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}

fn accept(listener: &TcpListener, behaviour: &Behaviour, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::Relaxed) {
        // Out of descriptors, or a client that has gone already: neither ends the server.
        let Ok((stream, client)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let clients = shared.clients.lock();
        clients.unwrap_or_else(PoisonError::into_inner).push(client);
        let (behaviour, shared) = (behaviour.clone(), Arc::clone(shared));
        // A thousand connections need a thousand threads: small ones.
        let thread = thread::Builder::new().stack_size(256 << 10);
        let spawned = thread.spawn(move || {
            // How a client ends is the client's test to judge.
            drop(serve(&stream, client, &behaviour, &shared));
        });
        drop(spawned);
    }
}

fn serve(
    mut stream: &TcpStream,
    client: SocketAddr,
    behaviour: &Behaviour,
    shared: &Shared,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match behaviour {
        Behaviour::Echo => read_all(stream, shared, |bytes| stream.write_all(bytes)),
        Behaviour::GreetThenEcho(greeting) => {
            stream.write_all(greeting)?;
            read_all(stream, shared, |bytes| stream.write_all(bytes))
        }
        Behaviour::TellPeer => stream.write_all(client.to_string().as_bytes()),
        Behaviour::Discard => read_all(stream, shared, |_| Ok(())),
        Behaviour::Silent => {
            while !shared.stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }
        Behaviour::Reset => {
            stream.read_exact(&mut [0])?;
            SockRef::from(stream).set_linger(Some(Duration::ZERO))
        }
    }
}

fn read_all(
    mut stream: &TcpStream,
    shared: &Shared,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        shared.received.fetch_add(length as u64, Ordering::Relaxed);
        each(buffer.get(..length).unwrap_or_default())?;
    }
}
