//! Whether a connection that would be captured talks directly to a captured pod of this node.
//!
//! "Directly" means socket to socket in this kernel, under the same policy: a plain yes of the
//! compiled verdicts lets it, a plain no refuses it, anything else leaves it to the agent.
//!
//! A service with a waypoint on this node has the waypoint's ports as its endpoints. Nobody gets there in another way,
//! because the waypoint takes the port for what the client dialled.

use abi::{Addr, DirectVerdict, Endpoint, Target, is_waypoint_port};

/// What the decision may ask. Each answer costs a map lookup, so it is asked for only when needed.
pub trait Facts {
    /// The endpoint drawn for a service port with an endpoint on this node.
    fn draw(&self, dialled: &Endpoint) -> Option<Target>;
    /// The captured pod of this node that has the address.
    fn local_pod(&self, addr: &Addr) -> Option<u32>;
    /// What policy says of a connection to that pod's port.
    fn verdict(&self, destination: u32, port: u16) -> DirectVerdict;
    /// Whether the waypoint listens there and takes direct connections of the pod.
    fn led(&self, waypoint: &Target) -> DirectVerdict;
}

/// Which way the connection takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// Directly to a pod of this node.
    Direct(Target),
    /// Back to the pod itself, which its own service can lead to.
    ToSelf(Endpoint),
    /// Through the agent. `drawn`: an endpoint was drawn that no direct path leads to.
    Agent {
        /// Whether the agent has to draw among those endpoints only.
        drawn: bool,
    },
    /// Refused.
    Deny(Target),
}

/// Chooses the path of a connection of the pod `own` to what it dialled.
#[inline(always)]
pub fn choose(own: u32, dialled: &Endpoint, facts: &impl Facts) -> Path {
    let target = match facts.draw(dialled) {
        Some(target) if target.pod == 0 => return Path::Agent { drawn: true },
        Some(target) if is_waypoint_port(target.endpoint.port) => {
            // What a waypoint itself dials is for those behind it.
            return if target.pod != own && facts.led(&target) == DirectVerdict::Allow {
                Path::Direct(target)
            } else {
                Path::Agent { drawn: false }
            };
        }
        Some(target) if target.pod == own => return Path::ToSelf(target.endpoint),
        Some(target) => target,
        None if is_waypoint_port(dialled.port) => return Path::Agent { drawn: false },
        None => match facts.local_pod(&dialled.addr) {
            Some(pod) => Target {
                endpoint: *dialled,
                pod,
            },
            None => return Path::Agent { drawn: false },
        },
    };
    match facts.verdict(target.pod, target.endpoint.port) {
        DirectVerdict::Allow => Path::Direct(target),
        DirectVerdict::Deny => Path::Deny(target),
        // The agent draws anew among all: the drawn endpoint is none that it must leave out.
        DirectVerdict::Agent => Path::Agent { drawn: false },
    }
}

/// The application's bytes of TCP's own counts, which include the sequence numbers of SYN and FIN.
///
/// `state` is the one that the socket was closed from (include/net/tcp_states.h): it tells which
/// FINs had been exchanged.
#[inline(always)]
#[must_use]
pub const fn payload(acked: u64, received: u64, state: u32) -> (u64, u64) {
    const FIN_WAIT2: u32 = 5;
    const TIME_WAIT: u32 = 6;
    const CLOSE_WAIT: u32 = 8;
    const LAST_ACK: u32 = 9;
    const CLOSING: u32 = 11;
    let both = matches!(state, FIN_WAIT2 | TIME_WAIT | LAST_ACK | CLOSING);
    let theirs = both || state == CLOSE_WAIT;
    (
        acked.saturating_sub(1 + both as u64),
        received.saturating_sub(theirs as u64),
    )
}

/// The name of cubic as `TCP_CONGESTION` takes it.
pub const CUBIC: [u8; 8] = *b"cubic\0\0\0";

/// Whether a socket of a local path is to be changed to cubic: it has its namespace's default, which is
/// another. What its application chose stays, and setting what is set already costs more than asking.
#[inline(always)]
#[must_use]
pub const fn must_become_cubic(current: [u8; 8], default: [u8; 8]) -> bool {
    let current = u64::from_ne_bytes(current);
    current == u64::from_ne_bytes(default) && current != u64::from_ne_bytes(CUBIC)
}

/// The side of an alias column that a random word picks: see [`abi::Slot`].
#[inline(always)]
#[must_use]
pub const fn is_below(threshold: u32, random: u32) -> bool {
    random < threshold
}

#[cfg(test)]
mod tests {
    use super::{CUBIC, Facts, Path, choose, must_become_cubic, payload};
    use abi::{Addr, DirectVerdict, Endpoint, Target};
    use core::net::IpAddr;

