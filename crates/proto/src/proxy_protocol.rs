//! The PROXY protocol, version 2, by which an agent tells a waypoint who calls, from where and whom.
//!
//! Read strictly: what is not said, said twice or left over is an error, because policy decides by it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use model::{Identity, identity::IdentityError};
use thiserror::Error;

/// What is said of a connection before its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The address of the client.
    pub client: SocketAddr,
    /// The address that the client dialled.
    pub dialled: SocketAddr,
    /// The identity that the client proved.
    pub identity: Option<Identity>,
    /// The host name of the service that the client asked for.
    pub service: Option<String>,
}

/// Bytes that are no header that an agent writes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// It is not this protocol.
    #[error("the connection does not begin with a PROXY header of version 2")]
    Signature,
    /// The command is not PROXY.
    #[error("version and command {0:#04x} are not those of a proxied connection (0x21)")]
    Command(u8),
    /// It is not TCP over IPv4 or IPv6.
    #[error("address family and protocol {0:#04x} are neither TCP over IPv4 nor over IPv6")]
    Family(u8),
    /// It is longer than any that an agent writes.
    #[error("the header claims {0} bytes; at most {LONGEST} are read")]
    TooLong(usize),
    /// The addresses or an entry do not fit into what is claimed.
    #[error("the header ends within an address or an entry")]
    Truncated,
    /// The two addresses cannot be those of a connection.
    #[error("an address of the header is unspecified or has port 0")]
    Address,
    /// An entry is there twice.
    #[error("entry {0:#04x} is there more than once")]
    Repeated(u8),
    /// The identity cannot be read.
    #[error("the client's identity cannot be read")]
    Identity(#[source] IdentityError),
    /// The identity or the host name is not text.
    #[error("entry {0:#04x} is not a text of 1 to {LONGEST_TEXT} visible ASCII characters")]
    Text(u8),
}

/// Entry: the SPIFFE identity of the client, as ztunnel writes it.
pub const IDENTITY: u8 = 0xd0;
/// Entry: the host name of the service that was asked for.
pub const SERVICE: u8 = 0xd1;
/// Entry without content, for alignment.
const NOTHING: u8 = 0x04;
/// Bytes after the fixed part that are read at most.
pub const LONGEST: usize = 2048;
const LONGEST_TEXT: usize = 1024;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const FIXED: usize = 16;
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// What an agent begins with that speaks for itself: the command LOCAL, and an entry of the range for private use (0xe0)
/// that names the conversation of [`crate::convert::doors`].
pub const CONVERSATION: &[u8; 31] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x0f\xe0\x00\x0ckeelson/door";

/// Whether a connection begins with [`CONVERSATION`]; nothing while there are too few bytes to tell.
#[must_use]
pub fn is_conversation(bytes: &[u8]) -> Option<bool> {
    if bytes.len() >= CONVERSATION.len() {
        return Some(bytes.starts_with(CONVERSATION));
    }
    if CONVERSATION.starts_with(bytes) {
        return None;
    }
    Some(false)
}

