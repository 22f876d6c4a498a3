//! Discovery requests as a fuzzer writes them.

use prost::Message;
use proto::envoy::discovery::DeltaDiscoveryRequest;

use super::stream::{Stream, Viewer};
use crate::fuzzing::index;
use compile::snapshot::Snapshot;

/// Takes the requests of one stream, in a mesh that comes and goes between them.
pub fn subscriptions<'a>(requests: impl Iterator<Item = &'a [u8]>) {
    let full = FULL.with(Snapshot::clone);
    let mut stream = Stream::new(Viewer::Node("n1".into()));
    for (turn, request) in (1_u64..).zip(requests) {
        let Ok(request) = DeltaDiscoveryRequest::decode(request) else {
            continue;
        };
        let _meaning = stream.request(request);
        let mut now = full.clone();
        now.generation = turn;
        if turn % 3 == 0 {
            now = Snapshot {
                generation: turn,
                ..Snapshot::default()
            };
        }
        // Not more than one for each type, each of which waits for its answer, and removals.
        let responses = std::iter::from_fn(|| stream.next(&now)).take(100);
        assert!(responses.count() < 10, "it never stops talking");
    }
}

thread_local! {
    static FULL: Snapshot = index(MESH).snapshot().clone();
}

const MESH: &str = include_str!("../../../fuzz/corpus/manifests/mesh.yaml");
