//! Whom a request asks: one host, the same for routes, for policy and for the application.

use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Version};

/// The authority that is asked. Where the request says it twice and differently, the target counts (RFC 9112 3.2.2,
/// RFC 9113 8.3.1), and `Host` is made the same: otherwise one host would be judged and another one served.
///
/// # Errors
/// Why it is none.
pub(crate) fn settle(head: &mut Parts) -> Result<String, String> {
    let host = one_host(&head.headers)?;
    let authority = match (head.uri.authority(), host) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host,
        // HTTP/1.0 knows no Host.
        (None, None) if head.version <= Version::HTTP_10 => "",
        (None, None) => return Err("there is no Host".to_owned()),
    };
    if !authority.bytes().all(is_of_authority) {
        return Err(format!("{authority:?} is no host"));
    }
    let authority = authority.to_owned();
    if host.is_some_and(|host| host != authority) {
        let settled = HeaderValue::try_from(&authority).map_err(|error| error.to_string())?;
        head.headers.insert(HOST, settled);
    }
    Ok(authority)
}

fn one_host(headers: &HeaderMap) -> Result<Option<&str>, String> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err("there is more than one Host".to_owned());
    }
    match host.map(HeaderValue::to_str) {
        Some(Ok(host)) => Ok(Some(host)),
        Some(Err(_)) => Err("Host is not visible ASCII".to_owned()),
        None => Ok(None),
    }
}

/// Whether a byte may stand in a host with its port. A name of a user before the host (`user@host`) may not: who reads
/// on would take another part for the host.
fn is_of_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn settled(uri: &str, hosts: &[&str], version: Version) -> Result<(String, String), String> {
        let mut request = Request::builder().uri(uri).version(version);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let mut head = request.body(()).unwrap().into_parts().0;
        let authority = settle(&mut head)?;
        let host = head.headers.get(HOST);
        let host = host.map_or("", |host| host.to_str().unwrap());
        Ok((authority, host.to_owned()))
    }

    #[test]
    fn the_target_counts_and_host_becomes_the_same() {
        let both = |host: &str| Ok((host.to_owned(), host.to_owned()));
        let http11 = Version::HTTP_11;
        assert_eq!(settled("/", &["a:80"], http11), both("a:80"));
        assert_eq!(settled("/", &[""], http11), both(""));
        assert_eq!(settled("http://a/", &["b"], http11), both("a"));
        assert_eq!(
            settled("http://[::1]:80/", &["b"], http11),
            both("[::1]:80")
        );
        let without = Ok(("a".to_owned(), String::new()));
        assert_eq!(settled("http://a/", &[], Version::HTTP_2), without);
        assert_eq!(settled("http://a/", &["b"], Version::HTTP_2), both("a"));
        assert_eq!(settled("/", &[], Version::HTTP_10), both(""));
    }

    #[test]
    fn what_is_no_single_host_is_refused() {
        for (uri, hosts) in [
            ("/", &[][..]),
            ("/", &["a", "a"]),
            ("http://a/", &["a", "b"]),
            ("/", &["user@a"]),
            ("http://user@a/", &["a"]),
            ("/", &["a, b"]),
            ("/", &["a/b"]),
            ("/", &["a b"]),
        ] {
            let settled = settled(uri, hosts, Version::HTTP_11);
            assert!(settled.is_err(), "{uri} {hosts:?}: {settled:?}");
        }
    }
}
