//! The oldest kernel that the agent starts on, and why.

use thiserror::Error;

/// First release whose `connect` hooks may clear `SO_BINDTODEVICE` of a socket, which capture needs.
const OLDEST: (u32, u32) = (6, 1);

/// The kernel cannot capture pods.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "this node runs Linux {release}; Keelson needs {}.{} or later, because older kernels cannot take a connection that an \
     application has bound to an interface",
    OLDEST.0,
    OLDEST.1
)]
pub(crate) struct TooOld {
    release: String,
}

/// Checks the running kernel.
///
/// # Errors
/// It is too old; one sentence says so.
pub(crate) fn check() -> Result<(), TooOld> {
    // A kernel that does not say its release is left to the loading of programs to judge.
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or(Ok(()), |release| judge(release.trim()))
}

fn judge(release: &str) -> Result<(), TooOld> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|digits| digits.parse::<u32>().ok());
    match (next(), next()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST => Err(TooOld {
            release: release.to_owned(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn an_old_kernel_is_refused_in_one_sentence_that_names_it() {
        for release in ["6.1.0-56-cloud-amd64", "6.12.117+deb12", "7.0-rc1", "10.0"] {
            assert!(judge(release).is_ok(), "{release}");
        }
        for release in ["6.0.12", "5.15.0-91-generic", "4.18.0-553.el8"] {
            let said = judge(release).unwrap_err().to_string();
            assert!(said.contains(release) && said.contains("6.1"), "{said}");
            assert!(!said.contains('\n') && !said.contains("  "), "{said}");
        }
    }
}
