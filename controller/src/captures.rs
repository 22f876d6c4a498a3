//! Where it is kept what each node holds captured, so that every replica of the controller says the same of it.
//!
//! | source | kept in | who else reads it |
//! |---|---|---|
//! | a folder | `captured.json` of the state folder, by the pipeline itself | nobody: there is one controller |
//! | a cluster | a ConfigMap per node in the installation's namespace | every replica, by a watch |
//!
//! An agent reports to the one replica that it is connected to. That one takes the report into its index at once, writes
//! it down, and answers; the others hear of it through their watch. Two replicas may write of one node, as when its agent
//! has just moved from one to the other: a write names the revision that it replaces, so the later report wins. Who lost
//! takes what is written, and tells its agent to report again, if that still listens.

mod cluster;

use std::collections::HashMap;
use std::sync::Arc;

use compile::index::Sandbox;
use tokio::sync::oneshot;

pub use self::cluster::{Captures, News};

/// What is written of a node, and when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// `metadata.resourceVersion`: a later one is larger.
    pub revision: u64,
    /// Its captured pods.
    pub pods: Vec<Sandbox>,
}

/// Answered when a report is kept: false if another replica has written of the node meanwhile.
pub(crate) type Answer = oneshot::Sender<bool>;

/// What this replica knows of what is written. Pure: it says what to do.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    nodes: HashMap<Arc<str>, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    /// What is written, as far as it is known.
    written: Option<Written>,
    /// The node's agent has reported to this replica after anybody else has written.
    ours: bool,
    /// A write is on its way.
    writing: bool,
    /// What the write that is to follow says.
    next: Option<Vec<Sandbox>>,
    /// Who waits for what has been reported to be written.
    waiting: Vec<Answer>,
}

/// A write that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) node: Arc<str>,
    /// What it replaces; none if there is nothing.
    pub(crate) replaces: Option<u64>,
    pub(crate) pods: Vec<Sandbox>,
}

impl Ledger {
    /// The node's agent has reported to this replica, which now takes it to hold `pods`.
    pub(crate) fn reported(
        &mut self,
        node: &Arc<str>,
        pods: Vec<Sandbox>,
        answer: Answer,
    ) -> Option<Write> {
        let entry = self.nodes.entry(Arc::clone(node)).or_default();
        entry.ours = true;
        entry.waiting.push(answer);
        self.holds(node, pods)
    }

    /// Nodes of which this replica heard last.
    pub(crate) fn ours(&self) -> Vec<Arc<str>> {
        let ours = self.nodes.iter().filter(|(_, entry)| entry.ours);
        ours.map(|(node, _)| Arc::clone(node)).collect()
    }

    /// This replica takes a node to hold `pods`, by a report or by what objects say of them.
    pub(crate) fn holds(&mut self, node: &Arc<str>, pods: Vec<Sandbox>) -> Option<Write> {
        let entry = self.nodes.get_mut(node).filter(|entry| entry.ours)?;
        if entry.writing {
            entry.next = Some(pods);
            return None;
        }
        if entry
            .written
            .as_ref()
            .is_some_and(|known| known.pods == pods)
        {
            entry.answer(true);
            return None;
        }
        entry.writing = true;
        Some(Write {
            node: Arc::clone(node),
            replaces: entry.written.as_ref().map(|known| known.revision),
            pods,
        })
    }

    /// A write was made. Says what to write next.
    pub(crate) fn done(&mut self, node: &Arc<str>, written: Written) -> Option<Write> {
        let entry = self.nodes.get_mut(node)?;
        entry.writing = false;
        entry.written = Some(written);
        match entry.next.take() {
            Some(next) => self.holds(node, next),
            None => {
                entry.answer(true);
                None
            }
        }
    }

    /// A write was refused since another replica had written `written`; nothing, if it is gone by now. Says whether the
    /// node is to be taken to hold that.
    pub(crate) fn lost(&mut self, node: &Arc<str>, written: Option<Written>) -> bool {
        let Some(entry) = self.nodes.get_mut(node) else {
            return false;
        };
        let is_there = written.is_some();
        entry.written = written;
        entry.ours = false;
        entry.writing = false;
        entry.next = None;
        entry.answer(false);
        is_there
    }

    /// The watch says what is written. Says whether it is news that the index has to hear: what this replica wrote itself
    /// is none, and nothing is while a write is on its way, which then fails and asks.
    pub(crate) fn heard(&mut self, node: &Arc<str>, written: Written) -> bool {
        let entry = self.nodes.entry(Arc::clone(node)).or_default();
        let is_known = entry
            .written
            .as_ref()
            .is_some_and(|known| known.revision >= written.revision);
        if entry.writing || is_known {
            return false;
        }
        entry.ours = false;
        entry.written = Some(written);
        true
    }

    /// Nothing is written of the node any more: it is written again with the next report.
    pub(crate) fn gone(&mut self, node: &Arc<str>) {
        if let Some(entry) = self.nodes.get_mut(node)
            && !entry.writing
        {
            entry.written = None;
        }
    }
}

impl Entry {
    fn answer(&mut self, kept: bool) {
        for waiting in self.waiting.drain(..) {
            // A caller that hung up needs no answer.
            let _unheard: Result<(), bool> = waiting.send(kept);
        }
    }
}

#[cfg(test)]
mod tests;
