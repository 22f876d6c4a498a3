//! Pods of an earlier agent: entered again, kept as they are while that cannot be done, and let go once
//! the kernel says that they are gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    time::{Duration, Instant},
};

use abi::PodState;

use super::{
    Enroller, WantedPods, release,
    saved::{self, List, Saved},
};
use crate::{
    bpf::{Namespace, PodPrograms},
    host::{cgroup, netns::Netns},
    pod::{PodName, Sandbox},
};

/// Between two attempts at what could not be entered or read.
const RETRY: Duration = Duration::from_secs(1);

/// What an earlier agent left that is no entry.
pub(super) struct Earlier {
    absent: Vec<Absent>,
    /// Cookies of pods that the kernel holds captured and that stand in no list.
    unlisted: BTreeSet<u64>,
    /// Whether the list of pods has been read, so that who is not in it was never captured.
    whole: bool,
    /// Why the list cannot be read now; it must not be written before.
    unread: Option<String>,
    tried: Instant,
}

/// A sandbox whose namespace cannot be entered now.
struct Absent {
    saved: Saved,
    why: Obstacle,
}

/// Why a namespace cannot be entered.
#[derive(Debug)]
enum Obstacle {
    /// Opening or entering it fails.
    Error(io::Error),
    /// The path leads to another namespace by now.
    Elsewhere,
    /// The kernel's map does not take it.
    Kernel(String),
}

impl Obstacle {
    /// As the metric names it.
    fn reason(&self) -> &'static str {
        match self {
            Self::Elsewhere => "other_namespace",
            Self::Error(_) if self.leads_nowhere() => "nothing_there",
            Self::Error(error) => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE) => "no_descriptor",
                Some(libc::EACCES | libc::EPERM) => "no_permission",
                _ => "other",
            },
            Self::Kernel(_) => "other",
        }
    }

    /// Whether the path is no way to the pod any more. Anything else may pass.
    fn leads_nowhere(&self) -> bool {
        match self {
            Self::Elsewhere => true,
            // EINVAL: what is at the path is no namespace (`setns(2)`).
            Self::Error(error) => matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH | libc::EINVAL)
            ),
            Self::Kernel(_) => false,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(error) => error.fmt(f),
            Self::Elsewhere => f.write_str("another network namespace is there by now"),
            Self::Kernel(error) => error.fmt(f),
        }
    }
}

impl Earlier {
    pub(super) fn new() -> Self {
        Self {
            absent: Vec::new(),
            unlisted: BTreeSet::new(),
            whole: false,
            unread: None,
            tried: Instant::now(),
        }
    }

    /// Takes on a pod whose namespace has been deserted: it stays as it is until the kernel says that it is
    /// gone, or somebody is found in it.
    pub(super) fn keep_deserted(&mut self, saved: Saved) {
        let nowhere = io::Error::from_raw_os_error(libc::ENOENT);
        self.absent.push(Absent {
            saved,
            why: Obstacle::Error(nowhere),
        });
    }

    /// Pods that cannot be entered, and whether they were captured.
    pub(super) fn absent(&self) -> impl Iterator<Item = &Saved> {
        self.absent.iter().map(|absent| &absent.saved)
    }

    pub(super) fn has(&self, name: &PodName) -> bool {
        self.absent().any(|saved| saved.sandbox.pod == *name)
    }

    /// How many pods the kernel may hold captured that nobody carries connections for.
    pub(super) fn captured(&self) -> usize {
        self.absent().filter(|saved| saved.captured).count() + self.unlisted.len()
    }

    /// Whether the earlier agent's list has been read.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether the kernel may hold pods captured whose names are not known.
    pub(super) fn hides_pods(&self) -> bool {
        self.unread.is_some() || !self.unlisted.is_empty()
    }

    /// Why the list of pods must not be written.
    pub(super) fn unread(&self) -> Option<&str> {
        self.unread.as_deref()
    }
}

