//! The node agent's program: reads the command line, runs, says in one line why it cannot.

use std::process::ExitCode;

use node_agent::agent::{
    self, cleanup,
    config::{Cli, Command},
    probe, started,
};

fn main() -> ExitCode {
    runtime::memory::map_large_buffers();
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let result = match (cli.command, cli.run) {
        (Some(Command::Cleanup(args)), _) => cleanup::run(&args),
        (Some(Command::Probe(args)), _) => probe::run(&args),
        (Some(Command::Started(args)), _) => started::run(&args),
        (None, Some(args)) => agent::run(args),
        (None, None) => return ExitCode::from(2),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(
                clippy::print_stderr,
                reason = "the one line that says why the program ends"
            )]
            {
                eprintln!("keelson-node-agent: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
