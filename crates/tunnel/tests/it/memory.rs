//! A reader that does not read costs a bounded amount, and only its own connection.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{
    Copying, Path, copying, echo, local, pattern, read_exactly, request, serve, tcp_pair, tunnel,
    until,
};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tunnel::Lined;
use tunnel::copy::{Counters, tcp};
use tunnel::settings::{SEND_BUFFER, STREAM_WINDOW};

/// Writes until nothing has moved for a while; what was written.
async fn fill(tcp: &mut TcpStream, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        let write = tcp.write(&bytes[written..]);
        match tokio::time::timeout(Duration::from_millis(300), write).await {
            Ok(result) => written += result.unwrap(),
            Err(_stalled) => return written,
        }
    }
    panic!("{written} bytes were taken of a connection that nobody reads");
}

async fn check(sender: &mut TcpStream, reader: &mut TcpStream, from: &Copying, to: &Copying) {
    let bytes = pattern(64 << 20, 3);
    let written = fill(sender, &bytes).await;
    let inside = (from.counters.sent() - to.counters.received()) as usize;
    // Between the two: the in-memory pipe and what HTTP/2 is reading.
    let bound = STREAM_WINDOW as usize + SEND_BUFFER + (512 << 10);
    assert!(
        inside <= bound,
        "{inside} bytes in the tunnel, at most {bound}"
    );
    // And nothing of it is lost.
    assert!(read_exactly(reader, written).await == bytes[..written]);
}

#[test]
fn a_server_that_never_reads_is_bounded() {
    local(async {
        let mut path = Path::new().await;
        check(
            &mut path.client,
            &mut path.server,
            &path.client_copy,
            &path.server_copy,
        )
        .await;
    });
}

#[test]
fn a_client_that_never_reads_is_bounded() {
    local(async {
        let mut path = Path::new().await;
        check(
            &mut path.server,
            &mut path.client,
            &path.server_copy,
            &path.client_copy,
        )
        .await;
    });
}

#[test]
fn single_bytes_to_a_server_that_never_reads_do_not_end_the_tunnel() {
    local(async {
        let (server, leg) = tcp_pair().await;
        SockRef::from(&server)
            .set_recv_buffer_size(128 << 10)
            .unwrap();
        SockRef::from(&leg).set_send_buffer_size(128 << 10).unwrap();
        let mut path = Path::to_server((server, leg)).await;
        // The server's socket is full and the stream's window is not.
        let bulk = pattern(1 << 20, 4);
        path.client.write_all(&bulk).await.unwrap();
        let from = Arc::clone(&path.client_copy.counters);
        until("the tunnel has it all", || from.sent() == bulk.len() as u64).await;
        path.client.set_nodelay(true).unwrap();
        for n in 1..=SINGLES as u64 {
            path.client.write_all(b"x").await.unwrap();
            while from.sent() < bulk.len() as u64 + n {
                tokio::task::yield_now().await;
            }
        }
        assert!(path.server_copy.counters.received() < bulk.len() as u64);
        assert!(read_exactly(&mut path.server, bulk.len()).await == bulk);
        assert!(read_exactly(&mut path.server, SINGLES).await == [b'x'; SINGLES]);
    });
}

/// More frames than HTTP/2's own bound on small frames that nobody takes.
const SINGLES: usize = 100_000;

#[test]
fn a_stalled_connection_does_not_stop_its_neighbour() {
    local(async {
        let (tunnel, server, _driver) = tunnel().await;
        serve(server, echo);
        let stalled = tunnel.open(&request()).await.unwrap();
        let (mut stalled_client, leg) = tcp_pair().await;
        let _stalled_copy = copying(leg, stalled);
        // The echo comes back and is never read.
        fill(&mut stalled_client, &pattern(64 << 20, 5)).await;
        let stream = tunnel.open(&request()).await.unwrap();
        let (client, leg) = tcp_pair().await;
        let _copy = copying(leg, stream);
        let bytes = pattern(16 << 20, 6);
        let expected = bytes.clone();
        let (mut read, mut write) = client.into_split();
        spawn_local(async move { write.write_all(&bytes).await.unwrap() });
        let mut received = vec![0; expected.len()];
        read.read_exact(&mut received).await.unwrap();
        assert!(received == expected);
    });
}

#[test]
fn a_plaintext_copy_holds_one_read() {
    local(async {
        let (mut client, first) = tcp_pair().await;
        let (mut server, second) = tcp_pair().await;
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        spawn_local(async move { tcp(first, Lined::new(second), &counted, pending()).await });
        let bytes = pattern(64 << 20, 7);
        let written = fill(&mut client, &bytes).await;
        assert!(read_exactly(&mut server, written).await == bytes[..written]);
    });
}

#[test]
fn an_idle_copy_is_small() {
    local(async {
        let (tunnel, server, _driver) = tunnel().await;
        serve(server, echo);
        let stream = tunnel.open(&request()).await.unwrap();
        let (_client, leg) = tcp_pair().await;
        let counters = Arc::default();
        let copy = tunnel::copy::bidirectional(leg, stream, &counters, pending());
        let size = size_of_val(&*copy);
        assert!(size <= 640, "{size} bytes");
    });
}
