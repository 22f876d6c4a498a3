//! Who asks for an admin page: the user of the process at the other end of a connection on this host,
//! and whether a browser sends the request for somebody else.

use std::io;
use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Method};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Stranger {
    /// A name that is not this host's: what DNS rebinding looks like.
    #[error(
        "the Host of the request is neither an IP address nor localhost; use http://127.0.0.1 or http://[::1]"
    )]
    Host,
    /// A page of another site wants to change something.
    #[error("the request comes from a page of another site (Origin)")]
    Origin,
    /// Another user of this host.
    #[error("this page is for root and for the user that this program runs as")]
    User,
}

/// Checks what a browser says of itself: the host, by which a foreign name that resolves to this host is
/// recognised, and for what changes something the origin.
pub(super) fn check_headers(method: &Method, headers: &HeaderMap) -> Result<(), Stranger> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host: Option<Authority> = text(HOST).and_then(|host| host.parse().ok());
    let host = host.filter(is_this_host).ok_or(Stranger::Host)?;
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    // Browsers send it with everything that may change something; other programs do not.
    let same_site = |site: &str| matches!(site, "same-origin" | "none");
    if text(SEC_FETCH_SITE).is_some_and(|site| !same_site(site)) {
        return Err(Stranger::Origin);
    }
    match headers.get(ORIGIN).map(|origin| origin.to_str()) {
        None => Ok(()),
        Some(Ok(origin)) if origin.strip_prefix("http://") == Some(host.as_str()) => Ok(()),
        Some(_) => Err(Stranger::Origin),
    }
}

fn is_this_host(host: &Authority) -> bool {
    let name = host.host();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// The user of the socket at `remote`, if it is one of this network namespace that a process has open.
///
/// The kernel is asked for the socket itself (`NETLINK_SOCK_DIAG`). One that its process has closed
/// already is nobody's: the kernel would say that it is root's.
pub(super) fn user(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&request(local, remote), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    Ok(open_socket(&answer, local, remote))
}

/// `struct inet_diag_req_v2` (include/uapi/linux/inet_diag.h) for one socket: that of the other end.
fn request(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = if remote.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let mut bytes = Vec::with_capacity(REQUEST);
    bytes.extend_from_slice(&72_u32.to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[u8::try_from(family).unwrap_or_default(), IPPROTO_TCP, 0, 0]);
    bytes.extend_from_slice(&u32::MAX.to_ne_bytes());
    bytes.extend_from_slice(&id(local, remote));
    // No interface, and any cookie (INET_DIAG_NOCOOKIE).
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[0xff; 8]);
    bytes
}

/// The beginning of `struct inet_diag_sockid` of the socket at `remote`: its port, its peer's, its
/// address, its peer's.
fn id(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let address = |ip: IpAddr| {
        let mut bytes = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        bytes.resize(16, 0);
        bytes
    };
    let mut id = Vec::with_capacity(36);
    id.extend_from_slice(&remote.port().to_be_bytes());
    id.extend_from_slice(&local.port().to_be_bytes());
    id.extend_from_slice(&address(remote.ip()));
    id.extend_from_slice(&address(local.ip()));
    id
}

/// Reads `struct inet_diag_msg`; nothing but the very socket counts, with an inode.
fn open_socket(answer: &[u8], local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let message = answer.get(HEADER..)?;
    let ports = message.get(4..8)?;
    let word = |at: usize| {
        Some(u32::from_ne_bytes(
            message.get(at..at + 4)?.try_into().ok()?,
        ))
    };
    let (user, inode) = (word(64)?, word(68)?);
    let same = ports == id(local, remote).get(..4)?;
    (kind == SOCK_DIAG_BY_FAMILY && same && inode != 0).then_some(user)
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
/// A header and `struct inet_diag_req_v2`.
const REQUEST: usize = 72;
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_foreign_name_and_a_foreign_page_are_recognised() {
        use Stranger::{Host, Origin};
        for (method, host, origin, site, expected) in [
            ("GET", "127.0.0.1:15000", "", "", Ok(())),
            ("GET", "[::1]:15000", "", "", Ok(())),
            ("GET", "localhost:15000", "", "", Ok(())),
            ("GET", "LOCALHOST", "", "", Ok(())),
            ("GET", "evil.example:15000", "", "", Err(Host)),
            ("GET", "127.0.0.1.evil.example", "", "", Err(Host)),
            ("GET", "localhost.evil.example", "", "", Err(Host)),
            ("GET", "", "", "", Err(Host)),
            ("POST", "evil.example", "http://evil.example", "", Err(Host)),
            ("POST", "127.0.0.1:15000", "", "", Ok(())),
            (
                "POST",
                "127.0.0.1:15000",
                "http://127.0.0.1:15000",
                "same-origin",
                Ok(()),
            ),
            (
                "POST",
                "127.0.0.1:15000",
                "http://127.0.0.1:8080",
                "",
                Err(Origin),
            ),
            (
                "POST",
                "127.0.0.1:15000",
                "https://evil.example",
                "",
                Err(Origin),
            ),
            ("POST", "127.0.0.1:15000", "null", "", Err(Origin)),
            ("POST", "127.0.0.1:15000", "", "cross-site", Err(Origin)),
            ("POST", "127.0.0.1:15000", "", "same-site", Err(Origin)),
            ("PUT", "127.0.0.1:15000", "null", "", Err(Origin)),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(HOST, host), (ORIGIN, origin), (SEC_FETCH_SITE, site)] {
                if !value.is_empty() {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            let got = check_headers(&method.parse().unwrap(), &headers);
            assert_eq!(got, expected, "{method} {host:?} {origin:?} {site:?}");
        }
    }

    #[test]
    fn the_user_is_that_of_an_open_socket_only() {
        for bound in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let listener = TcpListener::bind(bound).unwrap();
            let local = listener.local_addr().unwrap();
            let client = TcpStream::connect(local).unwrap();
            let (server, remote) = listener.accept().unwrap();
            let own = user(local, remote).unwrap();
            assert_eq!(own, Some(uid()), "{bound}");
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(user(local, remote).unwrap(), own, "half closed is open");
            drop(client);
            assert_eq!(user(local, remote).unwrap(), None, "closed: nobody's");
            drop(server);
            let nobody = SocketAddr::new(remote.ip(), 1);
            assert_eq!(user(local, nobody).unwrap(), None);
            assert_eq!(
                user(nobody, local).unwrap(),
                None,
                "a listener is no caller"
            );
        }
    }

    /// The user of this process, from `/proc`.
    fn uid() -> u32 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata("/proc/self").unwrap().uid()
    }
}
