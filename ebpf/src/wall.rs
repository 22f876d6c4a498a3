//! The second wall: whether TCP between a captured pod and an address that is captured on another node
//! may pass outside of a tunnel.
//!
//! The hooks at connect and at lookup decide who carries a connection. This looks at each packet, whatever
//! socket, route or option brought it here, and knows nothing of those hooks.

use abi::{HBONE_PORT, Reason, Wall};

/// Which way a packet goes, as seen by the pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// It leaves the pod.
    Out,
    /// It arrives at the pod.
    In,
}

/// The ports of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    /// Of the sender.
    pub source: u16,
    /// Of the receiver.
    pub destination: u16,
}

/// What the decision may ask. Each answer costs a map lookup, so it is asked for only when needed.
pub trait Facts {
    /// The wall of the address at the other end; none if it is nobody's that is reached by tunnel only.
    fn peer(&self) -> Option<Wall>;
    /// The wall of the pod itself; none if it is not captured.
    fn pod(&self) -> Option<Wall>;
    /// Whether the segment belongs to a connection that is older than the wall.
    fn older(&self) -> bool;
}

/// What becomes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is none of the wall's business.
    Pass,
    /// It should not be there, and passes.
    Count(Reason),
    /// It is dropped.
    Drop(Reason),
}

/// Whether a segment is of a tunnel, as far as ports can say. `opens`: it is the first of a connection,
/// which has no tunnel's port as its source.
#[inline(always)]
pub fn is_tunnel(ports: Ports, opens: impl FnOnce() -> bool) -> bool {
    ports.destination == HBONE_PORT || (ports.source == HBONE_PORT && !opens())
}

/// Decides on a segment that is of no tunnel.
#[inline(always)]
pub fn decide(way: Way, facts: &impl Facts) -> Verdict {
    let Some(peer) = facts.peer() else {
        return Verdict::Pass;
    };
    let Some(pod) = facts.pod() else {
        return Verdict::Pass;
    };
    if facts.older() {
        return Verdict::Pass;
    }
    match (way, peer, pod) {
        (Way::Out, Wall::Enforce, Wall::Enforce) => Verdict::Drop(Reason::WallOutbound),
        (Way::In, Wall::Enforce, Wall::Enforce) => Verdict::Drop(Reason::WallInbound),
        (Way::Out, ..) => Verdict::Count(Reason::WallOutboundPassed),
        (Way::In, ..) => Verdict::Count(Reason::WallInboundPassed),
    }
}

#[cfg(test)]
mod tests {
    use super::{Facts, Ports, Verdict, Way, decide, is_tunnel};
    use abi::{Reason, Wall};

    struct Known(Option<Wall>, Option<Wall>, bool);

    impl Facts for Known {
        fn peer(&self) -> Option<Wall> {
            self.0
        }
        fn pod(&self) -> Option<Wall> {
            self.1
        }
        fn older(&self) -> bool {
            self.2
        }
    }

    #[test]
    fn plain_tcp_is_dropped_where_all_nodes_know_both_ends() {
        let (count, enforce) = (Some(Wall::Count), Some(Wall::Enforce));
        for (peer, pod, older, out, into) in [
            (None, enforce, false, Verdict::Pass, Verdict::Pass),
            (enforce, None, false, Verdict::Pass, Verdict::Pass),
            (enforce, enforce, true, Verdict::Pass, Verdict::Pass),
            (count, count, true, Verdict::Pass, Verdict::Pass),
            (
                enforce,
                enforce,
                false,
                Verdict::Drop(Reason::WallOutbound),
                Verdict::Drop(Reason::WallInbound),
            ),
            (
                count,
                enforce,
                false,
                Verdict::Count(Reason::WallOutboundPassed),
                Verdict::Count(Reason::WallInboundPassed),
            ),
            (
                enforce,
                count,
                false,
                Verdict::Count(Reason::WallOutboundPassed),
                Verdict::Count(Reason::WallInboundPassed),
            ),
        ] {
            let facts = Known(peer, pod, older);
            let case = (peer, pod, older);
            assert_eq!(decide(Way::Out, &facts), out, "{case:?}");
            assert_eq!(decide(Way::In, &facts), into, "{case:?}");
        }
    }

    #[test]
    fn a_tunnel_is_dialled_at_its_port_and_answers_from_it() {
        for (source, destination, opens, tunnel) in [
            (40000, 15008, true, true),
            (40000, 15008, false, true),
            (15008, 40000, false, true),
            // A client that has bound a tunnel's port is no tunnel.
            (15008, 80, true, false),
            (40000, 80, true, false),
            (40000, 80, false, false),
        ] {
            let ports = Ports {
                source,
                destination,
            };
            assert_eq!(is_tunnel(ports, || opens), tunnel, "{ports:?} {opens}");
        }
    }
}
