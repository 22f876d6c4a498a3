//! Puts resources that are encoded already into a `DeltaDiscoveryResponse` without encoding or copying them again for
//! each client.

use bytes::{BufMut, Bytes};
use prost::Message;
use prost::encoding::string;
use proto::envoy::discovery::DeltaDiscoveryRequest;
use std::sync::Arc;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// A response whose resources are frames; see [`crate::resource::Resource::frame`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Response {
    /// Generation of the snapshot.
    pub(super) generation: u64,
    pub(super) type_url: &'static str,
    pub(super) nonce: String,
    pub(super) frames: Vec<Bytes>,
    pub(super) removed: Vec<Arc<str>>,
}

/// Reads requests, writes [`Response`]s.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DiscoveryCodec;

impl Codec for DiscoveryCodec {
    type Encode = Response;
    type Decode = DeltaDiscoveryRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for DiscoveryCodec {
    type Item = Response;
    type Error = Status;

    /// Field numbers of `DeltaDiscoveryResponse`: version 1, resources 2, type URL 4, nonce 5, removed 6.
    fn encode(&mut self, response: Response, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(response.frames.iter().map(Bytes::len).sum::<usize>() + OVERHEAD);
        string::encode(1, &response.generation.to_string(), buffer);
        for frame in response.frames {
            buffer.put(frame);
        }
        string::encode(4, &response.type_url.to_owned(), buffer);
        string::encode(5, &response.nonce, buffer);
        for name in &response.removed {
            string::encode(6, &name.to_string(), buffer);
        }
        Ok(())
    }
}

impl Decoder for DiscoveryCodec {
    type Item = DeltaDiscoveryRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let request = DeltaDiscoveryRequest::decode(buffer);
        request.map(Some).map_err(|error| {
            Status::invalid_argument(format!("not a DeltaDiscoveryRequest: {error}"))
        })
    }
}

/// About what a response has beside its resources.
const OVERHEAD: usize = 256;
