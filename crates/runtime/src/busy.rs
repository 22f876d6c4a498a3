//! Waiting awake: a worker that expects bytes within microseconds looks for them before it sleeps.
//!
//! A thread that sleeps is woken by an interrupt to the processor it slept on, which costs both
//! sides more than everything else a proxy does with a small message. Where the next bytes come at
//! once, as in a dialogue, looking for them is cheaper. Where they do not, or where somebody else
//! wants the processor, it is a waste. So a worker stays awake only while its last waits were short,
//! and goes to sleep as soon as it finds that it had to share.
//!
//! Waiting has to pay, or a peer that trickles bytes would keep a processor busy with nothing. It pays
//! where somebody waits for an answer: a message that goes the other way than the one before earns a part
//! of the limit, and looking in vain is paid from that. A stream in one direction earns nothing, since
//! nobody waits for it, and single bytes earn nothing, echoed or not; whatever their rate, they are looked
//! for a hundredth of the time.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// A yield that took longer let another thread run.
const SHARED: Duration = Duration::from_micros(5);

/// A turn of a dialogue earns this share of the limit. The waits of both its turns are one round trip
/// together, which may be a little longer than the limit.
const TURN: (u32, u32) = (3, 5);

/// Bytes that are a message. Requests and answers have more, as their frames in a tunnel do.
pub const MESSAGE: usize = 16;

/// What can be saved up, in limits.
const SAVINGS: u32 = 2;

/// Sleeping earns this share of the time slept, so that a dialogue that begins is found out.
const TRIAL: u32 = 100;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To an application from who it talks to: from a tunnel, or an answer from a server.
    Inward,
    /// From an application to who it talks to: to a tunnel, or a request to a server.
    Outward,
}

