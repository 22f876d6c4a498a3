//! Whether a `connect` of a pod passes, is captured, or is refused.

use abi::{Addr, PodState, Reason};

/// What the decision may ask. Each answer costs a map lookup, so it is asked for only when needed.
pub trait Facts {
    /// Whether the calling task belongs to an agent.
    fn by_agent(&self) -> bool;
    /// Whether the address is one of the pod's own.
    fn own_address(&self, addr: &Addr) -> bool;
    /// Whether a live agent listens for the pod's connections.
    fn agent_listens(&self) -> bool;
}

/// What becomes of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Left alone.
    Pass(Reason),
    /// Marked, so that it is routed to the agent.
    Capture,
    /// `connect` fails with `ECONNREFUSED`.
    Refuse(Reason),
}

/// Decides one TCP `connect` to `destination` by a task in the namespace of a pod in `state`.
#[inline(always)]
pub fn decide(state: PodState, destination: &Addr, facts: &impl Facts) -> Verdict {
    if matches!(state, PodState::Exempt) {
        return Verdict::Pass(Reason::OutboundExempt);
    }
    if destination.is_loopback() {
        return Verdict::Pass(Reason::OutboundLoopback);
    }
    if facts.by_agent() {
        return Verdict::Pass(Reason::OutboundByAgent);
    }
    if facts.own_address(destination) {
        return Verdict::Pass(Reason::OutboundOwnAddress);
    }
    if matches!(state, PodState::Pending) {
        return Verdict::Refuse(Reason::OutboundPending);
    }
    if destination.is_v6_link_local() {
        return Verdict::Pass(Reason::OutboundLinkLocal);
    }
    if !facts.agent_listens() {
        return Verdict::Refuse(Reason::OutboundNoAgent);
    }
    Verdict::Capture
}

#[cfg(test)]
mod tests {
    use super::{Facts, Verdict, decide};
    use abi::{Addr, PodState, Reason};
    use core::net::IpAddr;

    struct Pod {
        agent: bool,
        own: &'static str,
        listens: bool,
    }

    impl Facts for Pod {
        fn by_agent(&self) -> bool {
            self.agent
        }
        fn own_address(&self, addr: &Addr) -> bool {
            *addr == Addr::from(self.own.parse::<IpAddr>().unwrap())
        }
        fn agent_listens(&self) -> bool {
            self.listens
        }
    }

    #[test]
    fn every_connect_is_captured_unless_a_reason_is_named() {
        let pod = |agent, listens| Pod {
            agent,
            own: "10.244.1.10",
            listens,
        };
        use PodState::{Captured, Exempt, Pending};
        use Reason as R;
        for (state, agent, listens, to, expected) in [
            (Captured, false, true, "10.244.2.10", Verdict::Capture),
            (Captured, false, true, "8.8.8.8", Verdict::Capture),
            (Captured, false, true, "fd00::1", Verdict::Capture),
            (
                Captured,
                false,
                true,
                "::ffff:10.244.2.10",
                Verdict::Capture,
            ),
            (Captured, false, true, "169.254.169.254", Verdict::Capture),
            (
                Captured,
                false,
                false,
                "10.244.2.10",
                Verdict::Refuse(R::OutboundNoAgent),
            ),
            (
                Captured,
                false,
                true,
                "127.0.0.1",
                Verdict::Pass(R::OutboundLoopback),
            ),
            (
                Captured,
                false,
                false,
                "::1",
                Verdict::Pass(R::OutboundLoopback),
            ),
            (
                Captured,
                false,
                true,
                "10.244.1.10",
                Verdict::Pass(R::OutboundOwnAddress),
            ),
            (
                Captured,
                false,
                true,
                "::ffff:10.244.1.10",
                Verdict::Pass(R::OutboundOwnAddress),
            ),
            (
                Captured,
                true,
                false,
                "10.244.2.10",
                Verdict::Pass(R::OutboundByAgent),
            ),
            (
                Captured,
                false,
                true,
                "fe80::1",
                Verdict::Pass(R::OutboundLinkLocal),
            ),
            (
                Pending,
                false,
                true,
                "10.244.2.10",
                Verdict::Refuse(R::OutboundPending),
            ),
            (
                Pending,
                false,
                true,
                "fe80::1",
                Verdict::Refuse(R::OutboundPending),
            ),
            (
                Pending,
                false,
                true,
                "127.0.0.1",
                Verdict::Pass(R::OutboundLoopback),
            ),
            (
                Exempt,
                false,
                false,
                "10.244.2.10",
                Verdict::Pass(R::OutboundExempt),
            ),
        ] {
            let to_addr = Addr::from(to.parse::<IpAddr>().unwrap());
            assert_eq!(
                decide(state, &to_addr, &pod(agent, listens)),
                expected,
                "{state:?} agent={agent} listens={listens} {to}"
            );
        }
    }
}
