//! The second wall: which addresses captured pods of this node reach by tunnel only, and since when that
//! is enforced.
//!
//! An address is counted at first. The controller says when all nodes know that its pod is captured; then
//! plain connections that are open are listed, as older than the wall, and it is enforced. It is lowered at
//! once. Being late leaves plain traffic counted instead of dropped; what decides about connections are the
//! hooks at connect and at lookup.

mod older;
mod plan;

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    bpf::{Kernel, KernelError},
    host::describe,
    host::sock_diag,
    mesh::{Announced, Mesh},
    pod::Pod,
};
use abi::{Addr, Flow, Wall};
use plan::{Here, wall_of};

/// Looking at the connections of a pod may take one part in this many of a processor: the kernel walks its
/// whole table of connections for it.
const PART: u32 = 50;
/// Even if nothing can be measured of it, and after a look that failed.
const REST_AT_LEAST: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_secs(1);
/// How often connections that are listed as older are looked for again.
const RECHECK: Duration = Duration::from_secs(30);

/// The wall of this node, kept by the thread of the same-node path.
pub(crate) struct Walls {
    kernel: Arc<Kernel>,
    mesh: Arc<Mesh>,
    pods: Vec<Arc<Pod>>,
    /// Addresses that have to be looked at again; all of the mesh if nothing is known yet.
    touched: BTreeSet<IpAddr>,
    everything: bool,
    /// What shall be enforced once older connections are listed.
    rising: Batch,
    /// What is being prepared, and the pods whose connections are still to be listed for it.
    batch: Batch,
    looks: VecDeque<u32>,
    rested: Instant,
    rechecked: Instant,
}

#[derive(Default)]
struct Batch {
    addrs: BTreeSet<Addr>,
    pods: BTreeSet<u32>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.addrs.is_empty() && self.pods.is_empty()
    }
}

impl Walls {
    pub(crate) fn new(kernel: Arc<Kernel>, mesh: Arc<Mesh>) -> Self {
        Self {
            kernel,
            mesh,
            pods: Vec::new(),
            touched: BTreeSet::new(),
            everything: true,
            rising: Batch::default(),
            batch: Batch::default(),
            looks: VecDeque::new(),
            rested: Instant::now(),
            rechecked: Instant::now(),
        }
    }

    /// The maps are this agent's to write from now on.
    pub(crate) fn charge(&mut self) {
        self.kernel.walls().adopt();
        self.everything = true;
        self.rising = Batch::default();
        self.batch = Batch::default();
        self.looks.clear();
    }

    /// These are the captured pods now.
    pub(crate) fn set_pods(&mut self, pods: &[Arc<Pod>]) {
        let addresses = self.pods.iter().chain(pods).flat_map(|pod| &pod.addresses);
        self.touched.extend(addresses);
        let mut kernel = self.kernel.walls();
        // Pods of an earlier agent that are not adopted yet keep their walls.
        let gone = self.pods.iter().map(|pod| pod.id);
        for pod in gone.filter(|id| !pods.iter().any(|pod| pod.id == *id)) {
            drop(kernel.set_pod(pod, None));
            drop(kernel.set_waypoint_only(pod, false));
        }
        drop(kernel);
        self.pods = pods.to_vec();
    }

    /// Follows the mesh: lowers and counts at once, and notes what is to be enforced.
    pub(crate) fn update(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        // Before the state, which is then as new as this or newer.
        touched.append(&mut self.mesh.take_touched());
        let state = self.mesh.state();
        let Some(here) = Here::of(&state, &self.pods) else {
            // Nothing is known, which is no reason to lower anything.
            self.touched = touched;
            return;
        };
        let announced = self.mesh.announced();
        if std::mem::take(&mut self.everything) {
            let known = self.kernel.walls().known().addrs.clone();
            touched.extend(known.into_keys().map(IpAddr::from));
            touched.extend(plan::all_addresses(&state));
        }
        let mut troubles = Troubles::default();
        let mut kernel = self.kernel.walls();
        for ip in touched {
            let addr = Addr::from(ip.to_canonical());
            let wanted = wall_of(&state, &announced, &here, ip.to_canonical());
            let has = kernel.known().addrs.get(&addr).copied();
            let now = first_step(has, wanted);
            if now != has {
                troubles.took(kernel.set_addr(addr, now));
            }
            note(
                &mut self.rising.addrs,
                &mut self.batch.addrs,
                addr,
                now != wanted,
            );
        }
        for pod in &self.pods {
            // Of one that is not known here nothing new is said.
            if let Some(workload) = state.workload(pod.workload.as_ref()) {
                let is_so = workload.waypoint.is_some();
                troubles.took(kernel.set_waypoint_only(pod.id, is_so));
            }
            let wanted = Some(pod_wall(&announced, pod));
            let has = kernel.known().pods.get(&pod.id).copied();
            let now = first_step(has, wanted);
            if now != has {
                troubles.took(kernel.set_pod(pod.id, now));
            }
            note(
                &mut self.rising.pods,
                &mut self.batch.pods,
                pod.id,
                now != wanted,
            );
        }
        drop(kernel);
        troubles.say();
    }

    /// How long it is until there is something to do; none if nothing waits.
    pub(crate) fn wait(&self) -> Option<Duration> {
        let waits = !self.looks.is_empty() || !self.batch.is_empty() || !self.rising.is_empty();
        waits.then(|| self.rested.saturating_duration_since(Instant::now()))
    }

