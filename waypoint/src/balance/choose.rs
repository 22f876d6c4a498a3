//! One of the endpoints that are left: in turn, the less loaded of two, drawn, or by a hash.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use l7::backend::{LoadBalancer, Locality, Outliers, WarmUp};
use rand::{Rng, RngExt};

use super::locality::{self, Labels};
use super::{Candidate, Resolved};
use crate::active::Active;

/// What a choice depends on besides the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// For consistent hashes; without one a hash chooses at random.
    pub(crate) hash: Option<u64>,
    /// Endpoints that the request has tried.
    pub(crate) tried: &'a [SocketAddr],
    /// The address that was dialled, if it may be an endpoint's.
    pub(crate) dialled: Option<SocketAddr>,
    /// Where this waypoint runs.
    pub(crate) own: &'a Locality,
    /// The labels of its pod.
    pub(crate) own_labels: &'a Labels,
    /// A retry goes to another locality than those of the endpoints that were tried, if there is one.
    pub(crate) elsewhere: bool,
}

impl<'a> Asked<'a> {
    /// As a configuration is asked for the first time.
    pub(crate) fn of(active: &'a Active) -> Self {
        Self {
            hash: None,
            tried: &[],
            dialled: None,
            own: &active.own,
            own_labels: &active.own_labels,
            elsewhere: false,
        }
    }
}

/// The endpoint that gets the request, if there is one.
pub(crate) fn choose<'c, R: Rng + ?Sized>(
    resolved: &'c Resolved,
    asked: Asked<'_>,
    rng: &mut R,
) -> Option<&'c Candidate> {
    let policy = &resolved.cluster.policy;
    let healthy = healthy(resolved, policy.outliers.as_ref());
    let reachable = prefer(healthy, |one| !one.state.is_unreachable());
    let is_tried = |one: &Candidate| asked.tried.contains(&one.member.address);
    let eligible = match asked.elsewhere && policy.locality.is_some() {
        false => reachable,
        true => {
            let tried = resolved.candidates.iter().filter(|one| is_tried(one));
            let left: Vec<_> = tried.map(|one| &one.member.endpoint.locality).collect();
            prefer(reachable, |one| {
                !left.contains(&&one.member.endpoint.locality)
            })
        }
    };
    let own = (asked.own, asked.own_labels);
    let near = locality::narrow(eligible, policy.locality.as_ref(), own, rng);
    let near = match asked.tried.is_empty() {
        true => near,
        false => prefer(near, |one| !is_tried(one)),
    };
    let weight = |one: &Candidate| weight(one, policy.warm_up.as_ref());
    match policy
        .load_balancer
        .as_ref()
        .unwrap_or(&LoadBalancer::RoundRobin)
    {
        LoadBalancer::RoundRobin => in_turn(resolved, &near, weight),
        LoadBalancer::LeastRequest => {
            let first = drawn(&near, weight, rng)?;
            let second = drawn(&near, weight, rng)?;
            Some(if second.state.load() < first.state.load() {
                second
            } else {
                first
            })
        }
        LoadBalancer::Random => drawn(&near, weight, rng),
        LoadBalancer::Passthrough => near
            .iter()
            .copied()
            .find(|one| Some(one.member.address) == asked.dialled),
        LoadBalancer::Hash(_) => match asked.hash {
            Some(hash) => by_hash(&near, hash, weight),
            None => drawn(&near, weight, rng),
        },
    }
}

/// Ready and not ejected; where too few would be left, ejection counts for nothing.
fn healthy<'c>(resolved: &'c Resolved, outliers: Option<&Outliers>) -> Vec<&'c Candidate> {
    let mut ready: Vec<_> = resolved
        .candidates
        .iter()
        .filter(|one| one.member.ready && one.member.endpoint.weight > 0)
        .collect();
    let Some(outliers) = outliers else {
        return ready;
    };
    let left = ready.iter().filter(|one| !one.state.is_ejected()).count();
    if left < ready.len() && left * 100 >= ready.len() * outliers.min_health_percent as usize {
        ready.retain(|one| !one.state.is_ejected());
    }
    ready
}

