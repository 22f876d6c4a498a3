//! What an agent of ours does with a peer that is slow, strange or hostile.

use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_local;
use tunnel::Settings;
use tunnel::copy::End;

use crate::raw::{DATA, FIN, OPEN, PING, raw_server};
use crate::support::{copying, local, pattern, read_all, request, tcp_pair, until};

#[test]
fn a_stream_that_never_ends_lets_its_neighbour_speak() {
    local(async {
        let pair = tcp_pair().await;
        let (tunnel, _driver, mut peer) = raw_server(pair, Settings::default()).await;
        let mut clients = Vec::new();
        for stream in [1, 2] {
            let (request, serve) = (request(), async {
                assert_eq!(peer.next().await.unwrap().kind, OPEN);
                peer.accept(stream, 1 << 30).await;
            });
            let (opened, ()) = tokio::join!(tunnel.open(&request), serve);
            let (client, leg) = tcp_pair().await;
            clients.push((client, copying(leg, opened.unwrap())));
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
fn a_tunnel_that_closes_waits_until_its_last_bytes_have_been_read() {
    local(async {
        let (near, far) = tcp_pair().await;
        // What does not fit waits in the client's kernel.
        SockRef::from(&far).set_recv_buffer_size(64 << 10).unwrap();
        let (tunnel, driver, mut peer) = raw_server((near, far), Settings::default()).await;
        let (request, serve) = (request(), async {
            assert_eq!(peer.next().await.unwrap().kind, OPEN);
            peer.accept(1, 8 << 20).await;
            peer.send(FIN, 1, &[]).await;
        });
        let (stream, ()) = tokio::join!(tunnel.open(&request), serve);
        let (mut client, leg) = tcp_pair().await;
        let copy = copying(leg, stream.unwrap());
        assert_eq!(read_all(&mut client).await, b"");
        let upload = pattern(1 << 20, 1);
        client.write_all(&upload).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(copy.end.await.unwrap().end, End::Clean);
        drop(tunnel);
        // Long enough for a driver that does not wait.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        // What comes for a socket that nobody holds is answered with a reset.
        peer.send(PING, 0, &[]).await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
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
