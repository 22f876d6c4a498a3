//! Whether a connection that reaches a pod passes to the application, goes to the agent, or is
//! refused.
//!
//! `sk_lookup` runs in the pod's network namespace for every SYN that no connected socket takes:
//! those from outside, those of the pod's own applications that were marked and routed to `lo`, and
//! the agent's legs to the application. Its `ingress_ifindex` is that of the interface whose address
//! is dialled, not `lo`, when the pod dials itself; the agent's leg is bound to `lo` to be told apart.

use abi::{Addr, DirectVerdict, HBONE_PORT, InboundMode, ListenerKind, Reason};

/// A connection as the receiving side sees it.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Address that is dialled.
    pub local: Addr,
    /// Port that is dialled.
    pub local_port: u16,
    /// Address of the peer.
    pub remote: Addr,
    /// Whether it arrives on `lo`.
    pub on_loopback: bool,
}

/// What the decision may ask. Each answer costs a map lookup, so it is asked for only when needed.
pub trait Facts {
    /// Whether the address is one of the pod's own.
    fn own_address(&self, addr: &Addr) -> bool;
    /// The pod's mode; none is known when the entry is missing.
    fn mode(&self) -> Option<u32>;
    /// Whether the kubelet of this node opened the connection just now, to a port that the pod's own probes
    /// declare: whoever writes another pod's manifest can make the kubelet call any.
    fn probe(&self) -> bool;
    /// What a note of the socket that opened it says of the connection; none if there is none.
    fn noted(&self) -> Option<Noted>;
    /// Whether an application listens on the dialled port.
    fn listening(&self) -> bool;
}

/// Whose a connection is that was noted before its SYN left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Noted {
    /// The agent's leg to a server that is bound to an interface.
    Leg,
    /// A captured pod's of this node, which opened it directly; what policy says of it now.
    Direct(DirectVerdict),
}

/// What becomes of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The kernel's own lookup goes on.
    Pass(Reason),
    /// To a listener of the agent; refused if none is alive.
    Agent(ListenerKind, Reason),
    /// Refused: the peer gets a reset.
    Drop(Reason),
}

/// Decides one TCP connection.
#[inline(always)]
pub fn decide(connection: &Connection, facts: &impl Facts) -> Verdict {
    let from_itself = connection.on_loopback && connection.local.is_loopback();
    if from_itself || connection.local == connection.remote {
        return Verdict::Pass(Reason::InboundSelf);
    }
    if connection.on_loopback {
        if facts.own_address(&connection.local) {
            return Verdict::Pass(Reason::InboundAgentLeg);
        }
        return Verdict::Agent(ListenerKind::Outbound, Reason::LookupOutbound);
    }
    // The pod dials one of its addresses from another of them.
    if facts.own_address(&connection.remote) {
        return Verdict::Pass(Reason::InboundSelf);
    }
    let released = match facts.mode() {
        Some(mode) if mode == InboundMode::Capture as u32 => false,
        Some(mode) if mode == InboundMode::Release as u32 => true,
        _ => return Verdict::Drop(Reason::InboundNoMode),
    };
    if connection.local_port == HBONE_PORT {
        return Verdict::Agent(ListenerKind::Hbone, Reason::InboundHbone);
    }
    if released {
        return Verdict::Pass(Reason::InboundReleased);
    }
    match facts.noted() {
        None => {}
        Some(Noted::Leg) => return Verdict::Pass(Reason::InboundAgentLeg),
        Some(Noted::Direct(DirectVerdict::Allow)) => return Verdict::Pass(Reason::InboundDirect),
        // What was allowed when it was dialled and is not any more.
        Some(Noted::Direct(DirectVerdict::Deny | DirectVerdict::Agent)) => {
            return Verdict::Drop(Reason::InboundDirectDenied);
        }
    }
    if facts.probe() {
        return Verdict::Pass(Reason::InboundProbe);
    }
    // Translated inside the pod. What listens on loopback only is not counted.
    if connection.local.is_loopback() {
        return Verdict::Agent(ListenerKind::Inbound, Reason::InboundTranslated);
    }
    if !facts.listening() {
        return Verdict::Drop(Reason::InboundNotListening);
    }
    Verdict::Agent(ListenerKind::Inbound, Reason::InboundPlaintext)
}

