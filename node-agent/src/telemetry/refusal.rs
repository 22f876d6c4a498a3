//! The kernel half's refusals in the words of everybody else's.
//!
//! The kernel half counts its decisions by numbers of its own ([`abi::Reason`]), which are a contract. Those that
//! refuse a connection have a word of [`model::Reason`], the same that the agent has for the same cause.

use abi::Reason as Kernel;
use model::Reason;

/// Why the kernel half refused a connection, if it is refused there and nobody else tells of it.
///
/// [`Kernel::OutboundDenied`] is told of by the agent, which asks policy for the word. Packets that are dropped, and
/// options of sockets that are refused, are no connections.
#[must_use]
pub fn of(decision: Kernel) -> Option<Reason> {
    Some(match decision {
        Kernel::OutboundNoAgent | Kernel::InboundNoAgent => Reason::NoAgent,
        Kernel::OutboundAgentHung | Kernel::InboundAgentHung => Reason::AgentHung,
        Kernel::OutboundPending | Kernel::InboundNoMode => Reason::CapturePending,
        Kernel::OutboundMarkFailed | Kernel::OutboundDirectFailed | Kernel::InboundAssignFailed => {
            Reason::HandoverFailed
        }
        Kernel::OutboundLinkLocal => Reason::LinkLocal,
        Kernel::OutboundNoFamily => Reason::NoFamily,
        Kernel::InboundNotListening => Reason::ApplicationRefused,
        Kernel::InboundDirectDenied => Reason::PolicyChanged,
        Kernel::InboundForwarded => Reason::Forwarded,
        Kernel::OutboundDenied
        | Kernel::OutboundCaptured
        | Kernel::OutboundLoopback
        | Kernel::OutboundOwnAddress
        | Kernel::OutboundByAgent
        | Kernel::OutboundExempt
        | Kernel::OutboundDirect
        | Kernel::OutboundLate
        | Kernel::OutboundNative
        | Kernel::OutboundHeld
        | Kernel::OutboundHeldAgain
        | Kernel::OutboundHoldLost
        | Kernel::OutboundUnheld
        | Kernel::WaitsNoted
        | Kernel::InboundDatagram
        | Kernel::LookupOutbound
        | Kernel::InboundPlaintext
        | Kernel::InboundHbone
        | Kernel::InboundProbe
        | Kernel::InboundAgentLeg
        | Kernel::InboundSelf
        | Kernel::InboundReleased
        | Kernel::InboundDirect
        | Kernel::InboundTranslated
        | Kernel::ProbeNoted
        | Kernel::ProbeLost
        | Kernel::ProbeUndeclared
        | Kernel::ListeningLost
        | Kernel::ListeningShare
        | Kernel::FlowLost
        | Kernel::EventLost
        | Kernel::DenialLost
        | Kernel::OptionIgnored
        | Kernel::OptionRefused
        | Kernel::SpoofedSource
        | Kernel::GuardProtocol
        | Kernel::WallTransport
        | Kernel::WallHeaders
        | Kernel::WallOutbound
        | Kernel::WallOutboundPassed
        | Kernel::WallInbound
        | Kernel::WallInboundPassed => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../docs/observability.md");

    #[test]
    fn what_the_page_calls_refused_has_a_word() {
        let (_, section) = PAGE
            .split_once("\n## Decisions of the kernel half\n")
            .expect("the page has the section");
        for decision in Kernel::ALL {
            let word = format!("`{}`", decision.as_str());
            let row = section
                .lines()
                .find(|line| {
                    line.split(" | ")
                        .next()
                        .is_some_and(|first| first.contains(&word))
                })
                .expect("a row for each decision");
            let expected = match decision {
                // Told of by the agent; no connection.
                Kernel::OutboundDenied | Kernel::OptionRefused => None,
                _ => row.contains("**refused**").then_some(()),
            };
            assert_eq!(of(*decision).map(|_| ()), expected, "{row}");
            if let Some(refusal) = of(*decision) {
                assert!(row.contains(&format!("(`{refusal}`)")), "{refusal}: {row}");
            }
        }
    }
}
