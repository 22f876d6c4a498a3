//! Whose an address is. A pod has those that the cluster gave it: they are its source addresses, where its
//! neighbours find it, and part of its identity. What else is on its interfaces (a bridge of its own, an address
//! that somebody with NET_ADMIN added) is only where it talks to itself, and not even that if it is another's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use abi::{OWN_ADDRESS, OWNED_ADDRESS};
use model::{MeshState, WorkloadUid};

use super::entry::Entry;
use crate::mesh::{Wanted, WantedPods};
use crate::pod::PodName;

/// Which pods of this node the cluster gave an address to: more than one is a mistake of the cluster's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Claims(BTreeMap<IpAddr, BTreeSet<PodName>>);

/// What the cluster gave a pod, told apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Given {
    /// Its own.
    pub(super) own: Vec<IpAddr>,
    /// Given to another pod of the node as well, so they belong to nobody.
    pub(super) disputed: Vec<(IpAddr, PodName)>,
}

impl Claims {
    /// The claims of all pods that have a sandbox: a pod that has ended may be named long after its address
    /// is another's.
    pub(super) fn of(entries: &BTreeMap<PodName, Entry>, wanted: Option<&WantedPods>) -> Self {
        let mut claims = Self::default();
        for (name, entry) in entries {
            let wish = wanted.and_then(|pods| pods.get(name));
            for ip in entry.addresses(entry.wish(wish)) {
                claims.0.entry(ip).or_default().insert(name.clone());
            }
        }
        claims
    }

    /// What of the given addresses is the pod's own.
    pub(super) fn judge(&self, pod: &PodName, given: &[IpAddr]) -> Given {
        let mut result = Given::default();
        for ip in given {
            match self.other(pod, *ip) {
                None => result.own.push(*ip),
                Some(other) => result.disputed.push((*ip, other.clone())),
            }
        }
        result
    }

    /// Another pod that the address was given to.
    pub(super) fn other(&self, pod: &PodName, ip: IpAddr) -> Option<&PodName> {
        let claimants = self.0.get(&ip)?;
        claimants.iter().find(|claimant| *claimant != pod)
    }

    /// Addresses that belong to nobody.
    pub(super) fn disputed(&self) -> impl Iterator<Item = IpAddr> {
        let disputed = self.0.iter().filter(|(_, claimants)| claimants.len() > 1);
        disputed.map(|(ip, _)| *ip)
    }
}

/// The addresses that the cluster gave to a pod: what the CNI was given, and what the controller says.
pub(super) fn given(cni: &[IpAddr], wanted: Option<&Wanted>) -> Vec<IpAddr> {
    let said = wanted.into_iter().flat_map(|wanted| &wanted.addresses);
    let mut all = Vec::new();
    for ip in cni.iter().chain(said).map(IpAddr::to_canonical) {
        if !all.contains(&ip) {
            all.push(ip);
        }
    }
    all
}

/// Whether the mesh knows the address as that of another workload or of a service.
pub(super) fn is_anothers(state: &MeshState, own: &WorkloadUid, ip: IpAddr) -> bool {
    let network = state.workload(own.as_ref()).map(|own| &*own.network);
    let network = network.unwrap_or_default();
    let workload = state.workload_by_ip(network, ip);
    workload.is_some_and(|workload| workload.uid != *own)
        || state.service_by_exact_vip(network, ip, None).is_some()
}

/// The flags of a pod's addresses for the kernel half. `found` are those on its interfaces.
pub(super) fn flags(
    own: &[IpAddr],
    found: &BTreeSet<IpAddr>,
    is_anothers: impl Fn(IpAddr) -> bool,
) -> BTreeMap<IpAddr, u32> {
    let found = found.iter().copied().filter(|ip| !is_anothers(*ip));
    let found = found.map(|ip| (ip, OWN_ADDRESS));
    // What the cluster gave counts even if it is not there (yet).
    let own = own.iter().map(|ip| (*ip, OWN_ADDRESS | OWNED_ADDRESS));
    found.chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn name(name: &str) -> PodName {
        PodName {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        }
    }

    fn claims(all: &[(&str, &[&str])]) -> Claims {
        let mut claims = Claims::default();
        for (pod, ips) in all {
            for text in *ips {
                claims.0.entry(ip(text)).or_default().insert(name(pod));
            }
        }
        claims
    }

    #[test]
    fn an_address_that_was_given_twice_is_nobodys() {
        let claims = claims(&[
            ("a", &["10.0.0.1", "fd00::1"]),
            ("b", &["10.0.0.1"]),
            ("c", &["10.0.0.3"]),
        ]);
        let a = claims.judge(&name("a"), &[ip("10.0.0.1"), ip("fd00::1")]);
        assert_eq!(a.own, [ip("fd00::1")]);
        assert_eq!(a.disputed, [(ip("10.0.0.1"), name("b"))]);
        let b = claims.judge(&name("b"), &[ip("10.0.0.1")]);
        assert_eq!((b.own.len(), b.disputed.len()), (0, 1));
        let c = claims.judge(&name("c"), &[ip("10.0.0.3")]);
        assert_eq!((c.own.len(), c.disputed.len()), (1, 0));
        assert_eq!(claims.disputed().collect::<Vec<_>>(), [ip("10.0.0.1")]);
    }

    #[test]
    fn what_a_pod_gives_itself_is_no_source_address_and_not_its_own_if_it_is_anothers() {
        let own = [ip("10.244.1.10"), ip("fd00::a")];
        let found = ["10.244.1.10", "172.17.0.1", "10.244.1.11"].map(ip);
        let flags = flags(&own, &found.into(), |ip| {
            ip == "10.244.1.11".parse::<IpAddr>().unwrap()
        });
        let both = OWN_ADDRESS | OWNED_ADDRESS;
        let expected = [
            ("10.244.1.10", both),
            ("172.17.0.1", OWN_ADDRESS),
            ("fd00::a", both),
        ];
        let expected = expected.map(|(text, flags)| (ip(text), flags));
        assert_eq!(flags, BTreeMap::from(expected));
    }

    #[test]
    fn what_cni_and_controller_say_alike_is_one_address() {
        let wanted = Wanted {
            workload: "uid".into(),
            uid: String::new(),
            identity: model::Identity::new("td".parse().unwrap(), "shop", "a"),
            capture: true,
            reason: String::new(),
            addresses: vec![ip("10.0.0.1"), ip("fd00::1")],
            probe_ports: BTreeSet::new(),
        };
        let cni = [ip("::ffff:10.0.0.1"), ip("10.0.0.2")];
        let expected = ["10.0.0.1", "10.0.0.2", "fd00::1"].map(ip);
        assert_eq!(given(&cni, Some(&wanted)), expected);
        assert!(given(&[], None).is_empty());
    }
}
