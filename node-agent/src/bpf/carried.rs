//! The set of destinations that may have to be carried: addresses in one map, ranges in another.

use std::collections::BTreeSet;

use abi::{Addr, maps};
use aya::{
    Ebpf,
    maps::{
        HashMap, MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use ipnet::IpNet;

use super::{
    KernelError,
    node::{Raw, map_error, typed},
};

/// The maps of the set.
pub struct CarriedMaps {
    addresses: HashMap<MapData, Raw<Addr>, u32>,
    ranges: LpmTrie<MapData, Raw<Addr>, u32>,
    /// What they hold, which only the agent in charge writes.
    held: usize,
}

impl CarriedMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            addresses: typed(ebpf, maps::CARRIED)?,
            ranges: typed(ebpf, maps::CARRIED_RANGES)?,
            held: 0,
        })
    }

    /// Everything that the kernel holds, also what an earlier agent left.
    pub fn list(&mut self) -> BTreeSet<IpNet> {
        let addresses = self.addresses.keys().filter_map(Result::ok);
        let ranges = self.ranges.keys().filter_map(Result::ok);
        let mut all: BTreeSet<IpNet> = addresses
            .map(|Raw(addr)| IpNet::from(std::net::IpAddr::from(addr)))
            .collect();
        all.extend(ranges.filter_map(range));
        self.held = all.len();
        all
    }

    /// How many addresses and ranges there are.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.held
    }

    /// Adds an address or a range that is not there.
    ///
    /// # Errors
    /// When the map is full.
    pub fn add(&mut self, net: &IpNet) -> Result<(), KernelError> {
        match key(net) {
            Some(range) => {
                let added = self.ranges.insert(&range, 1, 0);
                added.map_err(map_error(maps::CARRIED_RANGES))?;
            }
            None => {
                let added = self.addresses.insert(Raw(net.addr().into()), 1, 0);
                added.map_err(map_error(maps::CARRIED))?;
            }
        }
        self.held += 1;
        Ok(())
    }

    /// Removes an address or a range. Absent is as good as removed.
    pub fn remove(&mut self, net: &IpNet) {
        let removed = match key(net) {
            Some(range) => self.ranges.remove(&range).is_ok(),
            None => self.addresses.remove(&Raw(net.addr().into())).is_ok(),
        };
        self.held -= usize::from(removed && self.held > 0);
    }
}

/// The key of a range; a single address has none.
fn key(net: &IpNet) -> Option<Key<Raw<Addr>>> {
    if net.prefix_len() == net.max_prefix_len() {
        return None;
    }
    let before = ADDRESS_BITS - net.max_prefix_len();
    let length = u32::from(before + net.prefix_len());
    Some(Key::new(length, Raw(net.network().into())))
}

fn range(key: Key<Raw<Addr>>) -> Option<IpNet> {
    let Raw(addr) = key.data();
    let ip = std::net::IpAddr::from(addr);
    let before = if ip.is_ipv4() { ADDRESS_BITS - 32 } else { 0 };
    let length = u8::try_from(key.prefix_len()).ok()?.checked_sub(before)?;
    IpNet::new(ip, length).ok()
}

/// Bits of an [`Addr`].
const ADDRESS_BITS: u8 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_survives_the_round_trip() {
        for (text, bits) in [
            ("10.244.0.0/16", Some(112)),
            ("0.0.0.0/0", Some(96)),
            ("fd00:10:244::/48", Some(48)),
            ("::/0", Some(0)),
            ("10.0.0.1/32", None),
            ("fd00::1/128", None),
        ] {
            let net: IpNet = text.parse().unwrap();
            let key = key(&net);
            assert_eq!(key.map(|key| key.prefix_len()), bits, "{text}");
            assert_eq!(key.and_then(range), bits.map(|_| net), "{text}");
        }
    }
}
