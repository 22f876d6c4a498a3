//! A FIN stays a FIN and a reset stays a reset, in every direction and whatever dies.

use std::future::{pending, ready};
use std::io::ErrorKind;

use crate::support::{
    Path, local, pattern, read_all, read_exactly, read_until_reset, reset, tcp_pair, until,
};
use h2::Reason;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_local;
use tunnel::Lined;
use tunnel::copy::{Abort, Counters, End, Side, tcp};

#[test]
fn a_client_that_has_finished_sending_still_receives() {
    local(async {
        let mut path = Path::new().await;
        path.client.write_all(b"request").await.unwrap();
        path.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut path.server).await, b"request");
        path.server.write_all(b"late ").await.unwrap();
        assert_eq!(read_exactly(&mut path.client, 5).await, b"late ");
        path.server.write_all(b"answer").await.unwrap();
        path.server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut path.client).await, b"answer");
        let (near, far) = path.ends().await;
        assert_eq!((near.end, far.end), (End::Clean, End::Clean));
    });
}

#[test]
fn a_server_that_has_finished_sending_still_receives() {
    local(async {
        let mut path = Path::new().await;
        path.server.write_all(b"banner").await.unwrap();
        path.server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut path.client).await, b"banner");
        path.client.write_all(b"upload").await.unwrap();
        path.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut path.server).await, b"upload");
        let (near, far) = path.ends().await;
        assert_eq!((near.end, far.end), (End::Clean, End::Clean));
    });
}

#[test]
fn a_slow_server_gets_what_a_client_sent_before_its_tunnel_was_retired() {
    local(async {
        let (server, leg) = tcp_pair().await;
        SockRef::from(&server)
            .set_recv_buffer_size(128 << 10)
            .unwrap();
        SockRef::from(&leg).set_send_buffer_size(128 << 10).unwrap();
        let mut path = Path::to_server((server, leg)).await;
        path.server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut path.client).await, b"");
        let upload = pattern(1 << 20, 1);
        path.client.write_all(&upload).await.unwrap();
        path.client.shutdown().await.unwrap();
        assert_eq!(path.client_copy.end.await.unwrap().end, End::Clean);
        drop(path.tunnel);
        until("the tunnel is over", || path.driver.is_finished()).await;
        assert!(read_all(&mut path.server).await == upload);
        assert_eq!(path.server_copy.end.await.unwrap().end, End::Clean);
    });
}

#[test]
fn a_reset_by_the_client_resets_the_server() {
    local(async {
        let mut path = Path::new().await;
        path.client.write_all(b"hello").await.unwrap();
        read_exactly(&mut path.server, 5).await;
        reset(path.client);
        assert_eq!(read_until_reset(&mut path.server).await, b"");
        let near = path.client_copy.end.await.unwrap().end;
        assert!(
            matches!(
                near,
                End::Tcp {
                    side: Side::First,
                    ..
                }
            ),
            "{near}"
        );
        let far = path.server_copy.end.await.unwrap().end;
        assert_eq!(far, End::StreamReset(Reason::CANCEL));
    });
}

#[test]
fn a_reset_by_the_server_resets_the_client() {
    local(async {
        let mut path = Path::new().await;
        path.client.write_all(b"hello").await.unwrap();
        read_exactly(&mut path.server, 5).await;
        reset(path.server);
        assert_eq!(read_until_reset(&mut path.client).await, b"");
        let near = path.client_copy.end.await.unwrap().end;
        assert_eq!(near, End::StreamReset(Reason::CONNECT_ERROR));
    });
}

