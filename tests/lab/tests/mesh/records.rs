//! What a wire carries: TLS hellos in captured segments (RFC 8446), read without a TLS library.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lab::{Capture, Frame};

/// A ServerHello, as far as it says what was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerHello {
    /// `selected_version` of the extension supported_versions; the legacy field without one.
    pub(crate) version: u16,
    pub(crate) cipher: u16,
}

/// A ClientHello, as far as it says what was offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientHello {
    pub(crate) versions: Vec<u16>,
    pub(crate) ciphers: Vec<u16>,
    pub(crate) alpn: Vec<Vec<u8>>,
    pub(crate) server_name: bool,
}

/// The hellos of all connections to `port`.
pub(crate) fn hellos(capture: &Capture, port: u16) -> (Vec<ClientHello>, Vec<ServerHello>) {
    let flows = flows(capture);
    let to = flows.iter().filter(|((_, to), _)| to.port() == port);
    let from = flows.iter().filter(|((from, _), _)| from.port() == port);
    (
        to.filter_map(|(_, bytes)| client_hello(bytes)).collect(),
        from.filter_map(|(_, bytes)| server_hello(bytes)).collect(),
    )
}

/// What each sender has sent to each receiver over TCP. The lab's link loses and repeats nothing.
fn flows(capture: &Capture) -> BTreeMap<(SocketAddr, SocketAddr), Vec<u8>> {
    let mut flows: BTreeMap<_, Vec<u8>> = BTreeMap::new();
    for packet in capture.frames().iter().filter_map(Frame::packet) {
        if packet.protocol == 6 && !packet.payload.is_empty() {
            let from = SocketAddr::new(packet.source, packet.source_port);
            let to = SocketAddr::new(packet.destination, packet.destination_port);
            let flow = flows.entry((from, to)).or_default();
            flow.extend_from_slice(packet.payload);
        }
    }
    flows
}

fn server_hello(flow: &[u8]) -> Option<ServerHello> {
    let mut hello = handshake(flow, 2)?;
    let mut version = hello.u16()?;
    hello.take(32)?;
    hello.vector8()?;
    let cipher = hello.u16()?;
    hello.take(1)?;
    for (kind, mut body) in extensions(&mut hello)? {
        if kind == SUPPORTED_VERSIONS {
            version = body.u16()?;
        }
    }
    Some(ServerHello { version, cipher })
}

fn client_hello(flow: &[u8]) -> Option<ClientHello> {
    let mut hello = handshake(flow, 1)?;
    let mut offered = ClientHello {
        versions: vec![hello.u16()?],
        ..ClientHello::default()
    };
    hello.take(32)?;
    hello.vector8()?;
    offered.ciphers = hello.vector16()?.u16s();
    hello.vector8()?;
    for (kind, mut body) in extensions(&mut hello)? {
        match kind {
            SERVER_NAME => offered.server_name = true,
            SUPPORTED_VERSIONS => offered.versions = body.vector8()?.u16s(),
            ALPN => {
                let mut names = body.vector16()?;
                while let Some(name) = names.vector8() {
                    offered.alpn.push(name.0.to_vec());
                }
            }
            _ => {}
        }
    }
    Some(offered)
}

/// The body of the first message, if it is a handshake message of this kind.
fn handshake(flow: &[u8], kind: u8) -> Option<Reader<'_>> {
    let mut record = Reader(flow);
    (record.u8()? == 22).then_some(())?;
    record.u16()?;
    let mut message = record.vector16()?;
    (message.u8()? == kind).then_some(())?;
    let high = usize::from(message.u8()?);
    let length = high << 16 | usize::from(message.u16()?);
    Some(Reader(message.take(length)?))
}

fn extensions<'a>(hello: &mut Reader<'a>) -> Option<Vec<(u16, Reader<'a>)>> {
    let mut all = hello.vector16()?;
    let mut found = Vec::new();
    while let Some(kind) = all.u16() {
        found.push((kind, all.vector16()?));
    }
    Some(found)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn vector8(&mut self) -> Option<Self> {
        let length = self.u8()?;
        Some(Self(self.take(length.into())?))
    }

    fn vector16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        Some(Self(self.take(length.into())?))
    }

    fn u16s(mut self) -> Vec<u16> {
        std::iter::from_fn(|| self.u16()).collect()
    }
}

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agreed_version_is_read_from_the_extension_and_not_from_the_legacy_field() {
        let mut hello = vec![22, 3, 3, 0, 50, 2, 0, 0, 46, 3, 3];
        hello.extend([7; 32]);
        hello.extend([0, 0x13, 0x02, 0, 0, 6, 0, 43, 0, 2, 3, 4]);
        let expected = ServerHello {
            version: 0x0304,
            cipher: 0x1302,
        };
        assert_eq!(server_hello(&hello), Some(expected));
        assert_eq!(server_hello(&hello[..20]), None);
        assert_eq!(server_hello(b"GET / HTTP/1.1\r\n"), None);
    }

    #[test]
    fn what_a_client_offers_is_read() {
        let mut hello = vec![22, 3, 1, 0, 63, 1, 0, 0, 59, 3, 3];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, 0x13, 0x01, 1, 0, 0, 16]);
        hello.extend([0, 43, 0, 3, 2, 3, 4, 0, 16, 0, 5, 0, 3, 2, b'h', b'2']);
        let expected = ClientHello {
            versions: vec![0x0304],
            ciphers: vec![0x1301],
            alpn: vec![b"h2".to_vec()],
            server_name: false,
        };
        assert_eq!(client_hello(&hello), Some(expected));
    }
}
