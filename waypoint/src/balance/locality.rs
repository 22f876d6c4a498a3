//! Which endpoints are near enough (F61).

use std::sync::Arc;

use l7::backend::{Locality, LocalityPolicy};
use rand::{Rng, RngExt};

use super::Candidate;

/// Of these, those of the locality that gets this request.
pub(crate) fn narrow<'c, R: Rng + ?Sized>(
    candidates: Vec<&'c Candidate>,
    policy: Option<&LocalityPolicy>,
    own: &Locality,
    rng: &mut R,
) -> Vec<&'c Candidate> {
    match policy {
        Some(LocalityPolicy::Failover(regions)) => nearest(candidates, |one| {
            rank(own, &one.member.endpoint.locality, regions)
        }),
        Some(LocalityPolicy::Distribute(shares)) => distribute(candidates, shares, own, rng),
        Some(LocalityPolicy::Priority(_) | LocalityPolicy::Off) | None => candidates,
    }
}

/// Localities by weight.
type Shares = Vec<(Arc<str>, u32)>;

fn nearest(candidates: Vec<&Candidate>, rank: impl Fn(&Candidate) -> u8) -> Vec<&Candidate> {
    let Some(best) = candidates.iter().map(|one| rank(one)).min() else {
        return candidates;
    };
    candidates
        .into_iter()
        .filter(|one| rank(one) == best)
        .collect()
}

/// How far a locality is: the same subzone is nearest, then zone, region, the region to fail over to, anywhere.
fn rank(
    own: &Locality,
    other: &Locality,
    regions: &std::collections::BTreeMap<Arc<str>, Arc<str>>,
) -> u8 {
    if own.region != other.region {
        return match regions.get(&own.region) {
            Some(next) if *next == other.region => 3,
            _ => 4,
        };
    }
    match (own.zone == other.zone, own.subzone == other.subzone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

fn distribute<'c, R: Rng + ?Sized>(
    candidates: Vec<&'c Candidate>,
    shares: &[(Arc<str>, Shares)],
    own: &Locality,
    rng: &mut R,
) -> Vec<&'c Candidate> {
    let Some((_, targets)) = shares.iter().find(|(from, _)| covers(from, own)) else {
        return candidates;
    };
    // A share of a locality without endpoints goes to the others.
    let has = |pattern: &str| {
        candidates
            .iter()
            .any(|one| covers(pattern, &one.member.endpoint.locality))
    };
    let present: Vec<_> = targets.iter().filter(|(to, _)| has(to)).collect();
    let total: u64 = present.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 0 {
        return Vec::new();
    }
    let mut ticket = rng.random_range(0..total);
    for (to, weight) in present {
        if ticket < u64::from(*weight) {
            return candidates
                .into_iter()
                .filter(|one| covers(to, &one.member.endpoint.locality))
                .collect();
        }
        ticket -= u64::from(*weight);
    }
    Vec::new()
}

/// Whether `region/zone/*`, or a shorter form, stands for a locality.
fn covers(pattern: &str, locality: &Locality) -> bool {
    let own = [&*locality.region, &*locality.zone, &*locality.subzone];
    pattern
        .split('/')
        .zip(own)
        .all(|(wanted, is)| wanted == "*" || wanted == is)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locality(text: &str) -> Locality {
        let mut parts = text.split('/').map(Arc::from);
        let mut next = || parts.next().unwrap_or_default();
        Locality {
            region: next(),
            zone: next(),
            subzone: next(),
        }
    }

    #[test]
    fn near_goes_before_far_and_a_named_region_before_others() {
        let regions = [(Arc::from("eu"), Arc::from("us"))].into();
        let own = locality("eu/a/1");
        let ranks = ["eu/a/1", "eu/a/2", "eu/b/1", "us/x/y", "asia/x/y"]
            .map(|other| rank(&own, &locality(other), &regions));
        assert_eq!(ranks, [0, 1, 2, 3, 4], "F61");
    }

    #[test]
    fn a_pattern_stands_for_localities() {
        for (pattern, text, covered) in [
            ("eu/a/*", "eu/a/1", true),
            ("eu/*", "eu/a/1", true),
            ("eu", "eu/a/1", true),
            ("*", "eu/a/1", true),
            ("eu/b/*", "eu/a/1", false),
            ("us/*", "eu/a/1", false),
        ] {
            assert_eq!(covers(pattern, &locality(text)), covered, "{pattern}");
        }
    }
}
