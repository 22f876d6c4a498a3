//! Memory that was needed once goes back to the kernel: that of the start, of each large change, of many connections that are gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

/// Told of changes of the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes(Arc<Notify>);

impl Changes {
    /// A change has been read that had so many bytes.
    pub(crate) fn read(&self, bytes: usize) {
        if bytes >= LARGE {
            self.0.notify_one();
        }
    }

    /// Keeps the process small: what a change has used is given back, and so is what connections have that are gone, of
    /// which `connections` says how many there are. It never ends.
    pub(crate) async fn keep_small(self, connections: impl Fn() -> i64) {
        tokio::time::sleep(STARTED).await;
        runtime::memory::give_back();
        runtime::memory::forget_start();
        let mut most = 0;
        loop {
            tokio::select! {
                // What comes right behind is seen to together.
                () = self.0.notified() => tokio::time::sleep(LOOK_EVERY).await,
                () = tokio::time::sleep(LOOK_EVERY) => {
                    let now = connections();
                    most = most.max(now);
                    if now > most / 2 || most < FEW {
                        continue;
                    }
                }
            }
            most = connections();
            runtime::memory::give_back();
        }
    }
}

/// Bytes of a change that are worth it: to give memory back takes a lock that whoever allocates waits for.
const LARGE: usize = 256 << 10;
/// After this time the program is as it will stay.
const STARTED: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// So many connections leave nothing that is worth it.
const FEW: i64 = 16;
