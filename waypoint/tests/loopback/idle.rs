//! Clients that do not go on: with what they send, or with what they are sent.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use l7::TrafficPolicy;
use l7::backend::Limits as ClusterLimits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use waypoint::Limits;

use crate::support::{Body, Client, Mesh, Server, get, text};

/// Long enough for machines that have something else to do.
const IDLE: Duration = Duration::from_secs(1);

/// One endpoint, which may have one connection: who holds that holds up everybody.
async fn mesh() -> (Mesh, Server) {
    let (mesh, server, _sent) = mesh_that_counts().await;
    (mesh, server)
}

/// The same, and the bytes that endless answers have had so far.
async fn mesh_that_counts() -> (Mesh, Server, Arc<AtomicUsize>) {
    let sent = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&sent);
    let server = Server::start(move |request| {
        let sent = Arc::clone(&counted);
        async move {
            let is_endless = request.uri().path() == "/endless";
            let body = request.into_body().collect().await;
            let length = body.map_or(0, |body| body.to_bytes().len());
            let endless = futures::stream::repeat_with(move || {
                let piece = Bytes::from_static(&[b'x'; 16 << 10]);
                sent.fetch_add(piece.len(), Ordering::Relaxed);
                Ok::<_, Infallible>(Frame::data(piece))
            });
            Response::new(match is_endless {
                true => StreamBody::new(endless).boxed(),
                false => text(length.to_string()),
            })
        }
    })
    .await;
    let limits = Limits {
        stream_idle: IDLE,
        ..Limits::default()
    };
    let mut mesh = Mesh::with(limits, 1);
    mesh.endpoint("a", "v1", server.address);
    let limits = ClusterLimits {
        connections: Some(1),
        ..ClusterLimits::default()
    };
    mesh.backend(
        &[],
        TrafficPolicy {
            limits: Some(limits),
            ..TrafficPolicy::default()
        },
    );
    (mesh, server, sent)
}

/// The connection to the endpoint is free.
async fn assert_free(mesh: &Mesh) {
    let asked = tokio::time::timeout(Duration::from_secs(5), mesh.get("/")).await;
    assert_eq!(asked.expect("somebody holds the connection").status, 200);
}

fn pieces() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, receiver) = mpsc::channel::<Frame<Bytes>>(8);
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((Ok::<_, Infallible>(frame), receiver))
    });
    (sender, StreamBody::new(stream).boxed())
}

