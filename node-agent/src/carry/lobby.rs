//! Peers that have dialled a pod's tunnel port and have not shown who they are yet: a small room of their own.
//!
//! Who waits here uses nothing of the pod's room. There is always a place for one more: where too many wait, the one
//! that has waited longest goes, of the same address first, then of the same pod. A peer with a certificate is through
//! within milliseconds; whoever says nothing makes room for it.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    rc::Rc,
};

use model::Reason;
use tokio::sync::oneshot;

use crate::{carry::worker::Worker, telemetry::record::Refusal};

/// How many may wait at one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// For all pods.
    all: usize,
    /// For one pod.
    of_pod: usize,
    /// For one pod, from one address (IPv6: from one network of 64 bits, which is what one host may have).
    of_source: usize,
}

impl Bounds {
    /// For one of `workers` of an agent that may have `descriptors` open.
    #[must_use]
    pub fn new(descriptors: u64, workers: u32) -> Self {
        let room = descriptors / DESCRIPTOR_SHARE / u64::from(workers.max(1));
        let all = usize::try_from(room).unwrap_or(MOST).clamp(LEAST, MOST);
        Self {
            all,
            of_pod: all / 2,
            of_source: all / 8,
        }
    }
}

/// One descriptor in so many may belong to peers that have not shown who they are.
const DESCRIPTOR_SHARE: u64 = 16;
const LEAST: usize = 32;
const MOST: usize = 512;

/// Who waits at one worker.
#[derive(Debug)]
pub(crate) struct Lobby {
    bounds: Bounds,
    pods: BTreeMap<u32, VecDeque<Waiting>>,
    all: usize,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    source: IpAddr,
    /// Dropped to send it away.
    _place: oneshot::Sender<()>,
}

/// A place in the lobby.
struct Place {
    number: u64,
    /// Ends when the place is taken away.
    taken: oneshot::Receiver<()>,
}

impl Lobby {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            pods: BTreeMap::new(),
            all: 0,
            next: 0,
        }
    }

    fn enter(&mut self, pod: u32, peer: IpAddr) -> Place {
        let source = network(peer);
        let of_pod = self.pods.entry(pod).or_default();
        let of_source = of_pod.iter().filter(|one| one.source == source).count();
        if of_source >= self.bounds.of_source {
            let oldest = of_pod.iter().position(|one| one.source == source);
            self.all -= usize::from(oldest.and_then(|at| of_pod.remove(at)).is_some());
        } else if of_pod.len() >= self.bounds.of_pod {
            self.all -= usize::from(of_pod.pop_front().is_some());
        } else if self.all >= self.bounds.all
            && let Some(fullest) = self.pods.values_mut().max_by_key(|pod| pod.len())
        {
            self.all -= usize::from(fullest.pop_front().is_some());
        }
        let (place, taken) = oneshot::channel();
        let number = self.next;
        self.next += 1;
        self.all += 1;
        self.pods.entry(pod).or_default().push_back(Waiting {
            number,
            source,
            _place: place,
        });
        Place { number, taken }
    }

    fn leave(&mut self, pod: u32, number: u64) {
        let Some(of_pod) = self.pods.get_mut(&pod) else {
            return;
        };
        if let Ok(at) = of_pod.binary_search_by_key(&number, |one| one.number) {
            of_pod.remove(at);
            self.all -= 1;
        }
        if of_pod.is_empty() {
            self.pods.remove(&pod);
        }
    }
}

/// What one host has: an IPv4 address, or an IPv6 network of 64 bits.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

