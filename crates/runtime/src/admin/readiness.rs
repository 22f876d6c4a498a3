//! Whether the program is ready: when every named condition has been met.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;

use super::Reply;

/// The conditions of a program; clones share them. Without a condition it is ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    conditions: Arc<Mutex<BTreeMap<&'static str, bool>>>,
    cannot: Arc<Mutex<Option<String>>>,
}

/// One condition; it counts as not met until [`Condition::set`] says so.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// No conditions yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition, not met. The name is what an operator reads while it is awaited.
    #[must_use]
    pub fn condition(&self, name: &'static str) -> Condition {
        self.lock().insert(name, false);
        Condition {
            name,
            readiness: self.clone(),
        }
    }

    /// The conditions that are not met.
    #[must_use]
    pub fn awaited(&self) -> Vec<&'static str> {
        self.lock()
            .iter()
            .filter(|(_, met)| !**met)
            .map(|(name, _)| *name)
            .collect()
    }

    /// Says that the program will never be ready here, and why.
    pub fn cannot(&self, why: String) {
        *self.cannot.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    pub(super) fn reply(&self) -> Reply {
        let cannot = self.cannot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = cannot.as_ref() {
            return Reply::text(format!("not ready; wanted, cannot: {why}\n"))
                .status(StatusCode::SERVICE_UNAVAILABLE);
        }
        drop(cannot);
        match self.awaited().as_slice() {
            [] => Reply::text("ready\n"),
            awaited => Reply::text(format!("not ready; awaits: {}\n", awaited.join(", ")))
                .status(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, bool>> {
        self.conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condition {
    /// Says whether the condition is met now.
    pub fn set(&self, met: bool) {
        self.readiness.lock().insert(self.name, met);
    }
}
