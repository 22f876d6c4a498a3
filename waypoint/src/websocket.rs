//! WebSocket where one side speaks HTTP/1.1 and the other HTTP/2 (RFC 8441). To routes, to policy and to an endpoint of
//! HTTP/1.1 a CONNECT for it is the GET that it stands for, with an upgrade; an endpoint of HTTP/2 gets a CONNECT, whatever
//! the client speaks. Whoever makes a handshake of the other checks its answer.

use aws_lc_rs::digest;
use http::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::ext::Protocol;

use crate::forward::headers;

/// Makes a CONNECT that names a protocol the GET that it stands for; says whether it was one.
///
/// # Errors
/// It names a protocol that is not carried.
pub(crate) fn as_get(head: &mut Parts) -> Result<bool, String> {
    if head.method != Method::CONNECT {
        return Ok(false);
    }
    let Some(protocol) = head.extensions.remove::<Protocol>() else {
        return Ok(false);
    };
    if protocol.as_str() != WEBSOCKET {
        return Err(format!("CONNECT asks for {:?}", protocol.as_str()));
    }
    head.method = Method::GET;
    let all = &mut head.headers;
    all.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    all.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    if let Ok(key) = HeaderValue::try_from(key()) {
        all.insert(SEC_WEBSOCKET_KEY, key);
    }
    all.entry(SEC_WEBSOCKET_VERSION)
        .or_insert(HeaderValue::from_static("13"));
    Ok(true)
}

/// Whether a request was made by [`as_get`]: nothing else of HTTP/2 asks for an upgrade.
pub(crate) fn was_connect(head: &Parts) -> bool {
    head.version == Version::HTTP_2 && headers::wants_upgrade(&head.headers)
}

/// Whether a request of HTTP/1.1 asks for a WebSocket and for nothing else, so that an endpoint of HTTP/2 can be asked.
pub(crate) fn is_asked(head: &Parts) -> bool {
    let all = &head.headers;
    head.version == Version::HTTP_11
        && head.method == Method::GET
        && headers::wants_upgrade(all)
        && headers::words(all, &UPGRADE).all(|word| word.eq_ignore_ascii_case(WEBSOCKET))
        && all.contains_key(SEC_WEBSOCKET_KEY)
}

/// Makes the GET a CONNECT, for an endpoint of HTTP/2.
pub(crate) fn as_connect<B>(request: &mut Request<B>) {
    *request.method_mut() = Method::CONNECT;
    request.headers_mut().remove(SEC_WEBSOCKET_KEY);
    let protocol = Protocol::from_static(WEBSOCKET);
    request.extensions_mut().insert(protocol);
}

/// What the client of a CONNECT is told: success means that its stream is open, and nothing else may say so.
pub(crate) fn answer<B>(response: &mut Response<B>) {
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        *response.status_mut() = StatusCode::OK;
        for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
            response.headers_mut().remove(name);
        }
    } else if status.is_success() {
        *response.status_mut() = StatusCode::BAD_GATEWAY;
    }
}

/// What a client of HTTP/1.1 is told when an endpoint of HTTP/2 has opened the stream that it stands for.
pub(crate) fn switched<B>(response: &mut Response<B>, asked: &HeaderMap) {
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let all = response.headers_mut();
    all.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    all.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    let key = asked.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    if let Ok(accept) = HeaderValue::try_from(accept(key.unwrap_or_default())) {
        all.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
}

/// Checks an endpoint's answer of HTTP/1.1 to the GET that [`as_get`] has made, which no client will (RFC 6455, 4.1).
///
/// # Errors
/// It is no answer to this handshake; why.
pub(crate) fn check<B>(asked: &HeaderMap, answer: &Response<B>) -> Result<(), &'static str> {
    let said = answer.headers();
    let is_one = |name: &HeaderName, wanted: &str| {
        headers::words(said, name).any(|word| word.eq_ignore_ascii_case(wanted))
    };
    let key = asked.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let expected = accept(key.unwrap_or_default());
    let mut accepted = said.get_all(SEC_WEBSOCKET_ACCEPT).iter();
    let accepted = (accepted.next(), accepted.next());
    let (Some(accepted), None) = accepted else {
        return Err("it has no sec-websocket-accept, or several");
    };
    // As tokens are: what an extension has behind it says how it is used.
    let of = |all: &HeaderMap, name: &HeaderName| -> Vec<String> {
        let name_of = |word: &str| word.split(';').next().map(|name| name.trim().to_owned());
        headers::words(all, name).filter_map(name_of).collect()
    };
    let is_among = |name: &HeaderName| {
        let offered = of(asked, name);
        of(said, name).iter().all(|one| offered.contains(one))
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        Err("it does not switch protocols")
    } else if !is_one(&UPGRADE, WEBSOCKET) || !is_one(&CONNECTION, "upgrade") {
        Err("it switches to another protocol")
    } else if accepted.as_bytes().trim_ascii() != expected.as_bytes() {
        Err("its sec-websocket-accept does not belong to the key")
    } else if !is_among(&SEC_WEBSOCKET_EXTENSIONS) {
        Err("it has an extension that was not asked for")
    } else if !is_among(&SEC_WEBSOCKET_PROTOCOL) {
        Err("it has a protocol that was not asked for")
    } else {
        Ok(())
    }
}

