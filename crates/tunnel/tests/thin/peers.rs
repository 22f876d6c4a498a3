//! What an agent of ours does with a peer that is slow, strange or hostile.

use std::future::pending;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::time::Duration;

use h2::Reason;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tunnel::client::OpenError;
use tunnel::copy::End;
use tunnel::server::NextError;
use tunnel::{Settings, Tunnel};

use crate::raw::{
    ANSWER, AWAY, CREDIT, DATA, FIN, OPEN, PING, PONG, RESET, RawServer, frame, raw_client,
    raw_server,
};
use crate::support::{
    Copying, copying, echo, local, pattern, read_all, read_exactly, request, reset, serve,
    tcp_pair, until,
};

/// Opens a stream: the application's socket and what moves its bytes.
async fn connected(tunnel: &Tunnel, peer: &mut RawServer, stream: u32) -> (TcpStream, Copying) {
    let (request, serve) = (request(), async {
        assert_eq!(peer.next_of(OPEN).await.stream, stream);
        peer.accept(stream, 1 << 30).await;
    });
    let (opened, ()) = tokio::join!(tunnel.open(&request), serve);
    let (client, leg) = tcp_pair().await;
    (client, copying(leg, opened.unwrap()))
}

#[test]
fn a_stream_that_never_ends_lets_its_neighbour_speak() {
    local(async {
        let pair = tcp_pair().await;
        let (tunnel, _driver, mut peer) = raw_server(pair, Settings::default()).await;
        let mut clients = Vec::new();
        for stream in [1, 2] {
            clients.push(connected(&tunnel, &mut peer, stream).await);
        }
        let (mut quiet, _quiet_copy) = clients.pop().unwrap();
        let (mut loud, _loud_copy) = clients.pop().unwrap();
        spawn_local(async move {
            let bytes = pattern(256 << 10, 1);
            while loud.write_all(&bytes).await.is_ok() {}
        });
        let mut before = 0;
        let mut asked = false;
        loop {
            let frame = peer.next().await.unwrap();
            if frame.stream == 2 {
                return;
            }
            before += frame.payload.len();
            if before > 16 << 20 && !asked {
                quiet.write_all(b"may I").await.unwrap();
                asked = true;
            }
            // Sockets hold some of it.
            assert!(before < 80 << 20, "{before} bytes");
        }
    });
}

#[test]
fn applications_that_reset_do_not_make_the_peer_a_flood() {
    local(async {
        let (near, far) = tcp_pair().await;
        // The tunnel is full before the applications have said half of what they may.
        SockRef::from(&near).set_send_buffer_size(64 << 10).unwrap();
        SockRef::from(&far).set_recv_buffer_size(64 << 10).unwrap();
        let (tunnel, driver, mut peer) = raw_server((near, far), Settings::default()).await;
        let mut clients = Vec::new();
        for stream in 1..=40 {
            clients.push(connected(&tunnel, &mut peer, stream).await);
        }
        let bytes = pattern(128 << 10, 1);
        for (client, _) in &mut clients {
            client.write_all(&bytes).await.unwrap();
        }
        // Nothing moves any more.
        tokio::time::sleep(Duration::from_millis(100)).await;
        for (client, copy) in clients {
            reset(client);
            copy.end.await.unwrap();
        }
        peer.send(PING, 0, b"well?").await;
        // It is heard before anything more is read.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(peer.next_of(PONG).await.payload, b"well?");
        assert!(!driver.is_finished());
        drop(tunnel);
    });
}

