//! Many subscriptions to one controller: started on a lab's node by `cargo xtask bench scale`.

mod subscribers;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use subscribers::Plan;

/// Follows a controller like many agents and times its changes.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The controller, as `https://HOST:PORT`.
    #[arg(long)]
    controller: String,
    /// PEM file with the root of its certificate.
    #[arg(long)]
    controller_ca: PathBuf,
    /// The controller's tokens; the first is left alone.
    #[arg(long)]
    tokens: PathBuf,
    /// The manifest to change.
    #[arg(long)]
    change: PathBuf,
    /// How many subscribe.
    #[arg(long)]
    subscribers: usize,
    /// How many changes.
    #[arg(long)]
    changes: usize,
    /// How many addresses a whole snapshot has.
    #[arg(long)]
    addresses: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let report = subscribers::run(&Plan {
        controller: args.controller,
        controller_ca: args.controller_ca,
        tokens: args.tokens,
        change: args.change,
        subscribers: args.subscribers,
        changes: args.changes,
        addresses: args.addresses,
    })
    .await?;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &report)?;
    Ok(writeln!(out)?)
}
