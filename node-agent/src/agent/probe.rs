//! What this node has for an agent: looked at, and tried where looking is not enough. For nodes where none runs yet.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use admin_api::Hook;
use anyhow::Context;
use clap::Parser as _;
use serde::Serialize;

use super::{
    cleanup,
    config::{Cli, ProbeArgs, RunArgs},
    setup, unservable,
};
use crate::{
    bpf::{self, Kernel},
    host::cgroup,
};

/// One thing that was tried.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    good: bool,
    said: String,
}

/// Tries everything, and writes one JSON list of `what`, `good` and `said`.
///
/// # Errors
/// Nothing could be written, or what was made for it not be removed.
pub fn run(args: &ProbeArgs) -> anyhow::Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let looked = unservable::look().map(|()| format!("Linux {}, with BTF", release.trim()));
    let mut findings = vec![
        finding("kernel", looked),
        finding("cgroup v2", cgroup::try_own(&args.cgroup_root)),
    ];
    // Before ours are among them.
    let hooks = bpf::others();
    let attached = bpf::attached(&args.cgroup_root).unwrap_or_default();
    let dir = args
        .bpf_fs
        .join(format!("keelson-probe-{}", std::process::id()));
    findings.push(finding("programs", programs(&dir, &args.cgroup_root)));
    let removed = cleanup::remove_dir(&dir);
    let hooks = hooks
        .into_iter()
        .map(|(hook, names)| format!("{hook}: {}", names.join(" ")));
    let hooks: Vec<String> = hooks.collect();
    findings.push(Finding {
        what: "hooks",
        good: true,
        said: if hooks.is_empty() {
            "nobody else's programs".to_owned()
        } else {
            format!(
                "others' programs, which run beside ours: {}",
                hooks.join("; ")
            )
        },
    });
    findings.extend(order(&attached));
    let text = serde_json::to_string(&findings)?;
    writeln!(io::stdout(), "{text}").context("writing what was found")?;
    removed
}

/// Which of others' programs are where ours will be. Ours run behind them, where the kernel puts a program that says nothing; but at
/// tcx ingress, where nobody may let a packet past the guard, before them.
fn order(attached: &[Hook]) -> Option<Finding> {
    let others = attached.iter().filter(|hook| hook.has_others());
    let others: Vec<String> = others.map(ToString::to_string).collect();
    (!others.is_empty()).then(|| Finding {
        what: "order",
        good: true,
        said: format!(
            "ours will run before others at tcx ingress and behind them elsewhere: {}",
            others.join("; ")
        ),
    })
}

fn finding(what: &'static str, tried: Result<String, impl std::fmt::Display>) -> Finding {
    let good = tried.is_ok();
    let said = tried.unwrap_or_else(|error| error.to_string());
    Finding { what, good, said }
}

/// Has the kernel look at every program.
fn programs(dir: &Path, cgroup_root: &Path) -> Result<String, String> {
    let say = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            // The verifier's whole log is for who develops.
            text.push_str(": ");
            text.extend(inner.to_string().lines().take(3));
            cause = inner.source();
        }
        text
    };
    let args = usual(dir, cgroup_root).map_err(|error| error.to_string())?;
    let place = setup::place(&args, 1, 0);
    let kernel = Kernel::load(place).map_err(|error| say(&error))?;
    bpf::try_pod_programs(&kernel).map_err(|error| say(&error))?;
    Ok("the kernel takes every program".to_owned())
}

/// As an agent has them that is told nothing else.
fn usual(dir: &Path, cgroup_root: &Path) -> anyhow::Result<RunArgs> {
    let words = [
        "keelson-node-agent",
        "--node=probe",
        "--controller=https://nobody:1",
        "--controller-ca=/dev/null",
        "--token-file=/dev/null",
    ];
    let words = words.map(str::to_owned).into_iter().chain([
        format!("--bpf-dir={}", dir.display()),
        format!("--cgroup-root={}", cgroup_root.display()),
    ]);
    let cli = Cli::try_parse_from(words)?;
    cli.run.context("these are flags of an agent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_is_told_nothing_else_has_the_places_that_are_probed() {
        let args = usual(Path::new("/a/b"), Path::new("/c")).expect("flags");
        assert_eq!(args.bpf_dir, Path::new("/a/b"));
        assert_eq!(args.cgroup_root, Path::new("/c"));
    }
}
