//! How many connections the agent carries for each pod, so that no pod takes what its neighbours need.
//!
//! A connection costs the agent up to two descriptors, and descriptors are what it runs out of first.
//! Half of what it can carry is divided equally among the captured pods: each pod's own share, which
//! nobody else can use. The other half is for whoever needs more than its share, in the order in which
//! they ask. What a pod asks beyond that is refused at once, with a reason of its own.
//!
//! Both directions count: what a pod opens, what it serves, and each tunnel that ends at it once its peer has shown
//! who it is (see [`crate::carry::lobby`]). A part of the pod's own share is for what it opens only: others can dial it as
//! often as they like. What two pods of a node say to each other directly costs the agent nothing and does not count.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use model::Reason;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use runtime::metrics::Metrics;

use super::Pod;
use crate::telemetry::record::Direction;

/// Descriptors that a connection may need: the one that was accepted and the one that was dialled.
const DESCRIPTORS_EACH: u64 = 2;
/// One descriptor in so many is left for everything else: listeners, tunnels, files.
const RESERVE: u64 = 8;
/// One in so many of a pod's own share is for what it opens.
const OUTBOUND: usize = 4;

/// What configuration says; zero means "derive it".
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Connections of all pods together.
    pub total: usize,
    /// Connections of one pod, however much room there is.
    pub per_pod: usize,
}

/// The connections of all pods.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    per_pod: usize,
    pods: AtomicUsize,
    /// Connections beyond their pods' own shares.
    borrowed: AtomicUsize,
}

/// What one pod uses.
#[derive(Debug, Default)]
pub struct Usage {
    own: AtomicUsize,
    /// Those of `own` that others have opened.
    inbound: AtomicUsize,
    borrowed: AtomicUsize,
}

/// Where the room for one connection came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Own(Direction),
    Borrowed,
}

/// The right to carry one connection, until it is dropped.
#[must_use]
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    pod: Arc<Pod>,
    room: Room,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The limit that configuration sets.
    #[error(
        "the pod has {limit} connections open through the agent, which is all that --max-connections-per-pod allows"
    )]
    Limit {
        /// The limit.
        limit: usize,
    },
    /// The pod's own share and what pods have in common are used up.
    #[error(
        "the pod has {open} connections open through the agent: its own share of {share} is used up, and so is the room of {common} that pods have in common; --max-connections and the limit of open files make it larger"
    )]
    Share {
        /// Connections of the pod.
        open: usize,
        /// What it has for itself.
        share: usize,
        /// What all have in common.
        common: usize,
    },
    /// The pod opens connections faster than they can be opened.
    #[error(
        "{limit} connections that the pod opens wait for their turn, which is as many as may; destinations that do not answer take long"
    )]
    Opening {
        /// The limit.
        limit: usize,
    },
    /// The agent may open no more descriptors.
    #[error(
        "the agent has no descriptor left: the limit of open files is too small for what it carries"
    )]
    Descriptors,
}

impl Full {
    /// The reason as metrics and logs write it.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::Limit { .. } | Self::Share { .. } => Reason::PodConnectionLimit,
            Self::Opening { .. } => Reason::PodOpeningLimit,
            Self::Descriptors => Reason::NoDescriptors,
        }
    }
}

impl Budget {
    /// A budget for an agent that may have `descriptors` open.
    #[must_use]
    pub fn new(limits: Limits, descriptors: u64) -> Self {
        let usable = descriptors - descriptors / RESERVE;
        let derived = usize::try_from(usable / DESCRIPTORS_EACH).unwrap_or(usize::MAX);
        Self {
            total: if limits.total == 0 {
                derived
            } else {
                limits.total
            },
            per_pod: limits.per_pod,
            pods: AtomicUsize::new(1),
            borrowed: AtomicUsize::new(0),
        }
    }

    /// There are so many captured pods now. Connections that are open stay, also where a share shrinks.
    pub fn set_pods(&self, pods: usize) {
        self.pods.store(pods.max(1), Ordering::Relaxed);
    }

    /// What each pod has for itself.
    #[must_use]
    pub fn share(&self) -> usize {
        (self.total / 2 / self.pods.load(Ordering::Relaxed)).max(1)
    }

    /// What pods have in common.
    #[must_use]
    pub fn common(&self) -> usize {
        self.total - self.total / 2
    }

    /// What is used of that.
    #[must_use]
    pub fn borrowed(&self) -> usize {
        self.borrowed.load(Ordering::Relaxed)
    }

    /// Room for one more connection of the pod.
    ///
    /// # Errors
    /// There is none.
    pub fn admit(self: &Arc<Self>, pod: &Arc<Pod>, direction: Direction) -> Result<Permit, Full> {
        let room = self.take(&pod.usage, direction)?;
        Ok(Permit {
            budget: Arc::clone(self),
            pod: Arc::clone(pod),
            room,
        })
    }

    fn take(&self, usage: &Usage, direction: Direction) -> Result<Room, Full> {
        if self.per_pod != 0 && usage.open() >= self.per_pod {
            return Err(Full::Limit {
                limit: self.per_pod,
            });
        }
        let (share, common) = (self.share(), self.common());
        if usage.take_own(share, direction) {
            return Ok(Room::Own(direction));
        }
        if below(&self.borrowed, common) {
            usage.borrowed.fetch_add(1, Ordering::Relaxed);
            return Ok(Room::Borrowed);
        }
        Err(Full::Share {
            open: usage.open(),
            share,
            common,
        })
    }

