//! Labs that stay at their end, for a person to look at what a test left.

use std::env;
use std::io::Write as _;
use std::thread;
use std::time::Duration;

use crate::remove::interrupted;

/// Names, if it is set, that labs stay until a signal ends the process: `cargo xtask lab down --id ID` sends one.
pub const KEEP: &str = "KEELSON_KEEP_LAB";

/// Waits where [`KEEP`] is set, and says how to look at the lab. The signal's own thread removes the lab and ends the
/// process.
pub fn hold(id: &str) {
    if env::var_os(KEEP).is_none() || interrupted() {
        return;
    }
    let guide = format!(
        "
The test is at its end and its lab {id} stays:
  who is where   cargo xtask lab status --id {id}
  enter a pod    cargo xtask lab exec --id {id} NAMESPACE/POD -- bash
  the logs       /run/keelson-lab/{id}/logs
  remove it      cargo xtask lab down --id {id}, or Ctrl-C
"
    );
    // Not through a macro: test programs would keep that for themselves.
    if std::io::stderr().write_all(guide.as_bytes()).is_err() {
        return;
    }
    while !interrupted() {
        thread::sleep(LOOK);
    }
}

/// How late a signal is noticed.
const LOOK: Duration = Duration::from_millis(100);