fn post(body: Body) -> Request<Body> {
    let request = Request::builder().uri("http://cart/").method(Method::POST);
    request.header("host", "cart").body(body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_in_its_request_is_told_so_and_frees_the_endpoint() {
    for http2 in [false, true] {
        let (mesh, _server) = mesh().await;
        let stream = mesh.dial().await;
        let mut client = match http2 {
            false => Client::http1(stream).await,
            true => Client::http2(stream).await,
        };
        let (sender, body) = pieces();
        let begun = Frame::data(Bytes::from_static(b"begun"));
        sender.send(begun).await.unwrap();
        let asked = client.send(post(body));
        let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
        let answer = answer.expect("it is waited for").unwrap();
        assert_eq!((answer.status, &*answer.body), (408, "stream timeout"));
        assert_free(&mesh).await;
        let page = mesh.page();
        assert!(page.contains("response_flags=\"SI\""), "{page}");
        drop(sender);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_slow_and_goes_on_is_not_given_up() {
    let (mesh, _server) = mesh().await;
    let mut client = Client::http1(mesh.dial().await).await;
    let (sender, body) = pieces();
    let sending = tokio::spawn(async move {
        for _ in 0..8 {
            let piece = Frame::data(Bytes::from_static(b"x"));
            sender.send(piece).await.unwrap();
            tokio::time::sleep(IDLE / 2).await;
        }
    });
    let answer = client.send(post(body)).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (200, "8"));
    sending.await.unwrap();
}

/// Server and client may be silent for as long as they like where nothing waits to be taken.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_which_nothing_happens_goes_on() {
    let server = Server::start(|_| async {
        let pieces = futures::stream::unfold(0, |n| async move {
            if n > 0 {
                tokio::time::sleep(2 * IDLE).await;
            }
            let frame = Frame::data(Bytes::from_static(b"tick"));
            (n < 2).then_some((Ok::<_, Infallible>(frame), n + 1))
        });
        Response::new(StreamBody::new(pieces).boxed())
    })
    .await;
    let limits = Limits {
        stream_idle: IDLE,
        ..Limits::default()
    };
    let mut mesh = Mesh::with(limits, 1);
    mesh.endpoint("a", "v1", server.address);
    for http2 in [false, true] {
        let stream = mesh.dial().await;
        let mut client = match http2 {
            false => Client::http1(stream).await,
            true => Client::http2(stream).await,
        };
        // The client of the second has not sent everything either, and listens.
        let (sender, body) = pieces();
        let request = match http2 {
            false => get("/"),
            true => post(body),
        };
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.body, "ticktick", "HTTP/2: {http2}");
        drop(sender);
    }
}

/// A connection of which the client's kernel takes little: what that takes is as good as read.
async fn dial_small(mesh: &Mesh) -> TcpStream {
    let stream = mesh.dial().await;
    let socket = socket2::SockRef::from(&stream);
    socket.set_recv_buffer_size(32 << 10).unwrap();
    stream
}

const ASK_FOR_ENDLESS: &[u8] = b"GET /endless HTTP/1.1\r\nhost: cart\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_frees_the_endpoint_and_loses_its_connection() {
    let (mesh, _server, sent) = mesh_that_counts().await;
    let mut stream = dial_small(&mesh).await;
    stream.write_all(ASK_FOR_ENDLESS).await.unwrap();
    tokio::time::sleep(IDLE / 2).await;
    let (taken, before) = (sent.load(Ordering::Relaxed), tokio::time::Instant::now());
    assert_free(&mesh).await;
    let waited = before.elapsed();
    assert!(waited < 6 * IDLE, "after {waited:?}");
    // The waypoint has not taken what its client did not.
    assert!(taken < 32 << 20, "{taken}");
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the connection goes on");
    let page = mesh.page();
    assert!(page.contains("response_flags=\"SI\""), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_is_not_given_up() {
    let (mesh, _server) = mesh().await;
    let mut stream = dial_small(&mesh).await;
    stream.write_all(ASK_FOR_ENDLESS).await.unwrap();
    let mut piece = vec![0; 64 << 10];
    let began = tokio::time::Instant::now();
    while began.elapsed() < 4 * IDLE {
        stream.read_exact(&mut piece).await.unwrap();
        tokio::time::sleep(IDLE / 20).await;
    }
}

/// A window of zero, and pings that are answered: nothing else tells that nobody takes the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_withholds_its_window_frees_the_endpoint() {
    let (mesh, server) = mesh().await;
    let stream = mesh.dial().await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let (mut client, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let driven = tokio::spawn(connection);
    let request = || {
        let request = Request::builder().uri("http://cart/endless");
        request.body(()).unwrap()
    };
    let mut held = Vec::new();
    for _ in 0..3 {
        let (answer, _) = client.send_request(request(), true).unwrap();
        held.push(answer);
    }
    let first = held.remove(0).await.unwrap();
    assert_eq!(first.status(), 200);
    assert!(server.count() >= 1);
    assert_free(&mesh).await;
    let ended = tokio::time::timeout(Duration::from_secs(20), driven).await;
    assert!(ended.is_ok(), "the connection goes on");
    drop(first);
}

/// An answer that came early leaves a request whose rest is still waited for.
#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_request_is_not_waited_for_for_ever() {
    let (mut mesh, _server) = mesh().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    mesh.endpoint("a", "v1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                if stream.read(&mut bytes).await.unwrap() == 0 {
                    return;
                }
                let early = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly";
                stream.write_all(early).await.unwrap();
                // All that comes is taken.
                while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    let begun = b"POST / HTTP/1.1\r\nhost: cart\r\ncontent-length: 1000\r\n\r\nbegun";
    let mut stream = mesh.dial().await;
    stream.write_all(begun).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    assert_free(&mesh).await;
    drop(stream);
}
