//! The kernel and lab tests on other kernels: Debian's, in a virtual machine without acceleration.
//!
//! The machine has cgroup v2 alone, as most nodes do, and features that another machine's kernel may
//! lack. Without acceleration it is some 5 to 20 times slower than the machine that it runs on.

mod image;
mod kernel;
mod machine;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub(crate) use self::kernel::Kernel;
use crate::shell::{self, is_root};
use crate::{build, setup};
use machine::Outcome;

/// Which tests run there, and for how long they may.
#[derive(Debug)]
pub(crate) struct Selection<'a> {
    /// Only tests whose name contains one of these; all if there is none.
    pub(crate) filters: &'a [String],
    /// Tests that are left out, by a part of their names.
    pub(crate) skip: &'a [String],
    /// Further arguments of the test programs.
    pub(crate) rest: &'a [String],
    /// After this the machine is ended and the run has failed.
    pub(crate) limit: Duration,
}

/// Builds programs and tests, boots `kernel` and runs the tests there.
///
/// # Errors
/// Something could not be built or fetched, the machine did not finish, or a test failed.
pub(crate) fn test(kernel: Kernel, selection: &Selection<'_>) -> Result<()> {
    if !is_root() {
        bail!("the virtual machine's disk is made as root: run this as root");
    }
    setup::run(&setup::Args::default())?;
    setup::install_packages_of(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("debootstrap", "debootstrap"),
        ("cpio", "cpio"),
        ("busybox", "busybox-static"),
        ("mkfs.ext4", "e2fsprogs"),
        ("depmod", "kmod"),
        ("xz", "xz-utils"),
    ])?;
    build::next_layout_for_tests()?;
    build::for_tests()?;
    let programs = build::test_programs(&["tests-lab", "lab"], &PROGRAMS)?;
    let place = place()?;
    let (kernel, disks) = {
        let turn = File::create(place.join("turn")).context("taking turns with other runs")?;
        turn.lock().context("taking turns with other runs")?;
        let kernel = kernel::fetch(kernel, &place)?;
        let disks = image::make(&kernel, &programs, selection, &place)?;
        (kernel, disks)
    };
    let outcome = machine::run(&kernel, &disks, selection.limit, &place)?;
    judge(&kernel, &outcome)
}

/// A test that fails once and passes when it is run again is named as unsteady, as in a run without a machine.
fn judge(kernel: &kernel::Files, outcome: &Outcome) -> Result<()> {
    let totals = &outcome.first;
    println!(
        "\n{} {} passed, {} failed, {} ignored, in {} test programs",
        shell::bold(&format!("on {}:", kernel.release)),
        totals.passed,
        totals.failed,
        totals.ignored,
        totals.programs,
    );
    for name in &totals.failures {
        println!("  {} {name}", shell::red("failed:"));
    }
    if totals.passed + totals.failed == 0 {
        bail!("no test ran on {}", kernel.release);
    }
    if totals.failed == 0 {
        return Ok(());
    }
    let again = outcome.again.as_ref();
    if again.is_none_or(|again| again.failed > 0 || again.passed < totals.failed) {
        bail!(
            "{} tests failed on {}, not all of them passed when repeated",
            totals.failed,
            kernel.release
        );
    }
    for name in &totals.failures {
        println!(
            "  {} {name} (failed once, passed when repeated)",
            shell::bold("unsteady:")
        );
    }
    Ok(())
}

/// Test programs that make pods, by the names of their targets: those of `tests/lab`, and those of the lab itself.
const PROGRAMS: [&str; 4] = ["datapath", "mesh", "topology", "kubelet"];

/// Where kernels, the file system and disks are kept between runs.
fn place() -> Result<PathBuf> {
    let place = shell::root()?.join("target/vm");
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    Ok(place)
}

/// Copies one file, and says which if it cannot.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}
