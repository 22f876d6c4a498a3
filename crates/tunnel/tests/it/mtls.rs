//! The same over real TLS: who may talk to whom, and what each side learns when not.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::support::{copying, echo_tcp, local, pattern, request, tcp_pair};
use model::Identity;
use tls::ca::Authority;
use tls::{Clock, PeerError, PeerRefusal, SystemClock, TlsFailure, TlsOptions, WorkloadCert};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tunnel::client::{self, ConnectError, Lost, OpenError};
use tunnel::copy::bidirectional;
use tunnel::secure::SecureError;
use tunnel::server::{self, AcceptError, ServerTunnel};
use tunnel::{Settings, Tunnel};

const A: &str = "spiffe://cluster.local/ns/shop/sa/a";
const B: &str = "spiffe://cluster.local/ns/shop/sa/b";
const HOUR: Duration = Duration::from_secs(3600);

fn identity(text: &str) -> Identity {
    text.parse().unwrap()
}

fn authority(clock: Arc<dyn Clock>) -> Authority {
    Authority::generate("test", clock).unwrap()
}

fn cert(authority: &Authority, name: &str) -> WorkloadCert {
    let svid = authority.issue(&identity(name), HOUR).unwrap();
    WorkloadCert::new(&svid, &TlsOptions::default()).unwrap()
}

async fn handshake(
    client_cert: &WorkloadCert,
    expected: &str,
    server_cert: &WorkloadCert,
) -> (
    Result<Tunnel, ConnectError>,
    Result<ServerTunnel, AcceptError>,
) {
    let (near, far) = tcp_pair().await;
    let settings = Settings::default();
    let expected = [identity(expected)];
    tokio::join!(
        client::connect(near, client_cert, &expected, settings),
        server::accept(far, server_cert, settings),
    )
}

async fn echo_all(mut server: ServerTunnel) {
    while let Some(Ok(incoming)) = server.next().await {
        spawn_local(async move {
            let (near, far) = tcp_pair().await;
            let stream = incoming.accept(None).unwrap();
            spawn_local(echo_tcp(far));
            bidirectional(near, stream, &Arc::default(), pending()).await
        });
    }
}

