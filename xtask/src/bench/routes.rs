//! `cargo xtask bench routes`.

use anyhow::Result;
use bench::routes::{Options, table};

use super::place::Place;
use crate::shell;

/// How many routes, and how much changes besides.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Routes that are changed and waited for, on each side.
    #[arg(long, default_value_t = 500)]
    routes: usize,
    /// Other changes a second on the second side.
    #[arg(long, default_value_t = 100)]
    changes: u32,
    /// Short: whether everything works.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut sheet = args.place.begin("routes")?;
    shell::heading("A route at a time, from its manifest to the first request that goes by it");
    let sides = bench::routes::run(&Options {
        routes: if args.quick { 20 } else { args.routes },
        changes: args.changes,
    })?;
    for side in &sides {
        sheet.keep(&serde_json::to_string(side)?)?;
    }
    sheet.finish(&table(&sides))
}