#[test]
fn a_tunnel_that_closes_waits_until_its_last_bytes_have_been_read() {
    local(async {
        let (near, far) = tcp_pair().await;
        // What does not fit waits in the client's kernel.
        SockRef::from(&far).set_recv_buffer_size(64 << 10).unwrap();
        let (tunnel, driver, mut peer) = raw_server((near, far), Settings::default()).await;
        let (mut client, copy) = connected(&tunnel, &mut peer, 1).await;
        peer.send(FIN, 1, &[]).await;
        assert_eq!(read_all(&mut client).await, b"");
        let upload = pattern(1 << 20, 1);
        client.write_all(&upload).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(copy.end.await.unwrap().end, End::Clean);
        drop(tunnel);
        // Long enough for a driver that does not wait.
        tokio::time::sleep(Duration::from_millis(300)).await;
        // What comes for a socket that nobody holds is answered with a reset.
        peer.send(PING, 0, &[]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut received = Vec::new();
        loop {
            let frame = peer.next().await.unwrap();
            match frame.kind {
                DATA => received.extend(frame.payload),
                FIN => break,
                kind => panic!("{kind}"),
            }
        }
        assert!(received == upload);
        drop(peer);
        until("the driver ends", || driver.is_finished()).await;
    });
}

#[test]
fn a_reset_that_comes_with_a_fin_is_a_reset() {
    local(async {
        let pair = tcp_pair().await;
        let (tunnel, _driver, mut peer) = raw_server(pair, Settings::default()).await;
        let (client, copy) = connected(&tunnel, &mut peer, 1).await;
        // Nothing else runs meanwhile: all of it is there when the copy is polled next.
        SockRef::from(&client).shutdown(Shutdown::Write).unwrap();
        let mut frames = frame(FIN, 1, &[]);
        frames.extend(frame(RESET, 1, &u32::from(Reason::CANCEL).to_be_bytes()));
        peer.try_send(&frames).await.unwrap();
        let end = copy.end.await.unwrap().end;
        assert_eq!(end, End::StreamReset(Reason::CANCEL));
    });
}

#[test]
fn a_peer_whose_records_are_broken_is_told() {
    local(async {
        let pair = tcp_pair().await;
        let (_tunnel, driver, mut peer) = raw_server(pair, Settings::default()).await;
        let mut record = vec![23, 3, 3, 0, 32];
        record.resize(5 + 32, 0);
        peer.0.get_mut().0.write_all(&record).await.unwrap();
        let error = peer.next().await.unwrap_err();
        assert!(error.to_string().contains("alert"), "{error}");
        until("the driver ends", || driver.is_finished()).await;
    });
}

#[test]
fn what_came_before_a_broken_record_is_delivered() {
    local(async {
        let pair = tcp_pair().await;
        let (tunnel, driver, mut peer) = raw_server(pair, Settings::default()).await;
        let (mut client, _copy) = connected(&tunnel, &mut peer, 1).await;
        let (tcp, session) = peer.0.get_mut();
        let good = pattern(20_000, 1);
        let mut records = Vec::new();
        for part in good.chunks(10_000) {
            let frame = frame(DATA, 1, part);
            std::io::Write::write_all(&mut session.writer(), &frame).unwrap();
            session.write_tls(&mut records).unwrap();
        }
        records.extend([23, 3, 3, 0, 32]);
        records.extend([7; 32]);
        // In one piece, so that one read finds all of it.
        tcp.write_all(&records).await.unwrap();
        assert!(read_exactly(&mut client, 20_000).await == good);
        until("the driver ends", || driver.is_finished()).await;
    });
}

#[test]
fn a_peer_may_change_its_keys_and_ask_for_new_ones() {
    local(async {
        let pair = tcp_pair().await;
        let (tunnel, _driver, mut peer) = raw_server(pair, Settings::default()).await;
        let (mut client, _copy) = connected(&tunnel, &mut peer, 1).await;
        for round in 0..10 {
            peer.0.get_mut().1.refresh_traffic_keys().unwrap();
            peer.send(DATA, 1, &[round]).await;
            assert_eq!(read_exactly(&mut client, 1).await, [round]);
            client.write_all(&[round]).await.unwrap();
            assert_eq!(peer.next_of(DATA).await.payload, [round]);
        }
    });
}

#[test]
fn a_pong_that_came_while_the_agent_was_stalled_counts() {
    local(async {
        let settings = Settings {
            keepalive_interval: Duration::from_millis(100),
            keepalive_timeout: Duration::from_millis(200),
            ..Settings::default()
        };
        let (_tunnel, driver, mut peer) = raw_server(tcp_pair().await, settings).await;
        let ping = peer.next_of(PING).await;
        peer.send(PONG, 0, &ping.payload).await;
        // Both ends are on this thread.
        std::thread::sleep(settings.keepalive_timeout * 2);
        let ping = peer.next_of(PING).await;
        peer.send(PONG, 0, &ping.payload).await;
        assert!(!driver.is_finished());
    });
}

#[test]
fn what_is_asked_after_away_was_heard_is_refused_and_the_tunnel_ends() {
    local(async {
        let (mut peer, mut server) = raw_client(tcp_pair().await, Settings::default()).await;
        server.graceful_shutdown();
        let serving = serve(server, echo);
        peer.next_of(AWAY).await;
        let ping = peer.next_of(PING).await;
        // It may have left before we heard.
        peer.open(1).await;
        assert_eq!(peer.next_of(ANSWER).await.stream, 1);
        peer.send(PONG, 0, &ping.payload).await;
        peer.open(2).await;
        let refused = peer.next_of(RESET).await;
        assert_eq!(refused.stream, 2);
        let reason = u32::from(Reason::REFUSED_STREAM);
        assert_eq!(refused.payload, reason.to_be_bytes());
        // Those that are open go on.
        peer.send(DATA, 1, b"still there?").await;
        assert_eq!(peer.next_of(DATA).await.payload, b"still there?");
        peer.send(FIN, 1, &[]).await;
        assert_eq!(peer.next_of(FIN).await.stream, 1);
        let end = peer.next().await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
        drop(peer);
        assert!(serving.await.unwrap().is_empty());
    });
}

#[test]
fn a_tunnel_that_refused_a_stream_is_full_until_one_ends() {
    local(async {
        let pair = tcp_pair().await;
        let (tunnel, _driver, mut peer) = raw_server(pair, Settings::default()).await;
        let (client, copy) = connected(&tunnel, &mut peer, 1).await;
        let (request, refuse) = (request(), async {
            assert_eq!(peer.next_of(OPEN).await.stream, 2);
            let reason = u32::from(Reason::REFUSED_STREAM);
            peer.send(RESET, 2, &reason.to_be_bytes()).await;
        });
        let (opened, ()) = tokio::join!(tunnel.open(&request), refuse);
        assert!(opened.unwrap_err().is_unprocessed());
        let full = tunnel.reserve();
        assert!(matches!(full, Err(OpenError::Full)), "{full:?}");
        reset(client);
        copy.end.await.unwrap();
        assert!(tunnel.reserve().is_ok());
    });
}

/// A server that holds what it accepted, and what it says of a client that sends these frames.
async fn violates(frames: &[u8]) -> String {
    let (mut peer, server) = raw_client(tcp_pair().await, Settings::default()).await;
    let serving = serve(server, |incoming| async {
        let _held = incoming.accept(None).unwrap();
        pending::<()>().await;
    });
    peer.open(1).await;
    assert_eq!(peer.next_of(ANSWER).await.stream, 1);
    let mut sent = 0;
    while !serving.is_finished() && peer.try_send(frames).await.is_ok() {
        sent += frames.len();
        // Most of it is in the kernel.
        assert!(sent < 64 << 20, "{sent} bytes");
    }
    match &serving.await.unwrap()[..] {
        [NextError::Failed(cause)] => cause.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn more_bytes_than_there_was_credit_for_are_a_violation() {
    local(async {
        let said = violates(&frame(DATA, 1, &[0; 16 << 10])).await;
        assert!(said.contains("there was credit for"), "{said}");
    });
}

#[test]
fn more_credit_than_can_be_counted_is_a_violation() {
    local(async {
        let said = violates(&frame(CREDIT, 1, &u32::MAX.to_be_bytes())).await;
        assert!(said.contains("too much credit"), "{said}");
    });
}

#[test]
fn a_flood_of_pings_whose_answers_are_not_read_is_a_violation() {
    local(async {
        let ping = frame(PING, 0, &[0; 16 << 10]);
        let said = violates(&ping).await;
        assert!(said.contains("more is asked"), "{said}");
    });
}