thread_local! {
    static SEEN: Cell<Option<Look>> = const { Cell::new(None) };
    static LAST: Cell<Way> = const { Cell::new(Way::Inward) };
    static SLEEPER: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// This thread has moved bytes.
pub fn moved(way: Way, bytes: usize) {
    let turned = LAST.replace(way) != way && bytes >= MESSAGE;
    let seen = SEEN.get();
    if turned || seen.is_none() {
        SEEN.set(Some(if turned { Look::Turn } else { Look::Bytes }));
    }
    if seen.is_none()
        && let Some(waker) = SLEEPER.take()
    {
        waker.wake();
    }
}

/// Whether they have since the last time; tests ask.
#[must_use]
pub fn has_moved() -> bool {
    SEEN.take().is_some()
}

/// Keeps this thread awake for up to `limit` after it moved bytes, where waiting has been
/// shorter than that and pays. Spawn it once on each worker; it never ends. Nothing, with a limit of
/// zero.
pub async fn stay_awake(limit: Duration) {
    if limit.is_zero() {
        return;
    }
    let mut watch = Watch::new(limit);
    let mut last = Instant::now();
    loop {
        poll_fn(|cx| {
            if SEEN.take().is_some() {
                return Poll::Ready(());
            }
            SLEEPER.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
        let now = Instant::now();
        if watch.woken(now.duration_since(last)) {
            look(&mut watch).await;
        }
        last = now;
    }
}

/// Looks for bytes for as long as that pays.
async fn look(watch: &mut Watch) {
    let mut shared = false;
    let mut before = Instant::now();
    loop {
        // After this the runtime has asked the kernel for events.
        tokio::task::yield_now().await;
        let now = Instant::now();
        let look = SEEN.take().unwrap_or(Look::Nothing);
        if !watch.looked(look, now.duration_since(before)) {
            return;
        }
        before = now;
        if look == Look::Nothing {
            if shared {
                return;
            }
            std::thread::yield_now();
            before = Instant::now();
            shared = before.duration_since(now) > SHARED;
        }
    }
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Nothing,
    /// Bytes that went the same way as those before, or no message.
    Bytes,
    /// A message that went the other way.
    Turn,
}

/// Decides whether to stay awake. It has no clock: times are given to it.
#[derive(Debug)]
struct Watch {
    limit: Duration,
    /// How much longer may be looked in vain.
    savings: Duration,
    /// Looked in vain since something was found.
    waited: Duration,
}

impl Watch {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            savings: limit * SAVINGS,
            waited: Duration::ZERO,
        }
    }

    /// Bytes came so long after those before. True to look for more; never less than the whole limit.
    fn woken(&mut self, after: Duration) -> bool {
        self.earn(after / TRIAL);
        self.waited = Duration::ZERO;
        after <= self.limit && self.savings >= self.limit
    }

    /// A look took so long and found that. True to look again.
    fn looked(&mut self, look: Look, took: Duration) -> bool {
        match look {
            Look::Nothing => {
                self.waited += took;
                self.savings = self.savings.saturating_sub(took);
                return self.waited <= self.limit && !self.savings.is_zero();
            }
            Look::Bytes => {}
            Look::Turn => self.earn(self.limit * TURN.0 / TURN.1),
        }
        self.waited = Duration::ZERO;
        true
    }

    fn earn(&mut self, earned: Duration) {
        self.savings = (self.savings + earned).min(self.limit * SAVINGS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);
    const LIMIT: Duration = Duration::from_micros(100);

    /// What happens in turn, again and again: bytes come after a wait, and are worked at for `WORK`.
    type Pattern = [(u32, Look)];

    const WORK: Duration = Duration::from_micros(10);

    /// The shares of a second that a worker looks in vain, and of the bytes for which it is awake.
    fn watch(pattern: &Pattern) -> (f64, f64) {
        let mut watch = Watch::new(LIMIT);
        watch.savings = Duration::ZERO;
        let (mut now, mut vain) = (Duration::ZERO, Duration::ZERO);
        let (mut awake, mut found, mut all) = (false, 0_u32, 0_u32);
        for (wait, look) in pattern.iter().cycle() {
            let wait = *wait * US;
            let mut left = wait;
            while awake && !left.is_zero() {
                left -= US;
                vain += US;
                awake = watch.looked(Look::Nothing, US);
            }
            all += 1;
            if awake {
                found += 1;
                watch.looked(*look, WORK);
            } else {
                awake = watch.woken(wait + WORK);
            }
            now += wait + WORK;
            if now >= Duration::from_secs(1) {
                break;
            }
        }
        let share = f64::from(found) / f64::from(all);
        (vain.as_secs_f64() / now.as_secs_f64(), share)
    }

    #[test]
    fn a_trickle_in_one_direction_costs_a_hundredth_whatever_its_rate() {
        for apart in [1, 10, 20, 50, 80, 90, 100, 1000] {
            let (vain, _) = watch(&[(apart, Look::Bytes)]);
            assert!(vain <= 0.02, "{apart} us apart: {vain:.3} of a processor");
        }
    }

    #[test]
    fn a_turn_is_a_message_that_goes_the_other_way() {
        use Way::{Inward, Outward};
        let seen = |moves: &[(Way, usize)]| {
            for (way, bytes) in moves {
                moved(*way, *bytes);
            }
            SEEN.take().unwrap_or(Look::Nothing)
        };
        seen(&[(Inward, 1)]);
        assert_eq!(seen(&[]), Look::Nothing);
        assert_eq!(seen(&[(Inward, 1000), (Inward, 1000)]), Look::Bytes);
        assert_eq!(seen(&[(Outward, MESSAGE)]), Look::Turn);
        assert_eq!(seen(&[(Outward, 1), (Inward, 1000)]), Look::Turn);
        assert_eq!(
            seen(&[(Inward, 1), (Outward, 1000), (Outward, 1)]),
            Look::Turn
        );
        assert_eq!(seen(&[(Inward, 1), (Outward, 1), (Inward, 1)]), Look::Bytes);
    }

    #[test]
    fn a_dialogue_is_waited_for_awake() {
        for (name, pattern) in [
            ("between nodes", [(50, Look::Turn), (10, Look::Turn)]),
            ("both asleep", [(60, Look::Turn), (15, Look::Turn)]),
            ("fast", [(5, Look::Turn), (5, Look::Turn)]),
            ("a slow network", [(95, Look::Turn), (15, Look::Turn)]),
        ] {
            let (_, awake) = watch(&pattern);
            assert!(awake >= 0.95, "{name}: awake for {awake:.3}");
        }
    }

    #[test]
    fn what_comes_late_is_not_waited_for() {
        for late in [150, 1000] {
            let (vain, awake) = watch(&[(late, Look::Turn), (late, Look::Turn)]);
            assert!(
                vain <= 0.01 && awake == 0.0,
                "{late}: {vain:.3}, {awake:.3}"
            );
        }
        let mut watch = Watch::new(LIMIT);
        for _ in 0..SAVINGS {
            assert!(watch.woken(LIMIT));
            let looks = (0..1000).take_while(|_| watch.looked(Look::Nothing, US));
            assert!(looks.count() <= 100);
        }
        assert!(!watch.woken(LIMIT), "it has to save up first");
    }

    /// Processor time of this thread so far (proc(5), `schedstat`).
    fn worked() -> Duration {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    }

    /// What a worker with this limit works while bytes come this far apart, and for a second after.
    fn works(limit: Duration, apart: Duration, times: u32) -> Duration {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let before = worked();
        runtime.block_on(async {
            let awake = tokio::spawn(stay_awake(limit));
            for _ in 0..times {
                moved(Way::Outward, MESSAGE);
                moved(Way::Inward, MESSAGE);
                tokio::time::sleep(apart).await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            awake.abort();
        });
        worked() - before
    }

    #[test]
    fn who_waits_longer_than_the_limit_sleeps() {
        let limit = Duration::from_millis(20);
        let worked = works(limit, 2 * limit, 20);
        assert!(worked < 10 * limit, "{worked:?} of 800 ms awake");
    }

    #[test]
    fn who_is_awake_falls_asleep_when_nothing_comes() {
        let limit = Duration::from_millis(100);
        let worked = works(limit, Duration::from_millis(1), 20);
        assert!(worked < 4 * limit, "{worked:?} of a second awake");
    }

    #[test]
    fn without_a_limit_nobody_stays_awake() {
        let worked = works(Duration::ZERO, Duration::from_millis(1), 50);
        assert!(worked < Duration::from_millis(200), "{worked:?}");
    }
}
