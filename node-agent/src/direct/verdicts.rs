//! Writes changed verdicts in an order, and with consequences, in which the kernel never says yes where
//! policy does not: also between two writes, and also when its map is full.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use abi::{ANY_PORT, DirectVerdict, VerdictKey};

/// Verdicts by pair of pods and port.
pub(super) type Verdicts = BTreeMap<VerdictKey, DirectVerdict>;

/// Brings the kernel from `before` to `now` through `write`, which says whether an entry could be
/// written; a removal always can. What does not fit is taken out of `now`, and its pair is the agent's:
/// it will be tried again with the next change. Gives the servers to which something that was allowed is
/// not allowed any more.
pub(super) fn replace(
    before: &Verdicts,
    now: &mut Verdicts,
    mut write: impl FnMut(VerdictKey, Option<DirectVerdict>) -> bool,
) -> HashSet<u32> {
    let mut withdrawn = HashSet::new();
    let allowed = |verdict: Option<&DirectVerdict>| verdict == Some(&DirectVerdict::Allow);
    // A removal leaves the pair to what stands for all its ports, which may say more than the entry did.
    // So the ports that policy names no more go last, and refusals come first.
    let gone: Vec<VerdictKey> = before
        .keys()
        .filter(|key| !now.contains_key(key))
        .copied()
        .collect();
    for key in gone.iter().filter(|key| key.port == ANY_PORT) {
        write(*key, None);
        withdrawn.insert(key.destination);
    }
    let changed: Vec<(VerdictKey, DirectVerdict)> = now
        .iter()
        .filter(|(key, verdict)| before.get(key) != Some(verdict))
        .map(|(key, verdict)| (*key, *verdict))
        .collect();
    let mut unfit: BTreeSet<VerdictKey> = BTreeSet::new();
    let (grants, refusals): (Vec<_>, Vec<_>) = changed
        .into_iter()
        .partition(|(_, verdict)| *verdict == DirectVerdict::Allow);
    for (key, verdict) in refusals {
        // A key of its own may restrict what the key for all ports allowed.
        withdrawn.insert(key.destination);
        if !write(key, Some(verdict)) {
            give_up(key, &mut unfit, &mut write);
        }
    }
    for (key, verdict) in grants {
        // A port that could not be named has to be asked about, so its pair has no entry for all ports.
        if key.port == ANY_PORT && unfit.contains(&all_ports(key)) {
            continue;
        }
        if !write(key, Some(verdict)) {
            give_up(key, &mut unfit, &mut write);
        }
    }
    for key in gone.iter().filter(|key| key.port != ANY_PORT) {
        write(*key, None);
        if allowed(before.get(key)) {
            withdrawn.insert(key.destination);
        }
    }
    now.retain(|key, _| !unfit.contains(key));
    withdrawn
}

/// The agent decides about the port, and about all that are not named.
fn give_up(
    key: VerdictKey,
    unfit: &mut BTreeSet<VerdictKey>,
    write: &mut impl FnMut(VerdictKey, Option<DirectVerdict>) -> bool,
) {
    for key in [all_ports(key), key] {
        write(key, None);
        unfit.insert(key);
    }
}

fn all_ports(key: VerdictKey) -> VerdictKey {
    VerdictKey {
        port: ANY_PORT,
        ..key
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PORTS: [u16; 4] = [ANY_PORT, 80, 443, 8080];

    fn verdicts() -> impl Strategy<Value = Verdicts> {
        let verdict = prop::sample::select(vec![
            DirectVerdict::Allow,
            DirectVerdict::Deny,
            DirectVerdict::Agent,
        ]);
        let key = (1_u32..4, 1_u32..4, prop::sample::select(&PORTS[..]));
        let key = key.prop_map(|(source, destination, port)| VerdictKey {
            source,
            destination,
            port,
            way: 0,
        });
        prop::collection::btree_map(key, verdict, 0..20)
    }

    /// What the kernel's program says: `maps::verdict` in the kernel half.
    fn ask(map: &Verdicts, key: VerdictKey) -> DirectVerdict {
        let found = map.get(&key).or_else(|| map.get(&all_ports(key)));
        found.copied().unwrap_or(DirectVerdict::Agent)
    }

    fn questions() -> impl Iterator<Item = VerdictKey> {
        (1..4).flat_map(|source| {
            (1..4).flat_map(move |destination| {
                [80, 443, 8080, 9999].map(|port| VerdictKey {
                    source,
                    destination,
                    port,
                    way: 0,
                })
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// However small the map: after every single write the kernel allows only what the old or the
        /// new policy allows, and in the end it says what the new one says or asks the agent.
        #[test]
        fn a_full_map_asks_the_agent_and_never_says_yes(
            first in verdicts(), second in verdicts(), third in verdicts(), room in 0_usize..20,
        ) {
            let mut kernel = Verdicts::new();
            let mut known = Verdicts::new();
            for wanted in [first, second, third] {
                let policy = wanted.clone();
                let before: Vec<_> = questions().map(|key| ask(&kernel, key)).collect();
                let mut wrong = None;
                let mut now = wanted;
                replace(&known, &mut now, |key, verdict| {
                    let fits = match verdict {
                        None => { kernel.remove(&key); true }
                        Some(verdict) if kernel.contains_key(&key) || kernel.len() < room => {
                            kernel.insert(key, verdict);
                            true
                        }
                        Some(_) => false,
                    };
                    for (key, before) in questions().zip(&before) {
                        let yes = ask(&kernel, key) == DirectVerdict::Allow;
                        if yes && *before != DirectVerdict::Allow
                            && ask(&policy, key) != DirectVerdict::Allow {
                            wrong = Some(key);
                        }
                    }
                    fits
                });
                prop_assert!(wrong.is_none(), "allowed on the way: {wrong:?}");
                prop_assert_eq!(&kernel, &now, "what is thought to be there is there");
                for key in questions() {
                    let said = ask(&kernel, key);
                    prop_assert!(
                        said == ask(&policy, key) || said == DirectVerdict::Agent,
                        "{key:?}: {said:?}"
                    );
                }
                if room >= 20 {
                    prop_assert_eq!(&now, &policy);
                }
                known = now;
            }
        }
    }
}
