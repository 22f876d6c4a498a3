//! `cargo xtask bench cluster`.

use anyhow::{Result, bail};

use crate::build;
use crate::images::Made;
use crate::shell::{self, is_root};
use crate::test;

/// Which programs are measured.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only figures of tests whose name contains one of these, such as `figures::`, `live::` or `scale::`.
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// As tests are built, which is faster made and slower.
    #[arg(long)]
    quick: bool,
}

/// Measures and prints a table.
pub(super) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!("a cluster of this machine's own needs root");
    }
    let made = if args.quick {
        Made::AsBuilt
    } else {
        Made::Release
    };
    let subscribers = build::programs(!args.quick)?.join("keelson-bench-subscribers");
    let figures = test::cluster::figures(made, &args.filters, &subscribers)?;
    shell::heading("What was promised and what was measured");
    println!("| measure | at least | aim | measured |\n|---|---|---|---|");
    for figure in figures {
        println!("| {figure} |");
    }
    Ok(())
}
