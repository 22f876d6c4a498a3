//! Processor time that is used for nothing, in the scheduler's idle class and in as many pieces as changes
//! are written: what a push would cost traffic if it were nobody's business.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use nix::time::{ClockId, clock_gettime};

use super::changes::TICKS;

/// A burn that goes on until it is stopped.
#[derive(Debug)]
pub struct Burn {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Burn {
    /// Starts to use this many processors, of which there is at most one.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(processors: f64) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("burn".to_owned())
            .spawn(move || burn(processors.clamp(0.0, 1.0), &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    ///
    /// # Errors
    /// It could not be put into the idle class.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        self.thread
            .join()
            .map_err(|_panic| anyhow!("the burn panicked"))?
    }
}

fn burn(processors: f64, stop: &AtomicBool) -> Result<()> {
    super::stand_back_here()?;
    let every = Duration::from_secs(1) / TICKS;
    let start = Instant::now();
    let used_before = used()?;
    let mut pieces = 0;
    let mut memory = vec![0_u64; 1 << 17];
    while !stop.load(Ordering::Acquire) {
        pieces += 1;
        // Who had to wait catches up.
        let wanted = (every * pieces).mul_f64(processors);
        while used()? - used_before < wanted && !stop.load(Ordering::Acquire) {
            // Configuration is memory that is read and written.
            memory
                .iter_mut()
                .step_by(8)
                .for_each(|word| *word = word.wrapping_add(1));
        }
        std::thread::sleep((start + every * pieces).saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Processor time of this thread.
fn used() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burn_uses_processor_time_until_it_is_stopped() {
        let own = || crate::usage::processes(&[std::process::id().cast_signed()]).cpu();
        let before = own();
        let burn = Burn::start(1.0).unwrap();
        while own() - before < 0.1 {
            std::thread::yield_now();
        }
        burn.stop().unwrap();
    }
}
