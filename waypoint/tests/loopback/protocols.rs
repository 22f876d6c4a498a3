//! HTTP/1.0, HTTP/1.1, HTTP/2, gRPC, upgrades, CONNECT, TCP.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use model::service::AppProtocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::support::{Body, Client, Mesh, Server, exchange, get, nothing, text};

async fn echo() -> Server {
    Server::start(|request| async move {
        let version = format!("{:?}", request.version());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut response = Response::new(text(body));
        let version = HeaderValue::try_from(version).unwrap();
        response.headers_mut().insert("x-version", version);
        response
    })
    .await
}

fn over_http2(path: &str) -> Request<Body> {
    let uri = format!("http://cart{path}");
    Request::builder().uri(uri).body(nothing()).unwrap()
}

/// A body that is sent piece by piece.
fn pieces() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, receiver) = mpsc::channel::<Frame<Bytes>>(8);
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), receiver))
    });
    (sender, StreamBody::new(stream).boxed())
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_served_and_closed() {
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", echo().await.address);
    let answer = exchange(mesh.dial().await, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_serves_many_requests_over_one_connection() {
    let server = echo().await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let mut client = Client::http1(mesh.dial().await).await;
    for n in 0..20 {
        let mut request = get("/").map(|_| text(format!("body {n}")));
        *request.method_mut() = Method::POST;
        assert_eq!(
            client.send(request).await.unwrap().body,
            format!("body {n}")
        );
    }
    let connections = server.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(connections, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_spoken_where_the_port_says_so() {
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http2);
    let server = echo().await;
    mesh.endpoint("a", "v1", server.address);
    mesh.endpoint_of("a", "v1", server.address, 81);
    // The client's own version is another matter.
    let mut client = Client::http1(mesh.dial_to(81).await).await;
    let answer = client.send(get("/")).await.unwrap();
    assert_eq!(answer.headers["x-version"], "HTTP/2.0");
    let mut client = Client::http2(mesh.dial_to(81).await).await;
    let answer = client.send(over_http2("/")).await.unwrap();
    assert_eq!(answer.headers["x-version"], "HTTP/2.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_of_a_client_on_a_port_that_says_nothing_stays_http2() {
    let mut mesh = Mesh::new();
    mesh.port(82, AppProtocol::Unknown);
    mesh.endpoint_of("a", "v1", echo().await.address, 82);
    let mut client = Client::http2(mesh.dial_to(82).await).await;
    let answer = client.send(over_http2("/")).await.unwrap();
    assert_eq!(answer.headers["x-version"], "HTTP/2.0");
    let mut client = Client::http1(mesh.dial_to(82).await).await;
    let answer = client.send(get("/")).await.unwrap();
    assert_eq!(answer.headers["x-version"], "HTTP/1.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_keeps_its_trailers_and_streams_both_ways() {
    let server = Server::start(|request| async move {
        let mut body = request.into_body();
        let (sender, answer) = pieces();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data() {
                    drop(sender.send(Frame::data(data)).await);
                }
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("5"));
            drop(sender.send(Frame::trailers(trailers)).await);
        });
        let mut response = Response::new(answer);
        let kind = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert("content-type", kind);
        response
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.port(83, AppProtocol::Grpc);
    mesh.endpoint_of("a", "v1", server.address, 83);
    let mut client = Client::http2(mesh.dial_to(83).await).await;
    let (sender, body) = pieces();
    let request = Request::builder()
        .method(Method::POST)
        .uri("http://cart/shop.Cart/Watch")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let mut answer = client.head(request).await.unwrap().into_body();
    // What is sent comes back before the request has ended: nothing waits for the whole.
    for word in ["one", "two"] {
        sender.send(Frame::data(Bytes::from(word))).await.unwrap();
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), word);
    }
    drop(sender);
    let trailers = answer
        .frame()
        .await
        .unwrap()
        .unwrap()
        .into_trailers()
        .unwrap();
    assert_eq!(trailers["grpc-status"], "5");
    assert!(answer.frame().await.is_none());
    let page = mesh.page();
    assert!(page.contains("request_protocol=\"grpc\""), "{page}");
    assert!(page.contains("grpc_response_status=\"5\""), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_a_status_of_grpc_to_a_client_of_grpc() {
    let mut mesh = Mesh::new();
    mesh.port(83, AppProtocol::Grpc);
    let mut client = Client::http2(mesh.dial_to(83).await).await;
    let mut request = over_http2("/shop.Cart/Get");
    let kind = HeaderValue::from_static("application/grpc");
    request.headers_mut().insert("content-type", kind);
    let answer = client.send(request).await.unwrap();
    assert_eq!(
        (answer.status, &answer.headers["grpc-status"]),
        (200, &HeaderValue::from(14))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_carried_both_ways() {
    let server = Server::start(|mut request: Request<hyper::body::Incoming>| async move {
        assert_eq!(request.headers()["upgrade"], "websocket");
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut bytes = [0; 5];
            io.read_exact(&mut bytes).await.unwrap();
            io.write_all(&bytes).await.unwrap();
            io.write_all(b" and bye").await.unwrap();
        });
        let response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
        response.body(nothing()).unwrap()
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let mut stream = mesh.dial().await;
    stream
        .write_all(
            b"GET /ws HTTP/1.1\r\nhost: cart\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    stream.write_all(b"hello").await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello and bye");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_comes_while_the_client_still_sends() {
    let server = Server::start(|_| async {
        let mut response = Response::new(text("too large"));
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        response
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let mut client = Client::http1(mesh.dial().await).await;
    let (sender, body) = pieces();
    sender
        .send(Frame::data(Bytes::from_static(b"begin")))
        .await
        .unwrap();
    let request = Request::post("/")
        .header("host", "cart")
        .body(body)
        .unwrap();
    let answer = client.head(request).await.unwrap();
    assert_eq!(answer.status(), 413);
    drop(sender);
}

#[tokio::test(flavor = "multi_thread")]
async fn alt_svc_is_taken_out() {
    let server = Server::start(|_| async {
        let mut response = Response::new(text("x"));
        let around = HeaderValue::from_static("h3=\":443\"");
        response.headers_mut().insert("alt-svc", around);
        response
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    assert!(!mesh.get("/").await.headers.contains_key("alt-svc"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_passes_as_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"220 ready\r\n").await.unwrap();
                let mut line = [0; 6];
                stream.read_exact(&mut line).await.unwrap();
                stream.write_all(&line).await.unwrap();
            });
        }
    });
    let mut mesh = Mesh::new();
    mesh.port(25, AppProtocol::Tcp);
    mesh.port(26, AppProtocol::Unknown);
    mesh.endpoint_of("a", "v1", address, 25);
    for port in [25, 26] {
        mesh.endpoint_of("a", "v1", address, port);
        let mut stream = mesh.dial_to(port).await;
        let mut greeting = [0; 11];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
        let said = exchange(stream, b"HELO\r\n").await;
        assert_eq!(said, "HELO\r\n", "port {port}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_stream_leaves_the_others_of_its_connection_alone() {
    let server = Server::start(|request| async move {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        Response::new(text("well"))
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http2);
    mesh.endpoint_of("a", "v1", server.address, 81);
    let mut waiting = Client::http2(mesh.dial_to(81).await).await;
    let mut rude = Client::http2(mesh.dial_to(81).await).await;
    for _ in 0..30 {
        let never = rude.head(over_http2("/never"));
        let cancelled = tokio::time::timeout(Duration::from_millis(5), never).await;
        assert!(cancelled.is_err());
        let answer = waiting.send(over_http2("/")).await.unwrap();
        assert_eq!((answer.status, &*answer.body), (200, "well"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_connection_is_opened_when_streams_run_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|_| async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Ok::<_, std::convert::Infallible>(Response::new(text("x")))
                });
                let executor = hyper_util::rt::TokioExecutor::new();
                let mut builder = hyper::server::conn::http2::Builder::new(executor);
                builder.max_concurrent_streams(2);
                drop(
                    builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            });
        }
    });
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http2);
    mesh.endpoint_of("a", "v1", address, 81);
    let mut client = Client::http2(mesh.dial_to(81).await).await;
    // The endpoint has said by then how many it takes.
    assert_eq!(client.send(over_http2("/")).await.unwrap().status, 200);
    let Client::Http2(sender) = &client else {
        unreachable!()
    };
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = Client::Http2(sender.clone());
        asked.spawn(async move { client.send(over_http2("/")).await.unwrap().status });
    }
    while let Some(status) = asked.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    let connections = connections.load(std::sync::atomic::Ordering::SeqCst);
    assert!(
        (4..=8).contains(&connections),
        "8 requests, 2 streams each: {connections}"
    );
}
