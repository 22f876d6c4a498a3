//! HTTP/1.1 as small as a test needs it: kept connections, `Content-Length` bodies, no more.

use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context as _, Result, bail};

/// A request as the server read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, ...
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The body; empty without `Content-Length`.
    pub body: Vec<u8>,
    /// The client's address as the server sees it.
    pub peer: SocketAddr,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// A server that answers each request with what a function returns.
#[derive(Debug)]
pub struct HttpServer;

impl HttpServer {
    /// Serves forever, a thread per connection.
    ///
    /// # Errors
    /// The listener fails.
    pub fn serve<F>(listener: &TcpListener, answer: F) -> io::Result<()>
    where
        F: Fn(&Request) -> (u16, Vec<u8>) + Clone + Send + 'static,
    {
        loop {
            let (stream, peer) = listener.accept()?;
            let answer = answer.clone();
            let thread = thread::Builder::new().stack_size(256 << 10);
            drop(thread.spawn(move || drop(converse(&stream, peer, answer))));
        }
    }
}

fn converse(
    stream: &TcpStream,
    peer: SocketAddr,
    answer: impl Fn(&Request) -> (u16, Vec<u8>),
) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some((first, body)) = read_message(&mut reader)? {
        let mut words = first.split(' ').map(str::to_owned);
        let (Some(method), Some(path)) = (words.next(), words.next()) else {
            bail!("{first:?} is no request");
        };
        let (status, body) = answer(&Request {
            method,
            path,
            body,
            peer,
        });
        let mut out = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            if status == 200 { "OK" } else { "Error" },
            body.len()
        )
        .into_bytes();
        out.extend(body);
        writer.write_all(&out)?;
    }
    Ok(())
}

/// Writes a request; a body makes it a POST.
///
/// # Errors
/// The peer is gone.
pub fn write_request(mut out: impl Write, host: &str, path: &str, body: &[u8]) -> io::Result<()> {
    let method = if body.is_empty() { "GET" } else { "POST" };
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    out.write_all(&request)
}

/// Reads one answer.
///
/// # Errors
/// The connection ends first, or what comes is not HTTP.
pub fn read_response(reader: &mut impl BufRead) -> Result<Response> {
    let Some((first, body)) = read_message(reader)? else {
        bail!("the connection ended without an answer");
    };
    let status = first.split(' ').nth(1).unwrap_or_default();
    let status = status
        .parse()
        .with_context(|| format!("{first:?} is no status line"))?;
    Ok(Response { status, body })
}

/// The first line and the body; `None` where the connection ends between two messages.
fn read_message(reader: &mut impl BufRead) -> Result<Option<(String, Vec<u8>)>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            bail!("the connection ended within a header");
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().context("Content-Length")?;
        }
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    if body.len() as u64 != length {
        bail!("the connection ended within a body");
    }
    Ok(Some((first.trim_end().to_owned(), body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_requests_on_one_connection_are_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || HttpServer::serve(&listener, |request| (200, request.body.clone())));
        let stream = TcpStream::connect(address).unwrap();
        let mut reader = BufReader::new(&stream);
        for body in [&b"first"[..], b""] {
            write_request(&stream, "x", "/", body).unwrap();
            let response = read_response(&mut reader).unwrap();
            assert_eq!(
                response,
                Response {
                    status: 200,
                    body: body.to_vec()
                }
            );
        }
    }
}
