//! What the kernel half says of its decisions, in builds that have it (feature `ebpf-log`). The usual build holds
//! no trace of it: neither the code in the hooks nor its map.

#[cfg(feature = "ebpf-log")]
mod lines;

#[cfg(feature = "ebpf-log")]
pub(super) use lines::{Lines, prepare};
#[cfg(not(feature = "ebpf-log"))]
pub(super) use none::{Lines, prepare};

/// `--ebpf-log` was given to an agent that cannot do it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--ebpf-log: the kernel half of this build says nothing; `cargo xtask build --ebpf-log` makes one that does"
)]
pub struct NoLog;

/// Whether this build can do what is wanted.
///
/// # Errors
/// It cannot.
pub fn check_log(wanted: bool) -> Result<(), NoLog> {
    if wanted && !cfg!(feature = "ebpf-log") {
        return Err(NoLog);
    }
    Ok(())
}

#[cfg(not(feature = "ebpf-log"))]
mod none {
    use std::path::Path;

    use aya::{Ebpf, EbpfLoader};

    use crate::bpf::KernelError;

    /// No lines.
    pub(in crate::bpf) struct Lines;

    impl Lines {
        pub(in crate::bpf) fn take(_: &mut Ebpf) -> Result<Self, KernelError> {
            Ok(Self)
        }

        pub(in crate::bpf) fn follow(&self) -> Result<(), KernelError> {
            Ok(())
        }
    }

    pub(in crate::bpf) fn prepare(_: &mut EbpfLoader<'static>, _: &Path, _: bool) {}
}

#[cfg(test)]
mod tests {
    use super::{NoLog, check_log};
    use crate::bpf::{node::NODE_OBJECT, pod::POD_OBJECT, shared::SHARED_OBJECT};

    #[test]
    fn the_usual_kernel_half_holds_no_trace_of_logging() {
        let has_log = |object: &[u8]| object.windows(8).any(|word| word == b"AYA_LOGS");
        let objects = [NODE_OBJECT, POD_OBJECT, SHARED_OBJECT];
        let with_log = objects.into_iter().filter(|object| has_log(object)).count();
        let wanted = if cfg!(feature = "ebpf-log") { 3 } else { 0 };
        assert_eq!(with_log, wanted);
    }

    #[test]
    fn who_wants_lines_of_a_build_that_has_none_is_told_what_to_build() {
        assert_eq!(check_log(false), Ok(()));
        if cfg!(feature = "ebpf-log") {
            assert_eq!(check_log(true), Ok(()));
            return;
        }
        assert_eq!(check_log(true), Err(NoLog));
        let said = NoLog.to_string();
        assert!(said.contains("cargo xtask build --ebpf-log"), "{said}");
    }
}
