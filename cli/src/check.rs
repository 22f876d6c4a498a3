//! `keelson check`: can this node run an agent, and does the mesh do what is wanted.

mod cluster;
mod network_policies;
mod probe;
pub(crate) mod rights;

use std::fs;
use std::path::Path;

use std::time::{SystemTime, UNIX_EPOCH};

use admin_api::{Hook, page};
use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::install::Given;
use crate::output::Answer;
use crate::reach::{Mesh, Page, Where};
use crate::status;
use crate::version::{OWN, is_apart};

/// Check a cluster before the mesh is installed, a machine, or the mesh that runs.
///
/// With --before the API server is asked: its version, the caller's rights, the nodes' kernels, others that work in the same
/// places, the namespace, Istio's kinds; with --probe a pod on each node tries what an agent needs there. With --this-machine the files of this machine are looked at: kernel, BTF, cgroups,
/// bpf file system. With neither every agent is asked: ready, in step, of which version, what its clock says, pods wanted
/// against pods captured, certificates; and in a cluster, which NetworkPolicy keeps the mesh's tunnels away from captured pods.
///
/// Exit codes: 0, all is well; 1, something is not; 2, nobody could be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Look at the cluster, where nothing need be installed.
    #[arg(long)]
    pub(crate) before: bool,
    /// Look at this machine, as a node, where no agent need run.
    #[arg(long, conflicts_with = "before")]
    pub(crate) this_machine: bool,
    /// With --before: the namespace that is to be installed into.
    #[arg(short, long, value_name = "NAMESPACE", default_value = crate::reach::USUAL_NAMESPACE)]
    pub(crate) namespace: String,
    /// With --before: have the kernel of each node look at the programs, find cgroups, and name others' programs on the same
    /// hooks, by a pod with the agent's image and rights in a namespace that is removed again.
    #[arg(long, requires = "before")]
    pub(crate) probe: bool,
    #[command(flatten)]
    given: Given,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Finding {
    pub(crate) what: String,
    pub(crate) good: bool,
    pub(crate) said: String,
}

impl Finding {
    fn good(what: &str, said: String) -> Self {
        Self {
            what: what.to_owned(),
            good: true,
            said,
        }
    }

    fn bad(what: &str, said: String) -> Self {
        Self {
            what: what.to_owned(),
            good: false,
            said,
        }
    }
}

pub(crate) fn answer(args: &Args, at: &Where) -> Result<Answer> {
    if args.this_machine {
        return show(machine(Path::new("/")));
    }
    if args.before {
        let api = at.api()?;
        // Once: standard input has it once.
        let given = args.given.read()?;
        let mut findings = cluster::before(&api, &args.namespace, &given)?;
        if args.probe {
            findings.extend(probe::nodes(&api, &given)?);
        }
        return show(findings);
    }
    let mesh = at.open()?;
    let blocking = network_policies::look(&mesh, at);
    after(&mesh, blocking)
}

/// Asks the mesh.
fn after(mesh: &Mesh, more: Vec<Finding>) -> Result<Answer> {
    let status = status::look(mesh, None)?;
    let complaints = status.complaints().into_iter();
    let mut findings: Vec<Finding> = complaints.map(|said| Finding::bad("mesh", said)).collect();
    findings.extend(versions(mesh, &status));
    findings.extend(clocks(mesh)?);
    let beside = others(mesh);
    if findings.iter().all(|finding| finding.good) {
        let said = "every agent is ready, in step, and has captured what is wanted";
        findings.insert(
            0,
            Finding {
                what: "mesh".to_owned(),
                good: status.is_good(),
                said: said.to_owned(),
            },
        );
    }
    findings.extend(beside);
    findings.extend(more);
    show(findings)
}

/// Programs whose versions are too far apart.
fn versions(mesh: &Mesh, status: &status::Status) -> Vec<Finding> {
    let agents = status
        .versions()
        .map(|(node, version)| (format!("agent of {node}"), version.to_owned()));
    let all = agents.chain(mesh.versions());
    let apart = all.filter(|(_, version)| is_apart(version));
    apart
        .map(|(who, version)| {
            let said =
                format!("{who} is {version} and this program {OWN}: more than one version apart");
            Finding::bad("versions", said)
        })
        .collect()
}

/// Others' programs where an agent's are, and who is asked first: what one refuses the next does not see, and who translates
/// addresses does it for those behind.
fn others(mesh: &Mesh) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in mesh.nodes() {
        // Who does not answer is complained of already, and who is a version older has no such page.
        let page = mesh.agent(&node, page::HOOKS).ok();
        let hooks = page.and_then(|page| serde_json::from_str::<Vec<Hook>>(&page.body).ok());
        let hooks = hooks.into_iter().flatten().filter(Hook::has_others);
        let said: Vec<String> = hooks.map(|hook| hook.to_string()).collect();
        if !said.is_empty() {
            let what = format!("node {node}: order of programs");
            findings.push(Finding::good(&what, said.join("; ")));
        }
    }
    findings
}