impl Header {
    /// The bytes to write before those of the connection. Where the two addresses are of different families, both are
    /// written as IPv6.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(128);
        let family = match (self.client.ip(), self.dialled.ip()) {
            (IpAddr::V4(client), IpAddr::V4(dialled)) => {
                body.extend(client.octets());
                body.extend(dialled.octets());
                TCP4
            }
            (client, dialled) => {
                body.extend(mapped(client).octets());
                body.extend(mapped(dialled).octets());
                TCP6
            }
        };
        body.extend(self.client.port().to_be_bytes());
        body.extend(self.dialled.port().to_be_bytes());
        if let Some(identity) = &self.identity {
            entry(&mut body, IDENTITY, &identity.to_string());
        }
        if let Some(service) = &self.service {
            entry(&mut body, SERVICE, service);
        }
        let mut bytes = Vec::with_capacity(FIXED + body.len());
        bytes.extend(SIGNATURE);
        bytes.extend([PROXY, family]);
        bytes.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    /// Reads a header from the beginning of a connection; gives it and its length, or nothing while there are too few
    /// bytes to tell.
    ///
    /// # Errors
    /// The bytes are no header, whatever follows.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HeaderError> {
        let begun = bytes.len().min(SIGNATURE.len());
        if bytes.get(..begun) != SIGNATURE.get(..begun) {
            return Err(HeaderError::Signature);
        }
        let Some(&[command, family, high, low]) = bytes.get(12..FIXED) else {
            return Ok(None);
        };
        if command != PROXY {
            return Err(HeaderError::Command(command));
        }
        if !matches!(family, TCP4 | TCP6) {
            return Err(HeaderError::Family(family));
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > LONGEST {
            return Err(HeaderError::TooLong(length));
        }
        let Some(body) = bytes.get(FIXED..FIXED + length) else {
            return Ok(None);
        };
        let (client, dialled, entries) = if family == TCP4 {
            addresses::<4>(body)?
        } else {
            addresses::<16>(body)?
        };
        let mut header = Self {
            client,
            dialled,
            identity: None,
            service: None,
        };
        header.read_entries(entries)?;
        Ok(Some((header, FIXED + length)))
    }

    fn read_entries(&mut self, mut rest: &[u8]) -> Result<(), HeaderError> {
        while let Some((&[kind, high, low], after)) = rest.split_first_chunk::<3>() {
            let length = usize::from(u16::from_be_bytes([high, low]));
            let (value, after) = after
                .split_at_checked(length)
                .ok_or(HeaderError::Truncated)?;
            rest = after;
            match kind {
                IDENTITY if self.identity.is_some() => return Err(HeaderError::Repeated(kind)),
                IDENTITY => {
                    let identity = text(kind, value)?.parse().map_err(HeaderError::Identity)?;
                    self.identity = Some(identity);
                }
                SERVICE if self.service.is_some() => return Err(HeaderError::Repeated(kind)),
                SERVICE => self.service = Some(text(kind, value)?.to_owned()),
                NOTHING => {}
                // Others may say more; nothing is decided by it.
                _ => {}
            }
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(HeaderError::Truncated)
        }
    }
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn entry(body: &mut Vec<u8>, kind: u8, value: &str) {
    body.push(kind);
    body.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    body.extend(value.as_bytes());
}

fn text(kind: u8, value: &[u8]) -> Result<&str, HeaderError> {
    let is_fit = !value.is_empty() && value.len() <= LONGEST_TEXT;
    std::str::from_utf8(value)
        .ok()
        .filter(|text| is_fit && text.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or(HeaderError::Text(kind))
}

/// Two addresses of so many bytes and two ports; what follows.
fn addresses<const N: usize>(body: &[u8]) -> Result<(SocketAddr, SocketAddr, &[u8]), HeaderError>
where
    [u8; N]: IntoAddress,
{
    let (client, rest) = body
        .split_first_chunk::<N>()
        .ok_or(HeaderError::Truncated)?;
    let (dialled, rest) = rest
        .split_first_chunk::<N>()
        .ok_or(HeaderError::Truncated)?;
    let (&[a, b, c, d], rest) = rest
        .split_first_chunk::<4>()
        .ok_or(HeaderError::Truncated)?;
    let client = SocketAddr::new((*client).into_address(), u16::from_be_bytes([a, b]));
    let dialled = SocketAddr::new((*dialled).into_address(), u16::from_be_bytes([c, d]));
    let is_fit = |address: SocketAddr| !address.ip().is_unspecified() && address.port() != 0;
    if is_fit(client) && is_fit(dialled) {
        Ok((client, dialled, rest))
    } else {
        Err(HeaderError::Address)
    }
}

trait IntoAddress {
    fn into_address(self) -> IpAddr;
}

impl IntoAddress for [u8; 4] {
    fn into_address(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(self))
    }
}

impl IntoAddress for [u8; 16] {
    fn into_address(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self)).to_canonical()
    }
}

#[cfg(test)]
mod tests;
