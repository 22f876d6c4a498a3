//! The kernel half's count of listening sockets: how the agent compares it with the sockets that there are.
//!
//! The kernel half counts while the agent looks. An element that the agent writes or removes may be one that the kernel
//! half is counting in at that moment; its count would be lost, and a port that somebody listens on would be refused. So
//! nothing is lowered or removed at first sight. The value of an element changes whenever the kernel half counts in it
//! ([`abi::LISTENER_OPENED`], [`abi::LISTENER_CLOSED`]), and only an element that has not changed for `QUIET` is taken
//! for wrong. A count that is too low is raised at once, if nothing was counted during the look: too many hurt nobody, as
//! the pod's own kernel then refuses.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use abi::{PortKey, Share, maps, sockets};

use super::{
    Kernel, KernelError,
    tables::{Ports, Raw, map_error},
};

/// Values of `LISTENING` by port and family, 4 or 6.
pub type Counts = BTreeMap<(u16, u16), u64>;

/// How long a value has to stay as it is before it is taken for wrong. A socket is counted some instructions before it is
/// found among the listening ones; a thread that is interrupted there goes on long before.
const QUIET: Duration = Duration::from_millis(150);

/// Values that seem too high, and since when they are what they are.
#[derive(Debug, Default)]
pub struct Suspects(BTreeMap<(u16, u16), (u64, Instant)>);

/// What a look at a pod's listening sockets has changed, and left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Look {
    /// An element was written or removed. Somebody may have counted in it meanwhile, so look again.
    pub changed: bool,
    /// The count of some port was wrong, and is right now.
    pub wrong: bool,
    /// Ports beyond the pod's share, which are not counted.
    pub left_out: usize,
}

/// What to do with the count of one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Nothing.
    Keep,
    /// There is no element, and sockets listen.
    Insert,
    /// The element counts too few.
    Raise(u64),
    /// The element counts too many, or nothing at all: remember it.
    Suspect(u64),
    /// The same, and it has not changed for long enough.
    Lower(u64),
}

impl Step {
    /// `before` and `now` are the element's values before and after the `found` sockets were listed; `suspected` is a value
    /// that has seemed too high for `QUIET`.
    fn of(before: Option<u64>, now: Option<u64>, found: i32, suspected: Option<u64>) -> Self {
        let Some(value) = now else {
            return if found > 0 { Self::Insert } else { Self::Keep };
        };
        match sockets(value) {
            counted if counted == found && found > 0 => Self::Keep,
            counted if counted < found && before == now => Self::Raise(value),
            counted if counted < found => Self::Keep,
            _ if suspected == now => Self::Lower(value),
            _ => Self::Suspect(value),
        }
    }
}

impl Kernel {
    /// What the kernel half has counted, by pod.
    #[must_use]
    pub fn listening(&self) -> BTreeMap<u32, Counts> {
        let mut pods: BTreeMap<u32, Counts> = BTreeMap::new();
        for (Raw(key), value) in self.maps.lock().listening.iter().filter_map(Result::ok) {
            let counts = pods.entry(key.pod).or_default();
            counts.insert((key.port, key.family), value);
        }
        pods
    }

    /// Compares the kernel half's count with the sockets that were `found` in the pod's namespace, and puts right what is
    /// wrong for certain. `before` is what had been counted before they were listed.
    ///
    /// # Errors
    /// When the map is full.
    pub fn compare_listening(
        &self,
        id: u32,
        before: &Counts,
        found: &Ports,
        suspects: &mut Suspects,
    ) -> Result<Look, KernelError> {
        let now = self.listening().remove(&id).unwrap_or_default();
        let share = usize::try_from(self.place.config.ports_per_pod).unwrap_or(usize::MAX);
        let earlier = std::mem::take(suspects);
        let mut look = Look::default();
        let mut used = now.len();
        let mut maps = self.maps.lock();
        let mut ports: Vec<_> = now.keys().chain(found.keys()).copied().collect();
        ports.sort_unstable();
        ports.dedup();
        // What counts nothing makes room for those that come after it.
        ports.sort_by_key(|port| found.contains_key(port));
        for port in ports {
            let there = found.get(&port).copied().unwrap_or_default();
            let key = Raw(PortKey {
                pod: id,
                port: port.0,
                family: port.1,
            });
            let noted = earlier.0.get(&port);
            let quiet = noted.filter(|(_, since)| since.elapsed() >= QUIET);
            let step = Step::of(
                before.get(&port).copied(),
                now.get(&port).copied(),
                there,
                quiet.map(|(value, _)| *value),
            );
            match step {
                Step::Keep => continue,
                Step::Suspect(value) => {
                    let since = noted.filter(|(known, _)| *known == value);
                    let since = since.map_or_else(Instant::now, |(_, since)| *since);
                    suspects.0.insert(port, (value, since));
                    continue;
                }
                Step::Insert if used >= share => {
                    look.left_out += 1;
                    continue;
                }
                Step::Insert => {
                    used += 1;
                    // Where the kernel half was faster its count is newer.
                    let inserted = maps
                        .listening
                        .insert(key, abi::listeners(0, there), NOEXIST);
                    match inserted {
                        Err(error) if is_there(&error) => {}
                        other => other.map_err(map_error(maps::LISTENING))?,
                    }
                }
                Step::Raise(value) | Step::Lower(value) => {
                    if maps.listening.get(&key, 0).ok() != Some(value) {
                        continue;
                    }
                    if there == 0 {
                        used -= 1;
                        drop(maps.listening.remove(&key));
                    } else {
                        maps.listening
                            .insert(key, abi::listeners(value, there), 0)
                            .map_err(map_error(maps::LISTENING))?;
                    }
                    look.wrong |= sockets(value) != there;
                    look.changed = true;
                    continue;
                }
            }
            look.wrong = true;
            look.changed = true;
        }
        let used = Raw(Share {
            ports: u64::try_from(used).unwrap_or(u64::MAX),
            ..Share::default()
        });
        maps.shares
            .insert(id, used, 0)
            .map_err(map_error(maps::SHARES))?;
        Ok(look)
    }

