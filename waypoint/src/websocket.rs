//! WebSocket over HTTP/2 (RFC 8441). To routes, to policy and to an endpoint of HTTP/1.1 such a CONNECT is the GET that it
//! stands for, with an upgrade; an endpoint of HTTP/2 gets a CONNECT again.

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::ext::Protocol;
use rand::RngExt as _;

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

/// Makes the GET a CONNECT again, for an endpoint of HTTP/2.
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

/// 16 random bytes in base64.
fn key() -> String {
    let mut rng = rand::rng();
    let mut drawn = |letters: &[u8], count: usize| -> String {
        let one = |_| letters.get(rng.random_range(0..letters.len())).copied();
        (0..count).filter_map(one).map(char::from).collect()
    };
    // The last letter has two bits of the 128.
    let mut key = drawn(BASE64, 21);
    key.push_str(&drawn(b"AQgw", 1));
    key.push_str("==");
    key
}

const WEBSOCKET: &str = "websocket";
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
}
