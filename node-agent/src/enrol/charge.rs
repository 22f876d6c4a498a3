//! How pods pass from one agent to the next: what the successor opens beforehand, what happens while
//! neither enrols, and what the predecessor does when the successor gives up.

use super::{
    Enroller, Mode,
    addresses::Claims,
    capture::{self, Context},
    entry::{Entry, Phase},
};
use crate::{
    carry::hold,
    direct::Inherit,
    mesh::{Wanted, WantedPods},
    pod::PodName,
};

impl Enroller {
    /// Opens what taking over will need, and says what is still awaited. The agent that is in charge
    /// does not notice.
    pub(super) fn prepare(&mut self) {
        let Some(wanted) = self.wanted.clone() else {
            return;
        };
        if !self.load_saved() {
            return;
        }
        let mut awaited = Vec::new();
        self.for_each_wanted(&wanted, |context, entry, wanted| {
            awaited.extend(capture::prepare(context, entry, wanted).err());
        });
        awaited.extend(self.out_of_reach(&wanted));
        self.awaited.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&awaited);
            if changed {
                *known = Some(awaited);
            }
            changed
        });
    }

    /// Takes over all pods that the predecessor captured.
    ///
    /// Listeners and maps of all pods come first, then the programs of the node, then those of the
    /// pods: with another ABI no program of ours is asked about a pod that our maps do not describe.
    pub(super) fn take_charge(&mut self) -> Result<(), String> {
        let taken = self.try_take_charge();
        if taken.is_err() {
            // The predecessor takes everything back.
            self.mode = Mode::Preparing;
        }
        taken
    }

    fn try_take_charge(&mut self) -> Result<(), String> {
        let wanted = self.wanted.clone().unwrap_or_default();
        self.mode = Mode::InCharge;
        if !self.load_saved() {
            return Err("cannot read which pods the agent in charge knows".to_owned());
        }
        let mut failed = self.out_of_reach(&wanted);
        if !failed.is_empty() {
            return Err(failed.join("; "));
        }
        // Nobody keeps the set in step: a predecessor that hangs has left it as it was.
        if let Err(error) = self.kernel.set_native(false) {
            return Err(super::describe(&error));
        }
        self.for_each_wanted(&wanted, |context, entry, wanted| {
            failed.extend(capture::take(context, entry, wanted).err());
        });
        if failed.is_empty() {
            // First: what is held in the name of this agent must come to it.
            hold::receive(self.kernel.held(), &self.workers);
            let attached = self.kernel.attach();
            failed.extend(attached.err().map(|error| super::describe(&error)));
        }
        if failed.is_empty() {
            self.for_each_wanted(&wanted, |context, entry, wanted| {
                failed.extend(capture::complete(context, entry, wanted).err());
            });
        }
        if !failed.is_empty() {
            return Err(failed.join("; "));
        }
        self.let_gone_go();
        self.publish();
        self.direct.charge(Inherit::Tables);
        self.others = self.kernel.others_attached();
        self.replace_others();
        self.catch_up();
        Ok(())
    }

    /// Detaches the programs of other versions once ours cover every pod that those had captured.
    pub(super) fn replace_others(&mut self) {
        if !self.others || self.wanted.is_none() {
            return;
        }
        let wanted = self.wanted.clone().unwrap_or_default();
        let mut covered = true;
        let (context, entries) = self.parts();
        for (name, entry) in entries {
            if !entry.held || capture::is_captured_in_kernel(&context, entry) {
                continue;
            }
            if wanted.contains_key(name) {
                covered = false;
            } else if let Err(error) = capture::hold(&context, entry) {
                tracing::error!(error, "cannot keep a pod refused that nobody knows");
                covered = false;
            }
        }
        // Also those that no list names.
        let inodes = self
            .entries
            .values()
            .filter(|entry| {
                matches!(entry.phase, Phase::Exempt | Phase::Releasing(..))
                    || entry.is_captured_by(&self.kernel)
            })
            .map(|entry| entry.netns.inode())
            .collect();
        if !covered || self.others_hold_more(&inodes) {
            return;
        }
        match self.kernel.retire_others() {
            Ok(()) => self.others = false,
            Err(error) => {
                tracing::error!(
                    error = super::describe(&error),
                    "cannot detach the programs of another version; they refuse what we let through"
                );
            }
        }
    }

    /// Leaves everything as it is, for a successor.
    pub(super) fn pause(&mut self) {
        if self.mode == Mode::InCharge {
            // The successor reads it.
            self.publish();
            self.mode = Mode::Paused;
        }
    }

    /// The successor may have put its own listeners and programs in place of ours before it ended.
    pub(super) fn resume(&mut self) {
        if self.mode != Mode::Paused {
            return;
        }
        self.mode = Mode::InCharge;
        let (context, entries) = self.parts();
        // Listeners first: without them connections are refused.
        for entry in entries.values_mut() {
            capture::listen_again(&context, entry);
        }
        hold::receive(self.kernel.held(), &self.workers);
        for result in [self.kernel.attach(), self.kernel.retire_others()] {
            if let Err(error) = result {
                tracing::error!(
                    error = super::describe(&error),
                    "cannot undo what the successor attached"
                );
            }
        }
        let (context, entries) = self.parts();
        for entry in entries.values_mut() {
            capture::engage_again(&context, entry);
        }
        // The successor may have written it.
        self.stored.clear();
        self.store();
        self.direct.charge(Inherit::Tables);
        self.catch_up();
    }

    fn catch_up(&mut self) {
        for command in std::mem::take(&mut self.deferred) {
            self.on(command);
        }
    }

    pub(super) fn parts(
        &mut self,
    ) -> (Context<'_>, &mut std::collections::BTreeMap<PodName, Entry>) {
        let context = Context {
            kernel: &self.kernel,
            workers: &self.workers,
            certs: &self.certs,
            config: &self.config,
            mesh: &self.mesh,
            claims: Claims::of(&self.entries, self.wanted.as_deref()),
            direct: &self.direct,
            metrics: &self.metrics,
        };
        (context, &mut self.entries)
    }

    /// Visits the pods that an earlier agent captured and that shall stay captured.
    fn for_each_wanted(
        &mut self,
        wanted: &WantedPods,
        mut each: impl FnMut(&Context<'_>, &mut Entry, &Wanted),
    ) {
        let (context, entries) = self.parts();
        for (name, entry) in entries {
            let wish = entry.wish(wanted.get(name)).filter(|wish| wish.capture);
            if let Some(wish) = wish
                && entry.held
            {
                each(&context, entry, wish);
            }
        }
    }
}
