//! Where the guard of a pod sits: the node's end of each interface that has the pod's addresses, proved to
//! be that.
//!
//! An interface's peer is told as a number, which means another device in another namespace: the number of
//! a macvlan's parent or of a veth whose other end is in a container inside the pod may be the node's
//! uplink here. So the device has to be a veth whose own peer is the pod's interface in the pod's namespace.

mod sandboxed;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use abi::LOOPBACK_IFINDEX;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
};

use crate::host::{netlink::Netlink, netns::Netns};
pub(crate) use sandboxed::{Sandboxed, sandboxed};

/// A device of a namespace, as far as its place is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Device {
    index: u32,
    name: String,
    /// `IFLA_INFO_KIND`; empty for hardware.
    kind: String,
    /// `IFLA_LINK`.
    peer: Option<u32>,
    /// `IFLA_LINK_NETNSID`: the peer's namespace; none if it is this one.
    peer_namespace: Option<i32>,
    addresses: Vec<IpAddr>,
}

/// Both ends of an interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The pod's end, in the pod's namespace.
    pub pod: End,
    /// The node's end, in the agent's.
    pub node: End,
}

/// One end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// Why a pod's interface cannot be guarded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    /// None of its interfaces has its addresses.
    #[error("no interface of the pod has {0}, which the cluster gave to it")]
    NoInterface(IpAddr),
    /// The pod has no veth at all.
    #[error("the pod has no veth whose other end is on the node")]
    NoVeth,
    /// The interface is of another kind.
    #[error("interface {name} of the pod is no veth ({kind}): there is nowhere to guard it")]
    NotVeth {
        /// The pod's interface.
        name: String,
        /// What it is.
        kind: String,
    },
    /// What its peer's number means here is another device.
    #[error("device {peer} of the node is not the other end of the pod's interface {name}")]
    NotPaired {
        /// The pod's interface.
        name: String,
        /// The number of its peer.
        peer: u32,
    },
}

/// Finds both ends of the interfaces that have the addresses which the cluster gave to the pod, or of all
/// its veths if it is not known which those are.
///
/// # Errors
/// When the kernel refuses a request, or there is an interface that cannot be guarded.
pub(crate) fn pairs(netns: &Netns, given: &[IpAddr]) -> io::Result<Result<Vec<Pair>, NoPlace>> {
    let inside = netns.run(devices)??;
    let outside = peers(&inside)?;
    let namespace = namespace_id(netns)?;
    Ok(paired(&inside, given, &outside, namespace))
}

fn paired(
    inside: &[Device],
    given: &[IpAddr],
    outside: &[Device],
    namespace: Option<i32>,
) -> Result<Vec<Pair>, NoPlace> {
    let other_end = |device: &Device| {
        let there = outside
            .iter()
            .find(|other| Some(other.index) == device.peer)?;
        let is_it = there.kind == VETH
            && there.peer == Some(device.index)
            && there.peer_namespace.is_some()
            && there.peer_namespace == namespace
            && device.peer_namespace.is_some();
        is_it.then(|| Pair {
            pod: device.end(),
            node: there.end(),
        })
    };
    let Some(first) = given.first() else {
        let veths = inside.iter().filter(|device| device.kind == VETH);
        let pairs: Vec<Pair> = veths.filter_map(other_end).collect();
        return if pairs.is_empty() {
            Err(NoPlace::NoVeth)
        } else {
            Ok(pairs)
        };
    };
    let has_one = |device: &&Device| {
        let mut given = given.iter().map(IpAddr::to_canonical);
        given.any(|ip| device.addresses.contains(&ip))
    };
    let carrying: Vec<&Device> = inside.iter().filter(has_one).collect();
    if carrying.is_empty() {
        return Err(NoPlace::NoInterface(*first));
    }
    carrying
        .into_iter()
        .map(|device| {
            if device.kind != VETH {
                return Err(NoPlace::NotVeth {
                    name: device.name.clone(),
                    kind: device.kind.clone(),
                });
            }
            other_end(device).ok_or_else(|| NoPlace::NotPaired {
                name: device.name.clone(),
                peer: device.peer.unwrap_or(0),
            })
        })
        .collect()
}

impl Device {
    fn end(&self) -> End {
        End {
            index: self.index,
            name: self.name.clone(),
        }
    }
}

const VETH: &str = "veth";

