//! The CNI plugin of Keelson: a container runtime runs it for every pod, behind the plugin that gives the pod its network.
//! It tells the agent of the node that the pod exists, and returns when the agent has decided and, if so decided, captured
//! the pod. So no container of a pod in the mesh runs before its traffic is captured.
//!
//! Called by a runtime it speaks the CNI specification (<https://www.cni.dev/docs/spec/>, 0.3.0 to 1.1.0). Called by a
//! person or by the agent's DaemonSet it installs itself: `keelson-cni install`, `keelson-cni uninstall`.

mod agent;
mod call;
mod install;
mod known;

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use call::Call;

/// Installs the CNI plugin of Keelson. Container runtimes start it without arguments.
#[derive(Debug, Parser)]
#[command(name = "keelson-cni", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy this program to where the runtime looks for plugins, and chain it behind the cluster's own network.
    ///
    /// The cluster's configuration stays as it is: a list of ours, which sorts first, holds its plugins and then this one.
    /// With --watch this goes on, and follows when the cluster's configuration changes.
    Install(install::Args),
    /// Take the list and the program away again. The cluster's own configuration is in effect at once.
    Uninstall(install::Place),
}

fn main() -> ExitCode {
    match std::env::var("CNI_COMMAND") {
        Ok(command) => called_by_a_runtime(&command),
        Err(_) => called_by_a_person(),
    }
}

fn called_by_a_runtime(command: &str) -> ExitCode {
    let mut config = String::new();
    let read = io::stdin().read_to_string(&mut config);
    let answer = match read {
        Ok(_) => call::serve(command, &config, &Call::from_environment()),
        Err(error) => Err(call::Failure::config(format!(
            "the network configuration cannot be read: {error}"
        ))),
    };
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(&config), ExitCode::FAILURE),
    };
    // A runtime that does not listen has given the call up.
    let _unheard = io::stdout().write_all(text.as_bytes());
    code
}

#[expect(clippy::print_stderr, reason = "a person reads it")]
fn called_by_a_person() -> ExitCode {
    let done = match Args::parse().command {
        Command::Install(args) => install::install(&args),
        Command::Uninstall(place) => install::uninstall(&place),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
