//! WebSocket over HTTP/2 (RFC 8441).

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use l7::policy::{Action, Match, PathMatch};
use l7::route;
use l7::text::TextMatch;
use model::service::AppProtocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::policy::policy;
use crate::support::{Body, Client, Mesh, Server, nothing, text, to};

/// What belongs to a key (RFC 6455, 4.2.2).
fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    BASE64_STANDARD.encode(hash)
}

/// Says how it was asked for a WebSocket, and then sends back what comes. At some paths its handshake is wrong.
async fn echo() -> Server {
    Server::start(|mut request: Request<Incoming>| async move {
        let header = |name: &str| {
            let value = request.headers().get(name);
            value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
        };
        let protocol = request.extensions().get::<Protocol>();
        let protocol = protocol.map_or_else(|| header("upgrade"), |one| one.as_str().to_owned());
        if protocol != "websocket" {
            return Response::new(text("no websocket"));
        }
        let said = format!(
            "{} {} {protocol} key {} version {}\n",
            request.method(),
            request.uri().path(),
            header("sec-websocket-key").len(),
            header("sec-websocket-version"),
        );
        let status = match *request.method() {
            Method::CONNECT => StatusCode::OK,
            _ => StatusCode::SWITCHING_PROTOCOLS,
        };
        let (path, key) = (request.uri().path().to_owned(), header("sec-websocket-key"));
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            io.write_all(said.as_bytes()).await.unwrap();
            let (mut read, mut write) = tokio::io::split(io);
            drop(tokio::io::copy(&mut read, &mut write).await);
        });
        let mut response = Response::builder().status(status);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let key = match &*path {
                "/other-key" => "dGhlIHNhbXBsZSBub25jZQ==",
                _ => &key,
            };
            for (name, value) in [
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-accept", &*accept(key)),
            ] {
                response = response.header(name, value);
            }
        }
        if path == "/extended" {
            response = response.header("sec-websocket-extensions", "permessage-deflate");
        }
        let chosen = match &*path {
            "/other-protocol" => "talk",
            _ => "chat",
        };
        response
            .header("sec-websocket-protocol", chosen)
            .body(nothing())
            .unwrap()
    })
    .await
}

/// A port of each version.
async fn mesh() -> Mesh {
    let server = echo().await;
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http2);
    mesh.endpoint_ports("a", server.address, &[80, 81]);
    mesh
}

fn open(path: &str, protocol: &'static str) -> Request<Body> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://cart{path}"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat, more")
        .extension(Protocol::from_static(protocol))
        .body(nothing())
        .unwrap()
}

/// As it is asked for on a connection of its own.
async fn ask(mesh: &Mesh, port: u16, request: Request<Body>) -> Response<Incoming> {
    let mut client = Client::http2(mesh.dial_to(port).await).await;
    let asked = tokio::time::timeout(Duration::from_secs(5), client.head(request));
    asked.await.expect("nobody answers").unwrap()
}

