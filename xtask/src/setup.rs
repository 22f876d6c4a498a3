//! What building and testing need, and how it is installed where it is missing.

mod kernel;
mod packages;
mod rust;

use anyhow::{Result, bail};

use crate::shell;

/// What to do about what is missing.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Install nothing; fail if something is missing.
    #[arg(long)]
    check: bool,
}

/// Something that is needed.
#[derive(Debug)]
pub(crate) struct Need {
    /// What it is and what for.
    what: String,
    /// What gets it.
    state: State,
}

#[derive(Debug)]
pub(crate) enum State {
    Present,
    /// A Debian package.
    Package(&'static str),
    /// A component of the Rust toolchain.
    Component(&'static str),
    BpfLinker,
    /// Nothing this program can do; the text says what a person can.
    Person(String),
}

/// Checks everything, then installs what is missing, in one go per installer.
pub(crate) fn run(args: &Args) -> Result<()> {
    let needs = survey()?;
    let missing = needs
        .iter()
        .filter(|need| !matches!(need.state, State::Present))
        .count();
    if missing == 0 {
        println!(
            "setup: everything is there ({} things checked)",
            needs.len()
        );
        return Ok(());
    }
    for need in &needs {
        match &need.state {
            State::Present => shell::good(&need.what),
            State::Person(advice) => {
                shell::bad(&need.what);
                shell::detail(advice);
            }
            _ => shell::bad(&need.what),
        }
    }
    if args.check {
        bail!(
            "{missing} of {} things are missing; `cargo xtask setup` installs them",
            needs.len()
        );
    }
    install(&needs)?;
    let left: Vec<String> = survey()?
        .into_iter()
        .filter(|need| !matches!(need.state, State::Present))
        .map(|need| need.what)
        .collect();
    if !left.is_empty() {
        bail!("still missing: {}", left.join("; "));
    }
    println!("setup: done");
    Ok(())
}

/// Installs system packages that only some commands need.
pub(crate) fn install_packages(packages: &[&str]) -> Result<()> {
    packages::install(packages)
}

/// Installs those of these programs that are missing: each with the Debian package that has it.
pub(crate) fn install_packages_of(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| shell::which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    packages::install(&missing)
}

fn survey() -> Result<Vec<Need>> {
    let mut needs = packages::needs();
    needs.extend(rust::needs()?);
    needs.extend(kernel::needs());
    Ok(needs)
}

/// System packages come first: bpf-linker is linked with LLVM.
fn install(needs: &[Need]) -> Result<()> {
    let mut wanted = Vec::new();
    for need in needs {
        if let State::Package(package) = need.state
            && !wanted.contains(&package)
        {
            wanted.push(package);
        }
    }
    if !wanted.is_empty() {
        packages::install(&wanted)?;
    }
    for need in needs {
        if let State::Component(component) = need.state {
            rust::install_component(component)?;
        }
    }
    if needs
        .iter()
        .any(|need| matches!(need.state, State::BpfLinker))
    {
        rust::install_bpf_linker()?;
    }
    Ok(())
}
