//! Waiting awake: a worker that expects bytes within microseconds looks for them before it sleeps.
//!
//! A thread that sleeps is woken by an interrupt to the processor it slept on, which costs both
//! sides more than everything else a proxy does with a small message. Where the next bytes come at
//! once, as in a dialogue, looking for them is cheaper. Where they do not, or where somebody else
//! wants the processor, it is a waste. So a worker stays awake only while its last waits were short,
//! and goes to sleep as soon as it finds that it had to share.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// A yield that took longer let another thread run.
const SHARED: Duration = Duration::from_micros(5);

thread_local! {
    static MOVED: Cell<bool> = const { Cell::new(false) };
    static SLEEPER: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// Tunnels of this thread have moved bytes.
pub(crate) fn moved() {
    if !MOVED.replace(true)
        && let Some(waker) = SLEEPER.take()
    {
        waker.wake();
    }
}

/// Whether they have since the last time.
#[cfg(test)]
pub(crate) fn has_moved() -> bool {
    MOVED.take()
}

/// Keeps this thread awake for up to `limit` after its tunnels moved bytes, where waiting has been
/// shorter than that. Spawn it once on each worker; it never ends. Nothing, with a limit of zero.
pub async fn stay_awake(limit: Duration) {
    if limit.is_zero() {
        return;
    }
    let mut last = Instant::now();
    loop {
        poll_fn(|cx| {
            if MOVED.take() {
                return Poll::Ready(());
            }
            SLEEPER.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
        let now = Instant::now();
        let short = now.duration_since(last) <= limit;
        last = now;
        if !short {
            continue;
        }
        let mut shared = false;
        loop {
            // After this the runtime has asked the kernel for events.
            tokio::task::yield_now().await;
            let before = Instant::now();
            if MOVED.take() {
                last = before;
            } else if shared || before.duration_since(last) > limit {
                break;
            } else {
                std::thread::yield_now();
                shared = before.elapsed() > SHARED;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                moved();
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
