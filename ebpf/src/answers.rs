//! Whether a packet that leaves a pod is somebody else's answer to a connection that policy was not asked about.
//!
//! Address translation inside a pod may forward a connection to somebody behind it (a virtual machine, a container of
//! a runtime in the pod). No socket of the pod takes it, so `sk_lookup` does not see it. Its answer shows here: it has
//! come in at another interface of the pod.

use abi::{DirectVerdict, InboundMode};

/// What the decision may ask. Each answer costs a map lookup, so it is asked for only when needed.
pub trait Facts {
    /// The pod's mode; none is known when the entry is missing.
    fn mode(&self) -> Option<u32>;
    /// Whether the kubelet of this node opened the connection just now.
    fn probe(&self) -> bool;
    /// What policy says of the connection, where a captured pod of this node opened it directly.
    fn direct(&self) -> Option<DirectVerdict>;
}

/// What becomes of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It passes.
    Pass,
    /// The client gets a reset instead.
    Reset,
}

/// Decides a TCP packet with these flags that was forwarded inside the pod.
#[inline(always)]
pub fn decide(flags: u8, facts: &impl Facts) -> Verdict {
    if flags & SYN_ACK != SYN_ACK {
        return Verdict::Pass;
    }
    let released = facts.mode() == Some(InboundMode::Release as u32);
    if released || facts.probe() || facts.direct() == Some(DirectVerdict::Allow) {
        return Verdict::Pass;
    }
    Verdict::Reset
}

const SYN_ACK: u8 = 0x12;
/// The flags of a reset that answers a SYN.
pub const RST_ACK: u8 = 0x14;

#[cfg(test)]
mod tests {
    use super::{Facts, Verdict, decide};
    use abi::{DirectVerdict, InboundMode};

    #[derive(Clone, Copy)]
    struct Pod {
        mode: Option<u32>,
        probe: bool,
        direct: Option<DirectVerdict>,
    }

    impl Facts for Pod {
        fn mode(&self) -> Option<u32> {
            self.mode
        }
        fn probe(&self) -> bool {
            self.probe
        }
        fn direct(&self) -> Option<DirectVerdict> {
            self.direct
        }
    }

    #[test]
    fn nobody_behind_a_captured_pod_answers_but_whom_policy_was_asked_about() {
        use Verdict::{Pass, Reset};
        let capture = Pod {
            mode: Some(InboundMode::Capture as u32),
            probe: false,
            direct: None,
        };
        let direct = |verdict| Pod {
            direct: Some(verdict),
            ..capture
        };
        let (unknown, released) = (
            Pod {
                mode: None,
                ..capture
            },
            Pod {
                mode: Some(InboundMode::Release as u32),
                ..capture
            },
        );
        let probe = Pod {
            probe: true,
            ..capture
        };
        for (pod, flags, expected) in [
            (capture, 0x12, Reset),
            // With the bits of explicit congestion notification.
            (capture, 0x52, Reset),
            (unknown, 0x12, Reset),
            (released, 0x12, Pass),
            (probe, 0x12, Pass),
            (direct(DirectVerdict::Allow), 0x12, Pass),
            (direct(DirectVerdict::Deny), 0x12, Reset),
            (direct(DirectVerdict::Agent), 0x12, Reset),
            // What somebody behind the pod opens itself, and what follows.
            (capture, 0x02, Pass),
            (capture, 0x10, Pass),
            (capture, 0x14, Pass),
        ] {
            assert_eq!(decide(flags, &pod), expected, "{flags:#x}");
        }
    }
}
