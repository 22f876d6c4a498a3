//! What capture needs in a pod's network namespace besides eBPF: two rules, a route for each interface, two
//! settings per address family. No netfilter.
//!
//! Marked packets are delivered on `lo`, whatever interface their socket is bound to, or not at all;
//! `sk_lookup` picks their listener there. All functions run on a thread inside the pod's namespace.

mod routes;
mod rules;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use abi::LOOPBACK_IFINDEX;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
    route::RouteProtocol,
};

use crate::host::netlink::Netlink;

/// Routing table of captured traffic in the pod's namespace.
const TABLE: u32 = 15001;
/// `RTPROT_KEELSON`: marks what is ours in `ip route`/`ip rule` listings.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(151);

/// Settings of the namespace: path below `/proc/sys/net`, value.
const SETTINGS: [(&str, &str); 3] = [
    // Answers of an accepted socket go where the connection came from: back over `lo`.
    ("ipv4/tcp_fwmark_accept", "1"),
    // So do resets, without which a closed port of the application would hang the agent's leg.
    ("ipv4/fwmark_reflect", "1"),
    ("ipv6/fwmark_reflect", "1"),
];

/// Says where settings are written, if not in `/proc/sys/net`: another mount of the same. The first call counts.
pub fn write_settings_in(directory: PathBuf) {
    // A second one would be of the same agent.
    SETTINGS_IN.get_or_init(|| directory);
}

static SETTINGS_IN: OnceLock<PathBuf> = OnceLock::new();

/// What capture needs of a namespace, and somebody in there may change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// Our rule is there, and no other comes before it.
    Rule,
    /// Our route is there, alone in its table.
    Route,
    /// The settings have our values.
    Setting,
}

/// Routes marked connections to `lo`, whatever was there before; says what was not as it has to be. Live
/// connections are not touched: they carry no mark.
///
/// # Errors
/// Which step the kernel refused. IPv6 is left out where the namespace has none.
pub fn set_up(addresses: &[IpAddr]) -> io::Result<BTreeSet<Part>> {
    let ipv6 = has_ipv6();
    let mut changed = BTreeSet::new();
    for (setting, value) in SETTINGS {
        if (ipv6 || !setting.starts_with("ipv6")) && write_setting(setting, value)? {
            changed.insert(Part::Setting);
        }
    }
    let mut netlink = Netlink::open()?;
    for family in families(ipv6) {
        let source = addresses
            .iter()
            .copied()
            .find(|ip| ip.is_ipv4() == (family == AddressFamily::Inet));
        // The route first: a rule without it leads on to the pod's own routes.
        let routed = routes::be_alone(&mut netlink, family, source)
            .map_err(|e| step("set the local route for", family, e))?;
        let ruled = rules::be_first(&mut netlink, family)
            .map_err(|e| step("set the routing rule for", family, e))?;
        changed.extend(routed.then_some(Part::Route));
        changed.extend(ruled.then_some(Part::Rule));
    }
    Ok(changed)
}

/// Undoes [`set_up`]; connections that are captured at this moment break. The settings stay as they
/// are: without a marked packet they mean nothing.
///
/// # Errors
/// Which step the kernel refused.
pub fn tear_down() -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    for family in families(has_ipv6()) {
        rules::remove(&mut netlink, family)
            .map_err(|e| step("delete the routing rule for", family, e))?;
        routes::remove(&mut netlink, family)
            .map_err(|e| step("delete the local route for", family, e))?;
    }
    Ok(())
}

/// Addresses of all interfaces but `lo`, without IPv6 link-local ones.
///
/// # Errors
/// When the kernel refuses the request.
pub fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let mut all = all_addresses()?;
    all.retain(|ip| !is_link_local(ip));
    Ok(all)
}

/// IPv6 link-local addresses of all interfaces but `lo`.
///
/// # Errors
/// When the kernel refuses the request.
pub fn link_local_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let mut all = all_addresses()?;
    all.retain(is_link_local);
    Ok(all)
}

fn all_addresses() -> io::Result<BTreeSet<IpAddr>> {
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
        found.extend(own.or(address));
    }
    Ok(found)
}

/// Names of the interfaces that have one of these addresses.
///
/// # Errors
/// When the kernel refuses the request.
pub fn interfaces_with(addresses: &[IpAddr]) -> io::Result<Vec<String>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut indices = BTreeSet::new();
    for message in Netlink::open()?.dump(request)? {
        let RouteNetlinkMessage::NewAddress(message) = message else {
            continue;
        };
        let has = message.attributes.iter().any(|attribute| match attribute {
            AddressAttribute::Local(ip) | AddressAttribute::Address(ip) => addresses.contains(ip),
            _ => false,
        });
        if has && message.header.index != LOOPBACK_IFINDEX {
            indices.insert(message.header.index);
        }
    }
    let name = |index: &u32| {
        let name = nix::net::if_::if_indextoname(*index)?;
        name.into_string().map_err(io::Error::other)
    };
    indices.iter().map(name).collect()
}

/// Whether an interface of this namespace is one end of a pair whose other end is in the namespace `node`:
/// nobody without rights there can make one.
///
/// # Errors
/// When the kernel refuses the request.
pub fn leads_to(node: BorrowedFd<'_>) -> io::Result<bool> {
    let mut netlink = Netlink::open()?;
    let mut question = NsidMessage::default();
    question.attributes = vec![NsidAttribute::Fd(node.as_raw_fd().cast_unsigned())];
    let RouteNetlinkMessage::NewNsId(answer) =
        netlink.ask(RouteNetlinkMessage::GetNsId(question))?
    else {
        return Ok(false);
    };
    // Negative where this namespace has no number for the other one.
    let numbers = answer
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
            _ => None,
        });
    let numbers: Vec<i32> = numbers.collect();
    let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(links.iter().any(|message| {
        let RouteNetlinkMessage::NewLink(link) = message else {
            return false;
        };
        link.attributes.iter().any(
            |attribute| matches!(attribute, LinkAttribute::LinkNetNsId(id) if numbers.contains(id)),
        )
    }))
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

/// Says whether it was another value.
fn write_setting(setting: &str, value: &str) -> io::Result<bool> {
    let usual = Path::new("/proc/sys/net");
    let path = SETTINGS_IN.get().map_or(usual, |path| path).join(setting);
    let fail = |e: io::Error| {
        io::Error::new(
            e.kind(),
            format!("cannot set {} = {value}: {e}", path.display()),
        )
    };
    let before = std::fs::read_to_string(&path).map_err(fail)?;
    if before.trim() == value {
        return Ok(false);
    }
    std::fs::write(&path, value).map_err(fail)?;
    Ok(true)
}

fn step(what: &str, family: AddressFamily, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {family:?}: {error}"))
}
