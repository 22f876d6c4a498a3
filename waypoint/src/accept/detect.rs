//! What a client speaks, by its first bytes.

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else.
    Tcp,
}

/// What the first bytes say; nothing while they may become HTTP and are too few.
pub(crate) fn detect(bytes: &[u8]) -> Option<Spoken> {
    let begun = bytes.len().min(PREFACE.len());
    if bytes.get(..begun) == PREFACE.get(..begun) {
        return (begun == PREFACE.len()).then_some(Spoken::Http2);
    }
    let line = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => bytes.get(..end).unwrap_or_default(),
        None if may_be_request_line(bytes) && bytes.len() < LONGEST_LINE => return None,
        None => return Some(Spoken::Tcp),
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let is_request = words.next().is_none()
        && method.is_some_and(is_method)
        && target.is_some_and(|target| !target.is_empty())
        && matches!(version, Some(b"HTTP/1.0" | b"HTTP/1.1"));
    Some(if is_request {
        Spoken::Http1
    } else {
        Spoken::Tcp
    })
}

/// Whether a line that is not over may become that of a request.
fn may_be_request_line(bytes: &[u8]) -> bool {
    let mut words = bytes.split(|byte| *byte == b' ');
    let method = words.next().unwrap_or_default();
    if !(method.is_empty() || is_method(method)) || bytes.first() == Some(&b' ') {
        return false;
    }
    let visible = |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\r' | 0x80..);
    bytes.iter().all(visible)
}

/// A token of RFC 9110 in capital letters: there is no method in use that is not.
fn is_method(word: &[u8]) -> bool {
    (1..=LONGEST_METHOD).contains(&word.len())
        && word
            .iter()
            .all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_'))
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const LONGEST_METHOD: usize = 24;
const LONGEST_LINE: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_say_what_is_spoken() {
        for (bytes, spoken) in [
            (&b""[..], None),
            (b"P", None),
            (b"PRI * HTTP/2.0\r\n\r\n", None),
            (PREFACE, Some(Spoken::Http2)),
            (b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n", Some(Spoken::Tcp)),
            (b"POST /x", None),
            (b"GET / HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"GET / HTTP/1.0\r\nHost: a\r\n", Some(Spoken::Http1)),
            (b"M-SEARCH * HTTP/1.1\n", Some(Spoken::Http1)),
            (b"GET /\r\n", Some(Spoken::Tcp)),
            (b"get / HTTP/1.1\r\n", Some(Spoken::Tcp)),
            (b"SET name value\r\n", Some(Spoken::Tcp)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Spoken::Tcp)),
            (b"\x16\x03\x01\x02\x00", Some(Spoken::Tcp)),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Spoken::Tcp)),
        ] {
            assert_eq!(
                detect(bytes),
                spoken,
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
        let endless = [b"GET /".as_slice(), &vec![b'a'; LONGEST_LINE]].concat();
        assert_eq!(detect(&endless), Some(Spoken::Tcp));
    }

    #[test]
    fn a_request_is_never_taken_for_something_else_while_it_arrives() {
        for whole in [&b"OPTIONS /a/b?c=d HTTP/1.1\r\n"[..], PREFACE] {
            let decided = detect(whole);
            for end in 0..whole.len() {
                let early = detect(&whole[..end]);
                assert!(early.is_none() || early == decided, "{end}");
            }
        }
    }
}