    /// Whether a listening port of the pod has found no room since [`Kernel::compare_listening`].
    #[must_use]
    pub fn has_lost_ports(&self, id: u32) -> bool {
        let used = self.maps.lock().shares.get(&id, 0);
        used.is_ok_and(|Raw(used)| used.ports_lost > 0)
    }

    /// Removes what was counted of a pod that is let go.
    pub(super) fn forget_listening(&self, id: u32) {
        let counted = self.listening().remove(&id).unwrap_or_default();
        let mut maps = self.maps.lock();
        for (port, family) in counted.into_keys() {
            let key = PortKey {
                pod: id,
                port,
                family,
            };
            drop(maps.listening.remove(&Raw(key)));
        }
    }
}

/// Whether the counts are those of the sockets, and no element is left that counts nothing.
#[must_use]
pub fn is_right(counts: &Counts, found: &Ports) -> bool {
    counts.len() == found.len()
        && counts
            .iter()
            .all(|(port, value)| found.get(port) == Some(&sockets(*value)))
}

/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;

fn is_there(error: &aya::maps::MapError) -> bool {
    use aya::maps::MapError;
    match error {
        MapError::SyscallError(call) => call.io_error.kind() == std::io::ErrorKind::AlreadyExists,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(times: u64) -> u64 {
        times.wrapping_mul(abi::LISTENER_OPENED)
    }

    #[test]
    fn what_is_counted_during_a_look_is_not_overwritten() {
        // Closed and opened by the kernel half, between two looks that both find one socket too few.
        let one = opened(1);
        let again = one
            .wrapping_add(abi::LISTENER_CLOSED)
            .wrapping_add(abi::LISTENER_OPENED);
        assert_eq!((sockets(one), sockets(again)), (1, 1));
        assert_ne!(one, again);
        assert_eq!(
            Step::of(Some(one), Some(again), 0, Some(one)),
            Step::Suspect(again)
        );
        assert_eq!(Step::of(Some(one), Some(again), 2, None), Step::Keep);
    }

    #[test]
    fn only_what_has_been_quiet_is_lowered_or_removed() {
        let closed = opened(1).wrapping_add(abi::LISTENER_CLOSED);
        assert_eq!(sockets(closed), 0);
        for (value, found) in [(opened(1), 0), (opened(2), 1), (closed, 0)] {
            let now = Some(value);
            assert_eq!(Step::of(now, now, found, None), Step::Suspect(value));
            assert_eq!(
                Step::of(now, now, found, Some(value ^ 1 << 40)),
                Step::Suspect(value)
            );
            assert_eq!(Step::of(now, now, found, now), Step::Lower(value));
        }
    }

    #[test]
    fn what_is_missing_is_added_at_once() {
        assert_eq!(Step::of(None, None, 1, None), Step::Insert);
        assert_eq!(Step::of(None, None, 0, None), Step::Keep);
        let one = opened(1);
        assert_eq!(Step::of(Some(one), Some(one), 2, None), Step::Raise(one));
        assert_eq!(Step::of(Some(one), Some(one), 1, None), Step::Keep);
        // An element that lost a count says less than nothing.
        let lost = abi::LISTENER_CLOSED;
        let lost = lost
            .wrapping_add(abi::LISTENER_CLOSED)
            .wrapping_add(abi::LISTENER_OPENED);
        assert_eq!(sockets(lost), -1);
        assert_eq!(Step::of(Some(lost), Some(lost), 1, None), Step::Raise(lost));
    }
}
