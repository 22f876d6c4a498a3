//! How much of a request's body has come: the reader counts, the record asks at the end.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes that have come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Received(Rc<Cell<u64>>);

impl Received {
    pub(crate) fn add(&self, bytes: u64) {
        self.0.set(self.0.get() + bytes);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.get()
    }
}
