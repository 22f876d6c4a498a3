//! One answer without end, read as fast as it comes; what arrived is what counts.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::connection::{PATIENCE, congestion};
use super::report::LoadReport;
use super::window::{Phase, Window};
use super::{Plan, message};

pub(super) fn run(plan: &Plan) -> Result<LoadReport> {
    let mut stream = TcpStream::connect_timeout(&plan.server, PATIENCE)
        .with_context(|| format!("connecting to {}", plan.server))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&message::bulk_request())?;
    let mut report = LoadReport {
        congestion: congestion(&stream),
        ..LoadReport::default()
    };
    let mut window = Window::new(plan);
    let mut buffer = vec![0; BUFFER];
    let first = stream.read(&mut buffer).context("receiving the head")?;
    match message::parse(buffer.get(..first).unwrap_or_default())? {
        Some(head) if !head.refused => {}
        _ => bail!(
            "the server answered {:?}",
            String::from_utf8_lossy(buffer.get(..first.min(80)).unwrap_or_default())
        ),
    }
    loop {
        let count = stream.read(&mut buffer).context("receiving bulk data")?;
        if count == 0 {
            bail!("the server ended the stream");
        }
        match window.phase(Instant::now()) {
            Phase::Early => {}
            Phase::Opens => report.bytes = 0,
            Phase::Open => report.bytes += u64::try_from(count)?,
            Phase::Closed => break,
        }
    }
    (report.seconds, report.usage) = window.close();
    Ok(report)
}

const BUFFER: usize = 256 << 10;
