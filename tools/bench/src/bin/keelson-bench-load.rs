//! The load of the benchmark: started in pods by `cargo xtask bench`, one process per side.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use bench::load::{self, Load, Plan, Watched};
use clap::{Args, Parser, Subcommand};

/// Sends and answers the benchmark's traffic.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Answer requests until killed.
    Serve {
        /// The port, on all addresses of both families.
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Kept connections; each sends its next request when it has its answer.
    Closed {
        #[arg(long)]
        connections: usize,
        #[command(flatten)]
        common: Common,
    },
    /// Kept connections; requests are due at a fixed rate.
    Paced {
        #[arg(long)]
        connections: usize,
        /// Requests per second of all connections together.
        #[arg(long)]
        rate: u32,
        #[command(flatten)]
        common: Common,
    },
    /// A connection per request.
    Connects {
        #[arg(long)]
        clients: usize,
        #[command(flatten)]
        common: Common,
    },
    /// One answer without end.
    Bulk {
        #[command(flatten)]
        common: Common,
    },
    /// Connections that do nothing.
    Idle {
        #[arg(long)]
        connections: usize,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    #[arg(long)]
    server: SocketAddr,
    /// Milliseconds before counting begins.
    #[arg(long, default_value_t = 500)]
    warm_up: u64,
    /// Milliseconds of counting.
    #[arg(long, default_value_t = 2000)]
    window: u64,
    /// Everything that takes part on one processor.
    #[arg(long)]
    pinned: bool,
    /// Process ids of the mesh.
    #[arg(long, value_delimiter = ',')]
    mesh: Vec<i32>,
    /// Process ids of the load's servers.
    #[arg(long, value_delimiter = ',')]
    load: Vec<i32>,
}

fn main() -> Result<()> {
    let (load, common) = match Arguments::parse().part {
        Part::Serve { port } => return load::serve(port),
        Part::Closed {
            connections,
            common,
        } => (Load::Closed { connections }, common),
        Part::Paced {
            connections,
            rate,
            common,
        } => (Load::Paced { connections, rate }, common),
        Part::Connects { clients, common } => (Load::Connects { clients }, common),
        Part::Bulk { common } => (Load::Bulk, common),
        Part::Idle {
            connections,
            common,
        } => (Load::Idle { connections }, common),
    };
    let report = load::run(&Plan {
        load,
        server: common.server,
        warm_up: Duration::from_millis(common.warm_up),
        window: Duration::from_millis(common.window),
        pinned: common.pinned,
        watched: Watched {
            mesh: common.mesh,
            load: common.load,
        },
    })?;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &report)?;
    Ok(writeln!(out)?)
}
