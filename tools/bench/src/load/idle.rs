//! Connections that have had one answer each and then do nothing: what do they cost in memory?

use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::connection::{Connection, congestion};
use super::report::LoadReport;
use super::{Plan, message};

/// The report's `usage.mesh` holds growth of memory here, not levels: resident bytes after all
/// connections stand and have rested for the plan's window, less those before.
pub(super) fn run(plan: &Plan, connections: usize) -> Result<LoadReport> {
    let request = message::request();
    // Code and caches that the first connections need are not the cost of a connection.
    let warm = (0..WARM)
        .map(|_| {
            let mut connection = Connection::open(plan.server)?;
            connection.exchange(&request)?;
            Ok(connection)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut report = LoadReport {
        congestion: warm
            .first()
            .map(|first| congestion(first.stream()))
            .unwrap_or_default(),
        ..LoadReport::default()
    };
    thread::sleep(plan.warm_up);
    let start = Instant::now();
    let before = plan.watched.usage();
    let mut kept = Vec::with_capacity(connections);
    for number in 0..connections {
        let mut connection = Connection::open(plan.server)
            .with_context(|| format!("connection {number} of {connections}"))?;
        connection
            .exchange(&request)
            .with_context(|| format!("connection {number} of {connections}"))?;
        kept.push(connection);
    }
    thread::sleep(plan.window);
    let after = plan.watched.usage();
    report.seconds = start.elapsed().as_secs_f64();
    report.usage = after.since(&before);
    report.usage.mesh.rss = after.mesh.rss.saturating_sub(before.mesh.rss);
    report.usage.mesh.anonymous = after.mesh.anonymous.saturating_sub(before.mesh.anonymous);
    report.connections = u64::try_from(kept.len())?;
    report.requests = report.connections;
    Ok(report)
}

const WARM: usize = 50;
