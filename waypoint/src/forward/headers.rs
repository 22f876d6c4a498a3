//! Headers on their way: what belongs to one connection stays there, and what a waypoint says is said by it alone.

use std::net::IpAddr;

use http::header::{
    CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use model::Identity;

/// Takes away what is said to this connection only. An upgrade that is asked for stays.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    if let Some(named) = named_by_connection(headers) {
        for name in named {
            headers.remove(name);
        }
    }
    let upgrade = headers.remove(UPGRADE).filter(|_| keep_upgrade);
    // gRPC needs it, and it says nothing else end to end.
    let trailers = headers
        .get(TE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in [
        CONNECTION,
        TRANSFER_ENCODING,
        TE,
        EXPECT,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(upgrade) = upgrade {
        headers.insert(UPGRADE, upgrade);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Headers that `Connection` names, but for those that have a meaning end to end and must not be taken away so.
fn named_by_connection(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    headers.get(CONNECTION)?;
    let names = words(headers, &CONNECTION)
        .filter_map(|name| name.parse::<HeaderName>().ok())
        .filter(|name| *name != TE && *name != UPGRADE && *name != HOST)
        .filter(|name| !name.as_str().starts_with("x-forwarded-"));
    Some(names.collect())
}

/// What a waypoint tells the application of the client. Whatever the client says of itself there is replaced, but for
/// the chain of addresses, which grows.
pub(crate) fn tell_of_client(
    headers: &mut HeaderMap,
    client: IpAddr,
    identity: Option<&Identity>,
    own: Option<&Identity>,
    scheme: &'static str,
) {
    let chain = match headers.get(X_FORWARDED_FOR).map(HeaderValue::to_str) {
        Some(Ok(before)) if !before.is_empty() => format!("{before},{client}"),
        _ => client.to_string(),
    };
    if let Ok(chain) = HeaderValue::try_from(chain) {
        headers.insert(X_FORWARDED_FOR, chain);
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    headers.remove(X_FORWARDED_CLIENT_CERT);
    if let Some(identity) = identity {
        let by = own.map_or_else(String::new, |own| format!("By={own};"));
        if let Ok(value) = HeaderValue::try_from(format!("{by}URI={identity}")) {
            headers.insert(X_FORWARDED_CLIENT_CERT, value);
        }
    }
    if !headers.contains_key(X_REQUEST_ID)
        && let Ok(value) = HeaderValue::try_from(request_id())
    {
        headers.insert(X_REQUEST_ID, value);
    }
    headers.remove(X_ENVOY_ATTEMPT_COUNT);
}

/// A random UUID.
pub(crate) fn request_id() -> String {
    let bits = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let text = format!("{bits:032x}");
    let part = |range: std::ops::Range<usize>| text.get(range).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32)
    )
}

/// Whether a protocol is asked for that takes the connection over. HTTP is none (`h2c`), and neither is TLS: requests would
/// follow that nobody routes and nobody judges. Where one of these is among those that are asked for, none is: an endpoint
/// may go on in HTTP/1.1 as if nothing had been asked (RFC 9110, 7.8).
pub(crate) fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && words(headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"))
        && !words(headers, &UPGRADE).any(carries_requests)
        && headers
            .get_all(UPGRADE)
            .iter()
            .all(|line| line.to_str().is_ok())
}

/// The words of all lines of a header that is a list.
pub(crate) fn words<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'h str> {
    let lines = headers.get_all(name).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
}

/// Whether requests of HTTP go on in a protocol, which may have a version (`HTTP/2.0`).
fn carries_requests(protocol: &str) -> bool {
    let name = protocol.split('/').next().unwrap_or_default().trim_end();
    ["h2c", "h2", "h3", "http", "https", "tls"]
        .iter()
        .any(|one| name.eq_ignore_ascii_case(one))
}

/// A client that follows it would leave by UDP, around every policy.
pub(crate) const ALT_SVC: HeaderName = HeaderName::from_static("alt-svc");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
pub(crate) const X_ENVOY_ATTEMPT_COUNT: HeaderName =
    HeaderName::from_static("x-envoy-attempt-count");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Goes with an upgrade to HTTP/2, which is never passed on.
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn what_is_said_to_one_connection_stays_there() {
        let mut all = headers(&[
            ("connection", "close, x-secret-hop, x-forwarded-for"),
            ("x-secret-hop", "1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut all, false);
        let left: std::collections::BTreeSet<&str> = all.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["accept", "te", "x-forwarded-for"].into());
    }

    #[test]
    fn an_upgrade_that_is_asked_for_stays() {
        let mut all = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ]);
        assert!(wants_upgrade(&all));
        strip_hop_by_hop(&mut all, true);
        assert_eq!(all[UPGRADE], "websocket");
        assert_eq!(all[CONNECTION], "upgrade");
    }

    #[test]
    fn no_upgrade_leads_to_requests_that_nobody_judges() {
        for protocol in [
            "h2c",
            "H2C",
            "websocket, h2c",
            "h2c,websocket",
            "HTTP/2.0",
            "TLS/1.2, HTTP/1.1",
        ] {
            let all = headers(&[
                ("connection", "Upgrade, HTTP2-Settings"),
                ("upgrade", protocol),
                ("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
            ]);
            assert!(!wants_upgrade(&all), "{protocol}");
        }
        let mut lines = headers(&[("connection", "upgrade"), ("upgrade", "websocket")]);
        assert!(wants_upgrade(&lines));
        lines.append(UPGRADE, HeaderValue::from_static("h2c"));
        assert!(!wants_upgrade(&lines), "in a line of its own");
        let mut alone = headers(&[("http2-settings", "AAMAAABk"), ("connection", "upgrade")]);
        strip_hop_by_hop(&mut alone, false);
        assert!(alone.is_empty(), "{alone:?}");
    }

    #[test]
    fn a_client_cannot_say_who_it_is() {
        let mut all = headers(&[
            (
                "x-forwarded-client-cert",
                "URI=spiffe://cluster.local/ns/a/sa/admin",
            ),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
        ]);
        let client = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        tell_of_client(
            &mut all,
            "10.0.0.9".parse().unwrap(),
            Some(&client),
            None,
            "http",
        );
        assert_eq!(
            all[X_FORWARDED_CLIENT_CERT],
            "URI=spiffe://cluster.local/ns/shop/sa/cart"
        );
        assert_eq!(all[X_FORWARDED_FOR], "1.2.3.4,10.0.0.9");
        assert_eq!(all[X_FORWARDED_PROTO], "http");
        tell_of_client(&mut all, "10.0.0.9".parse().unwrap(), None, None, "http");
        assert!(!all.contains_key(X_FORWARDED_CLIENT_CERT));
    }

    #[test]
    fn a_request_id_is_a_random_uuid() {
        let id = request_id();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4', "{id}");
        assert!(
            matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'),
            "{id}"
        );
    }
}