#[test]
fn a_reset_after_the_clients_fin_is_seen() {
    local(async {
        let mut path = Path::new().await;
        path.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut path.server).await, b"");
        reset(path.client);
        // After a FIN no read shows a reset: the server sees it when it writes.
        let near = path.client_copy.end.await.unwrap().end;
        assert!(
            matches!(
                near,
                End::Tcp {
                    side: Side::First,
                    ..
                }
            ),
            "{near}"
        );
        let far = path.server_copy.end.await.unwrap().end;
        assert_eq!(far, End::StreamReset(Reason::CANCEL));
        let error = path.server.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn a_reset_of_a_client_that_is_stalled_is_seen() {
    local(async {
        let mut path = Path::new().await;
        let bytes = pattern(1 << 20, 1);
        let mut sent = 0;
        // Until nothing moves any more, because the server does not read.
        while let Ok(result) = tokio::time::timeout(
            std::time::Duration::from_millis(200),
            path.client.write(&bytes),
        )
        .await
        {
            sent += result.unwrap();
        }
        assert!(sent > 0);
        reset(path.client);
        let near = path.client_copy.end.await.unwrap().end;
        assert!(
            matches!(
                near,
                End::Tcp {
                    side: Side::First,
                    ..
                }
            ),
            "{near}"
        );
        read_until_reset(&mut path.server).await;
    });
}

#[test]
fn an_answer_that_was_sent_before_the_reset_is_delivered() {
    local(async {
        let mut path = Path::new().await;
        // The server answers without reading the request: its close is a reset.
        path.client
            .write_all(b"a request that nobody reads")
            .await
            .unwrap();
        until("the request arrived", || {
            path.server_copy.counters.received() > 0
        })
        .await;
        path.server.write_all(b"413 too large").await.unwrap();
        drop(path.server);
        assert_eq!(read_until_reset(&mut path.client).await, b"413 too large");
    });
}

#[test]
fn a_tunnel_that_dies_resets_both_applications() {
    for kill_client_side in [true, false] {
        local(async {
            let mut path = Path::new().await;
            path.client.write_all(&pattern(100_000, 1)).await.unwrap();
            read_exactly(&mut path.server, 50_000).await;
            if kill_client_side {
                path.driver.abort();
            } else {
                path.serving.abort();
            }
            read_until_reset(&mut path.server).await;
            read_until_reset(&mut path.client).await;
            let (near, far) = path.ends().await;
            assert!(matches!(near.end, End::TunnelLost(_)), "{}", near.end);
            assert!(matches!(far.end, End::TunnelLost(_)), "{}", far.end);
        });
    }
}

#[test]
fn a_copy_that_is_dropped_resets_both_applications() {
    local(async {
        let mut path = Path::new().await;
        path.client.write_all(b"hello").await.unwrap();
        read_exactly(&mut path.server, 5).await;
        path.client_copy.end.abort();
        read_until_reset(&mut path.client).await;
        read_until_reset(&mut path.server).await;
    });
}

#[test]
fn a_connection_that_policy_ends_is_reset_on_both_sides() {
    local(async {
        let mut path = Path::new().await;
        path.client.write_all(b"hello").await.unwrap();
        read_exactly(&mut path.server, 5).await;
        path.server_copy.abort.send(Abort::Policy).unwrap();
        read_until_reset(&mut path.client).await;
        read_until_reset(&mut path.server).await;
        let far = path.server_copy.end.await.unwrap();
        assert_eq!(far.end, End::Aborted(Abort::Policy));
        assert_eq!(far.received, 5);
    });
}

#[test]
fn plaintext_copies_keep_half_closes() {
    local(async {
        let (mut client, first) = tcp_pair().await;
        let (mut server, second) = tcp_pair().await;
        let copy = spawn_local(async move {
            tcp(first, Lined::new(second), &Counters::default(), pending()).await
        });
        client.write_all(b"request").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut server).await, b"request");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await, b"answer");
        let end = copy.await.unwrap();
        assert_eq!((end.end, end.sent, end.received), (End::Clean, 7, 6));
    });
}

#[test]
fn plaintext_copies_keep_resets() {
    for by in [Side::First, Side::Second] {
        local(async {
            let (mut client, first) = tcp_pair().await;
            let (mut server, second) = tcp_pair().await;
            let copy = spawn_local(async move {
                tcp(first, Lined::new(second), &Counters::default(), pending()).await
            });
            client.write_all(b"a").await.unwrap();
            read_exactly(&mut server, 1).await;
            let mut other = match by {
                Side::First => {
                    reset(client);
                    server
                }
                Side::Second => {
                    reset(server);
                    client
                }
            };
            read_until_reset(&mut other).await;
            let end = copy.await.unwrap().end;
            assert!(matches!(end, End::Tcp { side, .. } if side == by), "{end}");
        });
    }
}

#[test]
fn a_plaintext_copy_that_policy_ends_is_reset_on_both_sides() {
    local(async {
        let (mut client, first) = tcp_pair().await;
        let (mut server, second) = tcp_pair().await;
        let end = tcp(
            first,
            Lined::new(second),
            &Counters::default(),
            ready(Abort::Drain),
        )
        .await;
        assert_eq!(end.end, End::Aborted(Abort::Drain));
        read_until_reset(&mut client).await;
        read_until_reset(&mut server).await;
    });
}
