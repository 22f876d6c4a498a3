//! Which doors there are to be and who is known at them; what of it every worker has done.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::Identity;
use model::outbound::WAYPOINT_PORTS;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Who has which address.
pub(crate) type KnownCallers = Arc<HashMap<IpAddr, Identity>>;

/// What every worker is to do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(super) version: u64,
    pub(super) callers: KnownCallers,
    /// The address and port of a service, by port of this pod.
    pub(super) doors: BTreeMap<u16, SocketAddr>,
}

/// What the workers share.
#[derive(Debug)]
pub(crate) struct Doors {
    plan: watch::Sender<Arc<Plan>>,
    workers: Mutex<Vec<watch::Receiver<Followed>>>,
    numbers: Mutex<Numbers>,
    conversation: watch::Sender<u64>,
}

/// How far a worker is.
#[derive(Debug, Default)]
struct Followed {
    version: u64,
    failed: Vec<u16>,
}

/// Where a worker says how far it is.
pub(super) struct Applied(watch::Sender<Followed>);

impl Applied {
    /// This plan is followed, but for these ports.
    pub(super) fn follows(&self, version: u64, failed: Vec<u16>) {
        self.0.send_replace(Followed { version, failed });
    }
}

/// Which port is for which service.
#[derive(Debug, Default)]
struct Numbers {
    by: BTreeMap<SocketAddr, u16>,
    /// Something else has these.
    taken: BTreeSet<u16>,
    last: Option<u16>,
}

impl Numbers {
    /// Gives each of these a port of its own; what has one keeps it. A port that was another's comes last: somebody may
    /// still be on the way to that one.
    fn assign(&mut self, services: &BTreeSet<SocketAddr>) {
        self.by.retain(|service, _| services.contains(service));
        let mut used: BTreeSet<u16> = self.by.values().copied().collect();
        used.extend(&self.taken);
        for service in services {
            if self.by.contains_key(service) {
                continue;
            }
            // Connections to what is left over are handed over by the agent.
            let Some(port) = self.free(&used) else {
                return;
            };
            used.insert(port);
            self.by.insert(*service, port);
            self.last = Some(port);
        }
    }

    fn free(&self, used: &BTreeSet<u16>) -> Option<u16> {
        let after = self.last.map_or(*WAYPOINT_PORTS.start(), |last| {
            last.checked_add(1).unwrap_or(*WAYPOINT_PORTS.start())
        });
        let mut ports = (after..=*WAYPOINT_PORTS.end()).chain(*WAYPOINT_PORTS.start()..after);
        ports.find(|port| !used.contains(port))
    }
}

impl Default for Doors {
    fn default() -> Self {
        Self {
            plan: watch::Sender::default(),
            workers: Mutex::default(),
            numbers: Mutex::default(),
            conversation: watch::Sender::new(0),
        }
    }
}

impl Doors {
    pub(super) fn plans(&self) -> watch::Receiver<Arc<Plan>> {
        self.plan.subscribe()
    }

    /// A worker that is waited for from now on.
    pub(super) fn join(&self) -> Applied {
        let (sender, receiver) = watch::channel(Followed::default());
        self.workers.lock().push(receiver);
        Applied(sender)
    }

    /// Begins a conversation, which ends an earlier one; gives its number.
    pub(super) fn begin(&self) -> u64 {
        let mut own = 0;
        self.conversation.send_modify(|number| {
            *number += 1;
            own = *number;
        });
        own
    }

    /// Resolves when another conversation has begun.
    pub(super) async fn superseded(&self, own: u64) {
        let mut newest = self.conversation.subscribe();
        drop(newest.wait_for(|newest| *newest != own).await);
    }

    /// Opens doors for these services to these callers, if the conversation is the newest, and waits until every worker has
    /// done it. Gives the port of each service that has one.
    pub(super) async fn open(
        &self,
        own: u64,
        callers: &KnownCallers,
        services: &BTreeSet<SocketAddr>,
    ) -> BTreeMap<SocketAddr, u16> {
        loop {
            let Some(by) = self.propose(own, callers, services) else {
                return BTreeMap::new();
            };
            let failed = self.followed().await;
            if failed.is_empty() {
                return by;
            }
            let mut numbers = self.numbers.lock();
            numbers.by.retain(|_, port| !failed.contains(port));
            numbers.taken.extend(failed);
        }
    }

    /// Closes all doors, if the conversation is the newest.
    pub(super) fn close(&self, own: u64) {
        self.propose(own, &KnownCallers::default(), &BTreeSet::new());
    }

