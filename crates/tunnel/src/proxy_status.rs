//! Why a request was refused: the `proxy-status` header (RFC 9209), so that the client's side can
//! say what only the server's side knows.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::quoted;

/// The kinds of refusal that we send (RFC 9209 section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorType {
    /// The workload, the service or its port is not known here.
    DestinationNotFound,
    /// The workload is known and cannot take connections now.
    DestinationUnavailable,
    /// Nobody listens on the port.
    ConnectionRefused,
    /// The application did not accept in time.
    ConnectionTimeout,
    /// No route leads to the application.
    DestinationIpUnroutable,
    /// The application's side ended before it was connected.
    ConnectionTerminated,
    /// A limit on connections is reached.
    ConnectionLimitReached,
    /// Policy denies it.
    HttpRequestDenied,
    /// The request is malformed.
    HttpRequestError,
    /// It is our fault.
    ProxyInternalError,
}

/// What a `proxy-status` header says about one hop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyStatus {
    /// The `error` parameter: a token of RFC 9209 or of the peer's own.
    pub error: Option<String>,
    /// The `details` parameter: a sentence for a person.
    pub details: Option<String>,
}

impl ErrorType {
    /// The token of RFC 9209.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DestinationNotFound => "destination_not_found",
            Self::DestinationUnavailable => "destination_unavailable",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionTimeout => "connection_timeout",
            Self::DestinationIpUnroutable => "destination_ip_unroutable",
            Self::ConnectionTerminated => "connection_terminated",
            Self::ConnectionLimitReached => "connection_limit_reached",
            Self::HttpRequestDenied => "http_request_denied",
            Self::HttpRequestError => "http_request_error",
            Self::ProxyInternalError => "proxy_internal_error",
        }
    }
}

impl ProxyStatus {
    /// A refusal of a kind, with a sentence for a person.
    pub fn new(error: ErrorType, details: impl Into<String>) -> Self {
        Self {
            error: Some(error.as_str().to_owned()),
            details: Some(details.into()),
        }
    }

    /// The value of the header: `keelson; error=connection_refused; details="..."`. Details are
    /// cut after 512 bytes, so that a refusal always fits into the peer's header limit.
    pub fn to_value(&self) -> Option<HeaderValue> {
        let mut text = PROXY_NAME.to_owned();
        if let Some(error) = self.error.as_deref().filter(|error| is_token(error)) {
            text.push_str("; error=");
            text.push_str(error);
        }
        if let Some(details) = &self.details {
            text.push_str("; details=");
            push_string(&mut text, cut(details, MAX_DETAILS));
        }
        HeaderValue::from_str(&text).ok()
    }

    /// Reads the header. Of several hops the first that gives an error is taken: it is the one
    /// closest to the server (RFC 9209 section 2).
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        headers
            .get_all(NAME)
            .iter()
            .filter_map(|value| std::str::from_utf8(value.as_bytes()).ok())
            .find_map(Self::parse)
    }

    /// Reads the value of the header; `None` when no hop in it gives an error or details, or when
    /// it cannot be read.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (hop, after) = take_member(rest)?;
            if hop != Self::default() {
                return Some(hop);
            }
            rest = after;
        }
        None
    }
}

pub(crate) const NAME: HeaderName = HeaderName::from_static("proxy-status");
const PROXY_NAME: &str = "keelson";
const MAX_DETAILS: usize = 512;

/// One member of the list: a name and its parameters.
fn take_member(input: &str) -> Option<(ProxyStatus, &str)> {
    let mut status = ProxyStatus::default();
    let (_name, mut rest) = take_item(input)?;
    loop {
        rest = rest.trim_start();
        let Some(parameter) = rest.strip_prefix(';') else {
            break;
        };
        let (key, after) = quoted::take_token(parameter, &['=', ';', ',']);
        let (value, after) = match after.strip_prefix('=') {
            Some(value) => take_item(value)?,
            None => (String::new(), after),
        };
        match key {
            "error" => status.error = is_token(&value).then_some(value),
            "details" => status.details = Some(line(&value)),
            _ => {}
        }
        rest = after;
    }
    match rest.strip_prefix(',') {
        Some(after) => Some((status, after.trim_start())),
        None => rest.is_empty().then_some((status, rest)),
    }
}

