//! For whom a request is made: the `forwarded` header (RFC 7239), of which HBONE uses `for` and
//! `host`. Nothing in it is trusted: it names things in logs and metrics.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::quoted;

/// What a `forwarded` header says, first element only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The client: an address, `unknown`, or an obfuscated name.
    pub client: Option<String>,
    /// The host name of the service that the client asked for.
    pub host: Option<String>,
}

impl Forwarded {
    /// A client at an address that asked for `host`, if it is known.
    pub fn new(client: SocketAddr, host: Option<&str>) -> Self {
        Self {
            client: Some(client.to_string()),
            host: host.map(str::to_owned),
        }
    }

    /// The client as an address, if it is one.
    pub fn client_address(&self) -> Option<SocketAddr> {
        self.client.as_deref()?.parse().ok()
    }

    /// Reads the header; `None` when there is none or it cannot be read.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = std::str::from_utf8(headers.get(NAME)?.as_bytes()).ok()?;
        Self::parse(text)
    }

    /// Reads the value of the header; `None` when it cannot be read.
    pub fn parse(text: &str) -> Option<Self> {
        let mut forwarded = Self::default();
        let mut rest = text.trim_start();
        loop {
            let (name, after) = quoted::take_token(rest, &['=', ';', ',']);
            if let Some(value) = after.strip_prefix('=') {
                let (value, after) = take_value(value)?;
                let field = match name.to_ascii_lowercase().as_str() {
                    "for" => Some(&mut forwarded.client),
                    "host" => Some(&mut forwarded.host),
                    _ => None,
                };
                if let Some(field) = field {
                    field.get_or_insert(value);
                }
                rest = after.trim_start();
            } else if name.is_empty() {
                rest = after;
            } else {
                return None;
            }
            match rest.strip_prefix(';') {
                Some(after) => rest = after.trim_start(),
                // The element ends here. Further elements are further proxies.
                None if rest.is_empty() || rest.starts_with(',') => return Some(forwarded),
                None => return None,
            }
        }
    }

    /// The value of the header, as ztunnel writes it: `for="10.0.0.1:40000";host=web.shop.svc`.
    /// `None` when there is nothing to say or it cannot stand in a header.
    pub fn to_value(&self) -> Option<HeaderValue> {
        let mut text = String::new();
        for (name, value) in [("for=", &self.client), ("host=", &self.host)] {
            let Some(value) = value else { continue };
            if !text.is_empty() {
                text.push(';');
            }
            text.push_str(name);
            if !value.is_empty() && value.bytes().all(is_token_byte) {
                text.push_str(value);
            } else {
                quoted::push(&mut text, value);
            }
        }
        if text.is_empty() {
            return None;
        }
        HeaderValue::from_bytes(text.as_bytes()).ok()
    }
}

pub(crate) const NAME: HeaderName = header::FORWARDED;

fn take_value(input: &str) -> Option<(String, &str)> {
    if input.starts_with('"') {
        return quoted::take(input);
    }
    let (token, rest) = quoted::take_token(input, &[';', ',']);
    // RFC 7239 wants an address with port quoted; senders that do not are understood.
    let allowed = |byte: u8| is_token_byte(byte) || matches!(byte, b':' | b'[' | b']');
    (!token.is_empty() && token.bytes().all(allowed)).then(|| (token.to_owned(), rest))
}

/// RFC 9110 section 5.6.2, `tchar`.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, client: Option<&str>, host: Option<&str>) {
        let expected = Forwarded {
            client: client.map(str::to_owned),
            host: host.map(str::to_owned),
        };
        assert_eq!(Forwarded::parse(text), Some(expected), "{text:?}");
    }

    #[test]
    fn what_peers_write_is_read() {
        check("for=\"10.0.0.1:40000\"", Some("10.0.0.1:40000"), None);
        check(
            "for=\"[fd00::1]:40000\";host=web.shop.svc",
            Some("[fd00::1]:40000"),
            Some("web.shop.svc"),
        );
        check(
            "For=unknown; HOST=\"a\\\"b\"",
            Some("unknown"),
            Some("a\"b"),
        );
        check("host=a;proto=http;by=_x", None, Some("a"));
        check("for=10.0.0.1:1", Some("10.0.0.1:1"), None);
        check("for=a, for=b;host=c", Some("a"), None);
        check("for=a;for=b", Some("a"), None);
        check("", None, None);
        check(";;host=a", None, Some("a"));
    }

    #[test]
    fn what_is_malformed_is_ignored() {
        for text in [
            "for",
            "for=",
            "for=\"a",
            "for=a b",
            "for=\"a\"b",
            "for=a;host",
        ] {
            assert_eq!(Forwarded::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn it_is_written_as_ztunnel_writes_it() {
        let client = "[fd00::1]:40000".parse().unwrap();
        let forwarded = Forwarded::new(client, Some("web.shop.svc.cluster.local"));
        let value = forwarded.to_value().unwrap();
        assert_eq!(
            value,
            "for=\"[fd00::1]:40000\";host=web.shop.svc.cluster.local"
        );
        assert_eq!(forwarded.client_address(), Some(client));
        assert_eq!(Forwarded::default().to_value(), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_ignored(text in "\\PC*") {
            let _read = Forwarded::parse(&text);
        }

        #[test]
        fn what_is_written_is_read(client in "\\PC*", host in "\\PC*") {
            let forwarded = Forwarded { client: Some(client), host: Some(host) };
            if let Some(value) = forwarded.to_value() {
                let text = std::str::from_utf8(value.as_bytes()).unwrap();
                prop_assert_eq!(Forwarded::parse(text), Some(forwarded));
            }
        }
    }
}
