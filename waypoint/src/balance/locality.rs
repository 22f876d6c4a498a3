//! Which endpoints are near enough (F61).

use std::collections::BTreeMap;
use std::sync::Arc;

use l7::backend::{Locality, LocalityPolicy};
use rand::{Rng, RngExt};

use super::Candidate;

/// Of these, those of the locality that gets this request.
pub(crate) fn narrow<'c, R: Rng + ?Sized>(
    candidates: Vec<&'c Candidate>,
    policy: Option<&LocalityPolicy>,
    (own, labels): (&Locality, &Labels),
    rng: &mut R,
) -> Vec<&'c Candidate> {
    match policy {
        Some(LocalityPolicy::Failover(regions)) => nearest(candidates, |one| {
            rank(own, &one.member.endpoint.locality, regions)
        }),
        Some(LocalityPolicy::Distribute(shares)) => distribute(candidates, shares, own, rng),
        Some(LocalityPolicy::Priority(wanted)) => nearest(candidates, |one| {
            let endpoint = &one.member.endpoint;
            unlike(
                wanted,
                (own, labels),
                (&endpoint.locality, &endpoint.labels),
            )
        }),
        Some(LocalityPolicy::Off) | None => candidates,
    }
}

/// Labels of a pod.
pub(crate) type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// How many of the labels are left from the first on that an endpoint does not share: the fewer, the better it is (Istio,
/// `failoverPriority`). A label that neither has is shared.
fn unlike(
    wanted: &[(Arc<str>, Option<Arc<str>>)],
    own: (&Locality, &Labels),
    other: (&Locality, &Labels),
) -> usize {
    let is_shared = |(name, value): &&(Arc<str>, Option<Arc<str>>)| {
        let here = value.as_deref().unwrap_or_else(|| said(name, own));
        here == said(name, other)
    };
    wanted.len() - wanted.iter().take_while(is_shared).count()
}

/// The value of a label. Where something runs is told as labels too, and is known without them.
fn said<'a>(name: &str, (locality, labels): (&'a Locality, &'a Labels)) -> &'a str {
    let place = || match name {
        "topology.kubernetes.io/region" => &*locality.region,
        "topology.kubernetes.io/zone" => &*locality.zone,
        "topology.istio.io/subzone" => &*locality.subzone,
        _ => "",
    };
    match labels.get(name) {
        Some(value) => value,
        None => place(),
    }
}

/// Localities by weight.
type Shares = Vec<(Arc<str>, u32)>;

fn nearest<R: Ord>(
    mut candidates: Vec<&Candidate>,
    rank: impl Fn(&Candidate) -> R,
) -> Vec<&Candidate> {
    if let Some(best) = candidates.iter().map(|one| rank(one)).min() {
        candidates.retain(|one| rank(one) == best);
    }
    candidates
}

/// How far a locality is: the same subzone is nearest, then zone, region, the region to fail over to, anywhere.
fn rank(own: &Locality, other: &Locality, regions: &BTreeMap<Arc<str>, Arc<str>>) -> u8 {
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

    #[test]
    fn the_labels_are_compared_in_order_until_one_differs() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            let pair = |(name, value): &(&str, &str)| (Arc::from(*name), Arc::from(*value));
            pairs.iter().map(pair).collect()
        };
        let own = (
            &locality("eu/a/1"),
            &labels(&[("version", "v1"), ("rack", "7")]),
        );
        let wanted: Vec<(Arc<str>, Option<Arc<str>>)> = vec![
            ("topology.istio.io/network".into(), None),
            ("topology.kubernetes.io/region".into(), None),
            ("version".into(), Some("v2".into())),
            ("rack".into(), None),
        ];
        for (place, pairs, left) in [
            ("eu/b/1", &[("version", "v2"), ("rack", "7")][..], 0),
            ("eu/a/1", &[("version", "v2"), ("rack", "8")], 1),
            ("eu/a/1", &[("version", "v1"), ("rack", "7")], 2),
            ("us/a/1", &[("version", "v2"), ("rack", "7")], 3),
        ] {
            let other = (&locality(place), &labels(pairs));
            assert_eq!(unlike(&wanted, own, other), left, "{place} {pairs:?}");
        }
    }
}
