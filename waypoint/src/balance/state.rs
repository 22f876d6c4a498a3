//! What is known of clusters and endpoints beyond their configuration: loads, failures, ejections. It holds over all
//! workers and outlives each configuration.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use l7::ClusterKey;
use l7::backend::Outliers;
use parking_lot::Mutex;

use super::count::Count;

/// All clusters that have been used.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    clusters: Mutex<HashMap<ClusterKey, Arc<ClusterState>>>,
}

/// What is known of a cluster.
#[derive(Debug)]
pub(crate) struct ClusterState {
    /// Unique in this process.
    pub(crate) id: u32,
    /// Its name.
    pub(crate) key: ClusterKey,
    pub(crate) connections: Arc<Count>,
    pub(crate) pending: Arc<Count>,
    pub(crate) requests: Arc<Count>,
    pub(crate) retries: Arc<Count>,
    /// Where round robin is.
    pub(crate) turn: AtomicUsize,
    /// By which endpoints are ejected.
    rule: Mutex<Option<Outliers>>,
    endpoints: Mutex<HashMap<SocketAddr, Arc<EndpointState>>>,
}

/// What is known of an endpoint of a cluster.
#[derive(Debug)]
pub(crate) struct EndpointState {
    /// Requests that it has not answered to their end.
    pub(crate) active: AtomicU32,
    began: Instant,
    /// Since when it is ready, in milliseconds since `began` and from 1; 0 while it is not, or has not been asked for.
    ready_since: AtomicU64,
    server_errors: AtomicU32,
    gateway_errors: AtomicU32,
    local_failures: AtomicU32,
    /// It is ejected until then, in milliseconds since `began`.
    ejected_until: AtomicU64,
    ejections: AtomicU32,
    /// It could not be reached, and is left alone until then.
    unreachable_until: AtomicU64,
    unreached: AtomicU32,
    /// How long answers have taken, as a moving average in microseconds.
    latency: AtomicU64,
}

/// How a request to an endpoint went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It answered with this status.
    Answered(u16),
    /// No connection could be made.
    Unreachable,
    /// A connection broke, or an answer took too long.
    Failed,
}

/// An endpoint that is left alone.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Ejection {
    cluster: String,
    endpoint: SocketAddr,
    /// `errors` or `unreachable`.
    cause: &'static str,
    /// For how long still, in milliseconds.
    left_ms: u64,
    /// How often it has been ejected for errors.
    times: u32,
}

impl Registry {
    /// The state of a cluster.
    pub(crate) fn cluster(&self, key: &ClusterKey) -> Arc<ClusterState> {
        let mut clusters = self.clusters.lock();
        if let Some(known) = clusters.get(key) {
            return Arc::clone(known);
        }
        let state = Arc::new(ClusterState {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            key: key.clone(),
            connections: Arc::default(),
            pending: Arc::default(),
            requests: Arc::default(),
            retries: Arc::default(),
            turn: AtomicUsize::new(0),
            rule: Mutex::default(),
            endpoints: Mutex::default(),
        });
        clusters.insert(key.clone(), Arc::clone(&state));
        state
    }

    /// Forgets clusters that no configuration names and nobody uses.
    pub(crate) fn forget(&self, named: impl Fn(&ClusterKey) -> bool) {
        let unused = |state: &Arc<ClusterState>| Arc::strong_count(state) == 1;
        self.clusters
            .lock()
            .retain(|key, state| named(key) || !unused(state));
    }

    /// The same by cluster and endpoint: the cause, and for how long still in milliseconds.
    pub(crate) fn left_alone(&self) -> HashMap<(String, SocketAddr), (&'static str, u64)> {
        let all = self.ejections().into_iter();
        all.map(|one| ((one.cluster, one.endpoint), (one.cause, one.left_ms)))
            .collect()
    }

    /// Endpoints that are left alone now.
    pub(crate) fn ejections(&self) -> Vec<Ejection> {
        let clusters: Vec<_> = self.clusters.lock().values().cloned().collect();
        clusters
            .iter()
            .flat_map(|cluster| cluster.ejections())
            .collect()
    }
}

static NEXT: AtomicU32 = AtomicU32::new(1);

impl ClusterState {
    /// The state of one of its endpoints.
    pub(crate) fn endpoint(&self, address: SocketAddr) -> Arc<EndpointState> {
        let mut endpoints = self.endpoints.lock();
        let state = endpoints
            .entry(address)
            .or_insert_with(|| Arc::new(EndpointState::new()));
        Arc::clone(state)
    }

    /// Forgets endpoints that are not among these.
    pub(crate) fn keep(&self, addresses: &[SocketAddr]) {
        self.endpoints
            .lock()
            .retain(|address, _| addresses.contains(address));
    }

    /// Says by which rule endpoints are ejected from now on. What another rule has ejected is back, and its errors are
    /// counted anew: whoever changes the rule, or takes it away, does not wait for the end of what the old one decided.
    pub(crate) fn ruled_by(&self, rule: Option<&Outliers>) {
        let mut known = self.rule.lock();
        if known.as_ref() == rule {
            return;
        }
        *known = rule.cloned();
        for endpoint in self.endpoints.lock().values() {
            endpoint.readmit();
        }
    }

    /// Takes note of how a request went, and ejects the endpoint if the rule says so.
    pub(crate) fn note(
        &self,
        endpoint: &EndpointState,
        outcome: Outcome,
        rule: Option<&Outliers>,
        members: usize,
    ) {
        endpoint.note_reach(outcome);
        let Some(rule) = rule else {
            return;
        };
        if !endpoint.count(outcome, rule) || endpoint.is_ejected() {
            return;
        }
        // One may always be ejected; then as many as the share allows.
        let ejected = self
            .endpoints
            .lock()
            .values()
            .filter(|one| one.is_ejected())
            .count();
        let most = (members * rule.max_percent.min(100) as usize / 100).max(1);
        if ejected < most && members > 0 {
            endpoint.eject(rule.base_time);
        }
    }

