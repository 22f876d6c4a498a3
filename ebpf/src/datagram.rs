//! Whether a datagram reaches a pod that requires a waypoint.
//!
//! A waypoint carries TCP, so that whatever comes by UDP would pass it by (QUIC, which is HTTP over UDP, for one). What
//! the pod itself has asked for comes in: the kernel hands answers to connected sockets without asking here, and the
//! guard notes what leaves the pod for those that are not connected.

use abi::Addr;

use crate::inbound::Connection;

/// What the decision may ask. Each answer costs a map lookup, so it is asked for only when needed.
pub trait Facts {
    /// Whether the address is one of the pod's own.
    fn own_address(&self, addr: &Addr) -> bool;
    /// Whether the pod has sent something from there to this peer a while ago.
    fn asked(&self) -> bool;
}

/// Decides one datagram to a pod that is reached by a waypoint only.
#[inline(always)]
pub fn passes(datagram: &Connection, facts: &impl Facts) -> bool {
    datagram.on_loopback || facts.own_address(&datagram.remote) || facts.asked()
}

#[cfg(test)]
mod tests {
    use super::{Facts, passes};
    use crate::inbound::Connection;
    use abi::Addr;
    use core::net::IpAddr;

    struct Pod {
        asked: bool,
    }

    impl Facts for Pod {
        fn own_address(&self, addr: &Addr) -> bool {
            ["10.244.1.10", "fd00::a"]
                .iter()
                .any(|own| *addr == Addr::from(own.parse::<IpAddr>().unwrap()))
        }
        fn asked(&self) -> bool {
            self.asked
        }
    }

    #[test]
    fn what_was_not_asked_for_stays_out() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        for (remote, local, on_loopback, asked, expected) in [
            ("10.244.2.7", "10.244.1.10", false, false, false),
            ("fd00::7", "fd00::a", false, false, false),
            ("10.0.0.1", "10.244.1.10", false, false, false),
            ("10.96.0.10", "10.244.1.10", false, true, true),
            ("fd00::10", "fd00::a", false, true, true),
            // Of the pod itself.
            ("127.0.0.1", "127.0.0.53", true, false, true),
            ("10.244.1.10", "10.244.1.10", false, false, true),
            ("fd00::a", "fd00::a", true, false, true),
        ] {
            let datagram = Connection {
                local: addr(local),
                local_port: 443,
                remote: addr(remote),
                on_loopback,
            };
            let case = (remote, local, on_loopback, asked);
            assert_eq!(passes(&datagram, &Pod { asked }), expected, "{case:?}");
        }
    }
}
