//! The API server's port on this machine's loopback: the server itself is in a network that nothing leads to.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::Netns;

use crate::layout::API_PORT;

/// Accepts connections and carries each to the machine of the control plane.
#[derive(Debug)]
pub(crate) struct Forwarder {
    address: SocketAddr,
    control: Arc<AtomicI32>,
}

impl Forwarder {
    /// Listens on a free port from now on.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("listening for clients of the API server")?;
        let address = listener.local_addr()?;
        let control = Arc::new(AtomicI32::new(0));
        let pid = Arc::clone(&control);
        thread::Builder::new()
            .name("forwarder".to_owned())
            .spawn(move || {
                for client in listener.incoming().flatten() {
                    let pid = pid.load(Ordering::Relaxed);
                    // A client that finds no server sees its connection end.
                    drop(thread::Builder::new().spawn(move || carry(&client, pid)));
                }
            })?;
        Ok(Self { address, control })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Names the first process of the machine that runs the API server.
    pub(crate) fn lead_to(&self, control: i32) {
        self.control.store(control, Ordering::Relaxed);
    }
}

fn carry(client: &TcpStream, control: i32) -> Result<()> {
    let server = Netns::of_process(control)?.run(|| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, API_PORT));
        TcpStream::connect_timeout(&address, PATIENCE)
    })??;
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        copy(&server, client);
    });
    Ok(())
}

/// Copies until one side ends, and hands the end on.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let copied = io::copy(&mut from, &mut to);
    let how = if copied.is_ok() {
        Shutdown::Write
    } else {
        Shutdown::Both
    };
    // The other side may be gone already.
    drop(to.shutdown(how));
}

const PATIENCE: Duration = Duration::from_secs(5);
