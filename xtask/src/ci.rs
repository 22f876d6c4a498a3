//! The order in which CI does things: what fails fast comes first.

use anyhow::Result;

use crate::vm::Kernel;
use crate::{fuzz, lint, setup, shell, test};

/// Sets up, checks and tests; stops at the first part that fails.
pub(crate) fn run() -> Result<()> {
    shell::heading("setup");
    setup::run(&setup::Args::default())?;
    shell::heading("lint");
    lint::run(&lint::Args::default())?;
    shell::heading("test");
    test::run(&test::Args::default())?;
    test::run(&test::Args::on_a_cluster())?;
    for kernel in [Kernel::V6_1, Kernel::V6_12] {
        test::run(&test::Args::elsewhere(kernel))?;
    }
    shell::heading("fuzz");
    fuzz::run(&fuzz::Args::briefly())
}
