//! What endpoints say before their answers: 103 Early Hints, and any other 1xx.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use model::service::AppProtocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::support::{Client, Mesh, exchange, nothing};

const FIRST: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";
const SECOND: &str = "HTTP/1.1 103 Early Hints\r\nlink: </b.js>; rel=preload\r\n\r\n";

/// Says three things before each answer, of which the first is not for the client. The answer to `/held` waits for a permit;
/// that to `/large` is as long as [`LARGE`] and has nothing before it.
async fn hints(held: Arc<Semaphore>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let held = Arc::clone(&held);
            tokio::spawn(async move {
                while let Some(head) = head(&mut stream).await {
                    if head.starts_with("GET /large ") {
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        stream.write_all(&vec![b'x'; LARGE]).await.unwrap();
                        continue;
                    }
                    let before = format!("HTTP/1.1 100 Continue\r\n\r\n{FIRST}{SECOND}");
                    stream.write_all(before.as_bytes()).await.unwrap();
                    if head.starts_with("GET /held ") {
                        held.acquire().await.unwrap().forget();
                    }
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

const LARGE: usize = 16 << 20;

/// All up to an empty line; nothing if the connection ends before.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(bytes).unwrap())
}

async fn next(stream: &mut TcpStream) -> String {
    let head = tokio::time::timeout(Duration::from_secs(5), head(stream)).await;
    head.expect("nothing comes").expect("it has ended")
}

/// The answer that each request gets.
async fn answer(stream: &mut TcpStream) {
    let head = next(stream).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let mut body = [0; 2];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"ok");
}

async fn mesh() -> (Mesh, Arc<Semaphore>) {
    let held = Arc::new(Semaphore::new(0));
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", hints(Arc::clone(&held)).await);
    (mesh, held)
}

fn ask(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: cart\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_come_while_the_answer_is_waited_for() {
    let (mesh, held) = mesh().await;
    let mut stream = mesh.dial().await;
    for _ in 0..3 {
        stream.write_all(ask("/held").as_bytes()).await.unwrap();
        assert_eq!(next(&mut stream).await, FIRST);
        assert_eq!(next(&mut stream).await, SECOND);
        held.add_permits(1);
        answer(&mut stream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_stand_before_their_own_answer_also_when_all_comes_at_once() {
    let (mesh, _held) = mesh().await;
    let mut stream = mesh.dial().await;
    let both = ask("/") + &ask("/") + &ask("/");
    stream.write_all(both.as_bytes()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(next(&mut stream).await, FIRST);
        assert_eq!(next(&mut stream).await, SECOND);
        answer(&mut stream).await;
    }
}

/// An answer that the client has not taken yet is not broken by the hints of the next.
#[tokio::test(flavor = "multi_thread")]
async fn hints_wait_for_the_end_of_the_answer_before() {
    let (mesh, _held) = mesh().await;
    let mut stream = mesh.dial().await;
    let socket = socket2::SockRef::from(&stream);
    socket.set_recv_buffer_size(32 << 10).unwrap();
    let both = ask("/large") + &ask("/");
    stream.write_all(both.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let head = next(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let mut body = vec![0; LARGE];
    stream.read_exact(&mut body).await.unwrap();
    assert!(body.iter().all(|byte| *byte == b'x'));
    assert_eq!(next(&mut stream).await, FIRST);
    assert_eq!(next(&mut stream).await, SECOND);
    answer(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_told_gets_the_answer_alone() {
    let (mut mesh, _held) = mesh().await;
    let said = exchange(mesh.dial().await, b"GET / HTTP/1.0\r\nhost: cart\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.0 200 OK\r\n"), "{said}");
    mesh.port(82, AppProtocol::Http11);
    mesh.endpoint_of("a", "v1", hints(Arc::new(Semaphore::new(0))).await, 82);
    let mut client = Client::http2(mesh.dial_to(82).await).await;
    let request = Request::get("http://cart/").body(nothing()).unwrap();
    let answered = client.send(request).await.unwrap();
    assert_eq!((answered.status, &*answered.body), (200, "ok"));
}
