//! Whether the SYN of a captured connection waits until the agent knows what the far side says.
//!
//! It waits once: the agent gets it, opens the other half and puts it back, or answers in the far side's stead.

use abi::{APP_MARK, APP_MARK_MASK, HELD_WINDOW_NS, Held, HeldState, PUT_BACK, Reason};

use crate::liveness::Lacking;

/// What the decision may ask. Each answer costs a map lookup, so it is asked for only when needed.
pub trait Facts {
    /// Whether the SYN is for the pod itself: the agent's own leg to an application.
    fn to_self(&self) -> bool;
    /// What is known of a connection with these ports.
    fn held(&self) -> Option<Held>;
    /// Whether an agent would take the connection.
    fn agent(&self) -> Result<(), Lacking>;
}

/// What becomes of the SYN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It passes: nobody holds it.
    Pass,
    /// It passes: the agent has put it back.
    PutBack,
    /// The agent gets it.
    Hold,
    /// The agent has it already.
    Drop,
    /// Its client gets a reset.
    Refuse(Reason),
}

/// Whether a packet with this mark is one of a connection that is carried.
#[inline(always)]
#[must_use]
pub const fn is_carried(mark: u32) -> bool {
    mark & APP_MARK_MASK == APP_MARK
}

/// Whether TCP flags are those of a first segment.
#[inline(always)]
#[must_use]
pub const fn opens(flags: u8) -> bool {
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;
    flags & (SYN | RST | ACK) == SYN
}

/// A SYN of a carried connection.
#[derive(Clone, Copy, Debug)]
pub struct Syn {
    /// The packet's mark.
    pub mark: u32,
    /// Its initial sequence number.
    pub isn: u32,
    /// The agent that is in charge now.
    pub generation: u32,
    /// The time, in ns.
    pub now: u64,
}

impl Syn {
    /// Whether it is this one that somebody holds.
    #[inline(always)]
    fn is_held(&self, held: &Held) -> bool {
        held.isn == self.isn
            && held.generation == self.generation
            && self.now < held.since.saturating_add(HELD_WINDOW_NS)
    }
}

/// Decides about a SYN of a carried connection.
#[inline(always)]
pub fn decide(syn: &Syn, facts: &impl Facts) -> Verdict {
    if syn.mark & PUT_BACK != 0 {
        return Verdict::PutBack;
    }
    if facts.to_self() {
        return Verdict::Pass;
    }
    match facts.agent() {
        Ok(()) => {}
        Err(Lacking::Listener) => return Verdict::Refuse(Reason::OutboundNoAgent),
        Err(Lacking::Beat) => return Verdict::Refuse(Reason::OutboundAgentHung),
    }
    match facts.held().filter(|held| syn.is_held(held)) {
        // Its answer was lost, or is on its way.
        Some(held) if held.state == HeldState::Open as u32 => Verdict::Pass,
        Some(_) => Verdict::Drop,
        None => Verdict::Hold,
    }
}

#[cfg(test)]
mod tests {
    use super::{Facts, Syn, Verdict, decide, opens};
    use crate::liveness::Lacking;
    use abi::{APP_MARK, DRAWN, HELD_WINDOW_NS, Held, HeldState, PUT_BACK, Reason};

    const ISN: u32 = 7;
    const GENERATION: u32 = 3;
    const NOW: u64 = 7_000_000_000_000;

    #[derive(Clone, Copy)]
    struct Known {
        to_self: bool,
        held: Option<Held>,
        agent: Result<(), Lacking>,
    }

    impl Facts for Known {
        fn to_self(&self) -> bool {
            self.to_self
        }
        fn held(&self) -> Option<Held> {
            self.held
        }
        fn agent(&self) -> Result<(), Lacking> {
            self.agent
        }
    }

    #[test]
    fn a_syn_is_held_once_for_each_attempt_and_agent() {
        let fresh = Known {
            to_self: false,
            held: None,
            agent: Ok(()),
        };
        let held = |state: HeldState, isn, generation| Known {
            held: Some(Held {
                isn,
                state: state as u32,
                worker: 0,
                generation,
                since: NOW,
            }),
            ..fresh
        };
        let lacking = |lacking, syn: Known| Known {
            agent: Err(lacking),
            ..syn
        };
        let leg = Known {
            to_self: true,
            ..fresh
        };
        let (opening, open) = (HeldState::Opening, HeldState::Open);
        let no_agent = Verdict::Refuse(Reason::OutboundNoAgent);
        let hung = Verdict::Refuse(Reason::OutboundAgentHung);
        for (mark, syn, verdict) in [
            (0, fresh, Verdict::Hold),
            (DRAWN, fresh, Verdict::Hold),
            (PUT_BACK, fresh, Verdict::PutBack),
            (PUT_BACK | DRAWN, fresh, Verdict::PutBack),
            (0, leg, Verdict::Pass),
            (0, lacking(Lacking::Listener, leg), Verdict::Pass),
            (0, held(opening, ISN, GENERATION), Verdict::Drop),
            (0, held(open, ISN, GENERATION), Verdict::Pass),
            // Another attempt with the same ports.
            (0, held(opening, ISN + 1, GENERATION), Verdict::Hold),
            (0, held(open, ISN + 1, GENERATION), Verdict::Hold),
            // Held by an agent that is not there any more.
            (0, held(opening, ISN, GENERATION - 1), Verdict::Hold),
            (0, held(open, ISN, GENERATION - 1), Verdict::Hold),
            // Nobody would answer.
            (0, lacking(Lacking::Listener, fresh), no_agent),
            (0, lacking(Lacking::Beat, fresh), hung),
            (
                0,
                lacking(Lacking::Listener, held(opening, ISN, GENERATION)),
                no_agent,
            ),
        ] {
            let seen = Syn {
                mark: APP_MARK | mark,
                isn: ISN,
                generation: GENERATION,
                now: NOW,
            };
            let decided = decide(&seen, &syn);
            assert_eq!(decided, verdict, "{mark:x} {:?} {:?}", syn.held, syn.agent);
        }
        // Whoever had it has lost it.
        for (later, verdict) in [
            (HELD_WINDOW_NS - 1, Verdict::Drop),
            (HELD_WINDOW_NS, Verdict::Hold),
        ] {
            let seen = Syn {
                mark: APP_MARK,
                isn: ISN,
                generation: GENERATION,
                now: NOW + later,
            };
            let decided = decide(&seen, &held(opening, ISN, GENERATION));
            assert_eq!(decided, verdict, "{later}");
        }
    }

    #[test]
    fn only_first_segments_are_held() {
        for (flags, first) in [
            (0x02, true),
            // With the bits of explicit congestion notification; with data.
            (0xc2, true),
            (0x0a, true),
            (0x12, false),
            (0x10, false),
            (0x04, false),
            (0x06, false),
            (0x11, false),
        ] {
            assert_eq!(opens(flags), first, "{flags:#x}");
        }
    }
}
