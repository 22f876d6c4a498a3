//! How the lab calls `ip` and `nft`, and what it says when they are missing or refuse.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::netns::Netns;
use crate::process::Placement;

/// Runs `ip` with these arguments.
pub(crate) fn ip(args: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(args);
    run(command, "iproute2", "").with_context(|| format!("ip {}", args.join(" ")))
}

/// Runs a batch of `ip` commands inside a namespace, one a line.
pub(crate) fn ip_batch(netns: &Netns, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-n", netns.name(), "-batch", "-"]);
    run(command, "iproute2", lines)
        .with_context(|| format!("ip -n {} -batch with\n{}", netns.name(), numbered(lines)))
}

/// Replaces nf_tables state inside a namespace, in one transaction.
pub(crate) fn nft(netns: &Netns, ruleset: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]);
    Placement::in_netns(netns)?.apply(&mut command);
    run(command, "nftables", ruleset)
        .with_context(|| format!("nft -f - in {} with\n{}", netns.name(), numbered(ruleset)))
}

fn run(mut command: Command, package: &str, input: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => anyhow!(
                "the program `{program}` is not installed: `apt-get install {package}`, or let `cargo xtask setup` do it"
            ),
            _ => anyhow::Error::new(error).context(format!("starting `{program}`")),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that refuses early closes its end; its own message says more than EPIPE.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn numbered(lines: &str) -> String {
    lines
        .lines()
        .enumerate()
        .map(|(index, line)| format!("{:>4}  {line}\n", index + 1))
        .collect()
}