impl Enroller {
    /// Reads which sandboxes an earlier agent knew, and takes on those that are new. False if that
    /// cannot be known: then nothing may be taken for gone.
    pub(super) fn load_saved(&mut self) -> bool {
        let list = saved::load(&self.config.runtime_dir);
        let unread = self.earlier.unread.take();
        let saved = match list {
            List::Read(saved) => saved,
            List::Never => {
                self.entries.clear();
                self.earlier.absent.clear();
                return true;
            }
            List::Broken => return false,
            List::Unreadable(error) => {
                if unread.as_ref() != Some(&error) {
                    tracing::error!(
                        error,
                        "cannot read which pods the earlier agent knew; they stay as they are, captured ones refused; trying again"
                    );
                }
                self.earlier.unread = Some(error);
                return false;
            }
        };
        self.earlier.whole = true;
        let known: BTreeMap<&PodName, &Sandbox> = saved
            .iter()
            .map(|saved| (&saved.sandbox.pod, &saved.sandbox))
            .collect();
        self.entries
            .retain(|name, entry| known.get(name) == Some(&&entry.sandbox));
        self.enter_all(saved);
        true
    }

    /// Tries again what could not be read or entered, and lets go who is gone by now.
    pub(super) fn retry_earlier(&mut self) {
        let nothing = self.earlier.unread.is_none()
            && self.earlier.absent.is_empty()
            && self.earlier.unlisted.is_empty();
        if nothing || self.earlier.tried.elapsed() < RETRY {
            return;
        }
        self.earlier.tried = Instant::now();
        if self.earlier.unread.is_some() {
            // What has become known meanwhile stays.
            match saved::load(&self.config.runtime_dir) {
                List::Read(saved) => {
                    self.earlier.unread = None;
                    self.earlier.whole = true;
                    self.enter_all(saved);
                }
                List::Unreadable(error) => self.earlier.unread = Some(error),
                List::Never | List::Broken => self.earlier.unread = None,
            }
        } else {
            let absent = std::mem::take(&mut self.earlier.absent);
            let saved = absent.iter().map(|absent| absent.saved.clone()).collect();
            self.earlier.absent = absent;
            self.enter_all(saved);
        }
        self.let_gone_go();
    }

    fn enter_all(&mut self, saved: Vec<Saved>) {
        let before = std::mem::take(&mut self.earlier.absent);
        for saved in saved {
            let name = saved.sandbox.pod.clone();
            let Err(why) = self.enter(&saved) else {
                continue;
            };
            let known = |absent: &&Absent| absent.saved.sandbox.pod == name;
            if before.iter().find(known).map(|absent| absent.why.reason()) != Some(why.reason()) {
                self.metrics.kept(why.reason());
                tracing::warn!(pod = %name, netns = %saved.sandbox.netns.display(), reason = why.reason(), error = %why, "cannot enter the network namespace of a pod of the earlier agent; it stays as it is, refused if it was captured, until it can be entered or the kernel says that it is gone");
            }
            self.earlier.absent.push(Absent { saved, why });
        }
    }

    fn enter(&mut self, saved: &Saved) -> Result<(), Obstacle> {
        let name = &saved.sandbox.pod;
        if !self.entries.contains_key(name) {
            let netns = open(saved)?;
            self.insert(saved.sandbox.clone(), netns, false)
                .map_err(Obstacle::Kernel)?;
        }
        if let Some(entry) = self.entries.get_mut(name)
            && entry.sandbox.uid == saved.sandbox.uid
        {
            entry.held = saved.captured;
        }
        Ok(())
    }

    /// Removes what the kernel holds of pods that are gone: by what it says itself where it knows, and
    /// else only if their path leads nowhere.
    pub(super) fn let_gone_go(&mut self) {
        let ours: BTreeSet<u32> = self.entries.values().map(|e| e.netns.inode()).collect();
        let lookups = self.kernel.lookup_namespaces();
        let living = lookups
            .inspect_err(|error| tracing::warn!(%error, "cannot see where programs of pods are attached; no pod is taken for gone"))
            .ok()
            .map(|living| living.difference(&ours).copied().collect());
        let kernel = self.kernel.pods();
        let (gone, absent) = std::mem::take(&mut self.earlier.absent)
            .into_iter()
            .partition(|absent| {
                let id = kernel.get(&absent.saved.netns_cookie).map(|(id, _)| *id);
                let own = id.map(|id| PodPrograms::new(&self.kernel, id).namespace());
                is_gone(absent, own, living.as_ref())
            });
        self.earlier.absent = absent;
        let gone: Vec<Absent> = gone;
        for Absent { saved, why } in &gone {
            tracing::info!(pod = %saved.sandbox.pod, error = %why, "a pod of the earlier agent is gone");
            self.remove_from_kernel(saved.netns_cookie);
        }
        self.let_unlisted_go();
    }