impl Worker {
    /// Waits, in the lobby, until a peer of the pod has shown who it is.
    ///
    /// # Errors
    /// What `shown` says, or that others need the place.
    pub(crate) async fn wait_for_proof<T>(
        self: &Rc<Self>,
        pod: u32,
        peer: IpAddr,
        shown: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let Place { number, taken } = self.lobby.borrow_mut().enter(pod, peer);
        let _leaves = Leaves {
            worker: Rc::clone(self),
            pod,
            number,
        };
        tokio::select! {
            shown = shown => shown,
            _ = taken => Err(Refusal {
                reason: Reason::HandshakeLimit,
                text: "the peer has shown no certificate yet, and too many wait that have not either: of its address, of the pod or of the node".to_owned(),
            }),
        }
    }
}

struct Leaves {
    worker: Rc<Worker>,
    pod: u32,
    number: u64,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        self.worker.lobby.borrow_mut().leave(self.pod, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot::error::TryRecvError;

    const BOUNDS: Bounds = Bounds {
        all: 20,
        of_pod: 10,
        of_source: 4,
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn waits(place: &mut Place) -> bool {
        place.taken.try_recv() == Err(TryRecvError::Empty)
    }

    #[test]
    fn one_address_makes_room_for_itself_only() {
        let mut lobby = Lobby::new(BOUNDS);
        let mut other = lobby.enter(1, ip("10.0.0.1"));
        let mut flood: Vec<Place> = (0..100).map(|_| lobby.enter(1, ip("10.0.0.2"))).collect();
        assert!(waits(&mut other));
        let left: Vec<bool> = flood.iter_mut().map(waits).collect();
        let (gone, there) = left.split_at(96);
        assert!(gone.iter().all(|waits| !waits) && there.iter().all(|waits| *waits));
        assert_eq!(lobby.all, 5);
    }

    #[test]
    fn addresses_of_one_ipv6_host_are_one() {
        let mut lobby = Lobby::new(BOUNDS);
        for host in 1..50 {
            let _place = lobby.enter(1, ip(&format!("fd00::{host:x}")));
        }
        assert_eq!(lobby.all, BOUNDS.of_source);
        let _place = lobby.enter(1, ip("fd00:0:0:1::1"));
        assert_eq!(lobby.all, BOUNDS.of_source + 1);
        let _mapped = [
            lobby.enter(2, ip("::ffff:10.0.0.1")),
            lobby.enter(2, ip("::ffff:10.0.0.2")),
        ];
        assert_eq!(lobby.pods[&2].front().unwrap().source, ip("10.0.0.1"));
    }

    #[test]
    fn a_flood_from_many_addresses_leaves_other_pods_their_places() {
        let mut lobby = Lobby::new(BOUNDS);
        let mut neighbour = lobby.enter(2, ip("10.0.0.1"));
        for host in 0..200 {
            let _place = lobby.enter(1, ip(&format!("10.1.0.{host}")));
        }
        assert_eq!(lobby.pods[&1].len(), BOUNDS.of_pod);
        assert!(waits(&mut neighbour));
        // Floods of several pods together.
        for host in 0..200 {
            let _places = [3, 4].map(|pod| lobby.enter(pod, ip(&format!("10.1.0.{host}"))));
        }
        assert!(lobby.all <= BOUNDS.all, "{}", lobby.all);
        assert!(waits(&mut neighbour));
    }

    #[test]
    fn who_leaves_gives_the_place_back_once() {
        let mut lobby = Lobby::new(BOUNDS);
        let places: Vec<u64> = (0..50)
            .map(|_| lobby.enter(1, ip("10.0.0.1")).number)
            .collect();
        for number in places {
            lobby.leave(1, number);
            lobby.leave(1, number);
        }
        assert_eq!((lobby.all, lobby.pods.len()), (0, 0));
    }

    #[test]
    fn bounds_follow_descriptors_and_workers() {
        assert_eq!(Bounds::new(1 << 20, 2).all, MOST);
        assert_eq!(Bounds::new(1024, 2).all, LEAST);
        let Bounds {
            all,
            of_pod,
            of_source,
        } = Bounds::new(8192, 2);
        assert_eq!((all, of_pod, of_source), (256, 128, 32));
    }
}
