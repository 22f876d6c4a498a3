//! Our routing rule, and its place: the first of all. Behind it comes the backstop: what is marked and finds no
//! route in our table, because its socket is bound to an interface that has none there, finds none elsewhere.
//!
//! A rule before ours, or a route in a table that is asked before ours, would lead marked packets around the
//! agent. So not even the table of local addresses comes first, which rules of preference 0 usually name:
//! what has that preference and is not ours is moved behind, where it means the same for all other packets.

use std::io;

use abi::{APP_MARK, APP_MARK_MASK};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use super::{PROTOCOL, TABLE};
use crate::host::netlink::Netlink;

/// The lowest there is; of rules with the same one the older comes first.
const OURS: u32 = 0;
/// Of rules that were before ours.
const BEHIND: u32 = 1;
/// `RT_TABLE_LOCAL`.
const LOCAL: u32 = 255;

/// Makes our rule the first, and the backstop the second; says whether they were not.
pub(super) fn be_first(netlink: &mut Netlink, family: AddressFamily) -> io::Result<bool> {
    let led = put(netlink, &ours(family), 0, is_ours)?;
    let stopped = put(netlink, &backstop(family), 1, is_backstop_in_place)?;
    if led || stopped {
        // The backstop was before our rule.
        let moved = |rule: &RuleMessage| is_backstop(rule) && !is_of_preference(rule, OURS);
        for stray in list(netlink, family)?.iter().filter(|rule| moved(rule)) {
            netlink.delete(RouteNetlinkMessage::DelRule(stray.clone()))?;
        }
    }
    Ok(led || stopped)
}

/// Puts one of our rules at its place in the list, and behind it what is there; says whether it was not there.
fn put(
    netlink: &mut Netlink,
    rule: &RuleMessage,
    place: usize,
    is_it: impl Fn(&RuleMessage) -> bool,
) -> io::Result<bool> {
    let family = rule.header.family;
    let rules = list(netlink, family)?;
    if rules.get(place).is_some_and(&is_it) {
        return Ok(false);
    }
    if !rules.iter().any(&is_it) {
        netlink.create(RouteNetlinkMessage::NewRule(rule.clone()))?;
    }
    let rules = list(netlink, family)?;
    let found = rules.iter().position(&is_it);
    let found = found.ok_or_else(|| io::Error::other("it is not among the rules afterwards"))?;
    for rule in rules.iter().take(found).skip(place) {
        // There twice for a moment, so that no packet misses it.
        netlink.create(RouteNetlinkMessage::NewRule(with_preference(rule, BEHIND)))?;
        netlink.delete(RouteNetlinkMessage::DelRule(with_preference(rule, OURS)))?;
    }
    Ok(true)
}

/// Removes our rule, and gives the table of local addresses its place back.
pub(super) fn remove(netlink: &mut Netlink, family: AddressFamily) -> io::Result<()> {
    let rules = list(netlink, family)?;
    let local = rules.iter().find(|rule| is_local(rule, BEHIND));
    if let Some(local) = local {
        netlink.create(RouteNetlinkMessage::NewRule(with_preference(local, OURS)))?;
        netlink.delete(RouteNetlinkMessage::DelRule(with_preference(local, BEHIND)))?;
    }
    let ours = |rule: &&RuleMessage| names_our_table(rule) || is_backstop(rule);
    for rule in rules.iter().filter(ours) {
        netlink.delete(RouteNetlinkMessage::DelRule(rule.clone()))?;
    }
    Ok(())
}

/// The rules of the namespace, in the order in which they are asked.
fn list(netlink: &mut Netlink, family: AddressFamily) -> io::Result<Vec<RuleMessage>> {
    let mut request = RuleMessage::default();
    request.header.family = family;
    let found = netlink.dump(RouteNetlinkMessage::GetRule(request))?;
    Ok(found
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        })
        .collect())
}

fn ours(family: AddressFamily) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(OURS),
        RuleAttribute::FwMark(APP_MARK),
        RuleAttribute::FwMask(APP_MARK_MASK),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    message
}

fn backstop(family: AddressFamily) -> RuleMessage {
    let mut message = ours(family);
    message.header.action = RuleAction::Unreachable;
    let table = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Table(_));
    message.attributes.retain(|attribute| !table(attribute));
    message
}

