//! The smallest HTTP client that reads the programs' admin pages and changes what can be changed there.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

/// Sends one request without a body from the calling thread's namespace and reads the answer to its end.
///
/// # Errors
/// No connection, no answer within five seconds, or an answer that is not HTTP.
pub(crate) fn ask(method: &str, server: SocketAddr, path: &str) -> Result<Response> {
    let attempted = || format!("{method} http://{server}{path}");
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT).with_context(attempted)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .with_context(attempted)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(attempted)?;
    parse(&answer).ok_or_else(|| anyhow!("{}: the answer is not HTTP", attempted()))
}

fn parse(answer: &[u8]) -> Option<Response> {
    let end = memchr::memmem::find(answer, b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let body = answer.get(end + 4..)?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let chunked = lines.any(|line| {
        line.to_ascii_lowercase()
            .starts_with("transfer-encoding: chunked")
    });
    let body = if chunked {
        unchunk(body)?
    } else {
        body.to_vec()
    };
    Some(Response {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// Undoes the chunked transfer coding (RFC 9112 section 7.1); trailers are ignored.
fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = memchr::memmem::find(rest, b"\r\n")?;
        let size = std::str::from_utf8(rest.get(..end)?).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(end + 2..end + 2 + size)?);
        rest = rest.get(end + 4 + size..)?;
    }
}

const TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_bodies_are_read() {
        let plain = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let chunked = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n1;x=y\r\n!\r\n0\r\n\r\n";
        let response = |status, body: &str| {
            Some(Response {
                status,
                body: body.to_owned(),
            })
        };
        assert_eq!(parse(plain), response(200, "ok"));
        assert_eq!(parse(chunked), response(503, "no!"));
        assert_eq!(parse(b"SSH-2.0-x\r\n"), None);
    }
}