    fn ejections(&self) -> Vec<Ejection> {
        let endpoints = self.endpoints.lock();
        let told = |(address, state): (&SocketAddr, &Arc<EndpointState>)| {
            let now = state.now();
            let left = |until: &AtomicU64| until.load(Ordering::Relaxed).saturating_sub(now);
            let (errors, unreachable) =
                (left(&state.ejected_until), left(&state.unreachable_until));
            (errors.max(unreachable) > 0).then(|| Ejection {
                cluster: name(&self.key),
                endpoint: *address,
                cause: if errors > 0 { "errors" } else { "unreachable" },
                left_ms: errors.max(unreachable),
                times: state.ejections.load(Ordering::Relaxed),
            })
        };
        endpoints.iter().filter_map(told).collect()
    }
}

impl EndpointState {
    pub(super) fn new() -> Self {
        Self {
            active: AtomicU32::new(0),
            began: Instant::now(),
            ready_since: AtomicU64::new(0),
            server_errors: AtomicU32::new(0),
            gateway_errors: AtomicU32::new(0),
            local_failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            unreachable_until: AtomicU64::new(0),
            unreached: AtomicU32::new(0),
            latency: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        milliseconds(self.began.elapsed())
    }

    /// For how long it has been ready. Asked of endpoints that are: the first time is when that begins.
    pub(crate) fn ready_for(&self) -> Duration {
        let now = self.now().max(1);
        let since = &self.ready_since;
        let since = match since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => now,
            Err(since) => since,
        };
        Duration::from_millis(now.saturating_sub(since))
    }

    /// It is not ready: when it is, it is new.
    pub(crate) fn is_not_ready(&self) {
        self.ready_since.store(0, Ordering::Relaxed);
    }

    /// It answered with too many errors.
    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > self.now()
    }

    /// It could not be reached a moment ago.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.unreachable_until.load(Ordering::Relaxed) > self.now()
    }

    /// A request is on its way to it.
    pub(crate) fn begin(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::Relaxed);
        Active {
            endpoint: Arc::clone(self),
            since: Instant::now(),
        }
    }

    /// Its load: requests that it has, and how long they take.
    pub(crate) fn load(&self) -> u64 {
        let active = u64::from(self.active.load(Ordering::Relaxed)) + 1;
        active.saturating_mul(self.latency.load(Ordering::Relaxed).max(1))
    }

    fn note_reach(&self, outcome: Outcome) {
        if outcome == Outcome::Unreachable {
            let times = self.unreached.fetch_add(1, Ordering::Relaxed).min(4);
            let until = self.now() + (milliseconds(ALONE) << times);
            self.unreachable_until.store(until, Ordering::Relaxed);
        } else if let Outcome::Answered(_) = outcome {
            self.unreached.store(0, Ordering::Relaxed);
            self.unreachable_until.store(0, Ordering::Relaxed);
        }
    }

    /// Counts an outcome; says whether a limit of the rule is reached.
    fn count(&self, outcome: Outcome, rule: &Outliers) -> bool {
        let in_row = |counter: &AtomicU32, is_error: bool, limit: Option<u32>| {
            if !is_error {
                counter.store(0, Ordering::Relaxed);
                return false;
            }
            let row = counter.fetch_add(1, Ordering::Relaxed) + 1;
            let reached = limit.is_some_and(|limit| limit > 0 && row >= limit);
            if reached {
                counter.store(0, Ordering::Relaxed);
            }
            reached
        };
        let local = !matches!(outcome, Outcome::Answered(_));
        // What got no answer counts as 503 where local failures are not told apart.
        let status = match outcome {
            Outcome::Answered(status) => status,
            _ if rule.local_failures.is_some() => {
                return in_row(&self.local_failures, true, rule.local_failures);
            }
            _ => 503,
        };
        let by_local = in_row(&self.local_failures, local, rule.local_failures);
        let by_server = in_row(&self.server_errors, status >= 500, rule.server_errors);
        let gateway = matches!(status, 502..=504);
        let by_gateway = in_row(&self.gateway_errors, gateway, rule.gateway_errors);
        by_local || by_server || by_gateway
    }

    fn readmit(&self) {
        for counter in [
            &self.server_errors,
            &self.gateway_errors,
            &self.local_failures,
            &self.ejections,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
        self.ejected_until.store(0, Ordering::Relaxed);
    }

    fn eject(&self, base: Duration) {
        let times = self.ejections.fetch_add(1, Ordering::Relaxed) + 1;
        let until = self.now() + milliseconds(base).saturating_mul(u64::from(times));
        self.ejected_until.store(until, Ordering::Relaxed);
    }
}

/// A request that an endpoint has.
#[derive(Debug)]
pub(crate) struct Active {
    endpoint: Arc<EndpointState>,
    since: Instant,
}

impl Active {
    /// The head of its answer has come.
    pub(crate) fn answered(&self) {
        let took = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let latency = &self.endpoint.latency;
        let before = latency.load(Ordering::Relaxed);
        let after = if before == 0 {
            took
        } else {
            (before.saturating_mul(7).saturating_add(took)) / 8
        };
        latency.store(after.max(1), Ordering::Relaxed);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.endpoint.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A cluster's name as pages and metrics write it, in Envoy's form.
pub(crate) fn name(key: &ClusterKey) -> String {
    let subset = key.subset.as_deref().unwrap_or_default();
    format!("outbound|{}|{subset}|{}", key.port, key.service.hostname)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// For how long an endpoint that could not be reached is left alone, the first time; it doubles.
const ALONE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
