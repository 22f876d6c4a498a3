//! Why a hook decided as it did: the numbers that are counted, and their names.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a hook let a connection pass, took it, or refused it. The index of its counter.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        pub enum Reason { $($(#[$doc])* $name = $number,)* }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason as metrics and logs write it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// connect: handed to the agent.
    OutboundCaptured = 0, "outbound_captured";
    /// connect: to loopback, left alone.
    OutboundLoopback = 1, "outbound_loopback";
    /// connect: to one of the pod's own addresses, left alone.
    OutboundOwnAddress = 2, "outbound_own_address";
    /// connect: made by an agent inside the pod's namespace.
    OutboundByAgent = 3, "outbound_by_agent";
    /// connect: refused, an IPv6 link-local address has a scope and no identity.
    OutboundLinkLocal = 4, "outbound_link_local";
    /// connect: refused, capture of the pod is not complete.
    OutboundPending = 5, "outbound_pending";
    /// connect: refused, no agent is alive to take the connection.
    OutboundNoAgent = 6, "outbound_no_agent";
    /// connect: refused, the socket could not be marked.
    OutboundMarkFailed = 7, "outbound_mark_failed";
    /// lookup: captured connection handed to the agent's outbound listener.
    LookupOutbound = 8, "lookup_outbound";
    /// lookup: plaintext handed to the agent.
    InboundPlaintext = 9, "inbound_plaintext";
    /// lookup: tunnel handed to the agent.
    InboundHbone = 10, "inbound_hbone";
    /// lookup: kubelet probe, goes to the application.
    InboundProbe = 11, "inbound_probe";
    /// lookup: the agent's own leg to the application.
    InboundAgentLeg = 12, "inbound_agent_leg";
    /// lookup: from the pod to itself.
    InboundSelf = 13, "inbound_self";
    /// lookup: the pod is leaving the mesh, plaintext goes to the application.
    InboundReleased = 14, "inbound_released";
    /// lookup: refused, no application listens on the port.
    InboundNotListening = 15, "inbound_not_listening";
    /// lookup: refused, no agent is alive to take the connection.
    InboundNoAgent = 16, "inbound_no_agent";
    /// lookup: refused, the pod's mode is unknown.
    InboundNoMode = 17, "inbound_no_mode";
    /// lookup: refused, the agent's listener would not take this connection.
    InboundAssignFailed = 18, "inbound_assign_failed";
    /// sock_ops: a kubelet probe was noted.
    ProbeNoted = 19, "probe_noted";
    /// sock_ops: a kubelet probe could not be noted (map full).
    ProbeLost = 20, "probe_lost";
    /// sock_ops: a listening port could not be noted (map full); connections to it are refused.
    ListeningLost = 21, "listening_lost";
    /// veth guard: a packet with a source address that is not the pod's was dropped.
    SpoofedSource = 22, "spoofed_source";
    /// connect: the pod is known and exempt from the mesh.
    OutboundExempt = 23, "outbound_exempt";
    /// connect: to a captured pod of this node, allowed, goes directly.
    OutboundDirect = 24, "outbound_direct";
    /// connect: to a captured pod of this node, refused by policy.
    OutboundDenied = 25, "outbound_denied";
    /// connect: refused, the socket could not be prepared for the direct path.
    OutboundDirectFailed = 26, "outbound_direct_failed";
    /// lookup: direct connection of a captured pod of this node, allowed.
    InboundDirect = 27, "inbound_direct";
    /// lookup: direct connection of a captured pod of this node, refused: policy does not allow it now.
    InboundDirectDenied = 28, "inbound_direct_denied";
    /// sock_ops: a direct connection could not be noted (map full); its server judges it as a connection of a client without identity.
    FlowLost = 29, "flow_lost";
    /// An event of a direct connection was lost, the ring buffer being full.
    EventLost = 30, "event_lost";
    /// connect: refused, the agent does not move: the worker that would take the connection has not said for
    /// [`crate::BEAT_WINDOW_NS`] that it is alive.
    OutboundAgentHung = 31, "outbound_agent_hung";
    /// lookup: refused, the agent does not move, as above.
    InboundAgentHung = 32, "inbound_agent_hung";
    /// lookup: the kubelet calls a port that none of the pod's own probes declares: plain text like any other.
    ProbeUndeclared = 33, "probe_undeclared";
    /// sock_ops: a listening port could not be noted (the pod's share is used up); connections to it are refused.
    ListeningShare = 34, "listening_share";
    /// connect: a refused connection is counted in total only, or was not told of.
    DenialLost = 35, "denial_lost";
    /// lookup: to loopback from outside, translated inside the pod; handed to the agent.
    InboundTranslated = 36, "inbound_translated";
    /// answers: refused, forwarded inside the pod to somebody behind it, whom policy is not asked about.
    InboundForwarded = 37, "inbound_forwarded";
    /// sock_ops: dialled before the pod was captured, first SYN after it: handed to the agent.
    OutboundLate = 38, "outbound_late";
    /// setsockopt: of a carried connection, would have led it past the agent; it succeeds without effect.
    OptionIgnored = 39, "option_ignored";
    /// setsockopt: refused, a route or an IPsec policy of a captured pod's own.
    OptionRefused = 40, "option_refused";
    /// veth guard: a frame of a captured pod that is neither IPv4, IPv6 nor ARP, or is tagged, was dropped.
    GuardProtocol = 41, "guard_protocol";
    /// wall: SCTP or DCCP of a captured pod, which nothing carries, was dropped.
    WallTransport = 42, "wall_transport";
    /// wall: TCP whose ports cannot be read (a fragment, source routing, a long chain of headers) was dropped.
    WallHeaders = 43, "wall_headers";
    /// wall: plain TCP to an address that is reached by tunnel only was dropped.
    WallOutbound = 44, "wall_outbound";
    /// wall: the same, passed: not all nodes know yet that both ends are captured.
    WallOutboundPassed = 45, "wall_outbound_passed";
    /// wall: plain TCP from an address that comes by tunnel only was dropped.
    WallInbound = 46, "wall_inbound";
    /// wall: the same, passed.
    WallInboundPassed = 47, "wall_inbound_passed";
    /// connect: to a destination that the mesh does not carry, left alone.
    OutboundNative = 48, "outbound_native";
    /// connect: refused, the pod has no address of the destination's family.
    OutboundNoFamily = 49, "outbound_no_family";
    /// hold: the SYN of a captured connection waits until the agent knows what the far side says.
    OutboundHeld = 50, "outbound_held";
    /// hold: the same SYN again, dropped: the agent has it.
    OutboundHeldAgain = 51, "outbound_held_again";
    /// hold: no room to tell the agent of the SYN, dropped; its client sends it again.
    OutboundHoldLost = 52, "outbound_hold_lost";
    /// hold: the agent takes no SYNs, so the connection is accepted before the far side is known.
    OutboundUnheld = 53, "outbound_unheld";
    /// setsockopt, sock_ops: how long the application of a carried connection waits for a silent peer was noted.
    WaitsNoted = 54, "waits_noted";
    /// lookup: UDP to a pod that is reached by a waypoint only, which carries no UDP, was dropped.
    InboundDatagram = 55, "inbound_datagram";
}

const _: () = {
    let mut i = 0;
    while i < Reason::ALL.len() {
        assert!(
            Reason::ALL[i] as usize == i,
            "reasons are numbered without gaps"
        );
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use super::Reason;

    const PAGE: &str = include_str!("../../../docs/observability.md");
    const TITLE: &str = "\n## Decisions of the kernel half\n";

    /// The words in the first column of the page's table.
    fn documented() -> BTreeSet<&'static str> {
        let (_, section) = PAGE.split_once(TITLE).expect("the page has the section");
        let (section, _) = section.split_once("\n## ").expect("another one follows");
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let columns = rows.filter_map(|row| row.split_once('|'));
        let words = columns.flat_map(|(first, _)| first.split('`'));
        words
            .filter(|word| word.starts_with(|letter: char| letter.is_ascii_lowercase()))
            .collect()
    }

    #[test]
    fn the_page_tells_of_every_reason_and_of_no_other() {
        let reasons = Reason::ALL.iter().map(|reason| reason.as_str());
        assert_eq!(documented(), reasons.collect());
    }
}
