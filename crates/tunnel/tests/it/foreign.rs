//! Strangers on the other side: HTTP/2 without our client or our server, written from the protocol.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::rc::Rc;

use crate::support::{copying, echo, local, read_exactly, request, serve, tcp_pair, until};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::spawn_local;
use tunnel::client::OpenError;
use tunnel::server::{NextError, ServerTunnel};
use tunnel::{ProxyStatus, Settings};

async fn foreign_client(settings: Settings) -> (SendRequest<Bytes>, ServerTunnel<DuplexStream>) {
    let (near, far) = tokio::io::duplex(256 << 10);
    let client = async {
        let (sender, connection) = h2::client::handshake(near).await.unwrap();
        spawn_local(connection);
        sender
    };
    let server = tunnel::server::handshake(far, None, settings);
    let (sender, server) = tokio::join!(client, server);
    (sender, server.unwrap())
}

fn connect(authority: &str) -> Request<()> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .body(())
        .unwrap()
}

async fn read_stream(mut recv: RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = recv.data().await {
        let chunk = chunk?;
        recv.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[test]
fn what_is_not_connect_is_a_bad_request_and_the_tunnel_goes_on() {
    local(async {
        let (sender, server) = foreign_client(Settings::default()).await;
        let serving = serve(server, echo);
        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            let request = Request::builder()
                .method(method)
                .uri("https://10.0.0.1:80/")
                .body(())
                .unwrap();
            let mut ready = sender.clone().ready().await.unwrap();
            let (response, _send) = ready.send_request(request, true).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), StatusCode::BAD_REQUEST);
            let status = ProxyStatus::from_headers(response.headers()).unwrap();
            assert_eq!(status.error.as_deref(), Some("http_request_error"));
            assert!(status.details.unwrap().ends_with("is not CONNECT"));
        }
        connects_and_echoes(&sender).await;
        drop(sender);
        let errors = serving.await.unwrap();
        assert_eq!(errors.len(), 3);
        assert!(matches!(errors[0], NextError::NotConnect { .. }));
    });
}

#[test]
fn a_malformed_target_is_a_bad_request_and_the_tunnel_goes_on() {
    local(async {
        let (sender, server) = foreign_client(Settings::default()).await;
        let serving = serve(server, echo);
        let targets = [
            "web",
            "10.0.0.1",
            "10.0.0.1:0",
            "10.0.0.1:99999",
            "10.0.0:80",
            "u@web:80",
        ];
        for target in targets {
            let mut ready = sender.clone().ready().await.unwrap();
            let (response, _send) = ready.send_request(connect(target), false).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{target}");
            let status = ProxyStatus::from_headers(response.headers()).unwrap();
            assert!(status.details.unwrap().contains(target), "{target}");
        }
        connects_and_echoes(&sender).await;
        drop(sender);
        assert_eq!(serving.await.unwrap().len(), targets.len());
    });
}