/// Clocks that are so far apart that a certificate may not be valid yet, or not any more.
fn clocks(mesh: &Mesh) -> Result<Vec<Finding>> {
    let mut all = Vec::new();
    let mut ask = |who: String, page: Result<Page>| {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        // Who does not answer is complained of already.
        if let Some(date) = page.ok().and_then(|page| page.date) {
            all.push((who, date - now));
        }
    };
    for (name, page) in mesh.controllers(page::HEALTH).unwrap_or_default() {
        ask(format!("the controller {name}"), page);
    }
    for node in mesh.nodes() {
        ask(format!("node {node}"), mesh.agent(&node, page::HEALTH));
    }
    Ok(apart(&all))
}

/// Those that are away from the middle one: this machine's clock is nobody's measure.
fn apart(clocks: &[(String, i64)]) -> Vec<Finding> {
    let mut offsets: Vec<i64> = clocks.iter().map(|(_, offset)| *offset).collect();
    offsets.sort_unstable();
    let Some(middle) = offsets.get(offsets.len() / 2) else {
        return Vec::new();
    };
    let far = clocks
        .iter()
        .filter(|(_, offset)| (offset - middle).abs() > CLOCKS_APART);
    far.map(|(who, offset)| {
        let said = format!(
            "the clock of {who} is {} s away from the others': certificates are judged by it",
            offset - middle
        );
        Finding::bad("clocks", said)
    })
    .collect()
}

fn show(findings: Vec<Finding>) -> Result<Answer> {
    let mut text = String::new();
    for Finding { what, good, said } in &findings {
        let mark = if *good { "ok" } else { "NO" };
        text.push_str(&format!("{mark}  {what}: {said}\n"));
    }
    let is_good = findings.iter().all(|finding| finding.good);
    Ok(Answer::good(&findings, text)?.but(is_good))
}

/// What an agent needs of the machine whose root is at `root`.
fn machine(root: &Path) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let finding = |what: &str, good: bool, yes: String, no: &str| Finding {
        what: what.to_owned(),
        good,
        said: if good { yes } else { no.to_owned() },
    };
    let release = read("proc/sys/kernel/osrelease").trim().to_owned();
    let mounts = read("proc/self/mounts");
    let mounted = |kind: &str| {
        let of_kind = |line: &&str| line.split(' ').nth(2) == Some(kind);
        let line = mounts.lines().find(of_kind)?;
        line.split(' ').nth(1).map(str::to_owned)
    };
    let (cgroup, bpf) = (mounted("cgroup2"), mounted("bpf"));
    vec![
        finding(
            "kernel",
            version(&release).is_some_and(|version| version >= NEEDED),
            release.clone(),
            &format!(
                "{release} is too old; an agent needs Linux {}.{} or newer",
                NEEDED.0, NEEDED.1
            ),
        ),
        finding(
            "BTF",
            root.join("sys/kernel/btf/vmlinux").exists(),
            "/sys/kernel/btf/vmlinux".to_owned(),
            "the kernel has no BTF (/sys/kernel/btf/vmlinux): build it with CONFIG_DEBUG_INFO_BTF",
        ),
        finding(
            "cgroup v2",
            cgroup.is_some(),
            cgroup.unwrap_or_default(),
            "cgroup2 is mounted nowhere: mount it (mount -t cgroup2 none /sys/fs/cgroup), beside v1 if need be",
        ),
        finding(
            "bpffs",
            bpf.is_some(),
            bpf.unwrap_or_default(),
            "no bpf file system is mounted: mount -t bpf none /sys/fs/bpf",
        ),
    ]
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The oldest kernel that an agent runs on (docs/kernels.md).
const NEEDED: (u32, u32) = (6, 1);
/// Certificates begin a minute before they are made.
const CLOCKS_APART: i64 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn machine_with(release: &str, mounts: &str, has_btf: bool) -> Vec<bool> {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("makes it");
            fs::write(path, text).expect("writes");
        };
        write("proc/sys/kernel/osrelease", release);
        write("proc/self/mounts", mounts);
        if has_btf {
            write("sys/kernel/btf/vmlinux", "");
        }
        machine(root.path()).iter().map(|one| one.good).collect()
    }

    #[test]
    fn a_clock_that_is_away_from_the_others_is_named() {
        let clock = |who: &str, offset| (who.to_owned(), offset);
        let said = apart(&[clock("n1", -7201), clock("n2", -7200), clock("n3", -7100)]);
        let named: Vec<&str> = said.iter().map(|one| one.said.as_str()).collect();
        let [only] = named.as_slice() else {
            panic!("{named:?}");
        };
        assert!(only.starts_with("the clock of n3 is 100 s away"), "{only}");
        assert!(apart(&[]).is_empty());
    }

    #[test]
    fn what_an_agent_needs_is_looked_for() {
        let mounts = "none /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n";
        let all = machine_with("6.1.0-28-amd64\n", mounts, true);
        assert_eq!(all, [true; 4]);
        assert_eq!(machine_with("6.12.3+", mounts, true), [true; 4]);
        assert_eq!(
            machine_with("5.15.0-100-generic", mounts, true),
            [false, true, true, true]
        );
        assert_eq!(
            machine_with("6.1.0", "", false),
            [true, false, false, false]
        );
    }
}
