//! A resource as it goes over the wire: encoded once, with the hash of its content as its version.

use std::fmt;
use std::sync::Arc;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use sha2::{Digest, Sha256};

/// One encoded resource. Many are kept, so its message is held once, inside its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The xDS name.
    pub name: Arc<str>,
    /// Hash of the message: the same content has the same version, whoever encodes it and when.
    pub version: Version,
    frame: Box<[u8]>,
    /// Bytes of the frame after the message.
    tail: u32,
    /// Bytes of the message.
    size: u32,
}

/// A version as it is written on the wire: hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Version([u8; 2 * VERSION_BYTES]);

impl Resource {
    /// Encodes `message` as the resource `name` of type `type_url`.
    pub fn new(type_url: &str, name: impl Into<Arc<str>>, message: &impl Message) -> Self {
        Self::from_body(type_url, name, &message.encode_to_vec())
    }

    /// A resource whose message is encoded already.
    pub fn from_body(type_url: &str, name: impl Into<Arc<str>>, body: &[u8]) -> Self {
        let (name, version) = (name.into(), Version::of(body));
        Self {
            frame: frame(type_url, &name, &version, body, &[]),
            tail: tail(&name, &[]),
            size: small(body.len()),
            name,
            version,
        }
    }

    /// The same resource, with further names under which it can be asked for.
    pub fn with_aliases(&self, type_url: &str, aliases: &[String]) -> Self {
        let (name, version) = (Arc::clone(&self.name), self.version);
        Self {
            frame: frame(type_url, &name, &version, self.body(), aliases),
            tail: tail(&name, aliases),
            size: self.size,
            name,
            version,
        }
    }

    /// The encoded message.
    pub fn body(&self) -> &[u8] {
        let end = self.frame.len().saturating_sub(self.tail as usize);
        let start = end.saturating_sub(self.size as usize);
        self.frame.get(start..end).unwrap_or_default()
    }

    /// The `resources` entry of a `DeltaDiscoveryResponse` that holds it, key and length included.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }
}

impl Version {
    fn of(body: &[u8]) -> Self {
        let mut digits = [b'0'; 2 * VERSION_BYTES];
        let digest = Sha256::digest(body);
        for (two, byte) in digits.chunks_exact_mut(2).zip(digest) {
            let digit = |value: u8| b"0123456789abcdef".get(usize::from(value)).copied();
            two.copy_from_slice(&[byte >> 4, byte & 15].map(|half| digit(half).unwrap_or(b'0')));
        }
        Self(digits)
    }
}

impl std::ops::Deref for Version {
    type Target = str;

    fn deref(&self) -> &str {
        // Digits are UTF-8.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A message is far smaller than a response, which is limited to less than 4 GiB.
fn small(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Bytes that follow the message in its frame: the name and the aliases.
fn tail(name: &str, aliases: &[String]) -> u32 {
    let aliases: usize = aliases.iter().map(|alias| field_len(alias.len())).sum();
    small(field_len(name.len()) + aliases)
}

/// Field 2 of `DeltaDiscoveryResponse`: a `Resource` with version (1), Any (2) of type URL (1) and value (2), name (3)
/// and aliases (4).
fn frame(type_url: &str, name: &str, version: &str, body: &[u8], aliases: &[String]) -> Box<[u8]> {
    let any = field_len(type_url.len()) + field_len(body.len());
    let resource = field_len(version.len()) + field_len(any) + tail(name, aliases) as usize;
    let mut out = Vec::with_capacity(field_len(resource));
    open(&mut out, 2, resource);
    bytes(&mut out, 1, version.as_bytes());
    open(&mut out, 2, any);
    bytes(&mut out, 1, type_url.as_bytes());
    bytes(&mut out, 2, body);
    bytes(&mut out, 3, name.as_bytes());
    for alias in aliases {
        bytes(&mut out, 4, alias.as_bytes());
    }
    out.into_boxed_slice()
}

/// The size of a length-delimited field whose number fits one byte.
fn field_len(content: usize) -> usize {
    1 + encoded_len_varint(content as u64) + content
}

fn open(out: &mut Vec<u8>, number: u32, length: usize) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    open(out, number, content.len());
    out.extend_from_slice(content);
}

/// 64 bits: collisions would need billions of versions of one name.
const VERSION_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use proto::envoy::discovery::DeltaDiscoveryResponse;
    use proto::istio::workload::Workload;

    use super::*;

    #[test]
    fn a_frame_is_what_the_generated_code_decodes() {
        let workload = Workload {
            uid: "c//Pod/n/p".into(),
            ..Workload::default()
        };
        let resource = Resource::new(proto::type_url::WORKLOAD, "c//Pod/n/p", &workload);
        let response = DeltaDiscoveryResponse::decode(resource.frame()).expect("decodes");
        let [found] = response.resources.as_slice() else {
            panic!("one resource")
        };
        assert_eq!(
            (found.name.as_str(), found.version.as_str()),
            ("c//Pod/n/p", &*resource.version)
        );
        let any = found.resource.clone().expect("has a body");
        assert_eq!(any.type_url, proto::type_url::WORKLOAD);
        assert_eq!(
            Workload::decode(any.value.as_slice()).expect("decodes"),
            workload
        );
        assert_eq!(resource.body(), any.value);
    }

    #[test]
    fn the_version_follows_the_content_alone() {
        let one = Resource::new("t", "a", &"x".to_owned());
        let other = Resource::new("t", "b", &"x".to_owned());
        let changed = Resource::new("t", "a", &"y".to_owned());
        assert_eq!(one.version, other.version);
        assert_ne!(one.version, changed.version);
        assert_eq!(one.version.len(), 16);
    }
}
