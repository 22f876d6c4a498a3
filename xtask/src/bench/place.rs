//! What the further measurements have in common: what they build, and where their results go.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::{Build, default_out, prepare};
use crate::setup;
use crate::shell::{self, is_root};

/// Which programs are measured, and where the figures go.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    #[command(flatten)]
    build: Build,
    /// Where results go; by default a file in `target/bench` that is named after the time.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the table into docs/benchmarks.md.
    #[arg(long)]
    update_docs: bool,
}

/// The results of one measurement.
pub(super) struct Sheet {
    part: &'static str,
    path: PathBuf,
    file: File,
    update_docs: bool,
}

impl Place {
    /// Builds, and begins the results of what is called `part` on the page.
    pub(super) fn begin(&self, part: &'static str) -> Result<Sheet> {
        if !is_root() {
            bail!("the lab makes network namespaces and agents load eBPF programs: run it as root");
        }
        shell::heading("Setup and build");
        setup::run(&setup::Args::default())?;
        let target = prepare(&self.build)?;
        let default = || default_out(&target, &format!("{part}-"));
        let path = self.out.clone().unwrap_or_else(default);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Sheet {
            part,
            path,
            file,
            update_docs: self.update_docs,
        })
    }
}

impl Sheet {
    /// Keeps a result, a line of JSON.
    pub(super) fn keep(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.file, "{line}")?)
    }

    /// Shows the table, and writes it where that is wanted.
    pub(super) fn finish(self, table: &str) -> Result<()> {
        println!("\n{table}\nresults: {}", self.path.display());
        if self.update_docs {
            let page = shell::root()?.join("docs/benchmarks.md");
            bench::report::update_part(&page, self.part, table)?;
            println!("written: {}", page.display());
        }
        Ok(())
    }
}