fn is_backstop(rule: &RuleMessage) -> bool {
    let has = |attribute| rule.attributes.contains(&attribute);
    rule.header.action == RuleAction::Unreachable
        && !rule.header.flags.contains(RuleFlags::Invert)
        && rule.header.src_len == 0
        && rule.header.dst_len == 0
        && has(RuleAttribute::FwMark(APP_MARK))
        && has(RuleAttribute::FwMask(APP_MARK_MASK))
        && has(RuleAttribute::Protocol(PROTOCOL))
}

fn is_backstop_in_place(rule: &RuleMessage) -> bool {
    is_backstop(rule) && is_of_preference(rule, OURS)
}

/// Whether the rule has the preference. The kernel does not say that of 0.
fn is_of_preference(rule: &RuleMessage, preference: u32) -> bool {
    let said = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Priority(preference) => Some(*preference),
            _ => None,
        });
    said.unwrap_or(0) == preference
}

/// Whether it is our rule to the letter: one with a further condition is another.
fn is_ours(rule: &RuleMessage) -> bool {
    let bare = rule.attributes.iter().all(|attribute| match attribute {
        RuleAttribute::Priority(preference) => *preference == OURS,
        RuleAttribute::FwMark(mark) => *mark == APP_MARK,
        RuleAttribute::FwMask(mask) => *mask == APP_MARK_MASK,
        RuleAttribute::Table(table) => *table == TABLE,
        RuleAttribute::SuppressPrefixLen(length) => *length == u32::MAX,
        RuleAttribute::Protocol(_) => true,
        _ => false,
    });
    let has = |attribute| rule.attributes.contains(&attribute);
    bare && rule.header.action == RuleAction::ToTable
        && rule.header.src_len == 0
        && rule.header.dst_len == 0
        && rule.header.tos == 0
        && !rule.header.flags.contains(RuleFlags::Invert)
        && has(RuleAttribute::FwMark(APP_MARK))
        && has(RuleAttribute::FwMask(APP_MARK_MASK))
        && has(RuleAttribute::Table(TABLE))
}

fn names_our_table(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Table(TABLE))
        && rule.attributes.contains(&RuleAttribute::FwMark(APP_MARK))
}

/// Whether it is the kernel's own rule for the table of local addresses.
fn is_local(rule: &RuleMessage, preference: u32) -> bool {
    let table = rule.attributes.contains(&RuleAttribute::Table(LOCAL));
    let plain = rule.attributes.iter().all(|attribute| {
        matches!(
            attribute,
            RuleAttribute::Priority(_)
                | RuleAttribute::Table(_)
                | RuleAttribute::SuppressPrefixLen(_)
                | RuleAttribute::Protocol(_)
        )
    });
    table && plain && is_of_preference(rule, preference)
}

fn with_preference(rule: &RuleMessage, preference: u32) -> RuleMessage {
    let mut rule = rule.clone();
    let other = |attribute: &RuleAttribute| !matches!(attribute, RuleAttribute::Priority(_));
    rule.attributes.retain(other);
    rule.attributes.push(RuleAttribute::Priority(preference));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_preference_0_is_known_as_the_kernel_lists_it() {
        // As it is asked for, and as it is listed: without its preference.
        let asked = backstop(AddressFamily::Inet);
        let mut listed = asked.clone();
        let priority = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Priority(_));
        listed.attributes.retain(|attribute| !priority(attribute));
        for rule in [&asked, &listed] {
            assert!(is_backstop_in_place(rule), "{rule:?}");
        }
        let behind = with_preference(&listed, BEHIND);
        assert!(is_backstop(&behind) && !is_backstop_in_place(&behind));
    }

    #[test]
    fn our_rule_is_known_to_the_letter() {
        let mut listed = ours(AddressFamily::Inet6);
        let priority = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Priority(_));
        listed.attributes.retain(|attribute| !priority(attribute));
        assert!(is_ours(&listed));
        assert!(!is_ours(&with_preference(&listed, BEHIND)));
        assert!(!is_ours(&backstop(AddressFamily::Inet6)));
    }
}