#[cfg(test)]
mod tests {
    use super::{Connection, Facts, Noted, Verdict, decide};
    use abi::{Addr, DirectVerdict, InboundMode, ListenerKind, Reason};
    use core::net::IpAddr;

    #[derive(Clone, Copy)]
    struct Pod {
        mode: Option<u32>,
        probe: bool,
        noted: Option<Noted>,
        listening: bool,
    }

    impl Facts for Pod {
        fn own_address(&self, addr: &Addr) -> bool {
            ["10.244.1.10", "fd00::a"]
                .iter()
                .any(|own| *addr == Addr::from(own.parse::<IpAddr>().unwrap()))
        }
        fn mode(&self) -> Option<u32> {
            self.mode
        }
        fn probe(&self) -> bool {
            self.probe
        }
        fn noted(&self) -> Option<Noted> {
            self.noted
        }
        fn listening(&self) -> bool {
            self.listening
        }
    }

    const CAPTURE: Pod = Pod {
        mode: Some(InboundMode::Capture as u32),
        probe: false,
        noted: None,
        listening: true,
    };

    fn check(
        pod: Pod,
        remote: &str,
        local: &str,
        local_port: u16,
        on_loopback: bool,
        expected: Verdict,
    ) {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let connection = Connection {
            local: addr(local),
            local_port,
            remote: addr(remote),
            on_loopback,
        };
        assert_eq!(
            decide(&connection, &pod),
            expected,
            "{remote} -> {local}:{local_port} lo={on_loopback}"
        );
    }

    const OUTBOUND: Verdict = Verdict::Agent(ListenerKind::Outbound, Reason::LookupOutbound);
    const PLAINTEXT: Verdict = Verdict::Agent(ListenerKind::Inbound, Reason::InboundPlaintext);
    const HBONE: Verdict = Verdict::Agent(ListenerKind::Hbone, Reason::InboundHbone);

    #[test]
    fn plaintext_from_outside_goes_to_the_agent_on_every_port() {
        for port in [1, 80, 9080, 15001, 15006, 65535] {
            check(CAPTURE, "10.244.2.7", "10.244.1.10", port, false, PLAINTEXT);
            check(CAPTURE, "fd00::7", "fd00::a", port, false, PLAINTEXT);
        }
    }

    #[test]
    fn tunnels_go_to_the_agent_even_where_nobody_listens() {
        check(
            Pod {
                listening: false,
                ..CAPTURE
            },
            "10.244.2.7",
            "10.244.1.10",
            15008,
            false,
            HBONE,
        );
    }

    #[test]
    fn a_port_without_listener_is_refused() {
        check(
            Pod {
                listening: false,
                ..CAPTURE
            },
            "10.244.2.7",
            "10.244.1.10",
            81,
            false,
            Verdict::Drop(Reason::InboundNotListening),
        );
    }

    #[test]
    fn a_probe_reaches_the_application_but_never_the_tunnel_port() {
        let pod = Pod {
            probe: true,
            ..CAPTURE
        };
        check(
            pod,
            "10.0.0.1",
            "10.244.1.10",
            8080,
            false,
            Verdict::Pass(Reason::InboundProbe),
        );
        check(pod, "10.0.0.1", "10.244.1.10", 15008, false, HBONE);
    }