/// What proves that a handshake with this key was understood.
fn accept(key: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.trim_ascii());
    context.update(GUID);
    base64(context.finish().as_ref())
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .chain(&[0; 2])
            .take(3)
            .fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        for place in 0..4 {
            let letter = BASE64.get(bits >> (18 - 6 * place) & 63);
            let letter = letter.filter(|_| place <= chunk.len());
            text.push(letter.map_or('=', |letter| char::from(*letter)));
        }
    }
    text
}

/// 16 random bytes in base64.
fn key() -> String {
    base64(&rand::random::<[u8; 16]>())
}

const WEBSOCKET: &str = "websocket";
/// RFC 6455, 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_sixteen_bytes_in_base64() {
        let one = key();
        assert_eq!(one.len(), 24, "{one}");
        assert!(one.ends_with("=="), "{one}");
        assert_ne!(one, key());
    }

    #[test]
    fn only_a_switch_of_protocols_opens_a_stream() {
        for (came, told) in [(101, 200), (200, 502), (204, 502), (302, 302), (403, 403)] {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(came).unwrap();
            answer(&mut response);
            assert_eq!(response.status(), told, "{came}");
        }
    }

    /// RFC 4648, 10, and the example of RFC 6455, 1.3.
    #[test]
    fn what_belongs_to_a_key_is_known() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        let example = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), example);
    }

    #[test]
    fn only_an_answer_to_this_handshake_is_taken() {
        let right = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-accept", " s3pPLMBiTxaQ9kYGzzhZRbK+xOo= "),
            ("sec-websocket-protocol", "chat"),
            ("sec-websocket-extensions", "deflate; bits=9"),
        ];
        let asked = HeaderMap::from_iter(
            [
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("sec-websocket-protocol", "talk, chat"),
                ("sec-websocket-extensions", "deflate; bits=15, other"),
            ]
            .map(|(name, value)| {
                let name = HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            }),
        );
        let check_with = |status: u16, name: &'static str, value: Option<&'static str>| {
            let mut answer = Response::builder().status(status).body(()).unwrap();
            for (name, value) in right {
                let value = HeaderValue::from_static(value);
                answer.headers_mut().append(name, value);
            }
            answer.headers_mut().remove(name);
            if let Some(value) = value {
                let value = HeaderValue::from_static(value);
                answer.headers_mut().append(name, value);
            }
            check(&asked, &answer)
        };
        assert_eq!(check_with(101, "x-none", None), Ok(()));
        assert_eq!(check_with(101, "sec-websocket-protocol", None), Ok(()));
        assert_eq!(check_with(101, "sec-websocket-extensions", None), Ok(()));
        for (status, name, value) in [
            (200, "x-none", None),
            (101, "upgrade", Some("other")),
            (101, "upgrade", None),
            (101, "connection", Some("keep-alive")),
            (101, "connection", None),
            (101, "sec-websocket-accept", None),
            (
                101,
                "sec-websocket-accept",
                Some("S3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            ),
            (101, "sec-websocket-protocol", Some("other")),
            (101, "sec-websocket-extensions", Some("deflate, third")),
        ] {
            let checked = check_with(status, name, value);
            assert!(checked.is_err(), "{status} {name} {value:?}");
        }
    }
}
