//! Counts that hold over all workers: how many there are of something, and room for one more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

/// How many there are of something now.
#[derive(Debug, Default)]
pub(crate) struct Count {
    now: AtomicU32,
    freed: Notify,
}

/// One of them, while it lives.
#[derive(Debug)]
pub(crate) struct Held(Arc<Count>);

impl Count {
    /// One more, if there are fewer than `limit`.
    pub(crate) fn take(self: &Arc<Self>, limit: u32) -> Option<Held> {
        let taken = self
            .now
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                (now < limit).then_some(now + 1)
            });
        taken.is_ok().then(|| Held(Arc::clone(self)))
    }

    /// How many there are.
    pub(crate) fn now(&self) -> u32 {
        self.now.load(Ordering::Acquire)
    }

    /// One more, as soon as there are fewer than `limit`.
    pub(crate) async fn wait(self: &Arc<Self>, limit: u32) -> Held {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(held) = self.take(limit) {
                return held;
            }
            freed.await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_are_never_more_than_the_limit_and_who_waits_gets_the_next() {
        let count = Arc::new(Count::default());
        let first = count.take(1).unwrap();
        assert!(count.take(1).is_none());
        let waiting = tokio::spawn({
            let count = Arc::clone(&count);
            async move { count.wait(1).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        let second = waiting.await.unwrap();
        assert_eq!(count.now(), 1);
        drop(second);
        assert_eq!(count.now(), 0);
    }
}
