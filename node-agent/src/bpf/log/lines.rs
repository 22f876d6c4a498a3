//! Reads the lines of the kernel half and logs each under the target `ebpf`, with names for its numbers.
//!
//! All objects write to one ring, which is pinned. What finds no room in it is lost: this is for people who look.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
};

use abi::Reason;
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use runtime::threads::{self, Told};

use crate::bpf::KernelError;

/// Name of the ring, as `aya-log` names it.
const MAP: &str = "AYA_LOGS";
/// No line at all: the verifier takes the code out.
const OFF: u8 = 0;
const ON: u8 = aya_log::Level::Info as u8;

/// The lines, until somebody reads them.
pub(in crate::bpf) struct Lines(Mutex<Option<EbpfLogger<Named>>>);

impl Lines {
    pub(in crate::bpf) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let lines = EbpfLogger::init_with_logger(ebpf, Named)
            .map_err(|error| KernelError::Descriptor(std::io::Error::other(error)))?;
        Ok(Self(Mutex::new(Some(lines))))
    }

    /// Starts the thread that reads them, once.
    pub(in crate::bpf) fn follow(&self) -> Result<(), KernelError> {
        let Some(lines) = self.0.lock().take() else {
            return Ok(());
        };
        threads::spawn("ebpf-log", move || read(lines))
            .map(drop)
            .map_err(KernelError::Descriptor)
    }
}

fn read(mut lines: EbpfLogger<Named>) -> Told {
    loop {
        lines.flush();
        let mut ring = [PollFd::new(lines.as_fd(), PollFlags::POLLIN)];
        if let Err(error) = poll(&mut ring, PollTimeout::NONE)
            && error != nix::Error::EINTR
        {
            tracing::warn!(%error, "the kernel half's lines are read no longer");
            return Told;
        }
    }
}

/// Turns lines on or off in everything that this loader loads.
pub(in crate::bpf) fn prepare(loader: &mut EbpfLoader<'static>, dir: &Path, wanted: bool) {
    let level = if wanted { &ON } else { &OFF };
    loader
        .override_global(aya_log::LEVEL, level, true)
        .map_pin_path(MAP, dir.join(MAP));
}

/// Names what a line has in numbers.
struct Named;

impl log::Log for Named {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        let hook = record.target();
        match named(&line) {
            Some((pod_id, reason, peer)) => {
                tracing::info!(target: "ebpf", hook, pod_id, reason, %peer, "decided");
            }
            None => tracing::warn!(target: "ebpf", hook, line, "a line that cannot be read"),
        }
    }

    fn flush(&self) {}
}

/// Pod, reason and peer of `POD REASON ADDRESS PORT`.
fn named(line: &str) -> Option<(u32, &'static str, SocketAddr)> {
    let mut words = line.split(' ');
    let pod = words.next()?.parse().ok()?;
    let number: u32 = words.next()?.parse().ok()?;
    let reason = Reason::ALL.iter().find(|each| **each as u32 == number)?;
    let addr: IpAddr = words.next()?.parse().ok()?;
    let port = words.next()?.parse().ok()?;
    let peer = SocketAddr::new(addr.to_canonical(), port);
    words
        .next()
        .is_none()
        .then_some((pod, reason.as_str(), peer))
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn a_line_gets_the_name_of_its_reason_and_its_peer() {
        let peer = "10.244.2.10:80".parse().unwrap();
        let line = "7 6 ::ffff:10.244.2.10 80";
        assert_eq!(named(line), Some((7, "outbound_no_agent", peer)));
        for line in ["", "7", "7 100000 ::1 80", "7 6 x 80", "7 6 ::1 80 9"] {
            assert_eq!(named(line), None, "{line}");
        }
    }
}
