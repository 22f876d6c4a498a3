//! What a waypoint costs while nobody asks it anything.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::Process;

use crate::fixture::SHOP;

/// The process when idle, of the figures in docs/benchmarks.md. With one thread, which is what a limit of one processor gives, a waypoint once woke itself
/// without end.
#[test]
fn an_idle_waypoint_uses_no_processor() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    for pod in ["shop/waypoint-n1", "shop/waypoint-n2"] {
        let pid = lab.containers(pod, |all| all.first().map(Process::pid));
        let pid = pid.with_context(|| format!("{pod} has no process"))?;
        // What other tests have begun is over by then.
        std::thread::sleep(Duration::from_secs(1));
        let before = tests_lab::ticks(pid)?;
        std::thread::sleep(Duration::from_secs(3));
        let used = tests_lab::ticks(pid)? - before;
        // Of three hundred. Who wakes without end has a tenth of them even on a machine with ten others who do.
        assert!(used <= 6, "{pod} was on a processor for {used}0 ms of 3 s");
    }
    Ok(())
}
