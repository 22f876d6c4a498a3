//! What the connection tracking of a pod's namespace knows of one TCP connection, in whatever zone the pod's rules put it.
//! `SO_ORIGINAL_DST` looks in zone 0 alone.
//!
//! Written out by hand, as `sock_diag` is: it is one request and two attributes of the answers
//! (include/uapi/linux/netfilter/nfnetlink_conntrack.h). All functions run on a thread inside the pod's namespace.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
};

use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};

use crate::host::sock_diag::{NLM_F_REQUEST_DUMP, NLMSG_DONE, NLMSG_ERROR, error, split};

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x101;
/// `IPCTNL_MSG_CT_NEW`: what the answers are.
const NEW: u16 = 0x100;
/// Size of `struct nfgenmsg`; attributes follow it.
const GENERAL: usize = 4;
const NESTED: u16 = 0x8000;
/// The bits of an attribute's kind that are no flags.
const KIND: u16 = 0x3fff;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// Protocol and both ports have to be those of the request. Some kernels take equal IPv6 addresses for different ones,
/// so addresses are compared here.
const PORTS_AND_PROTOCOL: u32 = 8 | 16 | 32;
const IPPROTO_TCP: u8 = 6;
/// How many connections the namespace tracks; not there where nothing tracks any.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// Whether connections are tracked here. Where they are not, none is translated.
pub(crate) fn is_used() -> bool {
    // Whoever cannot read it has to ask further.
    match fs::read_to_string(COUNT) {
        Ok(count) => count.trim() != "0",
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// What `client` dialled whose connection became one to `local`. None where it is not tracked, and so not translated.
///
/// # Errors
/// When the kernel refuses the request, or knows several such connections, in several zones.
pub(crate) fn dialled(local: SocketAddr, client: SocketAddr) -> io::Result<Option<SocketAddr>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&request(local, client), 0)?;
    let mut all = Vec::new();
    'answers: loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let Some((kind, body, next)) = split(rest) {
            match kind {
                NLMSG_DONE => break 'answers,
                NLMSG_ERROR => return Err(error(body)),
                NEW => all.extend(original(body, local, client)),
                _ => {}
            }
            rest = next;
        }
    }
    all.dedup();
    match all.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        [..] => Err(io::Error::other(
            "connection tracking has it in several zones",
        )),
    }
}

/// Asks for connections whose answers go from `local` to `client`.
fn request(local: SocketAddr, client: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let mut body = vec![u8::try_from(family).unwrap_or_default(), 0, 0, 0];
    body.extend(attribute(CTA_TUPLE_REPLY | NESTED, &tuple(local, client)));
    let flags = attribute(CTA_FILTER_REPLY_FLAGS, &PORTS_AND_PROTOCOL.to_ne_bytes());
    body.extend(attribute(CTA_FILTER | NESTED, &flags));
    let length = u32::try_from(body.len() + 16).unwrap_or_default();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(GET.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

fn tuple(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let address = |ip: IpAddr, v4, v6| match ip {
        IpAddr::V4(ip) => attribute(v4, &ip.octets()),
        IpAddr::V6(ip) => attribute(v6, &ip.octets()),
    };
    let ips = [
        address(source.ip(), CTA_IP_V4_SRC, CTA_IP_V6_SRC),
        address(destination.ip(), CTA_IP_V4_DST, CTA_IP_V6_DST),
    ];
    let ports = [
        attribute(CTA_PROTO_NUM, &[IPPROTO_TCP]),
        attribute(CTA_PROTO_SRC_PORT, &source.port().to_be_bytes()),
        attribute(CTA_PROTO_DST_PORT, &destination.port().to_be_bytes()),
    ];
    [
        attribute(CTA_TUPLE_IP | NESTED, &ips.concat()),
        attribute(CTA_TUPLE_PROTO | NESTED, &ports.concat()),
    ]
    .concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or_default();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// What the client of an answer's connection dialled, if it is the one that was asked for.
fn original(body: &[u8], local: SocketAddr, client: SocketAddr) -> Option<SocketAddr> {
    let attributes = body.get(GENERAL..)?;
    let reply = ends(find(attributes, CTA_TUPLE_REPLY)?)?;
    let (source, destination) = ends(find(attributes, CTA_TUPLE_ORIG)?)?;
    (reply == (local, client) && source == client).then_some(destination)
}

/// Source and destination of a tuple.
fn ends(tuple: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (ips, proto) = (find(tuple, CTA_TUPLE_IP)?, find(tuple, CTA_TUPLE_PROTO)?);
    if find(proto, CTA_PROTO_NUM)? != [IPPROTO_TCP] {
        return None;
    }
    let end = |v4, v6, port| {
        let ip: IpAddr = match find(ips, v4) {
            Some(ip) => <[u8; 4]>::try_from(ip).ok()?.into(),
            None => <[u8; 16]>::try_from(find(ips, v6)?).ok()?.into(),
        };
        let port = u16::from_be_bytes(find(proto, port)?.try_into().ok()?);
        Some(SocketAddr::new(ip, port))
    };
    Some((
        end(CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT)?,
        end(CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT)?,
    ))
}

/// The value of an attribute.
fn find(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let half = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(half(0)?), half(2)? & KIND);
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, NESTED, attribute, dialled, original, request, tuple,
    };
    use crate::host::sock_diag::split;
    use std::net::SocketAddr;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn answer(from: &str, dialled: &str, became: &str) -> Vec<u8> {
        let (from, dialled, became) = (at(from), at(dialled), at(became));
        let mut body = vec![2, 0, 0, 0];
        body.extend(attribute(CTA_TUPLE_ORIG | NESTED, &tuple(from, dialled)));
        body.extend(attribute(CTA_TUPLE_REPLY | NESTED, &tuple(became, from)));
        body
    }

    #[test]
    fn only_the_connection_that_was_asked_for_says_what_was_dialled() {
        for (client, became, dialled) in [
            ("10.1.1.1:4000", "10.2.2.2:8080", "10.2.2.2:7000"),
            ("[fd00::1]:4000", "[fd00::2]:8080", "[fd00::2]:7000"),
            ("10.1.1.1:4000", "127.0.0.1:8081", "10.2.2.2:7002"),
        ] {
            let body = answer(client, dialled, became);
            assert_eq!(
                original(&body, at(became), at(client)),
                Some(at(dialled)),
                "{became}"
            );
            for other in ["10.1.1.1:4001", "10.1.1.2:4000", "[fd00::1]:4001"] {
                assert_eq!(original(&body, at(became), at(other)), None, "{other}");
            }
            for cut in 0..body.len() {
                let cut = body.get(..cut).unwrap();
                assert_eq!(original(cut, at(became), at(client)), None, "{cut:?}");
            }
        }
    }

    #[test]
    fn the_kernel_understands_the_question() {
        let (local, client) = (at("10.1.1.1:1"), at("10.1.1.2:2"));
        assert!(split(&request(local, client)).is_some());
        assert_eq!(dialled(local, client).unwrap(), None);
        assert_eq!(dialled(at("[fd00::1]:1"), at("[fd00::2]:2")).unwrap(), None);
    }
}
