//! The command line `keelson`: asks files, agents and the controller, and says the answer for people or programs.
//!
//! It decides nothing about connections or objects: of manifests it says what the controller would say, of connections
//! what the agents answer.

mod api;
mod bug_report;
mod check;
mod command;
mod explain;
mod install;
mod output;
mod pods;
mod proxy_config;
mod proxy_pods;
mod reach;
mod remedy;
mod status;
mod table;
mod tls_check;
mod uninstall;
mod validate;
mod version;
mod yaml;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser as _;

pub use command::Cli;
use output::{Answer, Format};

/// Everything is as it should be.
const GOOD: u8 = 0;
/// What was looked at is not as it should be: errors were found, a connection is refused, a node is out of step.
const BAD: u8 = 1;
/// It could not be looked at: wrong usage, an unreadable file, an agent that does not answer.
const UNKNOWN: u8 = 2;

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures.
            let code = if error.use_stderr() { UNKNOWN } else { GOOD };
            drop(error.print());
            return code.into();
        }
    };
    run(&cli, &mut io::stdout().lock(), &mut io::stderr().lock()).into()
}

/// Runs one command; says the exit code.
pub fn run(cli: &Cli, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    match cli.answer() {
        Ok(answer) => match show(&answer, cli.output(), out) {
            Ok(()) if answer.is_good => GOOD,
            Ok(()) => BAD,
            // Whoever reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => GOOD,
            Err(error) => complain(&error.into(), err),
        },
        Err(error) => complain(&error, err),
    }
}

fn show(answer: &Answer, format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Table => out.write_all(answer.text.as_bytes())?,
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, &answer.data)?;
            out.write_all(b"\n")?;
        }
        Format::Yaml => out.write_all(yaml::write(&answer.data).as_bytes())?,
    }
    out.flush()
}

fn complain(error: &anyhow::Error, err: &mut dyn Write) -> u8 {
    // Nobody is left to be told.
    drop(writeln!(err, "keelson: {error:#}"));
    UNKNOWN
}

#[cfg(test)]
mod tests;
