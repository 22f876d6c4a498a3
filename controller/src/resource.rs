//! A resource as it goes over the wire: encoded once, with the hash of its content as its version.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use sha2::{Digest, Sha256};

/// One encoded resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The xDS name.
    pub name: Arc<str>,
    /// Hash of `body`: the same content has the same version, whoever encodes it and when.
    pub version: Arc<str>,
    /// The encoded message.
    pub body: Bytes,
    /// The `resources` entry of a `DeltaDiscoveryResponse` that holds it, key and length included.
    pub frame: Bytes,
}

impl Resource {
    /// Encodes `message` as the resource `name` of type `type_url`.
    pub fn new(type_url: &str, name: &str, message: &impl Message) -> Self {
        Self::from_body(type_url, name, message.encode_to_vec().into())
    }

    /// A resource whose message is encoded already.
    pub fn from_body(type_url: &str, name: &str, body: Bytes) -> Self {
        let version: Arc<str> = version(&body).into();
        Self {
            name: name.into(),
            frame: frame(type_url, name, &version, &body),
            version,
            body,
        }
    }
}

fn version(body: &[u8]) -> String {
    let digest = Sha256::digest(body);
    digest
        .iter()
        .take(VERSION_BYTES)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Field 2 of `DeltaDiscoveryResponse`: a `Resource` with version (1), Any (2) of type URL (1) and value (2), name (3).
fn frame(type_url: &str, name: &str, version: &str, body: &[u8]) -> Bytes {
    let any = field_len(type_url.len()) + field_len(body.len());
    let resource = field_len(version.len()) + field_len(any) + field_len(name.len());
    let mut out = Vec::with_capacity(field_len(resource));
    open(&mut out, 2, resource);
    bytes(&mut out, 1, version.as_bytes());
    open(&mut out, 2, any);
    bytes(&mut out, 1, type_url.as_bytes());
    bytes(&mut out, 2, body);
    bytes(&mut out, 3, name.as_bytes());
    out.into()
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
        let response = DeltaDiscoveryResponse::decode(resource.frame.clone()).expect("decodes");
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