async fn connects_and_echoes(sender: &SendRequest<Bytes>) {
    let mut ready = sender.clone().ready().await.unwrap();
    let (response, mut send) = ready.send_request(connect("10.0.0.1:80"), false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    send.send_data(Bytes::from_static(b"ping"), true).unwrap();
    assert_eq!(read_stream(response.into_body()).await.unwrap(), b"ping");
}

#[test]
fn bytes_sent_before_the_answer_arrive() {
    local(async {
        let (sender, server) = foreign_client(Settings::default()).await;
        serve(server, |incoming| async {
            // The body is there before we look at the request.
            tokio::task::yield_now().await;
            echo(incoming).await;
        });
        let mut ready = sender.ready().await.unwrap();
        let (response, mut send) = ready.send_request(connect("10.0.0.1:80"), false).unwrap();
        send.send_data(Bytes::from_static(b"eager "), false)
            .unwrap();
        send.send_data(Bytes::from_static(b"client"), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(
            read_stream(response.into_body()).await.unwrap(),
            b"eager client"
        );
    });
}

#[test]
fn a_refused_client_that_keeps_sending_reads_the_refusal() {
    local(async {
        let (sender, server) = foreign_client(Settings::default()).await;
        serve(server, echo);
        let mut ready = sender.ready().await.unwrap();
        let (response, mut send) = ready.send_request(connect("web"), false).unwrap();
        send.send_data(Bytes::from(vec![0; 60_000]), false).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::BAD_REQUEST);
        let reset = poll_fn(|cx| send.poll_reset(cx)).await.unwrap();
        assert_eq!(reset, Reason::NO_ERROR);
    });
}

#[test]
fn a_client_that_resets_what_it_opens_keeps_few_requests_alive() {
    local(async {
        let settings = Settings {
            max_concurrent_streams: 8,
            ..Settings::default()
        };
        let (sender, server) = foreign_client(settings).await;
        let serving = Rc::new(Cell::new((0_usize, 0_usize)));
        let counted = Rc::clone(&serving);
        let ended = serve(server, move |incoming| {
            let counted = Rc::clone(&counted);
            async move {
                let (now, most) = counted.get();
                counted.set((now + 1, most.max(now + 1)));
                // An application that takes its time, whatever the client does.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                drop(incoming);
                let (now, most) = counted.get();
                counted.set((now - 1, most));
            }
        });
        let mut closed = false;
        for n in 0..10_000 {
            let Ok(mut ready) = sender.clone().ready().await else {
                closed = true;
                break;
            };
            let Ok((_response, mut send)) = ready.send_request(connect("10.0.0.1:80"), false)
            else {
                closed = true;
                break;
            };
            send.send_reset(Reason::CANCEL);
            if n % 8 == 0 {
                tokio::task::yield_now().await;
            }
        }
        assert!(closed, "the flood is ended");
        let errors = ended.await.unwrap();
        assert!(
            matches!(&errors[..], [NextError::Failed(error)]
                if error.downcast_ref::<h2::Error>().and_then(h2::Error::reason)
                    == Some(Reason::ENHANCE_YOUR_CALM)),
            "{errors:?}"
        );
        assert!(serving.get().1 <= 8, "{:?}", serving.get());
    });
}

#[test]
fn a_client_that_never_reads_takes_no_more_than_its_window() {
    local(async {
        let (sender, server) = foreign_client(Settings::default()).await;
        let (app, leg) = tcp_pair().await;
        let mut leg = Some(leg);
        let copy = Rc::new(std::cell::RefCell::new(None));
        let slot = Rc::clone(&copy);
        serve(server, move |incoming| {
            let stream = incoming.accept(None).unwrap();
            *slot.borrow_mut() = Some(copying(leg.take().unwrap(), stream));
            async {}
        });
        let mut ready = sender.ready().await.unwrap();
        let (response, _send) = ready.send_request(connect("10.0.0.1:80"), false).unwrap();
        let _unread = response.await.unwrap();
        let writing = spawn_local(async move {
            let mut app = app;
            let bytes = vec![7; 64 << 10];
            while app.write_all(&bytes).await.is_ok() {}
        });
        let counters = copy.take().unwrap().counters;
        let mut last = 0;
        until("it stalls", || {
            let sent = counters.sent();
            let stalled = sent > 0 && sent == last;
            last = sent;
            stalled
        })
        .await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        // The stranger's window is the default of the protocol, 64 KiB less one.
        let bound = 65_535 + Settings::default().send_buffer as u64;
        assert!(counters.sent() <= bound, "{} > {bound}", counters.sent());
        writing.abort();
    });
}

async fn foreign_server<H>(mut handler: H) -> tunnel::Tunnel
where
    H: FnMut(h2::server::SendResponse<Bytes>, Request<RecvStream>) + 'static,
{
    let (near, far) = tokio::io::duplex(256 << 10);
    spawn_local(async move {
        let mut connection = h2::server::handshake(far).await.unwrap();
        while let Some(Ok((request, respond))) = connection.accept().await {
            handler(respond, request);
        }
    });
    let (tunnel, driver) = tunnel::client::handshake(near, None, Settings::default())
        .await
        .unwrap();
    spawn_local(driver);
    tunnel
}

#[test]
fn a_request_of_ours_is_a_plain_connect() {
    local(async {
        let tunnel = foreign_server(|mut respond, request| {
            assert_eq!(request.method(), Method::CONNECT);
            assert_eq!(request.uri().to_string(), "10.0.0.1:80");
            assert_eq!((request.uri().scheme(), request.uri().path()), (None, ""));
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            let mut body = request.into_body();
            spawn_local(async move {
                send.send_data(Bytes::from_static(b"hello"), false).unwrap();
                while let Some(Ok(chunk)) = body.data().await {
                    send.send_data(chunk, false).unwrap();
                }
                send.send_data(Bytes::new(), true).unwrap();
            });
        })
        .await;
        let stream = tunnel.open(&request()).await.unwrap();
        let (mut client, leg) = tcp_pair().await;
        let copy = copying(leg, stream);
        assert_eq!(read_exactly(&mut client, 5).await, b"hello");
        client.write_all(b" world").await.unwrap();
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b" world");
        assert!(copy.end.await.unwrap().end == tunnel::copy::End::Clean);
    });
}

#[test]
fn answers_without_a_reason_are_refusals_too() {
    local(async {
        for status in [204_u16, 301, 401, 500] {
            let tunnel = foreign_server(move |mut respond, _request| {
                let response = Response::builder().status(status).body(()).unwrap();
                respond.send_response(response, true).unwrap();
            })
            .await;
            let error = tunnel.open(&request()).await.unwrap_err();
            assert!(
                matches!(&error, OpenError::Refused { status: got, error: None, reason: None }
                    if got.as_u16() == status),
                "{error:?}"
            );
        }
    });
}

#[test]
fn only_a_refused_stream_is_unprocessed() {
    local(async {
        for (reason, unprocessed) in [
            (Reason::REFUSED_STREAM, true),
            (Reason::CANCEL, false),
            (Reason::INTERNAL_ERROR, false),
        ] {
            let tunnel =
                foreign_server(move |mut respond, _request| respond.send_reset(reason)).await;
            let error = tunnel.open(&request()).await.unwrap_err();
            assert_eq!(error.is_unprocessed(), unprocessed, "{error:?}");
        }
    });
}

/// RFC 9113 section 6.8: GOAWAY with the last stream that was processed.
#[test]
fn a_stream_above_the_last_one_of_goaway_is_unprocessed() {
    local(async {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        let serving = spawn_local(async move {
            far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            // Preface, SETTINGS, WINDOW_UPDATE and HEADERS of the client.
            let mut read = [0; 4096];
            let mut seen = 0;
            while seen < 100 {
                seen += far.read(&mut read).await.unwrap();
            }
            far.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
                .await
                .unwrap();
            pending::<()>().await;
        });
        let (tunnel, driver) = tunnel::client::handshake(near, None, Settings::default())
            .await
            .unwrap();
        spawn_local(driver);
        let error = tunnel.open(&request()).await.unwrap_err();
        assert!(error.is_unprocessed(), "{error:?}");
        serving.abort();
    });
}