/// A bare item of RFC 9651 as text: a String, a Display String, or anything token-like.
fn take_item(input: &str) -> Option<(String, &str)> {
    if let Some(display) = input.strip_prefix("%\"") {
        let (encoded, rest) = display.split_once('"')?;
        return Some((percent_decode(encoded)?, rest));
    }
    if input.starts_with('"') {
        return quoted::take(input);
    }
    let (token, rest) = quoted::take_token(input, &[';', ',']);
    (!token.is_empty() && !token.contains('"')).then(|| (token.to_owned(), rest))
}

/// A String where its characters allow it, otherwise a Display String (RFC 9651 section 3.3.8).
fn push_string(out: &mut String, text: &str) {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return quoted::push(out, text);
    }
    out.push_str("%\"");
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && !matches!(byte, b'%' | b'"' | b'\\') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.extend(
                [byte >> 4, byte & 15]
                    .map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or_default()),
            );
        }
    }
    out.push('"');
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let value = (digit()? << 4) | digit()?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Details as they may stand in a log: one line, and no longer than ours.
fn line(text: &str) -> String {
    let visible = |character: char| {
        if character.is_control() {
            ' '
        } else {
            character
        }
    };
    cut(text, MAX_DETAILS).chars().map(visible).collect()
}

/// The longest beginning of `text` of at most `limit` bytes that ends between characters.
fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, error: Option<&str>, details: Option<&str>) {
        let expected = ProxyStatus {
            error: error.map(str::to_owned),
            details: details.map(str::to_owned),
        };
        assert_eq!(ProxyStatus::parse(text), Some(expected), "{text:?}");
    }

    #[test]
    fn refusals_of_others_are_read() {
        check(
            r##"ztunnel; error=connection_refused; details="no \"listener\"""##,
            Some("connection_refused"),
            Some("no \"listener\""),
        );
        check("a;error=x;next-hop=\"1.2.3.4\"", Some("x"), None);
        check("\"a, b\"; error=x", Some("x"), None);
        check("a, b; error=x", Some("x"), None);
        check("a; error=x, b; error=y", Some("x"), None);
        check("a; details=%\"f%c3%bcr\"", None, Some("für"));
        check("a; details=\"f\u{fc}r\"", None, Some("für"));
        check("a; received-status=503; error=x ", Some("x"), None);
    }

    #[test]
    fn what_says_nothing_is_nothing() {
        for text in [
            "",
            "a",
            "a;b",
            "a; details=\"x",
            "a; details=%\"%zz\"",
            ";",
            ",",
        ] {
            assert_eq!(ProxyStatus::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_a_peer_says_is_one_line_and_its_error_is_a_word() {
        let said = ProxyStatus::parse("x; error=h=we; details=%\"no%0a2026-01-01 forged%00\"");
        let details = "no 2026-01-01 forged ".to_owned();
        let expected = ProxyStatus {
            error: None,
            details: Some(details),
        };
        assert_eq!(said, Some(expected));
        let long = format!("x; details=\"{}\"", "a".repeat(MAX_DETAILS + 1));
        let details = ProxyStatus::parse(&long).and_then(|status| status.details);
        assert_eq!(details.map(|details| details.len()), Some(MAX_DETAILS));
        assert_eq!(ProxyStatus::parse("x; error=\"two words\""), None);
    }

    #[test]
    fn details_are_cut_between_characters() {
        let long = ProxyStatus::new(ErrorType::HttpRequestDenied, "ü".repeat(1000));
        let value = long.to_value().unwrap();
        let read = ProxyStatus::parse(value.to_str().unwrap()).unwrap();
        assert_eq!(read.details.as_deref(), Some("ü".repeat(256).as_str()));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_ignored(text in "\\PC*") {
            let _read = ProxyStatus::parse(&text);
        }

        #[test]
        fn every_reason_round_trips(details in "\\PC{0,120}") {
            let status = ProxyStatus::new(ErrorType::HttpRequestDenied, details);
            let value = status.to_value().unwrap();
            prop_assert_eq!(ProxyStatus::parse(value.to_str().unwrap()), Some(status));
        }
    }
}
