//! Connections whose callers have not shown yet what they are worth: bounded in number, in all and
//! from one source. Where there is no room, the one that has waited longest goes, so that nobody keeps
//! others out by being silent.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// How many may wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// In all.
    pub total: usize,
    /// From one address, or from one /64 of IPv6.
    pub per_source: usize,
}

/// Who waits; clones share it.
#[derive(Clone, Debug)]
pub struct Guests(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: Limits,
    waiting: Mutex<Waiting>,
}

/// A connection among the [`Guests`]. Dropping it gives its place up.
#[derive(Debug)]
pub struct Guest {
    guests: Guests,
    source: IpAddr,
    leave: CancellationToken,
    place: Mutex<Option<u64>>,
}

/// Why another connection had to go.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Crowded {
    /// Too many of one source wait.
    Source,
    /// Too many wait.
    Total,
}

impl Guests {
    /// Nobody yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared {
            limits,
            waiting: Mutex::default(),
        }))
    }

    /// Takes a connection in. Says whether another one was told to leave for it.
    #[must_use]
    pub fn admit(&self, address: IpAddr) -> (Guest, Option<Crowded>) {
        let guest = Guest {
            guests: self.clone(),
            source: source(address),
            leave: CancellationToken::new(),
            place: Mutex::default(),
        };
        let crowded = guest.wait();
        (guest, crowded)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// Returns when the connection has to end because others need its place.
    pub async fn told_to_leave(&self) {
        self.leave.cancelled().await;
    }

    /// A token that is cancelled when the connection has to end.
    #[must_use]
    pub fn leave(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// The caller has shown what it is worth, or is being served: it is not told to leave any more.
    pub fn stay(&self) {
        let place = self.place().take();
        if let Some(number) = place {
            self.guests.waiting().remove(self.source, number);
        }
    }

    /// The caller waits, as the latest. Says whether another one was told to leave for it.
    pub fn wait(&self) -> Option<Crowded> {
        self.stay();
        let mut place = self.place();
        let mut waiting = self.guests.waiting();
        *place = Some(waiting.add(self.source, self.leave.clone()));
        waiting.make_room(self.source, self.guests.0.limits)
    }

    fn place(&self) -> MutexGuard<'_, Option<u64>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stay();
    }
}

/// Who waits, by source and number; a lower number has waited longer.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    total: usize,
    sources: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
}

impl Waiting {
    fn add(&mut self, source: IpAddr, leave: CancellationToken) -> u64 {
        let number = self.next;
        self.next += 1;
        self.total += 1;
        self.sources
            .entry(source)
            .or_default()
            .insert(number, leave);
        number
    }

    fn remove(&mut self, source: IpAddr, number: u64) -> Option<CancellationToken> {
        let of_source = self.sources.get_mut(&source)?;
        let leave = of_source.remove(&number)?;
        if of_source.is_empty() {
            self.sources.remove(&source);
        }
        self.total -= 1;
        Some(leave)
    }

    /// Tells one to leave where there are too many: of this source, or else of the source that has most.
    fn make_room(&mut self, source: IpAddr, limits: Limits) -> Option<Crowded> {
        let of_source = self.sources.get(&source).map_or(0, BTreeMap::len);
        let (from, crowded) = if of_source > limits.per_source {
            (source, Crowded::Source)
        } else if self.total > limits.total {
            let most = self.sources.iter().max_by_key(|(_, waiting)| waiting.len());
            (*most?.0, Crowded::Total)
        } else {
            return None;
        };
        let (&oldest, _) = self.sources.get(&from)?.first_key_value()?;
        self.remove(from, oldest)?.cancel();
        Some(crowded)
    }
}

/// Whoever has one address of a /64 has all of them.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        total: 4,
        per_source: 3,
    };

    fn who(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn told(guests: &[Guest]) -> Vec<bool> {
        guests
            .iter()
            .map(|guest| guest.leave.is_cancelled())
            .collect()
    }

    #[test]
    fn the_longest_waiting_of_a_source_goes_first_and_others_stay() {
        let guests = Guests::new(LIMITS);
        let (other, crowded) = guests.admit(who("192.0.2.2"));
        assert_eq!(crowded, None);
        let flood = (0..50).map(|_| guests.admit(who("192.0.2.1")));
        let (flood, crowded): (Vec<_>, Vec<_>) = flood.unzip();
        assert!(
            !other.leave.is_cancelled(),
            "another source keeps its place"
        );
        assert_eq!(told(&flood[..47]), [true; 47]);
        assert_eq!(told(&flood[47..]), [false; 3]);
        assert_eq!(crowded[2], None);
        assert!(crowded[3..].iter().all(|c| *c == Some(Crowded::Source)));
    }

    #[test]
    fn where_all_is_full_the_source_with_most_gives_a_place_up() {
        let guests = Guests::new(LIMITS);
        let [a, b] = ["2001:db8::1", "2001:db8::ffff:2"].map(|ip| guests.admit(who(ip)).0);
        let (alone, _) = guests.admit(who("192.0.2.9"));
        let (_c, crowded) = guests.admit(who("192.0.2.8"));
        assert_eq!(crowded, None);
        let (_d, crowded) = guests.admit(who("::ffff:192.0.2.7"));
        assert_eq!(crowded, Some(Crowded::Total));
        assert!(a.leave.is_cancelled() && !b.leave.is_cancelled() && !alone.leave.is_cancelled());
    }

    #[test]
    fn who_is_served_is_not_told_to_leave_and_who_waits_again_is_the_latest() {
        let guests = Guests::new(LIMITS);
        let [first, second] = [(); 2].map(|()| guests.admit(who("192.0.2.1")).0);
        first.stay();
        let more = [(); 3].map(|()| guests.admit(who("192.0.2.1")).0);
        assert!(!first.leave.is_cancelled() && second.leave.is_cancelled());
        assert_eq!(first.wait(), Some(Crowded::Source));
        assert!(!first.leave.is_cancelled() && more[0].leave.is_cancelled());
        drop(more);
        drop(first);
        drop(second);
        let waiting = guests.waiting();
        assert!(waiting.total == 0 && waiting.sources.is_empty());
    }
}