async fn exchange(client: TcpStream, bytes: Vec<u8>) {
    let expected = bytes.clone();
    let (mut read, mut write) = client.into_split();
    spawn_local(async move {
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    assert!(received == expected);
}

#[test]
fn both_sides_know_each_other_and_bytes_flow() {
    local(async {
        let authority = authority(Arc::new(SystemClock));
        let (a, b) = (cert(&authority, A), cert(&authority, B));
        let (tunnel, server) = handshake(&a, B, &b).await;
        let (tunnel, server) = (tunnel.unwrap(), server.unwrap());
        assert_eq!(tunnel.peer(), Some(&identity(B)));
        assert_eq!(server.peer(), Some(&identity(A)));
        spawn_local(echo_all(server));
        let stream = tunnel.open(&request()).await.unwrap();
        let (client, leg) = tcp_pair().await;
        let _copy = copying(leg, stream);
        exchange(client, pattern(16 << 20, 1)).await;
    });
}

#[test]
fn a_server_that_is_somebody_else_gets_no_byte_of_http() {
    local(async {
        let authority = authority(Arc::new(SystemClock));
        let (a, b) = (cert(&authority, A), cert(&authority, B));
        let (tunnel, server) = handshake(&a, A, &b).await;
        match tunnel {
            Err(ConnectError::Secure(SecureError::Tls(TlsFailure::Peer(
                PeerError::UnexpectedIdentity { expected, got },
            )))) => {
                assert_eq!(expected, [identity(A)]);
                assert_eq!(got, identity(B));
            }
            other => panic!("{other:?}"),
        }
        // The server's TLS is fine, and then nobody asks for anything.
        let next = server.unwrap().next().await;
        assert!(!matches!(next, Some(Ok(_))), "{next:?}");
    });
}

/// The server refuses; its reason is typed, and the client learns it from the alert.
async fn check_refused(
    client_cert: &WorkloadCert,
    server_cert: &WorkloadCert,
    expected: &str,
    reason: &str,
    refusal: PeerRefusal,
) {
    let (tunnel, server) = handshake(client_cert, expected, server_cert).await;
    match server.map(drop) {
        Err(AcceptError::Secure(error)) => assert_eq!(error.reason().as_str(), reason),
        other => panic!("{reason}: {other:?}"),
    }
    match tunnel.unwrap().open(&request()).await {
        Err(OpenError::Lost(Lost::Tls(TlsFailure::RefusedByPeer(got)))) => {
            assert_eq!(got, refusal, "{reason}");
        }
        other => panic!("{reason}: {other:?}"),
    }
}

#[derive(Debug)]
struct Tomorrow;

impl Clock for Tomorrow {
    fn now(&self) -> SystemTime {
        SystemTime::now() + 24 * HOUR
    }
}

#[test]
fn a_server_refuses_a_client_of_another_trust_domain() {
    local(async {
        let authority = authority(Arc::new(SystemClock));
        let client = cert(&authority, "spiffe://elsewhere/ns/shop/sa/a");
        let server = cert(&authority, B);
        check_refused(
            &client,
            &server,
            B,
            "other_trust_domain",
            PeerRefusal::Identity,
        )
        .await;
    });
}

#[test]
fn a_server_refuses_a_client_whose_certificate_has_ended() {
    local(async {
        let authority = authority(Arc::new(SystemClock));
        let client = cert(&authority, A);
        let tomorrow = TlsOptions {
            clock: Arc::new(Tomorrow),
            ..TlsOptions::default()
        };
        let svid = authority.issue(&identity(B), HOUR).unwrap();
        let server = WorkloadCert::new(&svid, &tomorrow).unwrap();
        check_refused(&client, &server, B, "expired", PeerRefusal::NotInDate).await;
    });
}

#[test]
fn a_client_refuses_a_server_of_another_root_and_the_server_hears_it() {
    local(async {
        let ours = authority(Arc::new(SystemClock));
        let theirs = authority(Arc::new(SystemClock));
        let (a, b) = (cert(&ours, A), cert(&theirs, B));
        let (tunnel, server) = handshake(&a, B, &b).await;
        match tunnel {
            Err(ConnectError::Secure(error)) => assert_eq!(error.reason().as_str(), "unknown_root"),
            other => panic!("{other:?}"),
        }
        match server.map(drop) {
            Err(AcceptError::Secure(error)) => {
                assert_eq!(error.reason().as_str(), "refused_by_peer_unknown_root");
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_silent_peer_is_given_up() {
    local(async {
        let authority = authority(Arc::new(SystemClock));
        let b = cert(&authority, B);
        let settings = Settings {
            handshake_timeout: Duration::from_millis(100),
            ..Settings::default()
        };
        let (_silent, far) = tcp_pair().await;
        let accepted = server::accept(far, &b, settings).await;
        assert!(matches!(accepted, Err(AcceptError::Timeout(_))));
        let (near, _silent) = tcp_pair().await;
        let connected = client::connect(near, &b, &[identity(A)], settings).await;
        assert!(matches!(connected, Err(ConnectError::Timeout(_))));
    });
}

#[test]
fn a_peer_that_speaks_no_tls_is_refused() {
    local(async {
        let authority = authority(Arc::new(SystemClock));
        let b = cert(&authority, B);
        let (mut plain, far) = tcp_pair().await;
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        plain.shutdown().await.unwrap();
        match server::accept(far, &b, Settings::default()).await.map(drop) {
            Err(AcceptError::Secure(error)) => assert_eq!(error.reason().as_str(), "tls_protocol"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_connection_cut_below_tls_resets_the_applications() {
    local(async {
        let authority = authority(Arc::new(SystemClock));
        let (a, b) = (cert(&authority, A), cert(&authority, B));
        let (tunnel, server) = handshake(&a, B, &b).await;
        let (tunnel, serving) = (tunnel.unwrap(), spawn_local(echo_all(server.unwrap())));
        let stream = tunnel.open(&request()).await.unwrap();
        let (mut client, leg) = tcp_pair().await;
        let copy = copying(leg, stream);
        client.write_all(b"half of").await.unwrap();
        crate::support::read_exactly(&mut client, 7).await;
        serving.abort();
        crate::support::read_until_reset(&mut client).await;
        let end = copy.end.await.unwrap().end;
        assert!(matches!(end, tunnel::copy::End::TunnelLost(_)), "{end}");
    });
}

#[test]
fn a_side_that_knows_only_hbone_gets_hbone() {
    local(async {
        let authority = authority(Arc::new(SystemClock));
        let (a, b) = (cert(&authority, A), cert(&authority, B));
        let thin = Settings::default();
        let hbone = Settings {
            thin: false,
            ..thin
        };
        for (client, server, agreed) in [
            (thin, thin, true),
            (thin, hbone, false),
            (hbone, thin, false),
            (hbone, hbone, false),
        ] {
            let (near, far) = tcp_pair().await;
            let expected = [identity(B)];
            let (tunnel, server) = tokio::join!(
                client::connect(near, &a, &expected, client),
                server::accept(far, &b, server),
            );
            let tunnel = tunnel.unwrap();
            assert_eq!(tunnel.is_thin(), agreed, "{client:?}");
            spawn_local(echo_all(server.unwrap()));
            let stream = tunnel.open(&request()).await.unwrap();
            let (app, leg) = tcp_pair().await;
            let copy = copying(leg, stream);
            exchange(app, pattern(100_000, 3)).await;
            drop(copy);
        }
    });
}
