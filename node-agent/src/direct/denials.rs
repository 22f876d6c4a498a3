//! What the kernel has refused, without a gap: it counts every refused connection by the verdict that refused it, and
//! tells of a few, which say what such a connection looks like.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use abi::{ANY_PORT, Addr, DirectVerdict, Endpoint, Event, EventKind, Flow, VerdictKey};
use model::MeshState;

use super::{events::denied, verdicts::Verdicts};
use crate::{bpf::DirectMaps, pod::Pod, telemetry::record::Recorder};

/// A verdict that has refused nobody for this long is not looked at until the next event tells of it. Longer
/// than the time in which the kernel tells of no more ([`abi::DENIAL_WINDOW_NS`]).
const QUIET: Duration = Duration::from_secs(3);
/// All counts are looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A verdict that was taken back may be in use on another processor for a moment.
const IN_USE: Duration = Duration::from_secs(1);

/// What has been told of the kernel's counts.
#[derive(Default)]
pub(super) struct Denials {
    /// Of verdicts that have refused somebody.
    told: HashMap<VerdictKey, u64>,
    /// Those that were busy a moment ago, with the last event and when the count moved.
    busy: BTreeMap<VerdictKey, (Event, Instant)>,
    /// Those that were taken back, and when.
    gone: Vec<(VerdictKey, Instant)>,
    /// Whether some may have been refused whom no event tells of, and when all counts were looked at last.
    untold: bool,
    looked: Option<Instant>,
}

/// Where refusals are told of, and what it takes to do so.
pub(super) struct Sink<'a> {
    pub(super) state: &'a MeshState,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) recorder: &'a Recorder,
}

impl Denials {
    /// What an earlier agent has told of is no news.
    pub(super) fn inherit(&mut self, counts: BTreeMap<VerdictKey, u64>, verdicts: &Verdicts) {
        let left = counts.keys().filter(|key| !refuses(verdicts, key));
        self.gone = left.map(|key| (*key, Instant::now())).collect();
        self.busy.clear();
        self.told = counts.into_iter().filter(|(_, count)| *count > 0).collect();
    }

    /// Notes which verdicts refuse no more.
    pub(super) fn changed(&mut self, before: &Verdicts, now: &Verdicts) {
        let refused = before
            .iter()
            .filter(|(_, verdict)| **verdict == DirectVerdict::Deny);
        let gone = refused.filter(|(key, _)| !refuses(now, key));
        self.gone
            .extend(gone.map(|(key, _)| (*key, Instant::now())));
    }

    /// Takes the events of refused connections and what the kernel has counted beyond them.
    pub(super) fn take(&mut self, kernel: &mut DirectMaps, events: Vec<Event>, to: &Sink<'_>) {
        let mut seen: BTreeMap<VerdictKey, Vec<Event>> = BTreeMap::new();
        for event in events {
            let named = key(&event, event.flow.destination_port);
            // The kernel prefers the same one.
            let counter = [named, key(&event, ANY_PORT)]
                .into_iter()
                .find(|key| kernel.denials(*key).is_some());
            match counter {
                Some(counter) => seen.entry(counter).or_default().push(event),
                // Taken back and forgotten meanwhile.
                None => denied(&event, 1, to),
            }
        }
        let now = Instant::now();
        for (key, events) in &seen {
            if let Some(last) = events.last() {
                self.busy.insert(*key, (*last, now));
            }
        }
        let mut busy = std::mem::take(&mut self.busy);
        busy.retain(|key, (last, moved)| {
            let events = seen.remove(key).unwrap_or_default();
            if self.tell(kernel, *key, &events, last, to) {
                *moved = now;
            }
            now.duration_since(*moved) < QUIET
        });
        self.busy = busy;
    }

    /// Events were lost.
    pub(super) fn has_untold(&mut self) {
        self.untold = true;
    }

    /// Looks at all counts if events were lost, and not all the time.
    pub(super) fn take_untold(&mut self, kernel: &DirectMaps, to: &Sink<'_>) {
        if !self.untold || self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        self.untold = false;
        self.looked = Some(Instant::now());
        for key in kernel.all_denials().into_keys() {
            if let Some(event) = as_event(key, to.pods) {
                self.tell(kernel, key, &[], &event, to);
            }
        }
    }

    /// Forgets the counters of verdicts that were taken back a while ago.
    pub(super) fn forget_gone(
        &mut self,
        kernel: &mut DirectMaps,
        verdicts: &Verdicts,
        to: &Sink<'_>,
    ) {
        let Self { gone, .. } = self;
        let due: Vec<VerdictKey> = gone
            .extract_if(.., |(_, at)| at.elapsed() >= IN_USE)
            .map(|(key, _)| key)
            .filter(|key| !refuses(verdicts, key))
            .collect();
        for key in due {
            if let Some(event) = as_event(key, to.pods) {
                self.tell(kernel, key, &[], &event, to);
            }
            kernel.forget_denials(key);
            self.told.remove(&key);
            self.busy.remove(&key);
        }
    }

    /// Tells of what was counted since the last time: of each event, and of the others with the last. Says
    /// whether there was anything.
    fn tell(
        &mut self,
        kernel: &DirectMaps,
        key: VerdictKey,
        events: &[Event],
        last: &Event,
        to: &Sink<'_>,
    ) -> bool {
        let Some(count) = kernel.denials(key) else {
            return false;
        };
        let told = self.told.entry(key).or_default();
        let new = count.saturating_sub(std::mem::replace(told, count));
        // An event's connection was counted before it was told of, here or the last time.
        let single = u64::try_from(events.len().saturating_sub(1))
            .unwrap_or(u64::MAX)
            .min(new);
        for event in events
            .iter()
            .take(usize::try_from(single).unwrap_or(usize::MAX))
        {
            denied(event, 1, to);
        }
        if new > single {
            denied(last, new - single, to);
        }
        new > 0
    }
}

fn refuses(verdicts: &Verdicts, key: &VerdictKey) -> bool {
    verdicts.get(key) == Some(&DirectVerdict::Deny)
}

fn key(event: &Event, port: u16) -> VerdictKey {
    VerdictKey {
        source: event.source,
        destination: event.destination,
        port,
        way: 0,
    }
}

/// A connection as the verdict refuses it, where no event tells of one.
fn as_event(key: VerdictKey, pods: &[Arc<Pod>]) -> Option<Event> {
    let server = pods.iter().find(|pod| pod.id == key.destination)?;
    let addr = Addr::from(*server.addresses.first()?);
    Some(Event {
        kind: EventKind::Denied as u32,
        source: key.source,
        destination: key.destination,
        flow: Flow {
            source: Addr::v4(0),
            destination: addr,
            source_port: 0,
            destination_port: key.port,
        },
        dialled: Endpoint::new(addr, key.port),
        reserved: 0,
        sent: 0,
        received: 0,
        duration: 0,
    })
}
