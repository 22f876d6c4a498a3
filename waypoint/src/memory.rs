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
        let mut quiet = Quiet::default();
        loop {
            tokio::select! {
                // What comes right behind is seen to together.
                () = self.0.notified() => tokio::time::sleep(LOOK_EVERY).await,
                () = tokio::time::sleep(LOOK_EVERY) => {
                    let now = connections();
                    if quiet.has_come(now) {
                        runtime::memory::forget_start();
                    }
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

/// For how many looks there has been no connection.
#[derive(Debug, Default)]
struct Quiet(u32);

impl Quiet {
    /// Whether there has been none for long enough, and it was not said before: of the program's own pages only those
    /// that connections need are in memory then, and nobody needs them.
    fn has_come(&mut self, connections: i64) -> bool {
        self.0 = match connections {
            0 => self.0.saturating_add(1),
            _ => 0,
        };
        self.0 == QUIET_LOOKS
    }
}

/// Bytes of a change that are worth it: to give memory back takes a lock that whoever allocates waits for.
const LARGE: usize = 256 << 10;
/// After this time the program is as it will stay.
const STARTED: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Half a minute.
const QUIET_LOOKS: u32 = 15;
/// So many connections leave nothing that is worth it.
const FEW: i64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_once_for_each_time_without_connections() {
        let mut quiet = Quiet::default();
        let mut looks = |count: usize, connections: i64| {
            let all = (0..count).filter(|_| quiet.has_come(connections));
            all.count()
        };
        assert_eq!(looks(14, 0), 0);
        assert_eq!(looks(1, 1), 0, "somebody came just then");
        assert_eq!(looks(14, 0), 0);
        assert_eq!(looks(100, 0), 1);
        assert_eq!(looks(100, 2), 0);
        assert_eq!(looks(100, 0), 1);
    }
}
