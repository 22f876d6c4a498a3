//! Bytes arrive as they were sent, both ways, and are counted while they flow.

use std::future::pending;
use std::sync::Arc;

use crate::support::{Path, echo, local, pattern, read_all, request, serve, tcp_pair, tunnel};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, spawn_local};
use tunnel::Lined;
use tunnel::copy::{End, bidirectional, tcp};

const BULK: usize = 64 << 20;

async fn send_pattern(mut tcp: impl tokio::io::AsyncWrite + Unpin, seed: u64) -> [u8; 32] {
    let bytes = pattern(1 << 20, seed);
    let mut hash = Sha256::new();
    for _ in 0..BULK / bytes.len() {
        tcp.write_all(&bytes).await.unwrap();
        hash.update(&bytes);
    }
    tcp.shutdown().await.unwrap();
    hash.finalize().into()
}

async fn receive_hash(mut tcp: impl tokio::io::AsyncRead + Unpin) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = tcp.read(&mut buffer).await.unwrap();
        if read == 0 {
            return hash.finalize().into();
        }
        hash.update(&buffer[..read]);
    }
}

async fn exchange(client: TcpStream, server: TcpStream) {
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let (sent, sent_back, received, received_back) = tokio::join!(
        send_pattern(client_write, 1),
        send_pattern(server_write, 2),
        receive_hash(server_read),
        receive_hash(client_read),
    );
    assert_eq!(sent, received);
    assert_eq!(sent_back, received_back);
}

#[test]
fn bulk_arrives_unchanged_in_both_directions_at_once() {
    local(async {
        let mut path = Path::new().await;
        let (client, server) = (path.client, path.server);
        (path.client, path.server) = tcp_pair().await;
        exchange(client, server).await;
        let (near, far) = path.ends().await;
        for (end, name) in [(near, "client"), (far, "server")] {
            assert_eq!(end.end, End::Clean, "{name}");
            assert_eq!((end.sent, end.received), (BULK as u64, BULK as u64));
        }
    });
}

#[test]
fn bulk_arrives_unchanged_between_two_tcp_connections() {
    local(async {
        let (client, first) = tcp_pair().await;
        let (server, second) = tcp_pair().await;
        let counters = Arc::default();
        let copy = tcp(first, Lined::new(second), &counters, pending());
        let (end, ()) = tokio::join!(copy, exchange(client, server));
        assert_eq!(end.end, End::Clean);
        assert_eq!((end.sent, end.received), (BULK as u64, BULK as u64));
        assert_eq!(
            (counters.sent(), counters.received()),
            (end.sent, end.received)
        );
    });
}

#[test]
fn two_hundred_connections_share_two_tunnels() {
    local(async {
        let mut tunnels = Vec::new();
        for _ in 0..2 {
            let (tunnel, server, _driver) = tunnel().await;
            serve(server, echo);
            tunnels.push(tunnel);
        }
        let mut connections = JoinSet::new();
        for n in 0..200 {
            let tunnel = tunnels[n % 2].clone();
            connections.spawn_local(async move {
                let stream = tunnel.open(&request()).await.unwrap();
                let (client, leg) = tcp_pair().await;
                let copy = spawn_local(async move {
                    bidirectional(leg, stream, &Arc::default(), pending()).await
                });
                let sent = pattern(100_000 + n, n as u64);
                let (mut read, mut write) = client.into_split();
                let expected = sent.clone();
                let writing = async move {
                    write.write_all(&sent).await.unwrap();
                    write.shutdown().await.unwrap();
                };
                let mut received = Vec::new();
                let (_, read) = tokio::join!(writing, read.read_to_end(&mut received));
                read.unwrap();
                assert!(received == expected, "connection {n}");
                assert_eq!(copy.await.unwrap().end, End::Clean);
            });
        }
        while let Some(done) = connections.join_next().await {
            done.unwrap();
        }
        for tunnel in tunnels {
            assert_eq!(tunnel.open_streams(), 0);
        }
    });
}

#[test]
fn counters_move_before_the_connection_ends() {
    local(async {
        let mut path = Path::new().await;
        path.client.write_all(b"question").await.unwrap();
        let mut buffer = [0; 8];
        path.server.read_exact(&mut buffer).await.unwrap();
        path.server.write_all(b"answer").await.unwrap();
        path.client.read_exact(&mut buffer[..6]).await.unwrap();
        let counters = Arc::clone(&path.client_copy.counters);
        assert_eq!((counters.sent(), counters.received()), (8, 6));
        let counters = Arc::clone(&path.server_copy.counters);
        assert_eq!((counters.sent(), counters.received()), (6, 8));
    });
}

#[test]
fn a_server_may_speak_first() {
    local(async {
        let mut path = Path::new().await;
        path.server.write_all(b"220 ready\r\n").await.unwrap();
        let mut banner = [0; 11];
        path.client.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"220 ready\r\n");
        drop(path.client);
        assert_eq!(read_all(&mut path.server).await, b"");
    });
}
