//! Far sides that say nothing, noticed when the application would have noticed without a mesh.
//!
//! An application that must not wait long for a dead peer sets `TCP_USER_TIMEOUT` or `SO_KEEPALIVE` on its
//! socket. In a mesh that socket's peer is the agent, which is on the same node and always answers. So the
//! kernel half notes what was set ([`abi::Waits`]), and a worker looks from time to time at the TCP connection
//! that its bytes really take: the tunnel's, or the plain one's. It ends what its application would have given
//! up by then, and nothing earlier: an application that has set nothing waits as long as the kernel retransmits.
//!
//! Kernel: `tcp_keepalive_timer` and `tcp_write_timeout` in `net/ipv4/tcp_timer.c`.

use std::{
    cell::Cell,
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use abi::{Flow, Waits};
use tunnel::Line;

use crate::pod::sock;

/// How often a worker looks.
pub(crate) const LOOK: Duration = Duration::from_millis(500);
/// How often it looks for options that an application has set late in a connection's life.
const LATE: Duration = Duration::from_secs(2);
/// Options are mostly set when a connection is young.
const YOUNG: Duration = Duration::from_secs(2);

/// How far the far side of a connection is from being given up by its application.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    /// Since when nothing has come from the far side.
    quiet: Duration,
    /// For how long the far side has owed an answer; nothing, if it owes none.
    owed: Option<Duration>,
    /// Whether bytes of this connection may be among what it has not acknowledged.
    waiting: bool,
}

/// Whether the application would have given the connection up.
fn is_over(waits: Waits, seen: Seen) -> bool {
    let Some(owed) = seen.owed else {
        return false;
    };
    let limit = Duration::from_millis(waits.user_timeout.into());
    if seen.waiting {
        // The kernel probes no connection that has something to retransmit.
        return waits.user_timeout > 0 && owed >= limit;
    }
    if waits.idle == 0 {
        return false;
    }
    let (idle, interval) = (seconds(waits.idle), seconds(waits.interval));
    // It is given up when a probe would be due and enough have gone unanswered, or, with a time-out of the
    // user's, when a probe would be due after that.
    let probes = if waits.user_timeout == 0 {
        waits.probes
    } else {
        let left = limit.saturating_sub(idle).as_millis();
        let needed = left.div_ceil(interval.as_millis().max(1)).max(1);
        u32::try_from(needed).unwrap_or(u32::MAX)
    };
    let probing = interval.saturating_mul(probes);
    seen.quiet >= idle.saturating_add(probing) && owed >= probing
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(count.into())
}

/// What a connection has to be looked at for.
pub(crate) struct Watched {
    /// The connection as its application's socket has it.
    application: Flow,
    /// What its bytes take from here.
    line: Arc<Line>,
    since: Instant,
    /// Whether the kernel half has been asked.
    asked: Cell<bool>,
    waits: Cell<Option<Waits>>,
    /// Bytes that its application had sent at the last look, and the look before the one that saw them first.
    sent: Cell<(u64, Instant)>,
    /// Bytes that its application had sent when nothing was owed.
    acknowledged: Cell<u64>,
}

impl Watched {
    /// A connection that begins now.
    pub(crate) fn new(application: Flow, line: Arc<Line>) -> Self {
        let now = Instant::now();
        Self {
            application,
            line,
            since: now,
            asked: Cell::new(false),
            waits: Cell::new(None),
            sent: Cell::new((0, now)),
            acknowledged: Cell::new(0),
        }
    }

    /// The connection by whose name the kernel half has a note of it, as far as is known.
    pub(crate) fn noted(&self) -> Option<Flow> {
        self.waits.get().map(|_| self.application)
    }

    /// Notes how much its application has sent.
    fn note(&self, sent: u64, before: Instant) {
        if self.sent.get().0 != sent {
            self.sent.set((sent, before));
        }
    }

    /// Whether bytes of its application may be among what the far side has not acknowledged. Where others' bytes
    /// take the same tunnel the answer is yes for what was sent in the last moment before the far side fell
    /// silent, so that nobody is taken for idle who is not.
    fn is_waiting(&self, quiet: Duration, owes: bool, now: Instant) -> bool {
        let (sent, before) = self.sent.get();
        if !owes {
            self.acknowledged.set(sent);
        }
        sent != self.acknowledged.get() && now.duration_since(before) <= quiet + LOOK
    }
}

/// What is known of a TCP connection that others' bytes take.
struct State {
    /// Kept, so that no other line comes to have its address while this is known of it.
    _line: Arc<Line>,
    /// When it was seen first that the far side owes an answer, since it was heard last.
    owing: Option<Instant>,
    heard: Instant,
    /// What the kernel has been told to probe after and with.
    probes: Option<(u32, u32)>,
    looked: Instant,
}

/// The far sides of one worker's connections.
pub(crate) struct Silence {
    lines: HashMap<*const Line, State>,
    /// The kernel half's count of changes when all were asked about last, and when that was.
    changes: u64,
    asked: Instant,
    looked: Instant,
}

