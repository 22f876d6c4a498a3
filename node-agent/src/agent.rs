//! Wires the agent together.
use crate::config::RunArgs;
/// Runs.
///
/// # Errors
/// x
pub fn run(_: RunArgs) -> anyhow::Result<()> {
    Ok(())
}
