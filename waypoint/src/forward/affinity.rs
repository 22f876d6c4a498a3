//! Clients that come back to the same endpoint: by a hash of what they say.

use l7::backend::{HashKey, LoadBalancer};

use crate::balance::Resolved;
use crate::balance::choose;
use crate::serve::Exchange;

/// What a consistent hash is made of, and the cookie that the client is given to come back to the same endpoint.
pub(super) fn hash(exchange: &Exchange<'_>, resolved: &Resolved) -> (Option<u64>, Option<String>) {
    let Some(LoadBalancer::Hash(key)) = &resolved.cluster.policy.load_balancer else {
        return (None, None);
    };
    let request = exchange.request();
    let of = |text: &[u8]| Some(choose::hash(text));
    match key {
        HashKey::Header(name) => {
            let value = request.header(name);
            (value.and_then(|value| of(value.as_bytes())), None)
        }
        HashKey::SourceIp => (Some(choose::of_address(request.client.address)), None),
        HashKey::QueryParameter(name) => {
            let value = request.query_parameter(name);
            (value.and_then(|value| of(value.as_bytes())), None)
        }
        HashKey::Cookie { name, path, ttl } => {
            let cookies = request.header(&http::header::COOKIE).unwrap_or_default();
            let named = cookies.split(';').find_map(|pair| {
                let (key, value) = pair.trim().split_once('=')?;
                (key == &**name).then_some(value)
            });
            if let Some(value) = named {
                return (of(value.as_bytes()), None);
            }
            let Some(ttl) = ttl else {
                return (None, None);
            };
            let value = format!("{:016x}", rand::random::<u64>());
            let mut cookie = format!("{name}={value}");
            if !ttl.is_zero() {
                cookie.push_str(&format!("; Max-Age={}", ttl.as_secs()));
            }
            if let Some(path) = path {
                cookie.push_str(&format!("; Path={path}"));
            }
            cookie.push_str("; HttpOnly");
            (of(value.as_bytes()), Some(cookie))
        }
    }
}
