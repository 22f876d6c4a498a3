//! Everything that can be judged without running the programs.

mod arm64;
mod dependencies;
pub(crate) mod metadata;
mod rooms;
mod statuses;
mod tidy;

use anyhow::{Result, bail};

use crate::shell;

/// Which checks to run; all but arm64 if none is named.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Only these, in this order.
    #[arg(value_enum)]
    only: Vec<Check>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Check {
    /// `cargo fmt --check`.
    Fmt,
    /// The workspace's own rules: which crate may depend on which, what every file has.
    Tidy,
    /// Licences, bans, sources and duplicates, as deny.toml states them.
    Deny,
    /// Clippy, warnings denied.
    Clippy,
    /// `cargo doc`, warnings denied.
    Docs,
    /// `cargo check` of the programs for arm64. Only if named: it installs a cross compiler.
    Arm64,
}

/// Runs every check, also after one has failed, and fails at the end if one did.
pub(crate) fn run(args: &Args) -> Result<()> {
    let all = [
        Check::Fmt,
        Check::Tidy,
        Check::Deny,
        Check::Clippy,
        Check::Docs,
    ];
    let checks = if args.only.is_empty() {
        &all[..]
    } else {
        &args.only
    };
    let mut failed = Vec::new();
    for check in checks {
        if let Err(error) = run_one(*check) {
            println!("{} {error:#}", shell::red("failed:"));
            failed.push(format!("{check:?}").to_lowercase());
        }
    }
    if !failed.is_empty() {
        bail!("these checks failed: {}", failed.join(", "));
    }
    println!("lint: all good");
    Ok(())
}

fn run_one(check: Check) -> Result<()> {
    match check {
        Check::Fmt => shell::run(&mut shell::cargo(&["fmt", "--all", "--check"])?),
        Check::Tidy => tidy::check(),
        Check::Deny => dependencies::check(),
        Check::Clippy => shell::run(&mut shell::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])?),
        Check::Docs => {
            // With examples it takes the features that clippy has looked at everything with.
            let mut doc = shell::cargo(&["doc", "--workspace", "--no-deps"])?;
            doc.args(["--lib", "--bins", "--examples"]);
            shell::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
        }
        Check::Arm64 => arm64::check(),
    }
}
