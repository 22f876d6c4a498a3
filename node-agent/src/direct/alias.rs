//! Weights as an alias table: one random column, one random word, one lookup.
//!
//! Vose's construction (1991) of Walker's method (1977), in integers: shares are exact to one part
//! in 2^32.

use abi::{Slot, Target};

/// The columns of a draw among `endpoints` by weight. No weight is zero.
pub(super) fn slots(endpoints: &[(Target, u64)]) -> Vec<Slot> {
    let count = endpoints.len() as u128;
    let total: u128 = endpoints
        .iter()
        .map(|(_, weight)| u128::from(*weight))
        .sum();
    if total == 0 {
        return Vec::new();
    }
    // Each share is scaled so that a full column is `total`.
    let mut shares: Vec<u128> = endpoints
        .iter()
        .map(|(_, weight)| u128::from(*weight) * count)
        .collect();
    let mut alias: Vec<usize> = (0..endpoints.len()).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..endpoints.len()).partition(|&i| shares.get(i).is_some_and(|share| *share < total));
    let mut kept = vec![total; endpoints.len()];
    while let (Some(poor), Some(&rich)) = (small.pop(), large.last()) {
        let (Some(has), Some(from)) = (shares.get(poor).copied(), shares.get_mut(rich)) else {
            break;
        };
        *from -= total - has;
        if *from < total {
            large.pop();
            small.push(rich);
        }
        if let (Some(kept), Some(alias)) = (kept.get_mut(poor), alias.get_mut(poor)) {
            *kept = has;
            *alias = rich;
        }
    }
    let target = |index: usize| endpoints.get(index).map(|(target, _)| *target);
    kept.iter()
        .zip(alias)
        .enumerate()
        .filter_map(|(index, (&kept, alias))| {
            let threshold = u32::try_from((kept << 32) / total).unwrap_or(u32::MAX);
            Some(Slot {
                threshold,
                reserved: 0,
                below: target(index)?,
                above: target(alias)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::slots;
    use abi::{Addr, Endpoint, Target};

    fn target(pod: u32) -> Target {
        Target {
            endpoint: Endpoint::new(Addr::v4(pod), 80),
            pod,
        }
    }

    /// The share of each endpoint that the columns add up to, in 2^-32.
    fn shares(weights: &[u64]) -> Vec<f64> {
        let endpoints: Vec<_> = (0..).zip(weights).map(|(i, w)| (target(i), *w)).collect();
        let slots = slots(&endpoints);
        assert_eq!(slots.len(), weights.len());
        let mut shares = vec![0.0; weights.len()];
        for slot in &slots {
            let below = f64::from(slot.threshold) / f64::from(u32::MAX) / slots.len() as f64;
            shares[slot.below.pod as usize] += below;
            shares[slot.above.pod as usize] += 1.0 / slots.len() as f64 - below;
        }
        shares
    }

    #[test]
    fn shares_follow_weights() {
        for weights in [
            &[1][..],
            &[1, 1],
            &[1, 2, 3],
            &[1, 99],
            &[7, 7, 7, 1],
            &[1_000_000, 1, 1],
            &[5; 100],
        ] {
            let total: u64 = weights.iter().sum();
            for (share, weight) in shares(weights).iter().zip(weights) {
                let wanted = *weight as f64 / total as f64;
                assert!(
                    (share - wanted).abs() < 1e-6,
                    "{weights:?}: {share} for {wanted}"
                );
            }
        }
    }

    #[test]
    fn nothing_draws_from_nothing() {
        assert!(slots(&[]).is_empty());
    }
}
