//! Whether a `connect` of a pod passes, is captured, or is refused.

use abi::{Addr, PodState, Reason};

use crate::liveness::Lacking;

/// What the decision may ask. Each answer costs a map lookup, so it is asked for only when needed.
pub trait Facts {
    /// Whether the calling task belongs to an agent.
    fn by_agent(&self) -> bool;
    /// Whether the address is one of the pod's own.
    fn own_address(&self, addr: &Addr) -> bool;
    /// Whether a live agent listens for the pod's connections, or what is lacking.
    fn agent(&self) -> Result<(), Lacking>;
}

/// What else may be asked of a connection that goes nowhere directly.
pub trait CarryFacts {
    /// Whether the destination may have to be carried; always, as long as that is not known for all.
    fn is_carried(&self, addr: &Addr) -> bool;
    /// Whether the pod has an address of the destination's family.
    fn has_family_of(&self, addr: &Addr) -> bool;
}

/// What becomes of a connection that goes nowhere directly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carry {
    /// The agent carries it.
    Agent,
    /// Nobody has to carry it: the kernel answers as without a mesh.
    Native,
    /// `connect` fails with `ENETUNREACH`.
    Unreachable,
}

/// Decides whether a connection to `destination` is carried. One that the pod has no source address for
/// is answered as the kernel would, instead of being accepted for a dial that cannot succeed.
#[inline(always)]
pub fn carry(destination: &Addr, facts: &impl CarryFacts) -> Carry {
    if !facts.is_carried(destination) {
        return Carry::Native;
    }
    if !facts.has_family_of(destination) {
        return Carry::Unreachable;
    }
    Carry::Agent
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
    if matches!(state, PodState::Exempt | PodState::Joining) {
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
        return Verdict::Refuse(Reason::OutboundLinkLocal);
    }
    match facts.agent() {
        Ok(()) => Verdict::Capture,
        Err(Lacking::Listener) => Verdict::Refuse(Reason::OutboundNoAgent),
        Err(Lacking::Beat) => Verdict::Refuse(Reason::OutboundAgentHung),
    }
}

#[cfg(test)]
mod tests {
    use super::{Carry, CarryFacts, Facts, Lacking, Verdict, carry, decide};
    use abi::{Addr, PodState, Reason};
    use core::net::IpAddr;

    struct Pod {
        agent: bool,
        own: &'static str,
        live: Result<(), Lacking>,
    }

    impl Facts for Pod {
        fn by_agent(&self) -> bool {
            self.agent
        }
        fn own_address(&self, addr: &Addr) -> bool {
            *addr == Addr::from(self.own.parse::<IpAddr>().unwrap())
        }
        fn agent(&self) -> Result<(), Lacking> {
            self.live
        }
    }

    #[test]
    fn every_connect_is_captured_unless_a_reason_is_named() {
        let pod = |agent, live| Pod {
            agent,
            own: "10.244.1.10",
            live,
        };
        use PodState::{Captured, Exempt, Joining, Pending};
        use Reason as R;
        const NOBODY: Result<(), Lacking> = Err(Lacking::Listener);
        const HUNG: Result<(), Lacking> = Err(Lacking::Beat);
        for (state, agent, live, to, expected) in [
            (Captured, false, Ok(()), "10.244.2.10", Verdict::Capture),
            (Captured, false, Ok(()), "8.8.8.8", Verdict::Capture),
            (Captured, false, Ok(()), "fd00::1", Verdict::Capture),
            (
                Captured,
                false,
                Ok(()),
                "::ffff:10.244.2.10",
                Verdict::Capture,
            ),
            (Captured, false, Ok(()), "169.254.169.254", Verdict::Capture),
            (
                Captured,
                false,
                NOBODY,
                "10.244.2.10",
                Verdict::Refuse(R::OutboundNoAgent),
            ),
            (
                Captured,
                false,
                HUNG,
                "10.244.2.10",
                Verdict::Refuse(R::OutboundAgentHung),
            ),
            (
                Captured,
                false,
                HUNG,
                "127.0.0.1",
                Verdict::Pass(R::OutboundLoopback),
            ),
            (
                Captured,
                true,
                HUNG,
                "10.244.2.10",
                Verdict::Pass(R::OutboundByAgent),
            ),
            (
                Captured,
                false,
                Ok(()),
                "127.0.0.1",
                Verdict::Pass(R::OutboundLoopback),
            ),
            (
                Captured,
                false,
                NOBODY,
                "::1",
                Verdict::Pass(R::OutboundLoopback),
            ),
            (
                Captured,
                false,
                Ok(()),
                "10.244.1.10",
                Verdict::Pass(R::OutboundOwnAddress),
            ),
            (
                Captured,
                false,
                Ok(()),
                "::ffff:10.244.1.10",
                Verdict::Pass(R::OutboundOwnAddress),
            ),
            (
                Captured,
                true,
                NOBODY,
                "10.244.2.10",
                Verdict::Pass(R::OutboundByAgent),
            ),
            (
                Captured,
                false,
                Ok(()),
                "fe80::1",
                Verdict::Refuse(R::OutboundLinkLocal),
            ),
            (
                Pending,
                false,
                Ok(()),
                "10.244.2.10",
                Verdict::Refuse(R::OutboundPending),
            ),
            (
                Pending,
                false,
                Ok(()),
                "fe80::1",
                Verdict::Refuse(R::OutboundPending),
            ),
            (
                Pending,
                false,
                Ok(()),
                "127.0.0.1",
                Verdict::Pass(R::OutboundLoopback),
            ),
            (
                Exempt,
                false,
                NOBODY,
                "10.244.2.10",
                Verdict::Pass(R::OutboundExempt),
            ),
            (
                Joining,
                false,
                NOBODY,
                "10.244.2.10",
                Verdict::Pass(R::OutboundExempt),
            ),
        ] {
            let to_addr = Addr::from(to.parse::<IpAddr>().unwrap());
            assert_eq!(
                decide(state, &to_addr, &pod(agent, live)),
                expected,
                "{state:?} agent={agent} {live:?} {to}"
            );
        }
    }

    struct Destination {
        carried: bool,
        family: bool,
    }

    impl CarryFacts for Destination {
        fn is_carried(&self, _: &Addr) -> bool {
            self.carried
        }
        fn has_family_of(&self, _: &Addr) -> bool {
            self.family
        }
    }

    #[test]
    fn what_need_not_be_carried_is_left_alone() {
        let to = Addr::from("10.244.2.10".parse::<IpAddr>().unwrap());
        for (carried, family, expected) in [
            (true, true, Carry::Agent),
            (true, false, Carry::Unreachable),
            (false, true, Carry::Native),
            (false, false, Carry::Native),
        ] {
            assert_eq!(
                carry(&to, &Destination { carried, family }),
                expected,
                "carried: {carried}, family: {family}"
            );
        }
    }
}
