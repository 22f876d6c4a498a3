//! Writes discovery responses whose resources are encoded already: in small pieces, as the client takes them, so that a
//! slow client holds a list of references and one piece, not a response of its own.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::Message;
use prost::encoding::{bool as boolean, string};
use proto::envoy::discovery::DeltaDiscoveryRequest;
use tokio::sync::mpsc;
use tonic::codec::{DecodeBuf, Decoder};
use tonic::{Code, Status};

use compile::resource::Resource;

/// A response that refers to its resources.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Response {
    /// Generation of the snapshot.
    pub(super) generation: u64,
    pub(super) type_url: &'static str,
    pub(super) nonce: String,
    pub(super) resources: Vec<Arc<Resource>>,
    pub(super) removed: Vec<Arc<str>>,
    /// What belongs together goes on in the next response of the type.
    pub(super) more: bool,
}

/// The body of an answer: responses as gRPC messages, then the status that says that all is over.
pub(super) struct Responses {
    queue: mpsc::Receiver<Response>,
    writing: Option<Writing>,
    is_over: bool,
}

/// A response of which a part is written.
struct Writing {
    response: Response,
    generation: String,
    /// Resources that are written, once the message has begun.
    done: Option<usize>,
}

impl Responses {
    pub(super) fn new(queue: mpsc::Receiver<Response>) -> Self {
        Self {
            queue,
            writing: None,
            is_over: false,
        }
    }
}

impl Body for Responses {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let mut writing = match self.writing.take() {
            Some(writing) => writing,
            None => match ready!(self.queue.poll_recv(context)) {
                Some(response) => Writing::new(response),
                None => {
                    self.is_over = true;
                    return Poll::Ready(Some(Ok(Frame::trailers(end()))));
                }
            },
        };
        let (piece, is_last) = writing.piece();
        self.writing = (!is_last).then_some(writing);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl Writing {
    fn new(response: Response) -> Self {
        Self {
            generation: response.generation.to_string(),
            response,
            done: None,
        }
    }

    /// The next piece of the message, and whether it is the last.
    fn piece(&mut self) -> (Bytes, bool) {
        let mut out = BytesMut::with_capacity(PIECE + OVERHEAD);
        let mut done = self.done.unwrap_or_else(|| {
            self.begin(&mut out);
            0
        });
        while let Some(resource) = self.response.resources.get(done) {
            if out.len() + resource.frame().len() > PIECE && !out.is_empty() {
                self.done = Some(done);
                return (out.freeze(), false);
            }
            out.put_slice(resource.frame());
            done += 1;
        }
        self.finish(&mut out);
        (out.freeze(), true)
    }

    /// Field numbers of `DeltaDiscoveryResponse`: version 1, resources 2, type URL 4, nonce 5, removed 6, more 1000.
    fn begin(&self, out: &mut BytesMut) {
        let resources = &self.response.resources;
        let frames: usize = resources.iter().map(|one| one.frame().len()).sum();
        let names = self.response.removed.iter();
        let removed: usize = names
            .map(|name| string::encoded_len(6, &name.to_string()))
            .sum();
        let length = string::encoded_len(1, &self.generation)
            + frames
            + string::encoded_len(4, &self.response.type_url.to_owned())
            + string::encoded_len(5, &self.response.nonce)
            + removed
            + usize::from(self.response.more) * boolean::encoded_len(MORE, &true);
        const NOT_COMPRESSED: u8 = 0;
        out.put_u8(NOT_COMPRESSED);
        // No mesh comes near 4 GiB; a client would end the stream at a length that is wrong.
        out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        string::encode(1, &self.generation, out);
    }

    fn finish(&self, out: &mut BytesMut) {
        string::encode(4, &self.response.type_url.to_owned(), out);
        string::encode(5, &self.response.nonce, out);
        for name in &self.response.removed {
            string::encode(6, &name.to_string(), out);
        }
        if self.response.more {
            boolean::encode(MORE, &true, out);
        }
    }
}

const MORE: u32 = 1000;

fn end() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Only text with bytes that no header may have could fail, and there is none.
    let _written = Status::new(Code::Ok, "").add_header(&mut trailers);
    trailers
}

/// Reads requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestDecoder;

impl Decoder for RequestDecoder {
    type Item = DeltaDiscoveryRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let request = DeltaDiscoveryRequest::decode(buffer);
        request.map(Some).map_err(|error| {
            Status::invalid_argument(format!("not a DeltaDiscoveryRequest: {error}"))
        })
    }
}

/// About how large a piece is; the transport asks for the next one when it has room.
const PIECE: usize = 32 << 10;
/// About what a response has beside its resources.
const OVERHEAD: usize = 256;

#[cfg(test)]
mod tests {
    use proto::envoy::discovery::DeltaDiscoveryResponse;

    use super::*;

    #[test]
    fn a_large_response_comes_in_small_pieces_and_decodes_as_one() {
        let resource = |number: usize| {
            let name = format!("r{number:05}");
            Arc::new(Resource::new("t", name, &"x".repeat(300)))
        };
        let response = Response {
            generation: 7,
            type_url: "t",
            nonce: "n".to_owned(),
            resources: (0..1000).map(resource).collect(),
            removed: vec!["gone".into(), "away".into()],
            more: true,
        };
        let mut writing = Writing::new(response);
        let mut whole = Vec::new();
        let mut pieces = 0;
        loop {
            let (piece, is_last) = writing.piece();
            assert!(piece.len() <= PIECE + OVERHEAD, "{}", piece.len());
            whole.extend_from_slice(&piece);
            pieces += 1;
            if is_last {
                break;
            }
        }
        assert!(pieces > 5, "{pieces}");
        let (head, message) = whole.split_at(5);
        assert_eq!(head[0], 0);
        assert_eq!(
            u32::from_be_bytes(head[1..].try_into().unwrap()) as usize,
            message.len()
        );
        let decoded = DeltaDiscoveryResponse::decode(message).unwrap();
        assert_eq!(decoded.resources.len(), 1000);
        assert_eq!(decoded.resources[999].name, "r00999");
        assert_eq!(decoded.removed_resources, ["gone", "away"]);
        assert!(decoded.more);
        assert_eq!(
            (
                &*decoded.nonce,
                &*decoded.system_version_info,
                &*decoded.type_url
            ),
            ("n", "7", "t")
        );
    }

    #[test]
    fn a_resource_larger_than_a_piece_is_sent() {
        let response = Response {
            generation: 1,
            type_url: "t",
            nonce: String::new(),
            resources: vec![Arc::new(Resource::new("t", "big", &"x".repeat(3 * PIECE)))],
            removed: Vec::new(),
            more: false,
        };
        let mut writing = Writing::new(response);
        assert!(!writing.piece().1);
        let (piece, is_last) = writing.piece();
        assert!(is_last && piece.len() > 3 * PIECE);
    }
}