    fn give_back(&self, usage: &Usage, room: Room) {
        match room {
            Room::Own(direction) => usage.give_back_own(direction),
            Room::Borrowed => {
                usage.borrowed.fetch_sub(1, Ordering::Relaxed);
                self.borrowed.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Adds one where that leaves the count at most `limit`.
fn below(count: &AtomicUsize, limit: usize) -> bool {
    let add = |count| (count < limit).then_some(count + 1);
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
        .is_ok()
}

impl Usage {
    /// Connections of the pod.
    #[must_use]
    pub fn open(&self) -> usize {
        self.own.load(Ordering::Relaxed) + self.borrowed.load(Ordering::Relaxed)
    }

    fn take_own(&self, share: usize, direction: Direction) -> bool {
        let inbound = direction == Direction::Inbound;
        if inbound && !below(&self.inbound, share - share / OUTBOUND) {
            return false;
        }
        let taken = below(&self.own, share);
        if inbound && !taken {
            self.inbound.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    fn give_back_own(&self, direction: Direction) {
        self.own.fetch_sub(1, Ordering::Relaxed);
        if direction == Direction::Inbound {
            self.inbound.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(&self.pod.usage, self.room);
    }
}

/// Publishes how much room there is and how much of it is used.
pub fn register(metrics: &Metrics, budget: Arc<Budget>) {
    metrics.register(|registry| registry.register_collector(Box::new(Collect(budget))));
}

#[derive(Debug)]
struct Collect(Arc<Budget>);

impl Collector for Collect {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let none: Option<&Unit> = None;
        let mut family = encoder.encode_descriptor(
            "keelson_connection_room",
            "Connections that the agent has room for: each pod's own share, what pods have in common, and what is used of that",
            none,
            MetricType::Gauge,
        )?;
        let Self(budget) = self;
        for (kind, value) in [
            ("share", budget.share()),
            ("common", budget.common()),
            ("common_used", budget.borrowed()),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("kind", kind)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, Direction, Full, Limits, Room, Usage};

    fn budget(total: usize, per_pod: usize, pods: usize) -> Budget {
        let budget = Budget::new(Limits { total, per_pod }, 0);
        budget.set_pods(pods);
        budget
    }

    fn take_all(budget: &Budget, usage: &Usage) -> Vec<Room> {
        take_all_of(budget, usage, Direction::Outbound)
    }

    fn take_all_of(budget: &Budget, usage: &Usage, direction: Direction) -> Vec<Room> {
        std::iter::from_fn(|| budget.take(usage, direction).ok()).collect()
    }

    #[test]
    fn who_dials_a_pod_leaves_it_room_to_dial_others() {
        for pods in [1, 2, 10] {
            let budget = budget(1000, 0, pods);
            let (popular, neighbour) = (Usage::default(), Usage::default());
            let share = 500 / pods;
            let inbound = take_all_of(&budget, &popular, Direction::Inbound);
            assert_eq!(inbound.len(), 500 + share - share / 4);
            let outbound = take_all(&budget, &popular);
            assert_eq!(outbound.len(), share / 4);
            assert_eq!(take_all(&budget, &neighbour).len(), share);
            for room in inbound.into_iter().chain(outbound) {
                budget.give_back(&popular, room);
            }
            assert_eq!(
                take_all_of(&budget, &popular, Direction::Inbound).len(),
                500 + share - share / 4
            );
        }
    }

    #[test]
    fn a_greedy_pod_leaves_each_neighbour_its_share() {
        for pods in [2, 3, 10, 100] {
            let budget = budget(1000, 0, pods);
            let usages: Vec<Usage> = (0..pods).map(|_| Usage::default()).collect();
            assert_eq!(take_all(&budget, &usages[0]).len(), 500 + 500 / pods);
            for neighbour in &usages[1..] {
                assert_eq!(take_all(&budget, neighbour).len(), 500 / pods);
            }
        }
    }

    #[test]
    fn what_ends_gives_its_room_back() {
        let budget = budget(100, 0, 2);
        let (greedy, neighbour) = (Usage::default(), Usage::default());
        let rooms = take_all(&budget, &greedy);
        assert_eq!((rooms.len(), budget.borrowed()), (75, 50));
        for room in rooms {
            budget.give_back(&greedy, room);
        }
        assert_eq!((greedy.open(), budget.borrowed()), (0, 0));
        assert_eq!(take_all(&budget, &neighbour).len(), 75);
    }

    #[test]
    fn a_fixed_limit_goes_before_room() {
        let budget = budget(1000, 10, 2);
        let usage = Usage::default();
        assert_eq!(take_all(&budget, &usage).len(), 10);
        assert_eq!(
            budget.take(&usage, Direction::Outbound),
            Err(Full::Limit { limit: 10 })
        );
    }

    #[test]
    fn a_share_is_never_nothing_and_may_shrink_below_its_use() {
        let budget = budget(8, 0, 2);
        let first = Usage::default();
        assert_eq!(take_all(&budget, &first).len(), 6);
        budget.set_pods(1000);
        assert_eq!(budget.share(), 1);
        assert!(budget.take(&first, Direction::Outbound).is_err());
        assert_eq!(
            budget.take(&Usage::default(), Direction::Outbound),
            Ok(Room::Own(Direction::Outbound))
        );
    }

    #[test]
    fn without_configuration_descriptors_decide() {
        let budget = Budget::new(Limits::default(), 20_000);
        assert_eq!(budget.share() + budget.common(), 8750);
    }
}
