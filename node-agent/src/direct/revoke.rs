//! Ends direct connections that policy has come to refuse.
//!
//! Those that are listed are ended at once, each by its addresses, and those that were being opened
//! while policy changed as soon as they are told of. Where the list may miss some, because an earlier agent
//! saw them begin or their beginning was not told, the kernel is then asked which connections the server's
//! namespace has (sock_diag). It walks its whole table of connections for that, and on a kernel without
//! preemption nobody else runs on the processor meanwhile; so it is asked rarely. Policy is asked about each, and both applications of a refused
//! one see an error.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use model::{
    Ending, Identity, MeshState,
    outbound::is_waypoint_port,
    policy::{Connection, DenyReason, Verdict},
};

use super::{microseconds, waypoints::loopback_port};
use crate::{
    host::sock_diag::{self, Ender, Found},
    pod::{Pod, PodName},
    telemetry::record::Recorder,
};

/// Looking at all connections may take one part in this many of a processor: policies that change all the time would
/// have the kernel do nothing else, and nobody else runs on the processor meanwhile.
const PART: u32 = 200;
/// Even if nothing can be measured of it.
const AT_MOST_EVERY: Duration = Duration::from_millis(10);

/// The pods to which something is refused since a policy, and not all connections were looked at: each
/// has its turn, in the order in which they came, with the newest policy.
#[derive(Default)]
pub(super) struct Sweep {
    turns: VecDeque<u32>,
    policies: HashMap<u32, Policy>,
    rested: Option<Instant>,
}

impl Sweep {
    /// Something is refused to these pods.
    pub(super) fn add(&mut self, servers: impl IntoIterator<Item = u32>, policy: &Policy) {
        for server in servers {
            if self.policies.insert(server, policy.clone()).is_none() {
                self.turns.push_back(server);
            }
        }
    }

    /// How long it is until the next one's turn; none if nobody waits.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.turns.front()?;
        let now = Instant::now();
        Some(
            self.rested
                .map_or(Duration::ZERO, |at| at.saturating_duration_since(now)),
        )
    }

    /// Does one pod's turn with `look`, if it is time.
    pub(super) fn one(&mut self, look: impl FnOnce(u32, Policy)) {
        if self.wait() != Some(Duration::ZERO) {
            return;
        }
        let turn = self.turns.pop_front();
        let Some((server, policy)) = turn.and_then(|turn| self.policies.remove_entry(&turn)) else {
            return;
        };
        let started = Instant::now();
        look(server, policy);
        let rest = (started.elapsed() * PART).max(AT_MOST_EVERY);
        self.rested = Some(Instant::now() + rest);
    }
}

/// What was decided, and since when that policy was known.
#[derive(Clone)]
pub(super) struct Policy {
    pub(super) state: Arc<MeshState>,
    pub(super) since: Instant,
    pub(super) left: Arc<[Left]>,
}

/// A client that has left the mesh and has direct connections open: it had them let in by who it was.
#[derive(Clone)]
pub(super) struct Left {
    pub(super) id: u32,
    name: PodName,
    identity: Identity,
    addresses: Vec<IpAddr>,
}

impl Left {
    pub(super) fn of(pod: &Pod) -> Self {
        Self {
            id: pod.id,
            name: pod.name.clone(),
            identity: pod.identity.clone(),
            addresses: pod.addresses.clone(),
        }
    }
}

impl Policy {
    /// Ends what is refused of these connections to the pod numbered `server`: (client, server).
    pub(super) fn end_listed(
        &self,
        pods: &[Arc<Pod>],
        recorder: &Recorder,
        server: u32,
        listed: &[(SocketAddr, SocketAddr)],
    ) {
        // Most changes of policy refuse nobody who is there: then no namespace is entered.
        let refused: Vec<Found> = listed
            .iter()
            .map(|(client, server)| Found::named(*server, *client))
            .filter(|found| self.refuses(pods, server, found).is_some())
            .collect();
        if refused.is_empty() {
            return;
        }
        let candidates = || Ok(refused);
        self.end(pods, recorder, server, candidates, Ender::destroy_named);
    }

    /// Ends what is refused of all connections to the pod numbered `server`.
    pub(super) fn end_all(&self, pods: &[Arc<Pod>], recorder: &Recorder, server: u32) {
        let candidates = sock_diag::connected;
        self.end(pods, recorder, server, candidates, Ender::destroy);
    }

