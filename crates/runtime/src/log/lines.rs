//! Log lines on their way to standard error: handed to a thread of their own, so that who logs does not
//! wait for who reads.
//!
//! The queue takes memory for lines that wait, not for those that might.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::threads::Told;

/// Lines are written together up to about this many bytes.
const TOGETHER: usize = 16 << 10;
/// What is left at the end is written within this time, should nobody read.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Takes lines.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    queue: Sender<Vec<u8>>,
    count: Arc<Count>,
}

#[derive(Debug, Default)]
struct Count {
    waiting: AtomicUsize,
    limit: usize,
    lost: AtomicU64,
}

/// The thread that writes. Dropping it writes what is left.
#[derive(Debug)]
pub(super) struct Writing {
    count: Arc<Count>,
    stop: Sender<Vec<u8>>,
    ended: Mutex<Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the thread. `limit`: lines that may wait; those beyond it are lost, and counted.
pub(super) fn start(limit: usize, to: impl Write + Send + 'static) -> io::Result<(Lines, Writing)> {
    let (queue, lines) = mpsc::channel();
    let (over, ended) = mpsc::channel();
    let count = Arc::new(Count {
        limit,
        ..Count::default()
    });
    let counting = Arc::clone(&count);
    let thread = crate::threads::spawn("log", move || {
        write_all(&lines, &counting, to);
        // Who waited for it may have given up.
        let _nobody_waits = over.send(()).is_err();
        Told
    })?;
    let writing = Writing {
        count: Arc::clone(&count),
        stop: queue.clone(),
        ended: Mutex::new(ended),
        thread: Some(thread),
    };
    Ok((Lines { queue, count }, writing))
}

/// Writes lines until an empty one comes.
fn write_all(lines: &Receiver<Vec<u8>>, count: &Count, mut to: impl Write) {
    while let Ok(mut text) = lines.recv() {
        let mut taken = 1;
        let mut over = text.is_empty();
        while !over && text.len() < TOGETHER {
            let Ok(line) = lines.try_recv() else { break };
            taken += 1;
            over = line.is_empty();
            text.extend_from_slice(&line);
        }
        // Nobody can be told that nobody reads.
        drop(to.write_all(&text).and_then(|()| to.flush()));
        count.waiting.fetch_sub(taken, Ordering::Relaxed);
        if over {
            return;
        }
    }
}

impl Writing {
    /// Lines that were lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.count.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.count.waiting.fetch_add(1, Ordering::Relaxed);
        if self.stop.send(Vec::new()).is_err() {
            return;
        }
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let ended = ended.recv_timeout(ENDS_WITHIN);
        if ended != Err(RecvTimeoutError::Timeout)
            && let Some(thread) = self.thread.take()
        {
            // It has ended: this takes no time. A panic of it has been printed.
            drop(thread.join());
        }
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if line.is_empty() {
            return Ok(0);
        }
        if self.count.waiting.fetch_add(1, Ordering::Relaxed) < self.count.limit
            && self.queue.send(line.to_vec()).is_ok()
        {
            return Ok(line.len());
        }
        self.count.waiting.fetch_sub(1, Ordering::Relaxed);
        self.count.lost.fetch_add(1, Ordering::Relaxed);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_lines_are_written_in_their_order_before_the_end() {
        let to = Shared::default();
        let (lines, writing) = start(100_000, to.clone()).unwrap();
        let mut expected = Vec::new();
        for number in 0..10_000 {
            let line = format!("line {number}\n");
            (&lines).write_all(line.as_bytes()).unwrap();
            expected.extend_from_slice(line.as_bytes());
        }
        assert_eq!(writing.lost(), 0);
        drop(writing);
        assert!(*to.0.lock().unwrap() == expected);
    }

    #[test]
    fn lines_beyond_the_limit_are_lost_and_counted_and_nobody_waits() {
        let to = Shared::default();
        let stuck = to.0.lock().unwrap();
        let (lines, writing) = start(10, to.clone()).unwrap();
        for _ in 0..25 {
            (&lines).write_all(b"x\n").unwrap();
        }
        assert_eq!(writing.lost(), 15);
        drop(stuck);
        drop(writing);
        assert_eq!(to.0.lock().unwrap().len(), 20);
    }
}