    /// Looks at the connections of one pod, if it is time, or enforces what has been prepared.
    pub(crate) fn turn(&mut self) {
        self.recheck();
        if self.wait() != Some(Duration::ZERO) {
            return;
        }
        if let Some(id) = self.looks.pop_front() {
            self.look(id);
        } else if !self.batch.is_empty() {
            self.enforce();
        } else {
            self.prepare();
        }
    }

    /// Older connections may have ended.
    fn recheck(&mut self) {
        if self.rechecked.elapsed() < RECHECK || !self.looks.is_empty() {
            return;
        }
        self.rechecked = Instant::now();
        self.looks
            .extend(self.kernel.walls().known().older.keys().copied());
    }

    /// Takes what has gathered for one round of looks.
    fn prepare(&mut self) {
        self.batch = std::mem::take(&mut self.rising);
        let all = !self.batch.addrs.is_empty();
        let ids = self.pods.iter().map(|pod| pod.id);
        self.looks = ids
            .filter(|id| all || self.batch.pods.contains(id))
            .collect();
    }

    fn look(&mut self, id: u32) {
        let Some(pod) = self.pods.iter().find(|pod| pod.id == id).cloned() else {
            return;
        };
        let started = Instant::now();
        let found = pod.netns.with(sock_diag::flows).and_then(|flows| flows);
        let rest = match found {
            Ok(flows) => {
                self.list(id, &older::plain(&flows));
                (started.elapsed() * PART).max(REST_AT_LEAST)
            }
            Err(error) => {
                tracing::warn!(pod = %pod.name, %error, "cannot list the pod's older connections; its wall waits");
                self.looks.push_back(id);
                RETRY
            }
        };
        self.rested = Instant::now() + rest;
    }

    fn list(&mut self, id: u32, plain: &BTreeSet<Flow>) {
        let mut troubles = Troubles::default();
        let mut kernel = self.kernel.walls();
        kernel.keep(id, plain);
        let is_new = self.batch.pods.contains(&id);
        for flow in plain {
            let walled = kernel.known().addrs.contains_key(&flow.destination);
            if walled && (is_new || self.batch.addrs.contains(&flow.destination)) {
                troubles.took(kernel.list(id, *flow));
            }
        }
        drop(kernel);
        troubles.say();
    }

    fn enforce(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let mut troubles = Troubles::default();
        let mut kernel = self.kernel.walls();
        for addr in batch.addrs {
            if kernel.known().addrs.contains_key(&addr) {
                troubles.took(kernel.set_addr(addr, Some(Wall::Enforce)));
            }
        }
        for pod in batch.pods {
            if kernel.known().pods.contains_key(&pod) {
                troubles.took(kernel.set_pod(pod, Some(Wall::Enforce)));
            }
        }
        drop(kernel);
        troubles.say();
    }
}

/// What is done at once: nothing is enforced before older connections are listed.
fn first_step(has: Option<Wall>, wanted: Option<Wall>) -> Option<Wall> {
    match (has, wanted) {
        (Some(Wall::Enforce), Some(Wall::Enforce)) => Some(Wall::Enforce),
        (_, Some(_)) => Some(Wall::Count),
        (_, None) => None,
    }
}

/// Notes what shall rise. What shall not any more is taken out of what is being prepared too.
fn note<K: Ord>(rising: &mut BTreeSet<K>, batch: &mut BTreeSet<K>, key: K, rises: bool) {
    if rises {
        if !batch.contains(&key) {
            rising.insert(key);
        }
    } else {
        rising.remove(&key);
        batch.remove(&key);
    }
}

/// A pod is behind its wall once all nodes know it. Another pod may have had its name before.
fn pod_wall(announced: &Announced, pod: &Pod) -> Wall {
    let known = announced.of(pod.workload.as_ref());
    if !known.is_empty() && known.iter().all(|ip| pod.has_address(*ip)) {
        Wall::Enforce
    } else {
        Wall::Count
    }
}

/// What could not be written, said once for all entries of one pass.
#[derive(Default)]
struct Troubles(Option<(String, usize)>);

impl Troubles {
    fn took(&mut self, written: Result<(), KernelError>) {
        if let Err(error) = written {
            let (_, entries) = self.0.get_or_insert_with(|| (describe(&error), 0));
            *entries += 1;
        }
    }

    fn say(&self) {
        if let Some((error, entries)) = &self.0 {
            tracing::warn!(
                error,
                entries,
                "the wall has a gap: what does not fit is not dropped there, or ends if it is older"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_rises_in_two_steps_and_falls_in_one() {
        let (count, enforce) = (Some(Wall::Count), Some(Wall::Enforce));
        for (has, wanted, first) in [
            (None, enforce, count),
            (count, enforce, count),
            (enforce, enforce, enforce),
            (enforce, count, count),
            (enforce, None, None),
            (None, None, None),
        ] {
            assert_eq!(first_step(has, wanted), first, "{has:?} {wanted:?}");
        }
    }

    #[test]
    fn what_is_lowered_while_it_is_prepared_does_not_rise() {
        let (mut rising, mut batch) = (BTreeSet::new(), BTreeSet::from([1]));
        note(&mut rising, &mut batch, 1, true);
        assert!(rising.is_empty(), "it is being prepared already");
        note(&mut rising, &mut batch, 2, true);
        note(&mut rising, &mut batch, 1, false);
        note(&mut rising, &mut batch, 2, false);
        assert!(rising.is_empty() && batch.is_empty());
    }
}
