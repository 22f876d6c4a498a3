//! Clients that are not well-behaved: bounded, and answered with the right status.

use std::time::Duration;

use proto::proxy_protocol::Header;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use waypoint::Limits;

use crate::support::{Client, Mesh, Server, exchange, get};

async fn served() -> (Mesh, Server) {
    let server = Server::named("well").await;
    let mut mesh = Mesh::with(
        Limits {
            head_timeout: Duration::from_millis(300),
            ..Limits::default()
        },
        1,
    );
    mesh.endpoint("a", "v1", server.address);
    (mesh, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_the_agents_header_gets_no_byte() {
    let (mesh, server) = served().await;
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n"[..],
        b"PROXY TCP4 10.0.0.1 10.96.0.7 1 80\r\nGET / HTTP/1.1\r\nhost: cart\r\n\r\n",
        // LOCAL.
        b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00GET / HTTP/1.1\r\nhost: cart\r\n\r\n",
    ] {
        let answer = exchange(mesh.bare().await, bytes).await;
        assert_eq!(answer, "", "{}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(server.count(), 0);
    let page = mesh.page();
    let refused = "keelson_connections_refused_total{reporter=\"waypoint\",reason=\"agent_header_";
    for counted in ["missing\"} 2", "malformed\"} 1"] {
        assert!(page.contains(&format!("{refused}{counted}")), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_here_is_404() {
    let (mesh, server) = served().await;
    let stream = mesh
        .dial_as(Header {
            client: "10.244.1.3:40000".parse().unwrap(),
            dialled: "10.96.9.9:80".parse().unwrap(),
            identity: None,
            // Whatever a client's node says that it was.
            service: Some(crate::support::HOST.to_owned()),
        })
        .await;
    let answer = exchange(stream, b"GET / HTTP/1.0\r\nhost: cart\r\n\r\n").await;
    assert!(answer.contains(" 404 "), "{answer}");
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn smuggled_requests_reach_nobody() {
    let (mesh, server) = served().await;
    for (what, bytes) in [
        (
            "two hosts",
            &b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n"[..],
        ),
        ("no host", b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"),
        (
            "two lengths",
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nabcde",
        ),
        (
            "no length",
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        ),
        (
            "a plus",
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc",
        ),
        (
            "an unknown coding",
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, x\r\n\r\n0\r\n\r\n",
        ),
        (
            "a space before the colon",
            b"GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        ),
        (
            "a folded line",
            b"GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n z\r\n\r\n",
        ),
        ("a bare NUL", b"GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n"),
        (
            "an escaped NUL",
            b"GET /%00 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        ),
    ] {
        let answer = exchange(mesh.dial().await, bytes).await;
        // Where something is left unread, a reset may overtake the answer.
        let is_refused = answer.is_empty() || answer.starts_with("HTTP/1.1 400 ");
        assert!(is_refused, "{what}: {answer}");
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn length_and_chunks_together_are_one_request() {
    let (mesh, server) = served().await;
    let bytes = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let answer = exchange(mesh.dial().await, bytes).await;
    assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{answer}");
    assert!(server.count() <= 1, "nothing was smuggled");
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_large_are_refused() {
    let (mesh, server) = served().await;
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(80 << 10));
    for lines in [many, long] {
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{lines}\r\n");
        let answer = exchange(mesh.dial().await, request.as_bytes()).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
            "{answer}"
        );
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_never_ends_is_given_up_and_an_idle_connection_is_not() {
    let (mesh, _server) = served().await;
    let mut idle = Client::http1(mesh.dial().await).await;
    assert_eq!(idle.send(get("/")).await.unwrap().status, 200);
    let mut slow = mesh.dial().await;
    slow.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let dripping = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if slow.write_all(b"x: y\r\n").await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), dripping)
        .await
        .unwrap();
    assert_eq!(idle.send(get("/")).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset_ends_the_connection_and_nobody_elses() {
    let server = Server::start(|_| async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        http::Response::new(crate::support::text("late"))
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let mut stream = mesh.dial().await;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    for n in 0..5000_u32 {
        let id = (n * 2 + 1).to_be_bytes();
        // HEADERS with `:method GET`, `:path /`, `:scheme http` and `:authority a`, then RST_STREAM.
        let block = [0x82, 0x84, 0x86, 0x41, 0x01, b'a'];
        bytes.extend([0, 0, 6, 1, 5]);
        bytes.extend(id);
        bytes.extend(block);
        bytes.extend([0, 0, 4, 3, 0]);
        bytes.extend(id);
        bytes.extend(8_u32.to_be_bytes());
    }
    let writing = stream.write_all(&bytes);
    drop(tokio::time::timeout(Duration::from_secs(5), writing).await);
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the connection is ended");
    assert!(
        server.count() < 5000,
        "most were never forwarded: {}",
        server.count()
    );
}

/// Says yes to every protocol that is asked for, and what it was asked with else.
async fn switcher() -> Server {
    Server::start(|request| async move {
        let asked = request.headers().get("upgrade").cloned();
        let settings = request.headers().contains_key("http2-settings");
        let mut response = http::Response::new(crate::support::text(format!("{settings}")));
        if let Some(asked) = asked {
            *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert("upgrade", asked);
            headers.insert("connection", http::HeaderValue::from_static("upgrade"));
        }
        response
    })
    .await
}

/// Requests of HTTP/2 that followed would be judged by nobody.
#[tokio::test(flavor = "multi_thread")]
async fn http2_is_no_upgrade() {
    let server = switcher().await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    for (connection, upgrade) in [
        ("Upgrade, HTTP2-Settings", "h2c"),
        ("Upgrade", "H2C"),
        ("upgrade", "websocket, h2c"),
        ("upgrade", "HTTP/2.0"),
        ("upgrade", "TLS/1.2"),
    ] {
        let request = format!(
            "GET / HTTP/1.1\r\nhost: cart\r\nconnection: {connection}\r\nupgrade: {upgrade}\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\nGET / HTTP/1.1\r\nhost: cart\r\nconnection: close\r\n\r\n"
        );
        let answer = exchange(mesh.dial().await, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{upgrade}: {answer}");
        assert!(
            !answer.contains("true"),
            "{upgrade}: settings went on: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_switches_unasked_is_an_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                assert!(stream.read(&mut bytes).await.unwrap() > 0);
                let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nsecret";
                stream.write_all(answer).await.unwrap();
                drop(stream.read_to_end(&mut Vec::new()).await);
            });
        }
    });
    let request = b"GET / HTTP/1.1\r\nhost: cart\r\nconnection: close\r\n\r\n";
    let answer = exchange(mesh.dial().await, request).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(!answer.contains("secret"), "{answer}");
}
