//! What goes in and out of an admin page: the decoded query, and a body with its type and status.

use std::collections::BTreeMap;
use std::error::Error;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

/// The decoded query string of a request; of a repeated key the last value counts.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Query {
    pairs: BTreeMap<String, String>,
    change: bool,
}

impl Query {
    /// Decodes `a=1&b=x%20y`; `+` is a space.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pairs = text
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (decode(key), decode(value)));
        Self {
            pairs: pairs.collect(),
            change: false,
        }
    }

    pub(super) fn with_change(self, change: bool) -> Self {
        Self { change, ..self }
    }

    /// Whether the request is one that may change something: a POST.
    #[must_use]
    pub fn may_change(&self) -> bool {
        self.change
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.get(key).map(String::as_str)
    }
}

/// The answer of an admin page.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply {
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
}

impl Reply {
    /// 200 with a body of this media type.
    #[must_use]
    pub fn new(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            content_type,
            body: body.into(),
        }
    }

    /// 200 with plain text.
    #[must_use]
    pub fn text(body: impl Into<Bytes>) -> Self {
        Self::new("text/plain; charset=utf-8", body)
    }

    /// 200 with indented JSON, or 500 when the value cannot be written as JSON.
    #[must_use]
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec_pretty(value) {
            Ok(body) => Self::new("application/json", body),
            Err(error) => Self::failure(StatusCode::INTERNAL_SERVER_ERROR, &error),
        }
    }

    /// An error with its causes, one a line.
    #[must_use]
    pub fn failure(status: StatusCode, error: &dyn Error) -> Self {
        let mut body = format!("{error}\n");
        let mut cause = error.source();
        while let Some(error) = cause {
            body.push_str(&format!("  because: {error}\n"));
            cause = error.source();
        }
        Self::text(body).status(status)
    }

    /// The same answer with another status.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        response
    }
}

/// Percent-decodes; what is not a valid escape stays as it is, what is not UTF-8 is replaced.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = match (byte, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(if byte == b'+' { b' ' } else { byte });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded() {
        for (text, key, value) in [
            ("level=debug%2Ch2%3dinfo", "level", Some("debug,h2=info")),
            ("a+b=c+d", "a b", Some("c d")),
            ("flag", "flag", Some("")),
            ("x=1&x=2", "x", Some("2")),
            ("x=%zz%4", "x", Some("%zz%4")),
            ("", "x", None),
        ] {
            assert_eq!(Query::parse(text).get(key), value, "{text}");
        }
    }
}
