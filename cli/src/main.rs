//! `keelson`: what a person asks of the mesh. The library beside it answers.

use std::process::ExitCode;

fn main() -> ExitCode {
    keelson::main()
}
