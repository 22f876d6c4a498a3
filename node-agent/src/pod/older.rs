//! Which connections of a pod are older than its capture: nobody was asked about them.
//!
//! What is opened after capture carries a mark, is listed as a direct connection, or stays inside the pod;
//! what the agent itself opens or accepts carries a mark as well. Before others hear of the pod's capture
//! there are no direct connections of it, so every unmarked connection to somebody else is older. Later that is
//! not so: what the pod opens to destinations that are not carried has no mark either.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    ops::RangeInclusive,
};

use abi::{Addr, Flow};

use crate::{
    host::{
        pod_net,
        sock_diag::{self, Ender, Found, TCP_SYN_RECV, TCP_SYN_SENT},
    },
    telemetry::record::Direction,
};

/// A connection that is older than its pod's capture.
#[derive(Clone, Debug)]
pub struct Older {
    /// The pod's socket.
    pub found: Found,
    /// [`Direction::Outbound`] if the pod opened it, else [`Direction::Inbound`].
    pub direction: Direction,
}

impl Older {
    /// The connection as the pod sees it: its own end is the source.
    #[must_use]
    pub fn flow(&self) -> Flow {
        flow(&self.found)
    }
}

/// A connection as the socket's owner sees it.
#[must_use]
pub fn flow(found: &Found) -> Flow {
    Flow {
        source: Addr::from(found.local.ip()),
        destination: Addr::from(found.remote.ip()),
        source_port: found.local.port(),
        destination_port: found.remote.port(),
    }
}

/// Ends a connection that [`list`] has given: its application sees an error, its peer a reset. Says whether it
/// was there still.
///
/// # Errors
/// When the kernel refuses the request.
pub fn end(ender: &mut Ender, found: &Found) -> io::Result<bool> {
    // What a peer was opening may be another socket of the kernel's by now.
    if found.state == TCP_SYN_RECV {
        return ender.destroy_named(&Found::named(found.local, found.remote));
    }
    ender.destroy(found)
}

/// The older connections of this thread's namespace, which was given the addresses `own`.
///
/// # Errors
/// When the kernel refuses a request.
pub fn list(own: &[IpAddr]) -> io::Result<Vec<Older>> {
    let mut inside = pod_net::addresses()?;
    inside.extend(own);
    let listening = sock_diag::listening_ports()?;
    let ephemeral = ephemeral_ports();
    let found = sock_diag::connecting_and_connected()?.into_iter();
    let older = found.filter(|found| is_older(found, &inside));
    Ok(older
        .map(|found| Older {
            direction: direction(&found, &listening, &ephemeral),
            found,
        })
        .collect())
}

fn is_older(found: &Found, own: &BTreeSet<IpAddr>) -> bool {
    let remote = found.remote.ip();
    let inside = remote.is_loopback() || remote == found.local.ip() || own.contains(&remote);
    !inside && !abi::is_decided(found.mark)
}

/// Who opened it. The kernel does not say; whoever has a port that somebody listens on, or that the kernel
/// does not choose by itself, was called. In doubt it is inbound, which policy is asked about.
fn direction(
    found: &Found,
    listening: &BTreeMap<(u16, u16), i32>,
    ephemeral: &RangeInclusive<u16>,
) -> Direction {
    let port = found.local.port();
    let family = if found.local.is_ipv4() { 4 } else { 6 };
    match found.state {
        TCP_SYN_SENT => Direction::Outbound,
        TCP_SYN_RECV => Direction::Inbound,
        _ if listening.contains_key(&(port, family)) => Direction::Inbound,
        _ if ephemeral.contains(&port) => Direction::Outbound,
        _ => Direction::Inbound,
    }
}

/// The ports that this thread's namespace chooses from by itself; the kernel's default where they cannot be
/// read.
fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let mut numbers = text.iter().flat_map(|text| text.split_whitespace());
    let mut next = || numbers.next()?.parse().ok();
    match (next(), next()) {
        (Some(first), Some(last)) => first..=last,
        _ => 32_768..=60_999,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(local: &str, remote: &str, state: u8, mark: u32) -> Found {
        let mut found = Found::named(local.parse().unwrap(), remote.parse().unwrap());
        (found.state, found.mark) = (state, mark);
        found
    }

    #[test]
    fn what_carries_no_mark_and_leaves_the_pod_is_older() {
        let own: BTreeSet<IpAddr> = ["10.244.1.10", "fd00::a", "fd00::b"]
            .map(|ip| ip.parse().unwrap())
            .into();
        for (local, remote, mark, expected) in [
            ("10.244.1.10:8080", "10.244.2.7:40000", 0, true),
            ("10.244.1.10:40000", "10.244.2.7:80", 7, true),
            ("[fd00::a]:40000", "[fd00::7]:80", 0, true),
            ("10.244.1.10:40000", "10.96.0.7:80", abi::APP_MARK, false),
            (
                "10.244.1.10:40000",
                "10.96.0.7:80",
                abi::APP_MARK | abi::DRAWN,
                false,
            ),
            (
                "10.244.1.10:8080",
                "10.244.2.7:40000",
                abi::AGENT_MARK,
                false,
            ),
            ("127.0.0.1:40000", "127.0.0.1:80", 0, false),
            ("[::1]:40000", "[::1]:80", 0, false),
            ("10.244.1.10:40000", "10.244.1.10:80", 0, false),
            ("[fd00::a]:40000", "[fd00::b]:80", 0, false),
        ] {
            let found = socket(local, remote, 1, mark);
            assert_eq!(is_older(&found, &own), expected, "{local} {remote} {mark}");
        }
    }

    #[test]
    fn who_opened_a_connection_is_told_by_its_port() {
        let listening = BTreeMap::from([((8080, 4), 1), ((40001, 4), 1)]);
        let ephemeral = 32_768..=60_999;
        use Direction::{Inbound, Outbound};
        for (local, state, expected) in [
            ("10.244.1.10:40000", 1, Outbound),
            ("10.244.1.10:8080", 1, Inbound),
            // A server on a port that the kernel might choose.
            ("10.244.1.10:40001", 1, Inbound),
            ("[fd00::a]:40001", 1, Outbound),
            // A server that has stopped listening, or a client that has bound its port.
            ("10.244.1.10:9090", 1, Inbound),
            ("10.244.1.10:8080", TCP_SYN_SENT, Outbound),
            ("10.244.1.10:40000", TCP_SYN_RECV, Inbound),
        ] {
            let found = socket(local, "10.244.2.7:1234", state, 0);
            let said = direction(&found, &listening, &ephemeral);
            assert_eq!(said, expected, "{local} {state}");
        }
    }
}
