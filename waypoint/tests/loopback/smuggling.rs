//! Requests that two readers take differently: in chunks, and from HTTP/2 to HTTP/1.1.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{Mesh, Server, exchange, text};

/// What an endpoint has been asked for.
type Seen = Arc<Mutex<String>>;

/// Reads each request to its end and notes its path.
async fn attentive() -> (Server, Seen) {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let server = Server::start(move |request| {
        noted.lock().push_str(&format!("{}\n", request.uri()));
        async move {
            drop(request.into_body().collect().await);
            Response::new(text("answered"))
        }
    })
    .await;
    (server, seen)
}

const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_body_is_where_every_reader_sees_it() {
    let (server, seen) = attentive().await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let long = [
        b"1;".to_vec(),
        vec![b'x'; 40 << 10],
        b"\r\na\r\n0\r\n\r\n".to_vec(),
    ]
    .concat();
    for (what, lines, body) in [
        (
            "a line end in an extension",
            "transfer-encoding: chunked",
            &b"5;x=\nabcde\r\n0\r\n\r\n"[..],
        ),
        ("a long extension", "transfer-encoding: chunked", &long),
        (
            "0x",
            "transfer-encoding: chunked",
            b"0x5\r\nabcde\r\n0\r\n\r\n",
        ),
        (
            "a sign",
            "transfer-encoding: chunked",
            b"+5\r\nabcde\r\n0\r\n\r\n",
        ),
        (
            "more than a number holds",
            "transfer-encoding: chunked",
            b"fffffffffffffffff\r\nabcde\r\n0\r\n\r\n",
        ),
        (
            "no line end",
            "transfer-encoding: chunked",
            b"5\rabcde\r\n0\r\n\r\n",
        ),
        (
            "half a line end",
            "transfer-encoding: chunked",
            b"5\nabcde\n0\n\n",
        ),
        (
            "less than there is",
            "transfer-encoding: chunked",
            b"3\r\nabcde\r\n0\r\n\r\n",
        ),
        ("folded", "transfer-encoding:\r\n chunked", b"0\r\n\r\n"),
        ("a space", "transfer-encoding : chunked", b"0\r\n\r\n"),
        (
            "not the last",
            "transfer-encoding: chunked, identity",
            b"0\r\n\r\n",
        ),
        ("unknown", "transfer-encoding: xchunked", b"0\r\n\r\n"),
        (
            "twice",
            "transfer-encoding: chunked\r\ntransfer-encoding: identity",
            b"0\r\n\r\n",
        ),
        (
            "a tab",
            "transfer-encoding: chunked\r\ncontent-length:\t+5",
            b"0\r\n\r\n",
        ),
        ("lengths", "content-length: 5, 5", b"abcde"),
        ("a length in hex", "content-length: 0x5", b"abcde"),
    ] {
        // What is refused has to end the connection: what follows is no request.
        let head = format!("POST /first HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n");
        let bytes = [head.as_bytes(), body, SMUGGLED].concat();
        let exchanged = exchange(mesh.dial().await, &bytes);
        let answer = tokio::time::timeout(Duration::from_secs(5), exchanged).await;
        let answer = answer.unwrap_or_else(|_| panic!("{what}: the connection stays open"));
        let seen = seen.lock().clone();
        assert!(!seen.contains("smuggled"), "{what}: {answer}\n{seen}");
    }
}

/// An endpoint that speaks HTTP/1.1, and every byte that it gets.
async fn recorder() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::<Mutex<Vec<u8>>>::default();
    let noted = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let noted = Arc::clone(&noted);
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(read) = stream.read(&mut bytes).await {
                    if read == 0 {
                        return;
                    }
                    noted.lock().extend_from_slice(&bytes[..read]);
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    drop(stream.write_all(answer).await);
                }
            });
        }
    });
    (address, seen)
}

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame of HTTP/2.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

pub(crate) const HEADERS: u8 = 1;
pub(crate) const CONTINUATION: u8 = 9;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Text as HPACK writes it where it is short and not compressed.
fn string(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 127);
    [&[length], text.as_bytes()].concat()
}

/// A header line that is in no table.
pub(crate) fn literal(name: &str, value: &str) -> Vec<u8> {
    [vec![0], string(name), string(value)].concat()
}

/// A header line whose name is in the static table.
fn indexed(name: u8, value: &str) -> Vec<u8> {
    [vec![name], string(value)].concat()
}

