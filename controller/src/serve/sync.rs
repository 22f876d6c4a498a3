//! Who is connected, what each was sent and what each took: the page `/debug/synz`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;

/// All open discovery streams.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct SyncStatus {
    streams: BTreeMap<u64, StreamStatus>,
    #[serde(skip)]
    next: u64,
    #[serde(skip)]
    taken: Taken,
}

/// The newest generation that everybody who is served has taken; the highest there is while nobody is served.
#[derive(Debug)]
struct Taken(watch::Sender<u64>);

impl Default for Taken {
    fn default() -> Self {
        Self(watch::Sender::new(u64::MAX))
    }
}

/// One discovery stream.
#[derive(Clone, Debug, Serialize)]
pub struct StreamStatus {
    /// The authenticated node.
    pub node: Arc<str>,
    /// What the client calls itself.
    pub client: String,
    /// Everything up to this generation about workloads is known to the client.
    pub knows: u64,
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
                knows: 0,
                types: BTreeMap::new(),
            },
        );
        self.settle();
        self.next
    }

    /// Forgets a stream.
    pub fn close(&mut self, stream: u64) {
        self.streams.remove(&stream);
        self.settle();
    }

    /// The newest generation that everybody who is served has taken, as far as it is about workloads. A client that
    /// goes away is not waited for.
    pub fn taken(&self) -> watch::Receiver<u64> {
        self.taken.0.subscribe()
    }

    pub(crate) fn knows(&mut self, stream: u64, generation: u64) {
        let Some(status) = self.streams.get_mut(&stream) else {
            return;
        };
        if status.knows < generation {
            status.knows = generation;
            self.settle();
        }
    }

    fn settle(&self) {
        let least = self.streams.values().map(|stream| stream.knows).min();
        let now = least.unwrap_or(u64::MAX);
        self.taken.0.send_if_modified(|taken| {
            let changed = *taken != now;
            *taken = now;
            changed
        });
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
