//! What a request costs with and without the mesh, measured in turn.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::{Lab, Pod};
use testkit::{Latencies, measure_round_trips};

use crate::shell;

/// One row's measurements.
struct Row {
    name: &'static str,
    client: Pod,
    stream: TcpStream,
    latencies: Latencies,
}

/// The measurements of all rows.
pub(super) struct Table {
    rows: Vec<Row>,
}

/// Measures each row a little, again and again, so that all see the same machine.
pub(super) fn measure(lab: &Lab, samples: usize) -> Result<Table> {
    shell::heading("Measuring: 1 KiB there and back on a kept connection");
    let mut rows = [
        ("same node, no mesh", "outside/visitor", "outside/echo-n1"),
        ("same node, mesh", "shop/client", "shop/server-v1"),
        ("two nodes, no mesh", "outside/visitor", "outside/echo-n2"),
        ("two nodes, mesh", "shop/client", "shop/server-v2"),
    ]
    .into_iter()
    .map(|(name, client, server)| Row::open(lab, name, client, server).context(name))
    .collect::<Result<Vec<_>>>()?;
    for round in 0..ROUNDS {
        for row in &mut rows {
            let count = samples.div_ceil(ROUNDS);
            let (stream, warm_up) = (&row.stream, if round == 0 { 100 } else { 0 });
            let measured = row.client.run(|| -> Result<Vec<Duration>> {
                measure_round_trips(stream, SIZE, warm_up)?;
                measure_round_trips(stream, SIZE, count)
            })?;
            row.latencies.extend(measured.context(row.name)?);
        }
    }
    shell::good(&format!(
        "{} samples of each kind, in {ROUNDS} turns",
        rows.iter()
            .map(|row| row.latencies.count())
            .min()
            .unwrap_or(0)
    ));
    Ok(Table { rows })
}

impl Row {
    fn open(lab: &Lab, name: &'static str, client: &str, server: &str) -> Result<Self> {
        let client = lab.pod(client)?;
        let server = (lab.pod(server)?.v4()?, ECHO);
        let stream = client.run(|| TcpStream::connect(server))??;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self {
            name,
            client,
            stream,
            latencies: Latencies::default(),
        })
    }
}

impl Table {
    pub(super) fn print(&self, release: bool) {
        println!(
            "\n{:<22} {:>10} {:>10} {:>14}",
            "", "p50", "p99", "p50 to no mesh"
        );
        let mut none = Duration::ZERO;
        for row in &self.rows {
            let p50 = row.latencies.quantile(0.5);
            let ratio = if row.name.ends_with("no mesh") {
                none = p50;
                String::new()
            } else {
                format!("{:.2}x", p50.as_secs_f64() / none.as_secs_f64())
            };
            println!(
                "{:<22} {:>10} {:>10} {ratio:>14}",
                row.name,
                micros(p50),
                micros(row.latencies.quantile(0.99))
            );
        }
        let build = if release {
            "release build"
        } else {
            "development build; --release is faster"
        };
        println!(
            "{}",
            shell::dim(&format!(
                "1 KiB request and answer, one connection at a time; {build}"
            ))
        );
    }
}

fn micros(duration: Duration) -> String {
    format!("{:.1} us", duration.as_secs_f64() * 1e6)
}

const ROUNDS: usize = 10;
const SIZE: usize = 1024;
const ECHO: u16 = 7000;
