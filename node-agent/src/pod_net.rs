//! What capture needs in a pod's network namespace besides eBPF: one rule, one route, two settings
//! per address family. No netfilter.
//!
//! Marked packets are delivered on `lo`; `sk_lookup` picks their listener there. All functions run
//! on a thread inside the pod's namespace.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use abi::{APP_MARK, APP_MARK_MASK, LOOPBACK_IFINDEX};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use crate::netlink::Netlink;

/// Routing table of captured traffic in the pod's namespace.
const TABLE: u32 = 15001;
/// Before any rule that a CNI is known to use, after `local` (0).
const RULE_PREFERENCE: u32 = 50;
/// `RTPROT_KEELSON`: marks what is ours in `ip route`/`ip rule` listings.
const PROTOCOL: u8 = 151;

/// Settings of the namespace: path below `/proc/sys/net`, value.
const SETTINGS: [(&str, &str); 3] = [
    // Answers of an accepted socket go where the connection came from: back over `lo`.
    ("ipv4/tcp_fwmark_accept", "1"),
    // So do resets, without which a closed port of the application would hang the agent's leg.
    ("ipv4/fwmark_reflect", "1"),
    ("ipv6/fwmark_reflect", "1"),
];

/// Routes marked connections to `lo`. Live connections are not touched: they carry no mark.
///
/// # Errors
/// Which step the kernel refused. IPv6 is left out where the namespace has none.
pub fn set_up(addresses: &[IpAddr]) -> io::Result<()> {
    let ipv6 = has_ipv6();
    for (setting, value) in SETTINGS {
        if ipv6 || !setting.starts_with("ipv6") {
            write_setting(setting, value)?;
        }
    }
    let mut netlink = Netlink::open()?;
    for family in families(ipv6) {
        let source = addresses
            .iter()
            .copied()
            .find(|ip| ip.is_ipv4() == (family == AddressFamily::Inet));
        netlink
            .create(route(family, source))
            .map_err(|e| step("add the local route for", family, e))?;
        netlink
            .create(rule(family))
            .map_err(|e| step("add the routing rule for", family, e))?;
    }
    Ok(())
}

/// Undoes [`set_up`]; connections that are captured at this moment break. The settings stay as they
/// are: without a marked packet they mean nothing.
///
/// # Errors
/// Which step the kernel refused.
pub fn tear_down() -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    for family in families(has_ipv6()) {
        let mut rule = rule(family);
        if let RouteNetlinkMessage::NewRule(message) = rule {
            rule = RouteNetlinkMessage::DelRule(message);
        }
        netlink
            .delete(rule)
            .map_err(|e| step("delete the routing rule for", family, e))?;
        let mut route = route(family, None);
        if let RouteNetlinkMessage::NewRoute(message) = route {
            route = RouteNetlinkMessage::DelRoute(message);
        }
        netlink
            .delete(route)
            .map_err(|e| step("delete the local route for", family, e))?;
    }
    Ok(())
}

/// Addresses of all interfaces but `lo`, without IPv6 link-local ones.
///
/// # Errors
/// When the kernel refuses the request.
pub fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut found = BTreeSet::new();
    for message in Netlink::open()?.dump(request)? {
        let RouteNetlinkMessage::NewAddress(message) = message else {
            continue;
        };
        if message.header.index == LOOPBACK_IFINDEX {
            continue;
        }
        // `Local` is the interface's own address where the two differ (point-to-point).
        let own = message.attributes.iter().find_map(|a| {
            if let AddressAttribute::Local(ip) = a {
                Some(*ip)
            } else {
                None
            }
        });
        let address = message.attributes.iter().find_map(|a| {
            if let AddressAttribute::Address(ip) = a {
                Some(*ip)
            } else {
                None
            }
        });
        found.extend(own.or(address).filter(|ip| !is_link_local(ip)));
    }
    Ok(found)
}

/// Interface indices, in the parent namespace, of the other ends of this namespace's veth devices.
///
/// # Errors
/// When the kernel refuses the request.
pub fn veth_peers() -> io::Result<Vec<u32>> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut peers = Vec::new();
    for message in Netlink::open()?.dump(request)? {
        let RouteNetlinkMessage::NewLink(message) = message else {
            continue;
        };
        if message.header.index == LOOPBACK_IFINDEX {
            continue;
        }
        peers.extend(message.attributes.iter().find_map(|a| {
            if let LinkAttribute::Link(index) = a {
                Some(*index)
            } else {
                None
            }
        }));
    }
    Ok(peers)
}

/// Whether rule and route are in place for each address family: what is, not what should be.
///
/// # Errors
/// When the kernel refuses a request.
pub fn is_set_up() -> io::Result<bool> {
    let mut netlink = Netlink::open()?;
    for family in families(has_ipv6()) {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        let mut route = RouteMessage::default();
        route.header.address_family = family;
        let found = netlink
            .dump(RouteNetlinkMessage::GetRule(rule))?
            .iter()
            .any(is_our_rule)
            && netlink
                .dump(RouteNetlinkMessage::GetRoute(route))?
                .iter()
                .any(is_our_route);
        if !found {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_our_rule(message: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRule(rule) = message else {
        return false;
    };
    rule.attributes.contains(&RuleAttribute::FwMark(APP_MARK))
        && rule.attributes.contains(&RuleAttribute::Table(TABLE))
}

fn is_our_route(message: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewRoute(route) = message else {
        return false;
    };
    route.header.kind == RouteType::Local
        && route.attributes.contains(&RouteAttribute::Table(TABLE))
}

fn families(ipv6: bool) -> impl Iterator<Item = AddressFamily> {
    [AddressFamily::Inet]
        .into_iter()
        .chain(ipv6.then_some(AddressFamily::Inet6))
}

fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
        && std::fs::read_to_string("/proc/thread-self/net/if_inet6")
            .is_ok_and(|text| !text.is_empty())
}

fn is_link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if Ipv6Addr::is_unicast_link_local(ip))
}

fn rule(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(RULE_PREFERENCE),
        RuleAttribute::FwMark(APP_MARK),
        RuleAttribute::FwMask(APP_MARK_MASK),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    RouteNetlinkMessage::NewRule(message)
}

fn route(family: AddressFamily, source: Option<IpAddr>) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family,
        table: RouteHeader::RT_TABLE_UNSPEC,
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Table(TABLE),
        RouteAttribute::Oif(LOOPBACK_IFINDEX),
    ];
    // Without a preferred source the kernel would use the destination as source on a local route.
    message
        .attributes
        .extend(source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    RouteNetlinkMessage::NewRoute(message)
}

fn write_setting(setting: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net").join(setting);
    std::fs::write(&path, value).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("cannot set {} = {value}: {e}", path.display()),
        )
    })
}

fn step(what: &str, family: AddressFamily, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {family:?}: {error}"))
}
