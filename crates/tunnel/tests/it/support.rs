//! Two ends of a tunnel on one thread, and applications at both of them.

use std::cell::RefCell;
use std::future::pending;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle, LocalSet, spawn_local};
use tunnel::copy::{Abort, CopyEnd, Counters, bidirectional};
use tunnel::server::{Incoming, NextError};
use tunnel::{ConnectRequest, Settings, Tunnel, TunnelStream};

use crate::wire::{Server, ends};

/// Runs a test as the workers run: one thread, local tasks. It fails after a minute.
pub(crate) fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async {
        tokio::time::timeout(Duration::from_secs(60), test)
            .await
            .expect("the test hangs")
    };
    LocalSet::new().block_on(&runtime, limited)
}

/// The same with a clock that jumps to the next timer when nothing moves: for tests without TCP.
pub(crate) fn local_paused<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test)
}

/// Two connected TCP sockets.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connected, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (connected.unwrap(), accepted.unwrap().0)
}

pub(crate) fn request() -> ConnectRequest {
    to("10.0.0.1:80")
}

pub(crate) fn to(authority: &str) -> ConnectRequest {
    ConnectRequest {
        authority: authority.to_owned(),
        ..ConnectRequest::default()
    }
}

/// A tunnel: the client's handle, the server's end, and what kills the client's side.
pub(crate) async fn tunnel_with(
    client: Settings,
    server: Settings,
) -> (Tunnel, Server, AbortHandle) {
    let (tunnel, driver, server) = ends(client, server).await;
    (tunnel, server, spawn_local(driver).abort_handle())
}

pub(crate) async fn tunnel() -> (Tunnel, Server, AbortHandle) {
    tunnel_with(Settings::default(), Settings::default()).await
}

/// Serves every request of a tunnel in a task of its own, until it is over.
pub(crate) fn serve<H>(
    mut server: Server,
    mut handler: impl FnMut(Incoming) -> H + 'static,
) -> JoinHandle<Vec<NextError>>
where
    H: Future<Output = ()> + 'static,
{
    spawn_local(async move {
        let mut errors = Vec::new();
        while let Some(next) = server.next().await {
            match next {
                Ok(incoming) => drop(spawn_local(handler(incoming))),
                Err(error) => errors.push(error),
            }
        }
        errors
    })
}

/// Sends back what comes, over a stream without TCP.
pub(crate) async fn echo(incoming: Incoming) {
    let (near, far) = tcp_pair().await;
    let stream = incoming.accept(None).unwrap();
    spawn_local(echo_tcp(far));
    bidirectional(near, stream, &Arc::default(), pending()).await;
}

pub(crate) async fn echo_tcp(mut tcp: TcpStream) {
    let (mut read, mut write) = tcp.split();
    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
        let _closed = write.shutdown().await;
    }
}

/// One connection through a tunnel, with an application's socket at each end.
pub(crate) struct Path {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) client_copy: Copying,
    pub(crate) server_copy: Copying,
    pub(crate) tunnel: Tunnel,
    /// Kills the tunnel at once, as when its peer's node dies.
    pub(crate) driver: AbortHandle,
    pub(crate) serving: AbortHandle,
}

/// A running copy.
pub(crate) struct Copying {
    pub(crate) end: JoinHandle<CopyEnd>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) abort: oneshot::Sender<Abort>,
}

pub(crate) fn copying(tcp: TcpStream, stream: TunnelStream) -> Copying {
    let counters = Arc::new(Counters::default());
    let (abort, aborted) = oneshot::channel();
    let counted = Arc::clone(&counters);
    let end = spawn_local(async move {
        let aborted = async {
            match aborted.await {
                Ok(reason) => reason,
                Err(_never) => pending().await,
            }
        };
        bidirectional(tcp, stream, &counted, aborted).await
    });
    Copying {
        end,
        counters,
        abort,
    }
}

impl Path {
    pub(crate) async fn new() -> Self {
        Self::to_server(tcp_pair().await).await
    }

    /// With these two ends of the connection to the server.
    pub(crate) async fn to_server((server_app, server_leg): (TcpStream, TcpStream)) -> Self {
        let (tunnel, server, driver) = tunnel().await;
        let accepted = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&accepted);
        let mut server_leg = Some(server_leg);
        let serving = serve(server, move |incoming| {
            let stream = incoming.accept(None).unwrap();
            *slot.borrow_mut() = Some(copying(server_leg.take().unwrap(), stream));
            async {}
        })
        .abort_handle();
        let stream = tunnel.open(&request()).await.unwrap();
        let (client, client_leg) = tcp_pair().await;
        Self {
            client,
            server: server_app,
            client_copy: copying(client_leg, stream),
            server_copy: accepted.take().unwrap(),
            tunnel,
            driver,
            serving,
        }
    }

    /// The ends of both copies.
    pub(crate) async fn ends(self) -> (CopyEnd, CopyEnd) {
        (
            self.client_copy.end.await.unwrap(),
            self.server_copy.end.await.unwrap(),
        )
    }
}

/// Reads to the end, which must be a FIN.
pub(crate) async fn read_all(tcp: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    tcp.read_to_end(&mut bytes)
        .await
        .expect("a FIN, not a reset");
    bytes
}

/// Reads to the end, which must be a reset.
pub(crate) async fn read_until_reset(tcp: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let error = tcp
        .read_to_end(&mut bytes)
        .await
        .expect_err("a reset, not a FIN");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    bytes
}

pub(crate) async fn read_exactly(tcp: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    tcp.read_exact(&mut bytes).await.unwrap();
    bytes
}

/// Bytes that differ at every offset that matters.
pub(crate) fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

/// Waits, without a fixed sleep, until a condition holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// Closes with RST.
pub(crate) fn reset(tcp: TcpStream) {
    tcp.set_zero_linger().unwrap();
}