    /// Ends those of the `candidates`, found from inside the server's namespace, that are refused.
    fn end(
        &self,
        pods: &[Arc<Pod>],
        recorder: &Recorder,
        server: u32,
        candidates: impl FnOnce() -> io::Result<Vec<Found>>,
        destroy: impl Fn(&mut Ender, &Found) -> io::Result<bool>,
    ) {
        let Some(server) = pods.iter().find(|pod| pod.id == server) else {
            return;
        };
        // Nothing here waits for anybody but the kernel.
        let ended = server.netns.with(|| {
            let mut ended = Vec::new();
            let mut ender = Ender::new()?;
            for found in candidates()? {
                if let Some((client, reason)) = self.refuses(pods, server.id, &found)
                    && destroy(&mut ender, &found)?
                {
                    ended.push((client, found, reason, microseconds(self.since)));
                }
            }
            io::Result::Ok(ended)
        });
        match ended {
            Ok(Ok(ended)) => {
                recorder.metrics.cut(Ending::Policy, ended.len() as u64);
                for (client, found, reason, after_us) in ended {
                    tracing::info!(target: "access", direction = "direct", pod = %server.name, src.addr = %found.remote, src.workload = client,
                        dst.addr = %found.local, after_us, end = Ending::Policy.as_str(), error = %reason, "connection ended: policy changed");
                }
            }
            Ok(Err(error)) | Err(error) => {
                tracing::error!(pod = %server.name, %error, "cannot end connections that policy refuses now");
            }
        }
    }

    /// The client and why, if policy refuses the connection.
    fn refuses(
        &self,
        pods: &[Arc<Pod>],
        server: u32,
        found: &Found,
    ) -> Option<(String, DenyReason)> {
        let server = pods.iter().find(|pod| pod.id == server)?;
        let workload = self.state.workload(server.workload.as_ref())?;
        // Who was led to a waypoint is judged there, request by request.
        if is_waypoint_port(found.local.port()) && loopback_port(workload).is_some() {
            return None;
        }
        let ip = found.remote.ip();
        let (name, identity) = match pods.iter().find(|pod| pod.has_address(ip)) {
            Some(client) if client.id == server.id => return None,
            Some(client) => (&client.name, &client.identity),
            None => {
                let client = self.left.iter().find(|left| left.addresses.contains(&ip))?;
                (&client.name, &client.identity)
            }
        };
        let connection = Connection {
            source: Some(identity),
            source_ip: found.remote.ip(),
            destination_ip: found.local.ip(),
            destination_port: found.local.port(),
        };
        match self.state.authorize(workload, &connection) {
            Verdict::Deny(reason) => Some((name.to_string(), reason)),
            Verdict::Allow(_) => None,
        }
    }
}

/// Ends connections at their clients, which were led to waypoints that are gone: who hears nothing of that would wait for an
/// answer. (client, waypoint).
pub(super) fn end_orphans(
    pods: &[Arc<Pod>],
    recorder: &Recorder,
    orphans: impl IntoIterator<Item = (SocketAddr, SocketAddr)>,
) {
    let mut by_client: BTreeMap<u32, Vec<(SocketAddr, SocketAddr)>> = BTreeMap::new();
    for orphan in orphans {
        if let Some(client) = pods.iter().find(|pod| pod.has_address(orphan.0.ip())) {
            by_client.entry(client.id).or_default().push(orphan);
        }
    }
    for (client, orphans) in by_client {
        let Some(client) = pods.iter().find(|pod| pod.id == client) else {
            continue;
        };
        // Nothing here waits for anybody but the kernel.
        let ended = client.netns.with(|| {
            let mut ender = Ender::new()?;
            let mut ended = Vec::new();
            for (local, remote) in orphans {
                if ender.destroy_named(&Found::named(local, remote))? {
                    ended.push((local, remote));
                }
            }
            io::Result::Ok(ended)
        });
        match ended {
            Ok(Ok(ended)) => {
                recorder.metrics.cut(Ending::Drain, ended.len() as u64);
                for (local, remote) in ended {
                    tracing::info!(target: "access", direction = "direct", pod = %client.name, src.addr = %local, dst.addr = %remote,
                        end = Ending::Drain.as_str(), "connection ended: its waypoint is gone");
                }
            }
            Ok(Err(error)) | Err(error) => {
                tracing::warn!(pod = %client.name, %error, "cannot end connections to a waypoint that is gone");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(sweep: &mut Sweep, count: usize, mut each: impl FnMut(&mut Sweep)) -> Vec<u32> {
        let mut order = Vec::new();
        while order.len() < count {
            std::thread::sleep(sweep.wait().expect("somebody waits"));
            sweep.one(|server, _| order.push(server));
            each(sweep);
        }
        order
    }

    fn policy() -> Policy {
        Policy {
            state: Arc::default(),
            since: Instant::now(),
            left: Arc::default(),
        }
    }

    #[test]
    fn policies_that_change_all_the_time_keep_no_pod_from_its_turn() {
        let mut sweep = Sweep::default();
        sweep.add([1, 2, 3], &policy());
        let again = |sweep: &mut Sweep| sweep.add([1], &policy());
        assert_eq!(turns(&mut sweep, 6, again), [1, 2, 3, 1, 1, 1]);
    }

    #[test]
    fn who_has_looked_rests_for_many_times_as_long() {
        let mut sweep = Sweep::default();
        sweep.add([1, 2], &policy());
        assert_eq!(sweep.wait(), Some(Duration::ZERO));
        sweep.one(|_, _| std::thread::sleep(Duration::from_millis(20)));
        let rest = sweep.wait().expect("another waits");
        assert!(rest > Duration::from_secs(2), "{rest:?}");
        sweep.one(|server, _| panic!("pod {server} had to wait"));
    }
}
