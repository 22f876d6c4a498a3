//! The waypoint's program: reads the command line, runs, says in one line why it cannot.

use std::process::ExitCode;

use clap::Parser;
use waypoint::{options::Options, run};

fn main() -> ExitCode {
    runtime::memory::map_large_buffers();
    match run::run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(
                clippy::print_stderr,
                reason = "the one line that says why the program ends"
            )]
            {
                eprintln!("keelson-waypoint: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
