//! Whose turn it is to have a connection opened: pods take turns, and within a pod its destinations do. How
//! many of a pod are opened at once is bounded, and so is how many wait.
//!
//! A pod that opens connections without end, or to somebody who does not answer, waits for itself.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound::{Excluded, Unbounded},
};

/// Connections of a pod to one destination that a worker opens at once.
pub(crate) const PER_DESTINATION: usize = 32;
/// Connections of a pod that a worker opens at once.
pub(crate) const PER_POD: usize = 512;
/// Connections of a pod that wait for their turn at a worker.
pub(crate) const WAITING: usize = 4096;

/// What waits and how much is in progress, at one worker. `D` tells destinations apart.
pub(crate) struct Openings<D, T> {
    pods: BTreeMap<u32, OfPod<D, T>>,
    /// Who had its turn last.
    last: u32,
}

struct OfPod<D, T> {
    destinations: BTreeMap<D, OfDestination<T>>,
    last: Option<D>,
    waiting: usize,
    open: usize,
}

struct OfDestination<T> {
    waiting: VecDeque<T>,
    open: usize,
}

impl<D, T> Default for Openings<D, T> {
    fn default() -> Self {
        Self {
            pods: BTreeMap::new(),
            last: 0,
        }
    }
}

impl<D, T> Default for OfPod<D, T> {
    fn default() -> Self {
        Self {
            destinations: BTreeMap::new(),
            last: None,
            waiting: 0,
            open: 0,
        }
    }
}

impl<T> Default for OfDestination<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            open: 0,
        }
    }
}

impl<D: Ord + Copy, T> Openings<D, T> {
    /// Has a connection wait for its turn.
    ///
    /// # Errors
    /// So many of the pod wait already; the connection is given back.
    pub(crate) fn wait(&mut self, pod: u32, destination: D, connection: T) -> Result<(), T> {
        let of_pod = self.pods.entry(pod).or_default();
        if of_pod.waiting >= WAITING {
            return Err(connection);
        }
        of_pod.waiting += 1;
        let of_destination = of_pod.destinations.entry(destination).or_default();
        of_destination.waiting.push_back(connection);
        Ok(())
    }

    /// The next connection to be opened, if its pod may have one more: tell [`Openings::done`] of its end.
    pub(crate) fn next(&mut self) -> Option<(u32, D, T)> {
        let later = self.pods.range((Excluded(self.last), Unbounded));
        let all = later.chain(self.pods.range(..=self.last));
        let mut all = all.filter_map(|(pod, of_pod)| Some((*pod, of_pod.whose_turn()?)));
        let (pod, destination) = all.next()?;
        let of_pod = self.pods.get_mut(&pod)?;
        let connection = of_pod.take(destination)?;
        self.last = pod;
        Some((pod, destination, connection))
    }

    /// A connection that [`Openings::next`] gave has been opened, or cannot be.
    pub(crate) fn done(&mut self, pod: u32, destination: D) {
        let Some(of_pod) = self.pods.get_mut(&pod) else {
            return;
        };
        if let Some(of_destination) = of_pod.destinations.get_mut(&destination) {
            of_destination.open = of_destination.open.saturating_sub(1);
            of_pod.open = of_pod.open.saturating_sub(1);
            if of_destination.open == 0 && of_destination.waiting.is_empty() {
                of_pod.destinations.remove(&destination);
            }
        }
        if of_pod.destinations.is_empty() {
            self.pods.remove(&pod);
        }
    }
}

impl<D: Ord + Copy, T> OfPod<D, T> {
    /// The destination whose turn it is.
    fn whose_turn(&self) -> Option<D> {
        if self.waiting == 0 || self.open >= PER_POD {
            return None;
        }
        let last = self.last.map_or(Unbounded, Excluded);
        let later = self.destinations.range((last, Unbounded));
        // The last one comes once more at the end of the round.
        let mut all = later.chain(&self.destinations);
        let next = all.find(|(_, of)| of.open < PER_DESTINATION && !of.waiting.is_empty());
        next.map(|(destination, _)| *destination)
    }

    fn take(&mut self, destination: D) -> Option<T> {
        let of_destination = self.destinations.get_mut(&destination)?;
        let connection = of_destination.waiting.pop_front()?;
        of_destination.open += 1;
        self.waiting -= 1;
        self.open += 1;
        self.last = Some(destination);
        Some(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::{Openings, PER_DESTINATION, PER_POD, WAITING};

    fn take_all(openings: &mut Openings<u16, u32>) -> Vec<(u32, u16, u32)> {
        std::iter::from_fn(|| openings.next()).collect()
    }

    #[test]
    fn a_pod_that_opens_without_end_waits_for_itself() {
        let mut openings = Openings::default();
        for number in 0..WAITING {
            openings.wait(1, 80, number).unwrap();
        }
        assert_eq!(openings.wait(1, 80, WAITING), Err(WAITING), "one too many");
        openings.wait(1, 81, 0).unwrap_err();
        let mut open = 0;
        while let Some((pod, destination, _)) = openings.next() {
            assert_eq!((pod, destination), (1, 80));
            open += 1;
        }
        assert_eq!(open, PER_DESTINATION);
        // Whoever comes now does not wait.
        openings.wait(2, 80, 7).unwrap();
        assert_eq!(openings.next(), Some((2, 80, 7)));
        assert_eq!(openings.next(), None);
        // One goes, one comes, in order.
        openings.done(1, 80);
        assert_eq!(openings.next(), Some((1, 80, PER_DESTINATION)));
        assert_eq!(openings.next(), None);
    }

    #[test]
    fn pods_take_turns_and_so_do_the_destinations_of_one() {
        let mut openings = Openings::default();
        for number in 0..3 {
            openings.wait(1, 80, number).unwrap();
        }
        openings.wait(1, 81, 10).unwrap();
        openings.wait(5, 80, 50).unwrap();
        openings.wait(5, 80, 51).unwrap();
        let order: Vec<u32> = take_all(&mut openings)
            .into_iter()
            .map(|one| one.2)
            .collect();
        assert_eq!(order, [0, 50, 10, 51, 1, 2]);
    }

    #[test]
    fn who_does_not_answer_holds_up_nobody_else() {
        let mut openings = Openings::default();
        for number in 0..1000 {
            openings.wait(1, 80, number).unwrap();
            openings.wait(1, 81, number).unwrap();
        }
        assert_eq!(take_all(&mut openings).len(), 2 * PER_DESTINATION);
        for number in PER_DESTINATION..1000 {
            openings.done(1, 81);
            let number = u32::try_from(number).unwrap();
            assert_eq!(openings.next(), Some((1, 81, number)));
            assert_eq!(openings.next(), None);
        }
    }

    #[test]
    fn however_many_destinations_a_pod_has_no_more_than_its_bound_are_opened_at_once() {
        let mut openings = Openings::default();
        for destination in 0..2000 {
            openings.wait(1, destination, 0).unwrap();
        }
        let open = take_all(&mut openings);
        assert_eq!(open.len(), PER_POD);
        for (pod, destination, _) in open {
            openings.done(pod, destination);
        }
        assert_eq!(take_all(&mut openings).len(), PER_POD);
    }

    #[test]
    fn nothing_is_kept_of_what_is_done() {
        let mut openings = Openings::default();
        for destination in 0..100_u16 {
            openings
                .wait(u32::from(destination % 7), destination, 0)
                .unwrap();
        }
        let mut count = 0;
        while let Some((pod, destination, _)) = openings.next() {
            openings.done(pod, destination);
            count += 1;
        }
        assert_eq!((count, openings.pods.len()), (100, 0));
        openings.done(3, 3);
    }
}