    struct Node {
        drawn: Option<Target>,
        local: Option<u32>,
        verdict: DirectVerdict,
        led: DirectVerdict,
    }

    impl Facts for Node {
        fn draw(&self, _: &Endpoint) -> Option<Target> {
            self.drawn
        }
        fn local_pod(&self, _: &Addr) -> Option<u32> {
            self.local
        }
        fn verdict(&self, destination: u32, port: u16) -> DirectVerdict {
            assert!(
                destination != 0 && destination != 1,
                "never asked about itself or nobody"
            );
            assert_eq!(
                port,
                if self.drawn.is_some() { 8080 } else { 80 },
                "the endpoint's port decides"
            );
            self.verdict
        }
        fn led(&self, waypoint: &Target) -> DirectVerdict {
            assert_ne!(waypoint.pod, 1, "never asked about itself");
            self.led
        }
    }

    fn endpoint(ip: &str, port: u16) -> Endpoint {
        Endpoint::new(Addr::from(ip.parse::<IpAddr>().unwrap()), port)
    }

    fn target(pod: u32) -> Target {
        Target {
            endpoint: endpoint("10.244.1.20", 8080),
            pod,
        }
    }

    #[test]
    fn only_a_plain_yes_goes_directly() {
        use DirectVerdict::{Agent, Allow, Deny};
        let dialled = endpoint("10.96.0.7", 80);
        let direct = Target {
            endpoint: dialled,
            pod: 2,
        };
        for (drawn, local, verdict, expected) in [
            (Some(target(2)), None, Allow, Path::Direct(target(2))),
            (Some(target(2)), None, Deny, Path::Deny(target(2))),
            (Some(target(2)), None, Agent, Path::Agent { drawn: false }),
            (Some(target(0)), None, Allow, Path::Agent { drawn: true }),
            (
                Some(target(1)),
                None,
                Deny,
                Path::ToSelf(target(1).endpoint),
            ),
            (None, Some(2), Allow, Path::Direct(direct)),
            (None, Some(2), Deny, Path::Deny(direct)),
            (None, Some(2), Agent, Path::Agent { drawn: false }),
            (None, None, Allow, Path::Agent { drawn: false }),
        ] {
            let node = Node {
                drawn,
                local,
                verdict,
                led: Deny,
            };
            assert_eq!(
                choose(1, &dialled, &node),
                expected,
                "{drawn:?} {local:?} {verdict:?}"
            );
        }
    }

    #[test]
    fn the_ports_of_a_waypoint_are_for_those_who_are_led_there() {
        use DirectVerdict::{Agent, Allow, Deny};
        let carried = Path::Agent { drawn: false };
        for port in [61_440, 65_535] {
            let waypoint = |pod| Target {
                endpoint: endpoint("10.244.1.30", port),
                pod,
            };
            let service = endpoint("10.96.0.7", 80);
            for (drawn, led, expected) in [
                (waypoint(2), Allow, Path::Direct(waypoint(2))),
                (waypoint(2), Agent, carried),
                (waypoint(2), Deny, carried),
                (waypoint(1), Allow, carried),
            ] {
                let node = Node {
                    drawn: Some(drawn),
                    local: None,
                    // What it would be if the port were any other.
                    verdict: Allow,
                    led,
                };
                assert_eq!(choose(1, &service, &node), expected, "{drawn:?} {led:?}");
            }
            let node = Node {
                drawn: None,
                local: Some(2),
                verdict: Allow,
                led: Allow,
            };
            let itself = endpoint("10.244.1.30", port);
            assert_eq!(choose(1, &itself, &node), carried, "dialled by its address");
        }
    }

    #[test]
    fn only_a_default_that_is_not_cubic_becomes_cubic() {
        let [bbr, reno] = [*b"bbr\0\0\0\0\0", *b"reno\0\0\0\0"];
        for (current, default, expected) in [
            (bbr, bbr, true),
            (reno, reno, true),
            (reno, bbr, false),
            (CUBIC, CUBIC, false),
            (CUBIC, bbr, false),
            (bbr, [0; 8], false),
        ] {
            assert_eq!(must_become_cubic(current, default), expected);
        }
    }

    #[test]
    fn syn_and_fin_are_not_payload() {
        for (acked, received, state, expected) in [
            (82, 135, 5, (80, 134)),
            (82, 135, 9, (80, 134)),
            (81, 135, 8, (80, 134)),
            (81, 134, 1, (80, 134)),
            (0, 0, 2, (0, 0)),
        ] {
            assert_eq!(
                payload(acked, received, state),
                expected,
                "closed from state {state}"
            );
        }
    }
}