impl Silence {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            lines: HashMap::new(),
            changes: 0,
            asked: now,
            looked: now,
        }
    }

    /// Looks at all connections: returns those that their applications would have given up, by the place in
    /// `connections`, and for how long nothing has come. Each comes with the bytes that its application has sent.
    ///
    /// `changes` counts what the kernel half has noted, `ask` asks it about one connection.
    pub(crate) fn look<'c>(
        &mut self,
        connections: impl Iterator<Item = (&'c Watched, u64)>,
        changes: u64,
        ask: impl Fn(Flow) -> Option<Waits>,
    ) -> Vec<(usize, Duration)> {
        let now = Instant::now();
        let before = std::mem::replace(&mut self.looked, now);
        let late = changes != self.changes && now.duration_since(self.asked) >= LATE;
        if late {
            (self.changes, self.asked) = (changes, now);
        }
        let mut over = Vec::new();
        let mut probes: HashMap<*const Line, (&Line, u32, u32)> = HashMap::new();
        for (place, (watched, sent)) in connections.enumerate() {
            watched.note(sent, before);
            if changes == 0 {
                continue;
            }
            let young = changes != self.changes && now.duration_since(watched.since) < YOUNG;
            if late || young || !watched.asked.replace(true) {
                watched.waits.set(ask(watched.application));
            }
            let Some(waits) = watched.waits.get().filter(|waits| !waits.is_default()) else {
                continue;
            };
            let line = &*watched.line;
            let new = || State::new(Arc::clone(&watched.line), now);
            let state = self.lines.entry(line).or_insert_with(new);
            if !state.look(line, now) {
                continue;
            }
            let quiet = now.duration_since(state.heard);
            let seen = Seen {
                quiet,
                owed: state.owing.map(|since| now.duration_since(since)),
                waiting: watched.is_waiting(quiet, state.owing.is_some(), now),
            };
            if is_over(waits, seen) {
                over.push((place, quiet));
            }
            if waits.idle > 0 {
                let (_, idle, interval) =
                    probes
                        .entry(line)
                        .or_insert((line, waits.idle, waits.interval));
                (*idle, *interval) = (waits.idle.min(*idle), waits.interval.min(*interval));
            }
        }
        for (key, (line, idle, interval)) in probes {
            if let Some(state) = self.lines.get_mut(&key) {
                state.probe(line, idle, interval);
            }
        }
        self.lines.retain(|_, state| state.looked == now);
        over
    }
}

impl State {
    fn new(line: Arc<Line>, now: Instant) -> Self {
        Self {
            _line: line,
            owing: None,
            heard: now,
            probes: None,
            looked: now.checked_sub(LOOK).unwrap_or(now),
        }
    }

    /// Asks the kernel once a look; says whether it is known how the connection fares.
    fn look(&mut self, line: &Line, now: Instant) -> bool {
        if self.looked == now {
            return true;
        }
        let Some(answer) = line.heard() else {
            return false;
        };
        let heard = now.checked_sub(answer.quiet).unwrap_or(now);
        // An answer ends what was owed before it.
        self.owing = self.owing.filter(|since| heard <= *since);
        self.owing = answer.owes.then(|| self.owing.unwrap_or(now));
        self.heard = heard;
        self.looked = now;
        true
    }

    /// Has the kernel ask the far side whether it lives, as often as the least patient application would.
    fn probe(&mut self, line: &Line, idle: u32, interval: u32) {
        if self.probes == Some((idle, interval)) {
            return;
        }
        match line.ask(|socket| sock::probe(socket, seconds(idle), seconds(interval))) {
            Some(Ok(())) => self.probes = Some((idle, interval)),
            Some(Err(error)) => tracing::debug!(%error, "cannot probe a far side"),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn waits(user_timeout: u32, idle: u32, interval: u32, probes: u32) -> Waits {
        Waits {
            user_timeout,
            idle,
            interval,
            probes,
        }
    }

    #[test]
    fn an_application_gives_up_when_the_kernel_would_and_not_before() {
        let minutes = ms(600_000);
        for (what, waits, quiet, owed, waiting, over) in [
            (
                "nothing set",
                waits(0, 0, 0, 0),
                minutes,
                Some(minutes),
                true,
                false,
            ),
            (
                "bytes, in time",
                waits(3000, 0, 0, 0),
                ms(2999),
                Some(ms(2999)),
                true,
                false,
            ),
            (
                "bytes, too long",
                waits(3000, 0, 0, 0),
                ms(3000),
                Some(ms(3000)),
                true,
                true,
            ),
            // It was quiet before, which nobody minds.
            (
                "bytes after a pause",
                waits(3000, 0, 0, 0),
                minutes,
                Some(ms(100)),
                true,
                false,
            ),
            (
                "all answered",
                waits(3000, 1, 1, 3),
                minutes,
                None,
                true,
                false,
            ),
            (
                "others' bytes",
                waits(3000, 0, 0, 0),
                minutes,
                Some(minutes),
                false,
                false,
            ),
            (
                "probes, in time",
                waits(0, 2, 1, 3),
                ms(4999),
                Some(ms(3000)),
                false,
                false,
            ),
            (
                "probes, too long",
                waits(0, 2, 1, 3),
                ms(5000),
                Some(ms(3000)),
                false,
                true,
            ),
            (
                "probes, owed late",
                waits(0, 2, 1, 3),
                minutes,
                Some(ms(2999)),
                false,
                false,
            ),
            // What is to be sent again is not probed.
            (
                "probes and bytes",
                waits(0, 2, 1, 3),
                minutes,
                Some(ms(9000)),
                true,
                false,
            ),
            (
                "both, at the next probe",
                waits(3500, 2, 1, 9),
                ms(3999),
                Some(ms(2000)),
                false,
                false,
            ),
            (
                "both, probed",
                waits(3500, 2, 1, 9),
                ms(4000),
                Some(ms(2000)),
                false,
                true,
            ),
            (
                "both, at least one probe",
                waits(500, 2, 1, 9),
                ms(2999),
                Some(ms(1000)),
                false,
                false,
            ),
            (
                "both, one probe",
                waits(500, 2, 1, 9),
                ms(3000),
                Some(ms(1000)),
                false,
                true,
            ),
        ] {
            let seen = Seen {
                quiet,
                owed,
                waiting,
            };
            assert_eq!(is_over(waits, seen), over, "{what}");
        }
    }
}
