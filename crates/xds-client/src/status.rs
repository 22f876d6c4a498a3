//! How far the configuration has come: connected or not, and per resource type what was taken and refused.

use std::collections::BTreeMap;

/// The state of a [`crate::Client`], for readiness and status pages.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Status {
    /// Whether a stream to the controller is open.
    pub connected: bool,
    /// Streams opened since the start.
    pub streams: u64,
    /// Why the last stream ended or could not be opened; cleared by the next one that opens.
    pub last_error: Option<String>,
    /// Why the snapshot on disk was not used, or could not be written the last time.
    pub snapshot_error: Option<String>,
    /// By type URL.
    pub types: BTreeMap<String, TypeStatus>,
}

/// The state of one resource type.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TypeStatus {
    /// Whether the controller has answered for this type since the start.
    pub synced: bool,
    /// Whether resources were taken from the snapshot at the start.
    pub restored: bool,
    /// Responses taken as a whole.
    pub acked: u64,
    /// Responses of which at least one resource was refused.
    pub nacked: u64,
    /// Resources held now.
    pub resources: usize,
    /// What was refused in the last NACK; cleared by an ACK.
    pub last_nack: Option<String>,
}

impl Status {
    pub(crate) fn new(types: &[String]) -> Self {
        Self {
            types: types
                .iter()
                .map(|name| (name.clone(), TypeStatus::default()))
                .collect(),
            ..Self::default()
        }
    }

    /// The state of two clients with different types, for who looks at them as one.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let either = |one: &Option<String>, other: &Option<String>| {
            let said: Vec<&str> = [one, other]
                .into_iter()
                .flatten()
                .map(String::as_str)
                .collect();
            (!said.is_empty()).then(|| said.join("; "))
        };
        let mut types = self.types.clone();
        types.extend(other.types.clone());
        Self {
            connected: self.connected && other.connected,
            streams: self.streams + other.streams,
            last_error: either(&self.last_error, &other.last_error),
            snapshot_error: either(&self.snapshot_error, &other.snapshot_error),
            types,
        }
    }

    /// Whether the controller has answered for every type.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.types.values().all(|one| one.synced)
    }

    /// Whether there is something to work with for every type: an answer, or the last good configuration from disk.
    #[must_use]
    pub fn has_configuration(&self) -> bool {
        self.types.values().all(|one| one.synced || one.restored)
    }
}
