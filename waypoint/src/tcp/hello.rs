//! The name that a client asks for when it begins TLS (RFC 6066, section 3). Nothing is decrypted.

use std::time::Duration;

use bytes::BytesMut;
use rustls::server::Acceptor;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// The name that TLS asks for, in small letters; `None` if it asks for none, or TLS does not begin in time. What was read
/// is kept in `before`.
pub(crate) async fn server_name(
    client: &mut TcpStream,
    before: &mut BytesMut,
    within: Duration,
) -> Option<String> {
    let deadline = Instant::now() + within;
    let mut beginning = Beginning::default();
    loop {
        match beginning.of(before) {
            Begun::Hello(name) => return name,
            Begun::Other => return None,
            Begun::More if before.len() > LONGEST => return None,
            Begun::More => {}
        }
        match timeout_at(deadline, client.read_buf(before)).await {
            Ok(Ok(more)) if more > 0 => {}
            _ => return None,
        }
    }
}

/// What the first bytes are.
#[derive(Debug, PartialEq, Eq)]
enum Begun {
    /// A whole `ClientHello`, with its name.
    Hello(Option<String>),
    /// The beginning of one.
    More,
    /// No TLS.
    Other,
}

/// Reads what comes of a connection. Each byte is read once, however small the pieces are in which they come.
#[derive(Default)]
struct Beginning {
    acceptor: Acceptor,
    /// How many bytes have been read.
    read: usize,
}

impl Beginning {
    /// What the bytes so far are.
    fn of(&mut self, bytes: &[u8]) -> Begun {
        let mut rest = bytes.get(self.read..).unwrap_or_default();
        self.read = bytes.len();
        while !rest.is_empty() {
            match self.acceptor.read_tls(&mut rest) {
                Ok(0) => return Begun::More,
                Ok(_) => {}
                Err(_) => return Begun::Other,
            }
            match self.acceptor.accept() {
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    return Begun::Hello(hello.server_name().map(str::to_ascii_lowercase));
                }
                Ok(None) => {}
                Err(_) => return Begun::Other,
            }
        }
        Begun::More
    }
}

/// Longer than any hello that clients send, those with keys of post-quantum exchanges too.
const LONGEST: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &'static str) -> Vec<u8> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn begun(bytes: &[u8]) -> Begun {
        Beginning::default().of(bytes)
    }

    #[test]
    fn a_hello_that_comes_byte_by_byte_is_known_at_its_last() {
        let bytes = hello("example.com");
        let mut beginning = Beginning::default();
        for end in 1..bytes.len() {
            assert_eq!(beginning.of(&bytes[..end]), Begun::More, "{end}");
        }
        let name = Begun::Hello(Some("example.com".to_owned()));
        assert_eq!(beginning.of(&bytes), name);
    }

    #[test]
    fn a_hello_is_known_when_it_is_whole_and_not_before() {
        let bytes = hello("Example.Api.Company.com");
        let name = Begun::Hello(Some("example.api.company.com".to_owned()));
        assert_eq!(begun(&bytes), name);
        for cut in [1, 4, 5, 40, bytes.len() - 1] {
            assert_eq!(begun(bytes.get(..cut).unwrap()), Begun::More, "{cut}");
        }
        assert_eq!(begun(&hello("192.0.2.1")), Begun::Hello(None));
    }

    #[test]
    fn what_is_no_tls_is_known_at_once() {
        assert_eq!(begun(b"SSH-2.0-OpenSSH"), Begun::Other);
        assert_eq!(begun(b"\x00\x00\x00\x00\x00\x00"), Begun::Other);
        assert_eq!(begun(b""), Begun::More);
    }
}
