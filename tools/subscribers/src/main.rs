//! Many subscriptions to one controller: started on a lab's node by `cargo xtask bench scale`, and on a cluster's by
//! `cargo xtask bench cluster`.

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
    /// The name in its certificate, if it is not HOST.
    #[arg(long)]
    server_name: Option<String>,
    /// The controller's tokens, lines of a token and its node; the first is left alone.
    #[arg(long)]
    tokens: PathBuf,
    /// Pods that nodes report as captured, lines of node, namespace, name, uid and address.
    #[arg(long)]
    captured: Option<PathBuf>,
    /// The manifest to change. Without it others change what they like until standard input ends.
    #[arg(long)]
    change: Option<PathBuf>,
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
    let plan = Plan {
        controller: args.controller,
        controller_ca: args.controller_ca,
        server_name: args.server_name,
        tokens: args.tokens,
        captured: args.captured,
        change: args.change,
        subscribers: args.subscribers,
        changes: args.changes,
        addresses: args.addresses,
    };
    subscribers::run(&plan, |line| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        Ok(out.flush()?)
    })
    .await
}
