//! The controller's executable: reads the command line and hands over to the library.

use std::process::ExitCode;

use clap::Parser;
use controller::options::Options;

#[expect(
    clippy::print_stderr,
    reason = "the log may not be set up when this fails"
)]
fn main() -> ExitCode {
    match controller::app::run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keelson-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}
