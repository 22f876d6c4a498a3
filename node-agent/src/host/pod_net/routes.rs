//! Our routes, alone in their table: they deliver everything on `lo`. The one of `lo` is for what is bound to no
//! interface; each other interface has one for what is bound to it, which the kernel delivers as if it had come by
//! that interface.

use std::{io, net::IpAddr};

use abi::LOOPBACK_IFINDEX;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::LinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType},
};

use super::{PROTOCOL, TABLE};
use crate::host::netlink::Netlink;

/// Metric of the routes of other interfaces than `lo`: above that of the route of `lo` in both families.
const INTERFACE_METRIC: u32 = 2048;

/// Makes our routes the only ones of their table; says whether they were not. A narrower one, or one that is preferred,
/// would lead marked packets around the agent.
pub(super) fn be_alone(
    netlink: &mut Netlink,
    family: AddressFamily,
    source: Option<IpAddr>,
) -> io::Result<bool> {
    let interfaces = interfaces(netlink)?;
    let found = list(netlink, family)?;
    let is_ours = |route: &RouteMessage| {
        is_of(route, LOOPBACK_IFINDEX) || interfaces.iter().any(|index| is_of(route, *index))
    };
    let (ours, others): (Vec<_>, Vec<_>) = found.into_iter().partition(is_ours);
    let has = |index: u32| ours.iter().any(|route| is_of(route, index));
    if !has(LOOPBACK_IFINDEX) {
        let route = route(family, source, LOOPBACK_IFINDEX);
        netlink.create(RouteNetlinkMessage::NewRoute(route))?;
    }
    for interface in interfaces.iter().filter(|index| !has(**index)) {
        let route = route(family, source, *interface);
        // One that is down, or has not this family, has nothing to deliver; what is bound to it goes nowhere.
        if let Err(error) = netlink.create(RouteNetlinkMessage::NewRoute(route)) {
            tracing::debug!(interface, ?family, %error, "no route for what is bound to the interface");
        }
    }
    for other in &others {
        netlink.delete(RouteNetlinkMessage::DelRoute(named(other)))?;
    }
    Ok(!has(LOOPBACK_IFINDEX) || !others.is_empty())
}

/// Empties the table.
pub(super) fn remove(netlink: &mut Netlink, family: AddressFamily) -> io::Result<()> {
    for route in list(netlink, family)? {
        netlink.delete(RouteNetlinkMessage::DelRoute(named(&route)))?;
    }
    Ok(())
}

/// The routes of our table.
fn list(netlink: &mut Netlink, family: AddressFamily) -> io::Result<Vec<RouteMessage>> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let found = netlink.dump(RouteNetlinkMessage::GetRoute(request))?;
    Ok(found
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        })
        .filter(|route| route.attributes.contains(&RouteAttribute::Table(TABLE)))
        .collect())
}

/// Interfaces of the namespace but `lo`.
fn interfaces(netlink: &mut Netlink) -> io::Result<Vec<u32>> {
    let all = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let indices = all.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
        _ => None,
    });
    Ok(indices.filter(|index| *index != LOOPBACK_IFINDEX).collect())
}

/// Whether it is our route of that interface.
fn is_of(route: &RouteMessage, interface: u32) -> bool {
    let foreign = route.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::MultiPath(_) | RouteAttribute::Via(_)
        )
    });
    !foreign
        && route.header.kind == RouteType::Local
        && route.header.destination_prefix_length == 0
        && route.header.source_prefix_length == 0
        && route.header.tos == 0
        && route.header.protocol == PROTOCOL
        && route.attributes.contains(&RouteAttribute::Oif(interface))
        && (interface == LOOPBACK_IFINDEX
            || route
                .attributes
                .contains(&RouteAttribute::Priority(INTERFACE_METRIC + interface)))
}

/// The route as a request to delete names it.
fn named(route: &RouteMessage) -> RouteMessage {
    let mut named = route.clone();
    named.attributes.retain(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Table(_)
                | RouteAttribute::Destination(_)
                | RouteAttribute::Source(_)
                | RouteAttribute::Priority(_)
                | RouteAttribute::Oif(_)
                | RouteAttribute::Gateway(_)
        )
    });
    named
}

fn route(family: AddressFamily, source: Option<IpAddr>, interface: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family,
        table: RouteHeader::RT_TABLE_UNSPEC,
        protocol: PROTOCOL,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Table(TABLE), RouteAttribute::Oif(interface)];
    if interface != LOOPBACK_IFINDEX {
        let metric = RouteAttribute::Priority(INTERFACE_METRIC + interface);
        message.attributes.push(metric);
    }
    // Without a preferred source the kernel would use the destination as source on a local route.
    message
        .attributes
        .extend(source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    message
}