    /// The same for what stands in no list.
    fn let_unlisted_go(&mut self) {
        let known: BTreeSet<u64> = self
            .entries
            .values()
            .map(|entry| entry.netns.cookie())
            .chain(self.earlier.absent().map(|saved| saved.netns_cookie))
            .collect();
        let mut unlisted = BTreeSet::new();
        for (cookie, (id, state)) in self.kernel.pods() {
            if known.contains(&cookie) {
                continue;
            }
            let keep = match PodPrograms::new(&self.kernel, id).namespace() {
                Namespace::Gone => false,
                Namespace::Lives => true,
                Namespace::Unknown => !self.earlier.whole || state == PodState::Captured,
            };
            if !keep {
                self.remove_from_kernel(cookie);
                continue;
            }
            if state == PodState::Captured {
                unlisted.insert(cookie);
                if !self.earlier.unlisted.contains(&cookie) {
                    self.metrics.kept("not_listed");
                    tracing::warn!(
                        pod_id = id,
                        netns_cookie = cookie,
                        "the kernel holds a pod captured that no list names; it stays refused until the CNI names it, it is found running or it is gone"
                    );
                }
            }
        }
        self.earlier.unlisted = unlisted;
    }

    fn remove_from_kernel(&self, cookie: u64) {
        let Some((id, _)) = self.kernel.pod(cookie) else {
            return;
        };
        release::detach(&self.kernel, id, None);
        self.kernel.forget_pod(id);
        self.kernel.remove_pod(cookie);
    }

    /// The CNI says that a pod is gone. `uid` empty: whichever has the name.
    pub(super) fn forget_absent(&mut self, name: &PodName, uid: &str) {
        let is_it = |absent: &Absent| {
            let sandbox = &absent.saved.sandbox;
            sandbox.pod == *name && (uid.is_empty() || sandbox.uid == uid)
        };
        let (gone, absent): (Vec<_>, Vec<_>) = std::mem::take(&mut self.earlier.absent)
            .into_iter()
            .partition(is_it);
        self.earlier.absent = absent;
        for Absent { saved, .. } in gone {
            self.remove_from_kernel(saved.netns_cookie);
            tracing::info!(pod = %name, "pod forgotten");
        }
    }

    /// Takes a pod out of those that could not be entered: it can be now. Says whether it was captured.
    pub(super) fn found_again(&mut self, sandbox: &Sandbox, netns: &Netns) -> bool {
        let is_it = |absent: &Absent| {
            absent.saved.sandbox == *sandbox && absent.saved.netns_cookie == netns.cookie()
        };
        let index = self.earlier.absent.iter().position(is_it);
        index.is_some_and(|index| self.earlier.absent.swap_remove(index).saved.captured)
    }

    /// Captured pods that a successor cannot serve for a reason that may pass: it must not take over.
    pub(super) fn out_of_reach(&self, wanted: &WantedPods) -> Vec<String> {
        let reached = |absent: &&Absent| {
            let saved = &absent.saved;
            saved.captured
                && !absent.why.leads_nowhere()
                && wanted.get(&saved.sandbox.pod).is_some_and(|w| w.capture)
        };
        let absent = self.earlier.absent.iter().filter(reached);
        let text = |absent: &Absent| {
            let Sandbox { pod, netns, .. } = &absent.saved.sandbox;
            let netns = netns.display();
            format!("pod {pod}: its network namespace {netns}: {}", absent.why)
        };
        absent.map(text).collect()
    }

    /// Whether programs of another version are attached in a namespace that ours do not cover.
    pub(super) fn others_hold_more(&self, covered: &BTreeSet<u32>) -> bool {
        let nowhere = self.earlier.absent.iter().filter(|a| a.why.leads_nowhere());
        let nowhere: BTreeSet<u32> = nowhere.map(|a| a.saved.netns_inode).collect();
        match self.kernel.others_namespaces() {
            Ok(held) => held
                .iter()
                .any(|inode| !covered.contains(inode) && !nowhere.contains(inode)),
            Err(error) => {
                tracing::warn!(%error, "cannot see where programs of another version are attached; they stay");
                true
            }
        }
    }
}

