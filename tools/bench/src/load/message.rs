//! The requests and answers of the load: HTTP/1.1 messages of one size, and just enough parsing.

use anyhow::{Context as _, Result, bail};

/// Bytes of a request and of an answer, head included.
pub const MESSAGE: usize = 1024;

/// The path that is answered without end.
pub(crate) const BULK: &str = "/bulk";

/// Written into every body, so that a capture can tell whether it crossed a link in the clear.
pub const PLAINTEXT: &str = "keelson-bench plaintext ";

/// A request of [`MESSAGE`] bytes.
pub(crate) fn request() -> Vec<u8> {
    padded("POST /load HTTP/1.1\r\nhost: server.bench\r\n")
}

/// An answer of [`MESSAGE`] bytes.
pub(crate) fn answer() -> Vec<u8> {
    padded("HTTP/1.1 200 OK\r\n")
}

/// A request for [`BULK`].
pub(crate) fn bulk_request() -> Vec<u8> {
    format!("GET {BULK} HTTP/1.1\r\nhost: server.bench\r\n\r\n").into_bytes()
}

/// The head of an answer that is far longer than anybody reads.
pub(crate) fn bulk_head() -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1u64 << 50).into_bytes()
}

fn padded(head: &str) -> Vec<u8> {
    const LENGTH: &str = "content-length: ";
    // The body's length has three digits, as it is between 100 and 999.
    let body = MESSAGE - head.len() - LENGTH.len() - 3 - 4;
    let mut message = format!("{head}{LENGTH}{body}\r\n\r\n").into_bytes();
    message.extend(PLAINTEXT.bytes().cycle().take(body));
    message
}

/// A message whose head has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes of head and body together.
    pub(crate) total: usize,
    /// Bytes of the head alone.
    pub(crate) head: usize,
    /// Whether this is the request for [`BULK`].
    pub(crate) bulk: bool,
    /// Whether this is an answer other than 200.
    pub(crate) refused: bool,
}

/// Reads the head of a message, once it is complete.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Head>> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
        if bytes.len() > MAX_HEAD {
            bail!("no end of the head within {MAX_HEAD} bytes");
        }
        return Ok(None);
    };
    let head = bytes.get(..end + 2).unwrap_or_default();
    let mut length = 0;
    let lines = memchr::memmem::find_iter(head, b"\r\n");
    let mut start = 0;
    for line_end in lines {
        let line = head.get(start..line_end).unwrap_or_default();
        start = line_end + 2;
        if let Some(value) = content_length(line) {
            let value = std::str::from_utf8(value).context("content-length")?;
            length = value.trim().parse().context("content-length")?;
        }
    }
    Ok(Some(Head {
        total: (end + 4).saturating_add(length),
        head: end + 4,
        bulk: bytes
            .get(4..)
            .is_some_and(|path| path.starts_with(b"/bulk ")),
        refused: bytes.starts_with(b"HTTP/") && bytes.get(8..12) != Some(b" 200"),
    }))
}

fn content_length(line: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"content-length:";
    let (name, value) = line.split_at_checked(NAME.len())?;
    name.eq_ignore_ascii_case(NAME).then_some(value)
}

const MAX_HEAD: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_have_the_promised_size_and_parse() {
        for message in [request(), answer()] {
            assert_eq!(message.len(), MESSAGE);
            let head = parse(&message).unwrap().unwrap();
            assert_eq!(head.total, MESSAGE);
            assert!(!head.bulk && !head.refused);
        }
        let head = parse(&bulk_request()).unwrap().unwrap();
        assert!(head.bulk);
        assert_eq!(head.total, head.head);
    }

    #[test]
    fn heads_that_proxies_have_rewritten_parse_too() {
        type Row = (&'static [u8], Option<(usize, bool)>);
        let table: [Row; 4] = [
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nserver: envoy\r\n\r\nabcde",
                Some((58, false)),
            ),
            (
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
                Some((55, true)),
            ),
            (b"HTTP/1.1 200 OK\r\ncontent-le", None),
            (b"", None),
        ];
        for (bytes, expected) in table {
            let head = parse(bytes).unwrap().map(|head| (head.total, head.refused));
            assert_eq!(head, expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_stream_that_is_no_http_is_an_error() {
        assert!(parse(&[b'x'; MAX_HEAD + 1]).is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n").is_err());
    }
}
