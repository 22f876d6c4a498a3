//! Threads and tasks without which a program must not go on: one that panics ends the process, so that whoever
//! watches it starts it anew, instead of a program that looks well and has stopped doing part of its work.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

/// What a thread returns that was told to end.
#[derive(Debug)]
pub struct Told;

/// Starts a thread that the program cannot do without: should it panic, the process ends by `SIGABRT`, after a
/// line on standard error that names the thread.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn(
    name: &str,
    body: impl FnOnce() -> Told + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let vital = Vital {
        kind: "thread",
        name: name.to_owned(),
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let vital = vital;
            fail_if_asked(&vital.name);
            let Told = body();
        })
}

/// Runs a task that the program cannot do without, as [`spawn`] does with threads. An executor would keep its
/// panic to itself.
pub async fn task<F: Future>(name: &str, body: F) -> F::Output {
    let _vital = Vital {
        kind: "task",
        name: name.to_owned(),
    };
    fail_if_asked(name);
    body.await
}

/// Ends the process if it is dropped by a panic.
struct Vital {
    kind: &'static str,
    name: String,
}

impl Drop for Vital {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        #[expect(
            clippy::print_stderr,
            reason = "the thread that writes log lines may be the one that has ended"
        )]
        {
            eprintln!(
                "the {} `{}` has panicked; the process ends",
                self.kind, self.name
            );
        }
        std::process::abort();
    }
}

/// In debug builds, for tests of what a panic does: the thread or task that [`PANIC`] names panics when it starts.
#[cfg(debug_assertions)]
fn fail_if_asked(name: &str) {
    if std::env::var(PANIC).is_ok_and(|asked| asked == name) {
        #[expect(clippy::panic, reason = "it is what was asked for")]
        {
            panic!("asked to by {PANIC}");
        }
    }
}

#[cfg(not(debug_assertions))]
fn fail_if_asked(_: &str) {}

/// The environment variable that names who shall panic.
#[cfg(debug_assertions)]
const PANIC: &str = "KEELSON_TEST_PANIC";

#[cfg(debug_assertions)]
#[cfg(test)]
mod tests {
    use super::{PANIC, Told, spawn, task};
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    const CHILD: &str = "KEELSON_TEST_CHILD";

    /// Runs itself as a child whose only thread of the kind is named `work`.
    fn child(panics: &str) -> std::process::Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "threads::tests::a_thread_that_panics_ends_the_process",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .env(PANIC, panics);
        command.output().unwrap()
    }

    #[test]
    fn a_thread_that_panics_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let thread = spawn("work", || Told).unwrap();
            drop(thread.join());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            runtime.block_on(async { drop(tokio::spawn(task("job", async {})).await) });
            return;
        }
        for (name, line) in [
            ("work", "the thread `work` has panicked"),
            ("job", "the task `job` has panicked"),
        ] {
            let ended = child(name);
            assert_eq!(ended.status.signal(), Some(6), "{ended:?}");
            let said = String::from_utf8(ended.stderr).unwrap();
            assert!(said.contains(line), "{said}");
        }
        let well = child("another");
        assert!(well.status.success(), "{well:?}");
    }
}
