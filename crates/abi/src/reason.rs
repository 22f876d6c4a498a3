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
    /// connect: to an IPv6 link-local address, which has a scope and no identity; left alone.
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
    /// sock_ops: a direct connection could not be noted (map full); to its server it is plain text of nobody.
    FlowLost = 29, "flow_lost";
    /// An event of a direct connection was lost, the ring buffer being full.
    EventLost = 30, "event_lost";
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
