//! The arguments.

use clap::{Parser, Subcommand};

use crate::output::{Answer, Format};
use crate::reach::Where;
use crate::{
    bug_report, check, explain, install, proxy_config, status, tls_check, uninstall, validate,
    version,
};

/// Installs the mesh in a cluster, asks it, and its manifests.
///
/// Exit codes: 0, all is as it should be; 1, something is not (errors were found, a connection is refused, a node is out
/// of step); 2, it could not be looked at (wrong usage, an unreadable file, an agent that does not answer).
#[derive(Debug, Parser)]
#[command(name = "keelson", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The form of the answer.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    output: Format,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Subcommand)]
enum Command {
    Install(install::Args),
    Upgrade(install::UpgradeArgs),
    Uninstall(uninstall::Args),
    Status(status::Args),
    Explain(explain::Args),
    Check(check::Args),
    ProxyConfig(proxy_config::Args),
    TlsCheck(tls_check::Args),
    Validate(validate::Args),
    BugReport(bug_report::Args),
    Version(version::Args),
}

impl Cli {
    pub(crate) fn output(&self) -> Format {
        self.output
    }

    pub(crate) fn answer(&self) -> anyhow::Result<Answer> {
        let mesh = || self.at.open();
        match &self.command {
            Command::Install(args) => install::install(args, &self.at),
            Command::Upgrade(args) => install::upgrade(args, &self.at),
            Command::Uninstall(args) => uninstall::answer(args, &self.at),
            Command::Status(args) => status::answer(args, &mesh()?),
            Command::Explain(args) => explain::answer(args, &mesh()?),
            Command::Check(args) => check::answer(args, &self.at),
            Command::ProxyConfig(args) => proxy_config::answer(args, &mesh()?),
            Command::TlsCheck(args) => tls_check::answer(args, &mesh()?),
            Command::Validate(args) => validate::answer(args),
            Command::BugReport(args) => bug_report::answer(args, &mesh()?),
            Command::Version(args) if args.client => version::own(),
            Command::Version(_) => version::all(&self.at),
        }
    }
}