const AUTHORITY: u8 = 1;
const METHOD: u8 = 2;
const PATH: u8 = 4;
/// `:scheme http`, and further lines that are whole in the static table.
const SCHEME: &[u8] = &[0x86];
const POST: &[u8] = &[0x83];
const ROOT: &[u8] = &[0x84];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_http2_carries_becomes_another_request_of_http1() {
    let (address, seen) = recorder().await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", address);
    let host = || indexed(AUTHORITY, "cart");
    let with = |line: Vec<u8>| [POST, ROOT, SCHEME, &host(), &line].concat();
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    for (what, block, data) in [
        (
            "a line end in a value",
            with(literal("x", "a\r\nsmuggled: 1")),
            "",
        ),
        (
            "half a line end in a value",
            with(literal("x", "a\nsmuggled: 1")),
            "",
        ),
        ("a NUL in a value", with(literal("smuggled", "a\0b")), ""),
        (
            "a line end in a name",
            with(literal("x: 1\r\nsmuggled", "1")),
            "",
        ),
        ("a colon in a name", with(literal("x:smuggled", "1")), ""),
        (
            "a capital letter in a name",
            with(literal("Smuggled", "1")),
            "",
        ),
        (
            "transfer-encoding",
            with(literal("transfer-encoding", "chunked")),
            "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        ("connection", with(literal("connection", "smuggled")), ""),
        ("upgrade", with(literal("upgrade", "smuggled")), ""),
        (
            "less length than data",
            with(literal("content-length", "0")),
            smuggled,
        ),
        (
            "a length that is none",
            with(literal("content-length", "+0")),
            smuggled,
        ),
        (
            "two lengths",
            with(
                [
                    literal("content-length", "0"),
                    literal("content-length", "37"),
                ]
                .concat(),
            ),
            smuggled,
        ),
        (
            "a line end in the path",
            [
                POST,
                &indexed(PATH, "/ HTTP/1.1\r\nsmuggled: 1\r\n\r\n"),
                SCHEME,
                &host(),
            ]
            .concat(),
            "",
        ),
        (
            "a space in the path",
            [POST, &indexed(PATH, "/smuggled HTTP/1.1"), SCHEME, &host()].concat(),
            "",
        ),
        (
            "a line end in the method",
            [
                &indexed(METHOD, "GET /smuggled HTTP/1.1\r\n\r\n"),
                ROOT,
                SCHEME,
                &host(),
            ]
            .concat(),
            "",
        ),
        (
            "a line end in the host",
            [
                POST,
                ROOT,
                SCHEME,
                &indexed(AUTHORITY, "cart\r\nsmuggled: 1"),
            ]
            .concat(),
            "",
        ),
        (
            "a line end in Host",
            [POST, ROOT, SCHEME, &literal("host", "cart\r\nsmuggled: 1")].concat(),
            "",
        ),
        (
            "a trailer that is none",
            with(literal(":smuggled", "1")),
            "",
        ),
    ] {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &block));
        bytes.extend(frame(DATA, END_STREAM, 1, data.as_bytes()));
        let mut stream = mesh.dial().await;
        stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        let reading = stream.read_to_end(&mut answer);
        drop(tokio::time::timeout(Duration::from_millis(200), reading).await);
        let seen = String::from_utf8_lossy(&seen.lock()).into_owned();
        assert!(!seen.contains("smuggled"), "{what}: {seen:?}");
    }
    // The same without a fault arrives: the rows are read.
    let mut stream = mesh.dial().await;
    let mut bytes = PREFACE.to_vec();
    let block = with(literal("x-well", "1"));
    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
    stream.write_all(&bytes).await.unwrap();
    for _ in 0..100 {
        if String::from_utf8_lossy(&seen.lock()).contains("x-well") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", String::from_utf8_lossy(&seen.lock()));
}

/// Header lines without end are not kept: the connection ends long before all of them are sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_endless_continuations_ends_the_connection() {
    let (server, _seen) = attentive().await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let line = literal("x", &"y".repeat(100));
    let large = frame(CONTINUATION, 0, 1, &line.repeat(150));
    let empty = frame(CONTINUATION, 0, 1, &[]);
    for (what, piece, pieces) in [("large", large, 8_000), ("empty", empty, 8_000_000)] {
        let mut stream = mesh.dial().await;
        let mut bytes = PREFACE.to_vec();
        let block = [POST, ROOT, SCHEME, &indexed(AUTHORITY, "cart")].concat();
        bytes.extend(frame(HEADERS, 0, 1, &block));
        stream.write_all(&bytes).await.unwrap();
        let some = piece.repeat(pieces / 1_000);
        let mut written = 0;
        let flood = async {
            for _ in 0..1_000 {
                if stream.write_all(&some).await.is_err() {
                    return;
                }
                written += some.len();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), flood)
            .await
            .expect(what);
        let all = 1_000 * some.len();
        assert!(written < all / 2, "{what}: {written} of {all} were taken");
    }
    assert_eq!(server.count(), 0);
}