/// Those for which something holds, or all if it holds for none.
fn prefer(mut all: Vec<&Candidate>, wanted: impl Fn(&Candidate) -> bool) -> Vec<&Candidate> {
    if all.iter().any(|one| wanted(one)) {
        all.retain(|one| wanted(one));
    }
    all
}

/// An endpoint's share; a new one has less at first.
fn weight(one: &Candidate, warm_up: Option<&WarmUp>) -> u64 {
    let whole = u64::from(one.member.endpoint.weight) * SCALE;
    let Some(warm_up) = warm_up else {
        return whole;
    };
    let (age, duration) = (
        one.state.ready_for().as_secs_f64(),
        warm_up.duration.as_secs_f64(),
    );
    if age >= duration || duration <= 0.0 {
        return whole;
    }
    let grown = (age / duration).powf(1.0 / warm_up.aggression.max(0.01));
    let share = grown.max(warm_up.minimum_percent / 100.0).clamp(0.0, 1.0);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a weight times a share between 0 and 1"
    )]
    ((whole as f64 * share) as u64).max(1)
}

/// In turn. By weight, each gets its share of every round.
fn in_turn<'c>(
    resolved: &Resolved,
    near: &[&'c Candidate],
    weight: impl Fn(&Candidate) -> u64,
) -> Option<&'c Candidate> {
    let first = near.first()?;
    let turn = resolved.state.turn.fetch_add(1, Ordering::Relaxed);
    if near.iter().all(|one| weight(one) == weight(first)) {
        return near.get(turn % near.len()).copied();
    }
    let total: u64 = near.iter().map(|one| weight(one)).sum();
    // Steps of the golden ratio visit the weights evenly, in no fixed order.
    let mut at = (turn as u64).wrapping_mul(GOLDEN);
    at = u64::try_from((u128::from(at) * u128::from(total)) >> 64).ok()?;
    near.iter().copied().find(|one| {
        let own = weight(one);
        let here = at < own;
        at = at.saturating_sub(own);
        here
    })
}

fn drawn<'c, R: Rng + ?Sized>(
    near: &[&'c Candidate],
    weight: impl Fn(&Candidate) -> u64,
    rng: &mut R,
) -> Option<&'c Candidate> {
    let total: u64 = near.iter().map(|one| weight(one)).sum();
    if total == 0 {
        return None;
    }
    let mut ticket = rng.random_range(0..total);
    near.iter().copied().find(|one| {
        let own = weight(one);
        let here = ticket < own;
        ticket = ticket.saturating_sub(own);
        here
    })
}

/// The endpoint whose own hash together with the key's is highest, by weight: an endpoint that comes or goes moves
/// only its own share of the keys, and all waypoints agree.
fn by_hash<'c>(
    near: &[&'c Candidate],
    key: u64,
    weight: impl Fn(&Candidate) -> u64,
) -> Option<&'c Candidate> {
    let score = |one: &Candidate| {
        let mut hasher = DefaultHasher::new();
        (key, one.member.address).hash(&mut hasher);
        #[expect(
            clippy::cast_precision_loss,
            reason = "a hash needs no more than 53 bits"
        )]
        let unit = (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64;
        #[expect(clippy::cast_precision_loss, reason = "weights are small")]
        let weight = weight(one) as f64;
        -weight / unit.max(f64::MIN_POSITIVE).ln()
    };
    near.iter()
        .copied()
        .max_by(|one, other| score(one).total_cmp(&score(other)))
}

/// The hash of a client's address: the same for its requests and for its connections.
pub(crate) fn of_address(address: IpAddr) -> u64 {
    hash(address.to_string().as_bytes())
}

/// The hash of a key's text, the same in every waypoint.
pub(crate) fn hash(text: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

const SCALE: u64 = 1000;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests;