    fn propose(
        &self,
        own: u64,
        callers: &KnownCallers,
        services: &BTreeSet<SocketAddr>,
    ) -> Option<BTreeMap<SocketAddr, u16>> {
        let mut numbers = self.numbers.lock();
        // Held while the plan is changed, so that an older conversation does not change a newer one's.
        if *self.conversation.borrow() != own {
            return None;
        }
        numbers.assign(services);
        let by = numbers.by.clone();
        self.plan.send_if_modified(|plan| {
            let doors: BTreeMap<u16, SocketAddr> = by.iter().map(|(s, port)| (*port, *s)).collect();
            let changed = plan.doors != doors || plan.callers != *callers;
            if changed {
                *plan = Arc::new(Plan {
                    version: plan.version + 1,
                    callers: Arc::clone(callers),
                    doors,
                });
            }
            changed
        });
        Some(by)
    }

    /// The ports that a worker could not open, after all have followed the newest plan.
    async fn followed(&self) -> BTreeSet<u16> {
        let wanted = self.plan.borrow().version;
        let workers = self.workers.lock().clone();
        let mut failed = BTreeSet::new();
        for mut worker in workers {
            // A worker that has ended takes no connections.
            if let Ok(followed) = worker.wait_for(|one| one.version >= wanted).await {
                failed.extend(&followed.failed);
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(ports: impl IntoIterator<Item = u16>) -> BTreeSet<SocketAddr> {
        let service = |port| ([10, 96, 0, 1], port).into();
        ports.into_iter().map(service).collect()
    }

    #[test]
    fn a_service_keeps_its_port_and_a_port_comes_back_last() {
        let mut numbers = Numbers::default();
        numbers.assign(&services([80, 81]));
        let first = numbers.by.clone();
        assert_eq!(
            first.values().copied().collect::<Vec<_>>(),
            [61_440, 61_441]
        );
        numbers.assign(&services([81, 82]));
        let [kept, new] = [81, 82].map(|port| numbers.by[&([10, 96, 0, 1], port).into()]);
        assert_eq!([kept, new], [61_441, 61_442]);
        for port in 83..4_000 {
            numbers.assign(&services([81, port]));
            let given = numbers.by[&([10, 96, 0, 1], port).into()];
            assert_ne!(given, 61_440, "given to service port {port}");
        }
    }

    #[test]
    fn what_finds_no_port_has_none() {
        let mut numbers = Numbers::default();
        numbers.taken.insert(61_440);
        numbers.assign(&services(1..=5_000));
        assert_eq!(numbers.by.len(), 4_095);
        let ports: BTreeSet<u16> = numbers.by.values().copied().collect();
        assert_eq!(ports.len(), 4_095, "each has its own");
        assert!(!ports.contains(&61_440));
        numbers.assign(&services([5_000]));
        assert_eq!(numbers.by.len(), 1);
    }

    #[tokio::test]
    async fn an_older_conversation_changes_nothing() {
        let doors = Doors::default();
        let old = doors.begin();
        assert_eq!(
            doors
                .open(old, &KnownCallers::default(), &services([80]))
                .await
                .len(),
            1
        );
        let new = doors.begin();
        assert_eq!(
            doors
                .open(new, &KnownCallers::default(), &services([80, 81]))
                .await
                .len(),
            2
        );
        assert!(
            doors
                .open(old, &KnownCallers::default(), &services([80]))
                .await
                .is_empty()
        );
        doors.close(old);
        assert_eq!(doors.plan.borrow().doors.len(), 2);
        doors.close(new);
        assert!(doors.plan.borrow().doors.is_empty());
    }

    #[tokio::test]
    async fn a_port_that_one_worker_cannot_open_is_replaced() {
        let doors = Arc::new(Doors::default());
        let own = doors.begin();
        let worker = tokio::spawn({
            let doors = Arc::clone(&doors);
            async move {
                let mut plans = doors.plans();
                let applied = doors.join();
                loop {
                    let (version, failed) = {
                        let plan = plans.borrow_and_update();
                        let refused = plan.doors.keys().filter(|port| **port < 61_442);
                        (plan.version, refused.copied().collect())
                    };
                    applied.follows(version, failed);
                    plans.changed().await.unwrap();
                }
            }
        });
        tokio::task::yield_now().await;
        let open = doors
            .open(own, &KnownCallers::default(), &services([80, 81]))
            .await;
        worker.abort();
        let ports: Vec<u16> = open.into_values().collect();
        assert_eq!(ports, [61_442, 61_443]);
    }
}
