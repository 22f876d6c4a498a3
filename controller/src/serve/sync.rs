//! Who is connected, what each was sent and what each took: the page `/debug/synz`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

/// All open discovery streams.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct SyncStatus {
    streams: BTreeMap<u64, StreamStatus>,
    #[serde(skip)]
    next: u64,
}

/// One discovery stream.
#[derive(Clone, Debug, Serialize)]
pub struct StreamStatus {
    /// The authenticated node.
    pub node: Arc<str>,
    /// What the client calls itself.
    pub client: String,
    /// By type URL.
    pub types: BTreeMap<&'static str, TypeStatus>,
}

/// One type on a stream. Generations count changes of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeStatus {
    /// Generation of the last response.
    pub sent: u64,
    /// Generation of the last response that was taken.
    pub acked: u64,
    /// What the client said when it last refused one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nack: Option<String>,
}

impl SyncStatus {
    /// Notes a new stream, and returns the number to speak of it.
    pub fn open(&mut self, node: Arc<str>) -> u64 {
        self.next += 1;
        self.streams.insert(
            self.next,
            StreamStatus {
                node,
                client: String::new(),
                types: BTreeMap::new(),
            },
        );
        self.next
    }

    /// Forgets a stream.
    pub fn close(&mut self, stream: u64) {
        self.streams.remove(&stream);
    }

    /// The streams.
    pub fn streams(&self) -> impl Iterator<Item = &StreamStatus> {
        self.streams.values()
    }

    pub(super) fn name(&mut self, stream: u64, client: &str) {
        if let Some(status) = self.streams.get_mut(&stream) {
            client.clone_into(&mut status.client);
        }
    }

    pub(super) fn note(
        &mut self,
        stream: u64,
        type_url: &'static str,
        change: impl FnOnce(&mut TypeStatus),
    ) {
        if let Some(status) = self.streams.get_mut(&stream) {
            change(status.types.entry(type_url).or_default());
        }
    }
}
