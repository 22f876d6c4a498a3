//! A request as decisions see it. It borrows everything: nothing is copied to decide.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method, header};
use model::{Identity, ServiceKey};

use crate::path::Path;

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub client: Client<'a>,
    /// What was dialled.
    pub destination: Destination<'a>,
    /// Whether there is a request at all.
    pub protocol: Protocol,
    /// `http` or `https`, as the client sees it.
    pub scheme: &'a str,
    /// The method.
    pub method: &'a Method,
    /// `Host` or `:authority`, as received; empty if there is none.
    pub authority: &'a str,
    /// Path and query.
    pub path: &'a Path<'a>,
    /// All headers but the pseudo headers.
    pub headers: &'a HeaderMap,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its address.
    pub address: IpAddr,
    /// Who it has proved to be.
    pub identity: Option<&'a Identity>,
    /// Its namespace, if it is known.
    pub namespace: Option<&'a str>,
    /// Its labels, if it is known.
    pub labels: Option<&'a BTreeMap<Arc<str>, Arc<str>>>,
}

/// What a decision is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// An HTTP request.
    Http,
    /// A connection whose bytes are not read as HTTP: scheme, method, authority, path and headers say nothing.
    Tcp,
}

/// What was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination<'a> {
    /// A service, by one of its addresses.
    Service {
        /// The service.
        key: &'a ServiceKey,
        /// The service's port.
        port: u16,
    },
    /// A workload, by its own address.
    Workload {
        /// Its address.
        address: IpAddr,
        /// Its port.
        port: u16,
    },
}

impl Request<'_> {
    /// The host without the port.
    pub fn host(&self) -> &str {
        host(self.authority)
    }

    /// The value of a header; several lines of it are joined, with `; ` for cookies and with a comma else.
    pub fn header(&self, name: &HeaderName) -> Option<Cow<'_, str>> {
        let mut values = self.headers.get_all(name).iter();
        let first = text(values.next()?);
        let Some(second) = values.next() else {
            return Some(first);
        };
        let separator = if name == header::COOKIE { "; " } else { "," };
        let mut joined = first.into_owned();
        for value in std::iter::once(second).chain(values) {
            joined.push_str(separator);
            joined.push_str(&text(value));
        }
        Some(Cow::Owned(joined))
    }

    /// The first value of a query parameter, as it is written.
    pub fn query_parameter(&self, name: &str) -> Option<&str> {
        let pairs = self.path.query()?.split('&');
        pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }
}

impl Destination<'_> {
    /// The port that was dialled.
    pub fn port(&self) -> u16 {
        match self {
            Self::Service { port, .. } | Self::Workload { port, .. } => *port,
        }
    }
}

/// An authority without its port.
pub fn host(authority: &str) -> &str {
    // The port comes after the last colon, unless that stands inside of an IPv6 address's brackets.
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Values that are no ASCII stand for themselves where they are UTF-8.
fn text(value: &http::HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_no_port() {
        for (authority, expected) in [
            ("cart.shop", "cart.shop"),
            ("cart.shop:80", "cart.shop"),
            ("[::1]:80", "[::1]"),
            ("[fd00::80]", "[fd00::80]"),
            ("10.0.0.1:", "10.0.0.1"),
            ("", ""),
        ] {
            assert_eq!(host(authority), expected, "{authority}");
        }
    }
}
