//! How a lab goes, whoever made it: everything is found by the lab's id and removed.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

use crate::cgroup::{self, Cgroup};
use crate::lab::BPFFS;
use crate::netns;
use crate::run_dir::{self, RunDir};

/// Removes the lab `id`: processes, namespaces with their interfaces, pins, cgroups, files.
/// Removing what is not there is no error; nothing that the lab did not make is touched.
///
/// # Errors
/// Something resisted. The rest is removed nevertheless; calling again tries again.
pub fn remove(id: &str) -> Result<()> {
    let _alone = run_dir::alone()?;
    remove_alone(id)
}

fn remove_alone(id: &str) -> Result<()> {
    let run_dir = RunDir::of(id)?;
    let cgroup = Cgroup::at(cgroup::mount_point()?.join(format!("keelson-lab-{id}")));
    let steps = [
        if cgroup.path().exists() {
            cgroup.kill()
        } else {
            Ok(())
        },
        remove_pins(&Path::new(BPFFS).join(format!("keelson-lab-{id}"))),
        netns::named(&format!("k{id}-"))
            .iter()
            .try_for_each(|name| netns::delete(name)),
        cgroup.remove(),
        run_dir.remove(),
    ];
    let failed = steps.into_iter().find_map(Result::err);
    failed.map_or(Ok(()), |error| {
        Err(error.context(format!("removing the lab {id}")))
    })
}

/// Removes the labs whose owner has died without removing them, and returns their ids.
///
/// # Errors
/// As [`remove`].
pub fn remove_all_stale() -> Result<Vec<String>> {
    let _alone = run_dir::alone()?;
    let mut removed = Vec::new();
    for id in run_dir::ids() {
        if RunDir::of(&id)?.live_owner().is_none() {
            remove_alone(&id)?;
            removed.push(id);
        }
    }
    Ok(removed)
}

/// The labs on this machine, each with the pid of its owner if that lives.
#[must_use]
pub fn all() -> Vec<(String, Option<i32>)> {
    run_dir::ids()
        .into_iter()
        .filter_map(|id| {
            let owner = RunDir::of(&id).ok()?.live_owner();
            Some((id, owner))
        })
        .collect()
}

/// An id that no other lab of a living process has.
#[must_use]
pub fn unique_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{:x}x{number:x}", std::process::id())
}

/// Whether a signal is ending this process: labs are being removed, and whatever fails now fails
/// because of that.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

pub(crate) fn register(id: &str) {
    live().push(id.to_owned());
}

pub(crate) fn forget(id: &str) {
    live().retain(|live| live != id);
}

fn live() -> MutexGuard<'static, Vec<String>> {
    static LIVE: Mutex<Vec<String>> = Mutex::new(Vec::new());
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove_pins(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing the pins in {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP first remove this process's labs and then do what they
/// would have done.
pub(crate) fn on_signals() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = install());
    result
}

fn install() -> Result<()> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    SIGNALS.store(write.as_raw_fd(), Ordering::Relaxed);
    let action = SigAction::new(
        SigHandler::Handler(note_signal),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in CAUGHT {
        #[expect(unsafe_code, reason = "installing a signal handler")]
        // SAFETY: the handler only loads an atomic and calls write(2), which is
        // async-signal-safe.
        unsafe { sigaction(signal, &action) }?;
    }
    thread::Builder::new()
        .name("removal".to_owned())
        .spawn(move || remove_on_signal(&read, write))?;
    Ok(())
}

fn remove_on_signal(read: &OwnedFd, _write_stays_open: OwnedFd) {
    let mut number = [0];
    while !matches!(nix::unistd::read(read, &mut number), Ok(1)) {}
    INTERRUPTED.store(true, Ordering::Relaxed);
    // Kept until the process ends: a main thread that fails because its lab vanishes must not
    // end the process before all is gone.
    let _alone = run_dir::alone();
    for id in live().clone() {
        let mut removed = remove_alone(&id);
        // Another thread may have been making things meanwhile.
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(100));
            removed = remove_alone(&id);
        }
        if let Err(error) = removed {
            tracing::error!(error = format!("{error:#}"), "not wholly removed");
        }
    }
    let signal = Signal::try_from(i32::from(number[0])).unwrap_or(Signal::SIGTERM);
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    #[expect(unsafe_code, reason = "giving the signal its own effect back")]
    // SAFETY: SIG_DFL runs no code of this program.
    let restored = unsafe { sigaction(signal, &default) };
    if restored.and_then(|_| raise(signal)).is_err() {
        std::process::abort();
    }
}

extern "C" fn note_signal(signal: libc::c_int) {
    let byte = signal.to_le_bytes();
    let pipe = SIGNALS.load(Ordering::Relaxed);
    #[expect(
        unsafe_code,
        reason = "only write(2) itself may be called in a signal handler"
    )]
    // SAFETY: the descriptor is the pipe's and stays open; one byte of a live array is read.
    let _written = unsafe { libc::write(pipe, byte.as_ptr().cast(), 1) };
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static SIGNALS: AtomicI32 = AtomicI32::new(-1);
const CAUGHT: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
