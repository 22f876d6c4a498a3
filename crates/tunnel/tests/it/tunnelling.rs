//! Requests, answers, refusals and the end of tunnels.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{echo, local, local_paused, request, serve, tcp_pair, tunnel, tunnel_with};
use http::{HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::Instant;
use tunnel::client::{Lost, OpenError};
use tunnel::copy::{End, bidirectional};
use tunnel::forwarded::Forwarded;
use tunnel::server::NextError;
use tunnel::{Authority, ConnectRequest, ErrorType, ProxyStatus, Settings};

#[test]
fn a_request_carries_who_and_for_whom() {
    local(async {
        let (tunnel, server, _driver) = tunnel().await;
        let client: SocketAddr = "[fd00::1]:40000".parse().unwrap();
        let forwarded = Forwarded::new(client, Some("web.shop.svc.cluster.local"));
        let value = forwarded.to_value().unwrap();
        let expected = forwarded.clone();
        serve(server, move |incoming| {
            let expected = expected.clone();
            async move {
                let target: SocketAddr = "[fd00::2]:8080".parse().unwrap();
                assert_eq!(incoming.authority, Authority::Address(target));
                assert_eq!(incoming.forwarded, Some(expected));
                assert_eq!(incoming.baggage(), Some("k8s.namespace.name=shop"));
                assert_eq!(incoming.traceparent(), Some("00-1-2-00"));
                let baggage = HeaderValue::from_static("k8s.namespace.name=data");
                accept_with(incoming, baggage).await;
            }
        });
        let request = ConnectRequest {
            authority: "[fd00::2]:8080".to_owned(),
            forwarded: Some(value.to_str().unwrap().to_owned()),
            baggage: Some("k8s.namespace.name=shop".to_owned()),
            traceparent: Some("00-1-2-00".to_owned()),
        };
        let stream = tunnel.open(&request).await.unwrap();
        assert_eq!(stream.peer_baggage(), Some("k8s.namespace.name=data"));
    });
}

async fn accept_with(incoming: tunnel::server::Incoming, baggage: HeaderValue) {
    let _stream = incoming.accept(Some(baggage)).unwrap();
    pending::<()>().await;
}

#[test]
fn a_request_that_cannot_be_written_is_named() {
    local(async {
        let (tunnel, server, _driver) = tunnel().await;
        serve(server, echo);
        let bad = |field: &str| ConnectRequest {
            baggage: (field == "baggage").then(|| "a\nb".to_owned()),
            ..request()
        };
        let bad_authority = ConnectRequest {
            authority: "a b".to_owned(),
            ..request()
        };
        for (request, expected) in [(bad("baggage"), "baggage"), (bad_authority, ":authority")] {
            match tunnel.open(&request).await {
                Err(OpenError::InvalidRequest { field }) => assert_eq!(field, expected),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(tunnel.open_streams(), 0);
    });
}

#[test]
fn the_reason_of_a_refusal_reaches_the_client() {
    let sentences = [
        "policy shop/deny-all, rule 1: DENY",
        r#"a "quoted" \ reason; with=, signs"#,
        "größer → kleiner",
        "",
    ];
    local(async {
        for status in [400, 401, 503] {
            for sentence in sentences {
                let (tunnel, server, _driver) = tunnel().await;
                let status = StatusCode::from_u16(status).unwrap();
                serve(server, move |incoming| async move {
                    let reason = ProxyStatus::new(ErrorType::HttpRequestDenied, sentence);
                    incoming.refuse(status, &reason);
                });
                match tunnel.open(&request()).await {
                    Err(OpenError::Refused {
                        status: got,
                        error,
                        reason,
                    }) => {
                        assert_eq!(got, status);
                        assert_eq!(error.as_deref(), Some("http_request_denied"));
                        assert_eq!(reason.as_deref(), Some(sentence));
                    }
                    other => panic!("{other:?}"),
                }
                assert_eq!(tunnel.open_streams(), 0);
            }
        }
    });
}

#[test]
fn a_request_nobody_answers_is_reset() {
    local(async {
        let (tunnel, server, _driver) = tunnel().await;
        serve(server, |incoming| async move { drop(incoming) });
        let error = tunnel.open(&request()).await.unwrap_err();
        assert!(matches!(error, OpenError::Reset(_)), "{error:?}");
        assert!(!error.is_unprocessed());
    });
}

#[test]
fn waiting_for_an_answer_ends_and_the_server_hears_of_it() {
    local_paused(async {
        let (tunnel, server, _driver) = tunnel().await;
        let (cancelled, was_cancelled) = oneshot::channel();
        let mut cancelled = Some(cancelled);
        serve(server, move |mut incoming| {
            let cancelled = cancelled.take().unwrap();
            async move {
                incoming.cancelled().await;
                cancelled.send(()).unwrap();
            }
        });
        let error = tunnel.open(&request()).await.unwrap_err();
        assert!(matches!(error, OpenError::Timeout(_)), "{error:?}");
        was_cancelled.await.unwrap();
        assert_eq!(tunnel.open_streams(), 0);
    });
}

#[test]
fn a_full_tunnel_says_so() {
    local(async {
        let two = Settings {
            max_concurrent_streams: 2,
            ..Settings::default()
        };
        let (tunnel, server, _driver) = tunnel_with(Settings::default(), two).await;
        serve(server, echo);
        let first = tunnel.open(&request()).await.unwrap();
        let second = tunnel.open(&request()).await.unwrap();
        assert_eq!((tunnel.max_streams(), tunnel.open_streams()), (2, 2));
        let error = tunnel.open(&request()).await.unwrap_err();
        assert!(matches!(error, OpenError::Full), "{error:?}");
        drop(first);
        assert_eq!(tunnel.open_streams(), 1);
        let third = tunnel.open(&request()).await.unwrap();
        drop((second, third));
    });
}

#[test]
fn after_goaway_live_streams_finish_and_new_ones_go_elsewhere() {
    local(async {
        let (tunnel, mut server, _driver) = tunnel().await;
        let (shut_down, shutting_down) = oneshot::channel::<()>();
        let serving = spawn_local(async move {
            let mut shutting_down = Some(shutting_down);
            loop {
                let stop = async {
                    match &mut shutting_down {
                        Some(receiver) => receiver.await.unwrap(),
                        None => pending().await,
                    }
                };
                tokio::select! {
                    () = stop => {
                        server.graceful_shutdown();
                        shutting_down = None;
                    }
                    next = server.next() => match next {
                        Some(next) => drop(spawn_local(echo(next.unwrap()))),
                        None => return,
                    },
                }
            }
        });
        let stream = tunnel.open(&request()).await.unwrap();
        let (mut client, leg) = tcp_pair().await;
        let copy =
            spawn_local(
                async move { bidirectional(leg, stream, &Arc::default(), pending()).await },
            );
        client.write_all(b"before").await.unwrap();
        let mut buffer = [0; 6];
        client.read_exact(&mut buffer).await.unwrap();

        shut_down.send(()).unwrap();
        crate::support::until("GOAWAY arrives", || tunnel.is_closed()).await;
        let error = tunnel.open(&request()).await.unwrap_err();
        assert!(error.is_unprocessed(), "{error:?}");

        client.write_all(b"after!").await.unwrap();
        client.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"after!");
        assert!(!serving.is_finished());
        client.shutdown().await.unwrap();
        assert_eq!(copy.await.unwrap().end, End::Clean);
        serving.await.unwrap();
        crate::support::until("the driver ends", || tunnel.lost().is_some()).await;
        assert!(matches!(tunnel.lost(), Some(Lost::Closed)), "{tunnel:?}");
    });
}

#[test]
fn a_tunnel_closes_when_nobody_holds_it() {
    local(async {
        let (tunnel, server, driver) = tunnel().await;
        let serving = serve(server, echo);
        drop(tunnel.open(&request()).await.unwrap());
        drop(tunnel);
        assert!(serving.await.unwrap().is_empty());
        crate::support::until("the driver ends", || driver.is_finished()).await;
    });
}

#[test]
fn a_server_that_stops_answering_is_found_out() {
    local_paused(async {
        // The server is never polled again after its handshake: a node that froze.
        let patient = Settings {
            open_timeout: Duration::from_secs(300),
            ..Settings::default()
        };
        let (tunnel, server, _driver) = tunnel_with(patient, Settings::default()).await;
        let start = Instant::now();
        let error = tunnel.open(&request()).await.unwrap_err();
        assert!(
            matches!(error, OpenError::Lost(Lost::Unresponsive(_))),
            "{error:?}"
        );
        let age = start.elapsed();
        assert!((30..31).contains(&age.as_secs()), "{age:?}");
        assert!(tunnel.is_closed());
        drop(server);
    });
}

#[test]
fn a_client_that_stops_answering_is_found_out() {
    local_paused(async {
        let settings = Settings::default();
        let (_tunnel, _frozen, mut server) = crate::wire::ends(settings, settings).await;
        let end = server.next().await;
        assert!(
            matches!(end, Some(Err(NextError::Unresponsive(_)))),
            "{end:?}"
        );
        assert!(server.next().await.is_none());
    });
}

#[test]
fn an_idle_tunnel_stays() {
    local_paused(async {
        let (tunnel, server, _driver) = tunnel().await;
        serve(server, |incoming| async move {
            let _stream = incoming.accept(None).unwrap();
            pending::<()>().await;
        });
        tokio::time::sleep(Duration::from_secs(2000)).await;
        assert!(!tunnel.is_closed());
        tunnel.open(&request()).await.unwrap();
    });
}
