//! Where a CONNECT request wants to go: `ip:port`, `[v6]:port` or `host:port`, and nothing else.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

/// The target of a CONNECT request (RFC 9113 section 8.5: `:authority` is host and port).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address: the usual form between agents.
    Address(SocketAddr),
    /// The name of a service, lower case: the form that gateways between networks use.
    Host {
        /// The name, without trailing dot.
        name: String,
        /// The port of the service.
        port: u16,
    },
}

/// Why a text is not an authority.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AuthorityError {
    /// There is no port, or it is not a number from 1 to 65535 without sign or leading zero.
    #[error("its port is missing or not a number from 1 to 65535")]
    Port,
    /// What stands in brackets is not an IPv6 address, or an IPv6 address has no brackets.
    #[error("an IPv6 address is written [address]:port, without zone")]
    V6,
    /// It is neither an IPv4 address nor a DNS name.
    #[error("its host is neither an IP address nor a DNS name")]
    Host,
}

impl Authority {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }

    /// The address, if it is one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Host { .. } => None,
        }
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once("]:").ok_or(AuthorityError::V6)?;
            let address: Ipv6Addr = address.parse().map_err(|_not_v6| AuthorityError::V6)?;
            return Ok(Self::Address((address, self::port(port)?).into()));
        }
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::Port)?;
        if host.contains(':') {
            return Err(AuthorityError::V6);
        }
        let port = self::port(port)?;
        if let Ok(address) = host.parse::<Ipv4Addr>() {
            return Ok(Self::Address((IpAddr::V4(address), port).into()));
        }
        dns_name(host).map(|name| Self::Host { name, port })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

fn port(text: &str) -> Result<u16, AuthorityError> {
    // `u16::from_str` would take a sign and leading zeros.
    if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AuthorityError::Port);
    }
    text.parse().map_err(|_not_a_port| AuthorityError::Port)
}

/// A DNS name as services have: letters, digits, `-`, `_`; not all digits at the end, because that
/// is a mistyped IPv4 address.
fn dns_name(text: &str) -> Result<String, AuthorityError> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label_is_valid = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let last_is_number = name
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    if name.len() > 253 || last_is_number || !name.split('.').all(label_is_valid) {
        return Err(AuthorityError::Host);
    }
    Ok(name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_and_names_are_taken() {
        for (text, written) in [
            ("10.1.2.3:80", "10.1.2.3:80"),
            ("[fd00::1]:8080", "[fd00::1]:8080"),
            ("[::ffff:10.0.0.1]:1", "[::ffff:10.0.0.1]:1"),
            (
                "web.shop.svc.cluster.local:443",
                "web.shop.svc.cluster.local:443",
            ),
            ("Web.Shop.:443", "web.shop:443"),
            ("a_b-1:65535", "a_b-1:65535"),
        ] {
            let parsed: Authority = text.parse().unwrap();
            assert_eq!(parsed.to_string(), written);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        use AuthorityError::{Host, Port, V6};
        for (text, error) in [
            ("", Port),
            ("10.1.2.3", Port),
            ("10.1.2.3:", Port),
            ("10.1.2.3:0", Port),
            ("10.1.2.3:080", Port),
            ("10.1.2.3:+80", Port),
            ("10.1.2.3:65536", Port),
            ("10.1.2.3:80 ", Port),
            ("10.1.2.3:８０", Port),
            ("fd00::1:80", V6),
            ("[fd00::1]", V6),
            ("[fd00::1]80", V6),
            ("[fe80::1%eth0]:80", V6),
            ("[10.0.0.1]:80", V6),
            ("[fd00::1]:0", Port),
            ("10.1.2:80", Host),
            ("10.1.2.256:80", Host),
            ("010.1.2.3:80", Host),
            ("user@web:80", Host),
            ("we b:80", Host),
            ("web..shop:80", Host),
            ("-web:80", Host),
            (":80", Host),
            (".:80", Host),
            ("*:80", Host),
        ] {
            assert_eq!(text.parse::<Authority>(), Err(error), "{text:?}");
        }
        let long = format!("{}:80", "a".repeat(64));
        assert_eq!(long.parse::<Authority>(), Err(Host));
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "\\PC*") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse(), Ok(authority));
            }
        }

        #[test]
        fn every_address_round_trips(ip: IpAddr, port in 1u16..) {
            let authority = Authority::from(SocketAddr::new(ip, port));
            prop_assert_eq!(authority.to_string().parse(), Ok(authority));
        }
    }
}