    #[test]
    fn marked_connections_go_to_the_outbound_listener_and_legs_to_the_application() {
        check(CAPTURE, "10.244.1.10", "10.96.0.7", 80, true, OUTBOUND);
        check(CAPTURE, "10.244.1.10", "10.244.2.9", 15008, true, OUTBOUND);
        check(
            CAPTURE,
            "10.244.2.9",
            "10.244.1.10",
            80,
            true,
            Verdict::Pass(Reason::InboundAgentLeg),
        );
    }

    #[test]
    fn who_is_translated_to_loopback_comes_from_outside() {
        let translated = Verdict::Agent(ListenerKind::Inbound, Reason::InboundTranslated);
        let pod = Pod {
            listening: false,
            ..CAPTURE
        };
        for (client, local) in [("10.244.2.7", "127.0.0.1"), ("fd00::7", "::1")] {
            check(pod, client, local, 8080, false, translated);
            let unknown = Pod { mode: None, ..pod };
            let refused = Verdict::Drop(Reason::InboundNoMode);
            check(unknown, client, local, 8080, false, refused);
            let own = Verdict::Pass(Reason::InboundSelf);
            check(pod, client, local, 8080, true, own);
        }
    }

    #[test]
    fn a_pod_reaches_itself() {
        check(
            CAPTURE,
            "10.244.1.10",
            "10.244.1.10",
            80,
            false,
            Verdict::Pass(Reason::InboundSelf),
        );
        check(
            CAPTURE,
            "127.0.0.1",
            "127.0.0.1",
            80,
            true,
            Verdict::Pass(Reason::InboundSelf),
        );
    }

    #[test]
    fn a_pod_reaches_one_of_its_addresses_from_another() {
        let own = |addr: &str| addr.replace("::a", "::b");
        check(
            CAPTURE,
            "fd00::a",
            "fd00::a",
            80,
            false,
            Verdict::Pass(Reason::InboundSelf),
        );
        check(
            CAPTURE,
            "fd00::a",
            &own("fd00::a"),
            80,
            false,
            Verdict::Pass(Reason::InboundSelf),
        );
    }

    #[test]
    fn a_leaving_pod_takes_plaintext_itself_and_still_ends_tunnels() {
        let pod = Pod {
            mode: Some(InboundMode::Release as u32),
            ..CAPTURE
        };
        check(
            pod,
            "10.244.2.7",
            "10.244.1.10",
            80,
            false,
            Verdict::Pass(Reason::InboundReleased),
        );
        check(pod, "10.244.2.7", "10.244.1.10", 15008, false, HBONE);
    }

    #[test]
    fn an_unknown_mode_refuses() {
        for mode in [None, Some(0), Some(9)] {
            check(
                Pod { mode, ..CAPTURE },
                "10.244.2.7",
                "10.244.1.10",
                80,
                false,
                Verdict::Drop(Reason::InboundNoMode),
            );
        }
    }

    #[test]
    fn a_leg_to_a_server_that_is_bound_to_an_interface_is_known_by_its_note() {
        let pod = Pod {
            noted: Some(Noted::Leg),
            ..CAPTURE
        };
        let leg = Verdict::Pass(Reason::InboundAgentLeg);
        check(pod, "10.244.2.9", "10.244.1.10", 80, false, leg);
        check(pod, "10.244.2.9", "10.244.1.10", 15008, false, HBONE);
    }

    #[test]
    fn a_direct_connection_passes_by_a_plain_yes_only() {
        for (direct, expected) in [
            (DirectVerdict::Allow, Verdict::Pass(Reason::InboundDirect)),
            (
                DirectVerdict::Deny,
                Verdict::Drop(Reason::InboundDirectDenied),
            ),
            (
                DirectVerdict::Agent,
                Verdict::Drop(Reason::InboundDirectDenied),
            ),
        ] {
            let pod = Pod {
                noted: Some(Noted::Direct(direct)),
                ..CAPTURE
            };
            check(pod, "10.244.1.7", "10.244.1.10", 80, false, expected);
            check(pod, "10.244.1.7", "10.244.1.10", 15008, false, HBONE);
        }
    }
}