/// The devices of this thread's namespace that have the numbers of these devices' peers, without addresses. A node has
/// as many devices as pods, so it is not asked for all of them.
fn peers(devices: &[Device]) -> io::Result<Vec<Device>> {
    let mut netlink = Netlink::open()?;
    let mut found = Vec::new();
    for peer in devices.iter().filter_map(|device| device.peer) {
        match netlink.ask(RouteNetlinkMessage::GetLink(without_counts(peer))) {
            Ok(RouteNetlinkMessage::NewLink(message)) => found.push(device(&message)),
            Ok(_) => {}
            // The number means nothing here.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Asks for a device, or for all with 0. Without the counts of packets, which are most of what the kernel would have to
/// gather for it (`RTEXT_FILTER_SKIP_STATS`, include/uapi/linux/rtnetlink.h).
fn without_counts(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    message
}

/// All devices of this thread's namespace but `lo`.
fn devices() -> io::Result<Vec<Device>> {
    let mut netlink = Netlink::open()?;
    let mut found = BTreeMap::new();
    for message in netlink.dump(RouteNetlinkMessage::GetLink(without_counts(0)))? {
        if let RouteNetlinkMessage::NewLink(message) = message
            && message.header.index != LOOPBACK_IFINDEX
        {
            found.insert(message.header.index, device(&message));
        }
    }
    for message in netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && let Some(device) = found.get_mut(&message.header.index)
        {
            device.addresses.extend(own_address(&message));
        }
    }
    Ok(found.into_values().collect())
}

fn device(message: &LinkMessage) -> Device {
    let mut device = Device {
        index: message.header.index,
        ..Device::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Link(peer) => device.peer = Some(*peer),
            LinkAttribute::LinkNetNsId(id) => device.peer_namespace = Some(*id),
            LinkAttribute::LinkInfo(info) => {
                device.kind = info.iter().find_map(kind).unwrap_or_default();
            }
            _ => {}
        }
    }
    device
}

fn kind(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(InfoKind::Veth) => Some(VETH.to_owned()),
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

/// `Local` is the interface's own address where the two differ (point-to-point).
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let find =
        |pick: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(pick);
    let local = find(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        find(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

/// The number by which this thread's namespace knows another one; none if it does not.
fn namespace_id(netns: &Netns) -> io::Result<Option<i32>> {
    let fd = u32::try_from(netns.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    let mut message = NsidMessage::default();
    message.attributes = vec![NsidAttribute::Fd(fd)];
    let answer = Netlink::open()?.ask(RouteNetlinkMessage::GetNsId(message))?;
    let RouteNetlinkMessage::NewNsId(answer) = answer else {
        return Ok(None);
    };
    Ok(answer
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            // -1: none is assigned.
            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
            _ => None,
        }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, kind: &str, peer: u32, namespace: i32, addresses: &[&str]) -> Device {
        Device {
            index,
            name: format!("if{index}"),
            kind: kind.to_owned(),
            peer: (peer != 0).then_some(peer),
            peer_namespace: (namespace >= 0).then_some(namespace),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    fn names(found: Result<Vec<Pair>, NoPlace>) -> Result<Vec<(u32, u32)>, NoPlace> {
        found.map(|pairs| pairs.iter().map(|p| (p.pod.index, p.node.index)).collect())
    }

    /// The node: its uplink, the pod's veth, a neighbour's, and one whose numbers are right by chance.
    fn node() -> Vec<Device> {
        vec![
            device(2, "", 0, -1, &["192.168.0.1"]),
            device(7, "veth", 2, 4, &[]),
            device(8, "veth", 2, 5, &[]),
            device(9, "veth", 3, 5, &[]),
        ]
    }

    #[test]
    fn the_guard_sits_on_the_other_end_of_the_pods_own_veth_only() {
        let given: Vec<IpAddr> = vec!["10.0.1.1".parse().unwrap()];
        let check = |inside: &[Device]| names(paired(inside, &given, &node(), Some(4)));
        assert_eq!(
            check(&[device(2, "veth", 7, 0, &["10.0.1.1"])]),
            Ok(vec![(2, 7)])
        );
        // Other interfaces are not asked about: a bridge of containers inside, their veths, a second network.
        let inside = [
            device(2, "veth", 7, 0, &["10.0.1.1"]),
            device(3, "bridge", 0, -1, &["172.17.0.1"]),
            device(4, "veth", 2, 1, &[]),
            device(5, "macvlan", 2, 0, &["192.168.9.9"]),
        ];
        assert_eq!(check(&inside), Ok(vec![(2, 7)]));
        let not_veth = |kind: &str| {
            Err(NoPlace::NotVeth {
                name: "if2".to_owned(),
                kind: kind.to_owned(),
            })
        };
        for kind in ["macvlan", "ipvlan", "vlan", "dummy", ""] {
            let inside = [device(2, kind, 2, 0, &["10.0.1.1"])];
            assert_eq!(check(&inside), not_veth(kind));
        }
        for (index, peer, namespace) in [
            // The node's uplink; a neighbour's veth; nothing; a peer in the pod itself.
            (2, 2, 0),
            (2, 8, 0),
            (3, 9, 0),
            (2, 77, 0),
            (2, 7, -1),
        ] {
            let inside = [device(index, "veth", peer, namespace, &["10.0.1.1"])];
            let name = format!("if{index}");
            assert_eq!(check(&inside), Err(NoPlace::NotPaired { name, peer }));
        }
        let elsewhere = [device(2, "veth", 7, 0, &["10.0.1.9"])];
        assert_eq!(check(&elsewhere), Err(NoPlace::NoInterface(given[0])));
        let here = [device(2, "veth", 7, 0, &["10.0.1.1"])];
        let unknown = names(paired(&here, &given, &node(), None));
        assert!(unknown.is_err(), "{unknown:?}");
    }

    #[test]
    fn where_addresses_are_not_known_all_veths_to_the_node_are_guarded() {
        let inside = [
            device(2, "veth", 7, 0, &[]),
            device(4, "veth", 2, 1, &[]),
            device(5, "macvlan", 2, 0, &[]),
        ];
        assert_eq!(
            names(paired(&inside, &[], &node(), Some(4))),
            Ok(vec![(2, 7)])
        );
        let none = paired(&inside[1..], &[], &node(), Some(4));
        assert_eq!(none, Err(NoPlace::NoVeth));
    }
}
