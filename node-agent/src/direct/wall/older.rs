//! Which connections of a pod leave it in plain: those that no agent carries inside of it.
//!
//! A connection that the agent takes over has both its ends in the pod's namespace: the application's and
//! the agent's. One that leaves the pod has one end there. What the application does to its socket does
//! not change that. One whose other end is gone already is told by its mark.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;

use abi::{APP_MARK, APP_MARK_MASK, Flow, HBONE_PORT};

use crate::{host::sock_diag::Found, pod::older::flow};

/// The plain connections among the sockets of a namespace, that end as source.
pub(super) fn plain(sockets: &[Found]) -> BTreeSet<Flow> {
    let ends: HashSet<(SocketAddr, SocketAddr)> = sockets
        .iter()
        .map(|socket| (socket.local, socket.remote))
        .collect();
    let leaves = |socket: &&Found| {
        !ends.contains(&(socket.remote, socket.local))
            && socket.mark & APP_MARK_MASK != APP_MARK
            && socket.local.port() != HBONE_PORT
            && socket.remote.port() != HBONE_PORT
    };
    sockets.iter().filter(leaves).map(flow).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_the_agent_carries_is_no_older_connection() {
        let found = |(own, peer): &(&str, &str)| Found::named(at(own), at(peer));
        let sockets: Vec<Found> = [
            // The application's socket and the agent's that took it.
            ("10.0.1.1:40000", "10.0.2.2:80"),
            ("10.0.2.2:80", "10.0.1.1:40000"),
            // A tunnel, each way.
            ("10.0.1.1:41000", "10.0.2.2:15008"),
            ("10.0.1.1:15008", "10.0.2.2:42000"),
            // Older than the wall, each way.
            ("10.0.1.1:43000", "10.0.2.2:80"),
            ("[fd00::1]:8080", "[fd00::2]:44000"),
        ]
        .iter()
        .map(found)
        .collect();
        let mut sockets = sockets;
        let mut half = Found::named(at("10.0.1.1:45000"), at("10.0.2.2:80"));
        half.mark = APP_MARK | abi::DRAWN;
        sockets.push(half);
        let expected = [
            flow(&found(&("10.0.1.1:43000", "10.0.2.2:80"))),
            flow(&found(&("[fd00::1]:8080", "[fd00::2]:44000"))),
        ];
        assert_eq!(plain(&sockets), BTreeSet::from(expected));
    }
}