/// Opens the namespace of a saved sandbox: by its path, or by a process of the pod where the path was
/// that of a process which has ended before its pod.
fn open(saved: &Saved) -> Result<Netns, Obstacle> {
    let is_it = |netns: &Netns| saved.netns_cookie == 0 || netns.cookie() == saved.netns_cookie;
    let why = match Netns::open(&saved.sandbox.netns) {
        Ok(netns) if is_it(&netns) => return Ok(netns),
        Ok(_) => Obstacle::Elsewhere,
        Err(error) => Obstacle::Error(error),
    };
    let uid = &saved.sandbox.uid;
    if !why.leads_nowhere() || uid.is_empty() || saved.netns_cookie == 0 {
        return Err(why);
    }
    cgroup::netns_of_pods([uid.as_str()])
        .into_values()
        .flatten()
        .filter_map(|path| Netns::open(&path).ok())
        .find(is_it)
        .ok_or(why)
}

/// Whether a pod that cannot be entered is gone. `own`: what the link of our version says; `living`: the
/// namespaces of no other pod in which programs of any version are attached, none if that cannot be seen.
fn is_gone(absent: &Absent, own: Option<Namespace>, living: Option<&BTreeSet<u32>>) -> bool {
    if own == Some(Namespace::Gone) {
        return true;
    }
    let Some(living) = living else { return false };
    let saved = &absent.saved;
    // A list of an agent that did not note the number yet.
    let lives = match saved.netns_inode {
        0 => saved.captured && !living.is_empty(),
        inode => living.contains(&inode),
    };
    absent.why.leads_nowhere() && !lives
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absent(captured: bool, why: Obstacle) -> Absent {
        let sandbox = Sandbox {
            pod: PodName {
                namespace: "shop".to_owned(),
                name: "cart".to_owned(),
            },
            uid: "u".to_owned(),
            netns: "/run/netns/cart".into(),
            ips: Vec::new(),
        };
        let saved = Saved {
            sandbox,
            captured,
            netns_cookie: 7,
            netns_inode: 42,
        };
        Absent { saved, why }
    }

    fn error(code: i32) -> Obstacle {
        Obstacle::Error(io::Error::from_raw_os_error(code))
    }

    #[test]
    fn only_what_the_kernel_says_is_gone_is_gone() {
        let (here, elsewhere) = (BTreeSet::from([42, 9]), BTreeSet::from([9]));
        for (code, reason) in [
            (libc::EMFILE, "no_descriptor"),
            (libc::ENFILE, "no_descriptor"),
            (libc::EACCES, "no_permission"),
            (libc::ENOMEM, "other"),
            (libc::ELOOP, "other"),
        ] {
            let absent = absent(true, error(code));
            assert_eq!(absent.why.reason(), reason);
            for living in [None, Some(&here), Some(&elsewhere)] {
                for own in [None, Some(Namespace::Lives), Some(Namespace::Unknown)] {
                    assert!(!is_gone(&absent, own, living), "{code} {own:?} {living:?}");
                }
                assert!(is_gone(&absent, Some(Namespace::Gone), living));
            }
        }
        for why in [
            error(libc::ENOENT),
            error(libc::EINVAL),
            Obstacle::Elsewhere,
        ] {
            let absent = absent(true, why);
            assert!(!is_gone(&absent, Some(Namespace::Lives), Some(&here)));
            assert!(!is_gone(&absent, None, Some(&here)), "another version's");
            assert!(!is_gone(&absent, None, None), "nobody can say");
            assert!(is_gone(&absent, None, Some(&elsewhere)));
        }
    }

    #[test]
    fn a_captured_pod_of_a_list_without_numbers_is_gone_when_no_program_is_left() {
        let mut old = absent(true, error(libc::ENOENT));
        old.saved.netns_inode = 0;
        assert!(!is_gone(&old, None, Some(&BTreeSet::from([9]))));
        assert!(is_gone(&old, None, Some(&BTreeSet::new())));
    }
}
