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
    /// Names and values of its headers, as they were written.
    pub headers: Vec<(String, String)>,
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

impl Request {
    /// The first value of a header, whatever the case of its name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        Some(value)
    }
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Headers beside those of the body.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl From<(u16, Vec<u8>)> for Answer {
    fn from((status, body): (u16, Vec<u8>)) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body,
        }
    }
}

/// A server that answers each request with what a function returns.
#[derive(Debug)]
pub struct HttpServer;

impl HttpServer {
    /// Serves forever, a thread per connection.
    ///
    /// # Errors
    /// The listener fails.
    pub fn serve<F, A>(listener: &TcpListener, answer: F) -> io::Result<()>
    where
        F: Fn(&Request) -> A + Clone + Send + 'static,
        A: Into<Answer>,
    {
        loop {
            let (stream, peer) = listener.accept()?;
            let answer = answer.clone();
            let thread = thread::Builder::new().stack_size(256 << 10);
            drop(thread.spawn(move || drop(converse(&stream, peer, answer))));
        }
    }
}

fn converse<A: Into<Answer>>(
    stream: &TcpStream,
    peer: SocketAddr,
    answer: impl Fn(&Request) -> A,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(Message {
        first,
        headers,
        body,
    }) = read_message(&mut reader)?
    {
        let mut words = first.split(' ').map(str::to_owned);
        let (Some(method), Some(path)) = (words.next(), words.next()) else {
            bail!("{first:?} is no request");
        };
        let request = Request {
            method,
            path,
            headers,
            body,
            peer,
        };
        let Answer {
            status,
            headers,
            body,
        } = answer(&request).into();
        let mut out = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            if status == 200 { "OK" } else { "Error" },
            body.len()
        );
        for (name, value) in headers {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        out.push_str("\r\n");
        let mut out = out.into_bytes();
        if request.method != "HEAD" {
            out.extend(body);
        }
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
    let Some(Message { first, body, .. }) = read_message(reader)? else {
        bail!("the connection ended without an answer");
    };
    let status = first.split(' ').nth(1).unwrap_or_default();
    let status = status
        .parse()
        .with_context(|| format!("{first:?} is no status line"))?;
    Ok(Response { status, body })
}

/// A request or an answer.
struct Message {
    first: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// `None` where the connection ends between two messages.
fn read_message(reader: &mut impl BufRead) -> Result<Option<Message>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut length = 0;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            bail!("the connection ended within a header");
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().context("Content-Length")?;
            }
            headers.push((name.to_owned(), value.to_owned()));
        }
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    if body.len() as u64 != length {
        bail!("the connection ended within a body");
    }
    Ok(Some(Message {
        first: first.trim_end().to_owned(),
        headers,
        body,
    }))
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