async fn line(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let byte = tokio::time::timeout(Duration::from_secs(5), io.read_u8()).await;
        line.push(byte.expect("nothing comes").unwrap());
    }
    String::from_utf8(line).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_http2_is_carried_both_ways_to_either_version() {
    let mesh = mesh().await;
    for (port, expected) in [
        (80, "GET /ws websocket key 24 version 13\n"),
        (81, "CONNECT /ws websocket key 0 version 13\n"),
    ] {
        let answer = ask(&mesh, port, open("/ws", "websocket")).await;
        assert_eq!(answer.status(), 200, "port {port}");
        let said = answer.headers();
        assert_eq!(said["sec-websocket-protocol"], "chat", "port {port}");
        assert!(!said.contains_key("sec-websocket-accept"), "port {port}");
        let mut io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        assert_eq!(line(&mut io).await, expected);
        for _ in 0..3 {
            io.write_all(b"hello\n").await.unwrap();
            assert_eq!(line(&mut io).await, "hello\n", "port {port}");
        }
        // The end of one side is told to the other.
        io.shutdown().await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(5), io.read_u8()).await;
        assert!(ended.expect("it goes on").is_err(), "port {port}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_and_policy_see_the_get_that_it_stands_for() {
    let mut mesh = mesh().await;
    let at_ws = route::Match {
        path: route::PathMatch::Exact("/moved".into()),
        method: Some(TextMatch::Exact("GET".into())),
        ..route::Match::default()
    };
    mesh.route(0, vec![at_ws], |rule| {
        let mut forward = to(&[(None, 1)]);
        forward.rewrite.path = Some(route::PathRewrite::Full("/ws".into()));
        rule.action = route::Action::Forward(forward);
    });
    mesh.route(1, vec![], |_| ());
    for port in [80, 81] {
        let answer = ask(&mesh, port, open("/moved", "websocket")).await;
        let mut io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        let said = line(&mut io).await;
        assert!(said.contains(" /ws "), "port {port}: {said}");
    }
    let denied = Match {
        methods: vec![TextMatch::Exact("GET".into())],
        hosts: vec![TextMatch::Exact("cart".into())],
        paths: vec![PathMatch::Text(TextMatch::Prefix("/admin".into()))],
        ..Match::default()
    };
    mesh.apply(policy("no-admin", Action::Deny, denied));
    for port in [80, 81] {
        let answer = ask(&mesh, port, open("/x/../admin/ws", "websocket")).await;
        assert_eq!(answer.status(), 403, "port {port}");
        let answer = ask(&mesh, port, open("/ws", "websocket")).await;
        assert_eq!(answer.status(), 200, "port {port}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_deny_ends_a_websocket_over_http2() {
    for port in [80, 81] {
        let mut mesh = mesh().await;
        let answer = ask(&mesh, port, open("/ws", "websocket")).await;
        let mut io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        line(&mut io).await;
        let denied = Match {
            paths: vec![PathMatch::Text(TextMatch::Exact("/ws".into()))],
            ..Match::default()
        };
        mesh.apply(policy("no-sockets", Action::Deny, denied));
        let ended = tokio::time::timeout(Duration::from_secs(5), io.read_u8()).await;
        assert!(ended.expect("it goes on").is_err(), "port {port}");
    }
}

/// A success would tell the client that its stream is open.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_switch_protocols_is_no_success() {
    let server = Server::named("a page").await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let fixed = route::Match {
        path: route::PathMatch::Exact("/fixed".into()),
        ..route::Match::default()
    };
    mesh.route(0, vec![fixed], |rule| {
        rule.action = route::Action::Respond(route::DirectResponse {
            status: StatusCode::OK,
            body: Arc::from(&b"fixed"[..]),
        });
    });
    mesh.route(1, vec![], |_| ());
    assert_eq!(ask(&mesh, 80, open("/ws", "websocket")).await.status(), 502);
    let answer = ask(&mesh, 80, open("/fixed", "websocket")).await;
    assert_eq!(answer.status(), 502);
    let before = server.count();
    let answer = ask(&mesh, 80, open("/ws", "connect-udp")).await;
    assert_eq!(answer.status(), 400);
    assert_eq!(server.count(), before, "it reached the server");
}

/// Nobody else would see it: the client has sent no key.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_another_handshake_opens_no_websocket() {
    let mesh = mesh().await;
    for path in ["/other-key", "/extended", "/other-protocol"] {
        let answer = ask(&mesh, 80, open(path, "websocket")).await;
        assert_eq!(answer.status(), 502, "{path}");
    }
    let page = mesh.page();
    assert!(page.contains(r#"response_flags="UPE""#), "{page}");
    let answer = ask(&mesh, 80, open("/ws", "websocket")).await;
    assert_eq!(answer.status(), 200);
}

/// What a client of HTTP/1.1 asks for, and what it is told before the first byte of the WebSocket.
async fn handshake(stream: &mut TcpStream, path: &str) -> String {
    let asked = format!(
        "GET {path} HTTP/1.1\r\nhost: cart\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(asked.as_bytes()).await.unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push_str(&line(stream).await);
    }
    head
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_of_http1_is_carried_to_a_port_of_http2() {
    let mut mesh = mesh().await;
    for _ in 0..2 {
        let mut stream = mesh.dial_to(81).await;
        let head = handshake(&mut stream, "/ws").await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        for one in [
            "connection: upgrade\r\n",
            "upgrade: websocket\r\n",
            "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n",
            "sec-websocket-protocol: chat\r\n",
        ] {
            assert!(head.contains(one), "{one} {head}");
        }
        let said = line(&mut stream).await;
        assert_eq!(said, "CONNECT /ws websocket key 0 version 13\n");
        stream.write_all(b"hello\n").await.unwrap();
        assert_eq!(line(&mut stream).await, "hello\n");
    }
    let mut stream = mesh.dial_to(81).await;
    handshake(&mut stream, "/ws").await;
    line(&mut stream).await;
    let denied = Match {
        methods: vec![TextMatch::Exact("GET".into())],
        ..Match::default()
    };
    mesh.apply(policy("no-sockets", Action::Deny, denied));
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_u8()).await;
    assert!(ended.expect("it goes on").is_err());
}

/// RFC 8441, 3: who has not been told that it may names no protocol.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_http2_that_takes_no_websocket_gets_none() {
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let server = Server::start_as(builder, |_| async { Response::new(text("a page")) }).await;
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http2);
    mesh.endpoint_ports("a", server.address, &[81]);
    for _ in 0..2 {
        let answer = ask(&mesh, 81, open("/ws", "websocket")).await;
        assert_eq!(answer.status(), 502);
        let head = handshake(&mut mesh.dial_to(81).await, "/ws").await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        let mut client = Client::http2(mesh.dial_to(81).await).await;
        let page = Request::get("http://cart/").body(nothing()).unwrap();
        assert_eq!(client.send(page).await.unwrap().status, 200);
    }
    assert_eq!(server.count(), 2, "a CONNECT has reached it");
}
