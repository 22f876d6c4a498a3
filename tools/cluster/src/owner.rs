//! The process that a cluster ends with: it starts the machines and starts one again that has ended.
//!
//! Machines are its children, and the kernel kills them when it dies. So nobody has to be asked to take a cluster down.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::ProcessRecord;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use crate::control::{self, Authorities};
use crate::forward::Forwarder;
use crate::layout::{Options, Place};
use crate::spec::{READY, Spec};
use crate::standing::Standing;
use crate::{cgroups, init, network, node, pki};

/// Owns the cluster that `place` names, which does not stand yet, until this process is killed. Its first machine process
/// is this program, called with `init` and the path of a file.
///
/// # Errors
/// A machine could not be started.
pub fn own(place: &Place, options: &Options, init: &[&str]) -> Result<()> {
    let program = claim(place, options)?;
    let authorities = Authorities::new()?;
    let forwarder = Forwarder::start()?;
    let address = format!("https://{}", forwarder.address());
    pki::secret(&place.kubeconfig(), &authorities.administrator(&address)?)?;
    let mut specs = vec![control::prepare(place, options, &authorities)?];
    for number in 1..=options.nodes {
        specs.push(node::prepare(place, options, &authorities, number)?);
    }
    let call = Call {
        program: &program,
        arguments: init,
    };
    let mut machines = Vec::new();
    for (number, spec) in (0_u8..).zip(specs) {
        machines.push(Machine::start(number, spec, &call)?);
        mend(&mut machines, &call, &forwarder, options)?;
        if let [control] = &mut machines[..] {
            control.wait_ready()?;
            let objects = (1..=options.nodes).map(|number| node::object(options, number));
            Standing::open(place)?.apply(&objects.collect::<Vec<_>>())?;
        }
    }
    for machine in &mut machines {
        machine.wait_ready()?;
    }
    fs::write(place.started(), "")?;
    keep(&mut machines, &call, &forwarder, options)
}

/// Starts machines again that have ended, for ever. What fails is tried again: a machine is gone a moment before its
/// parent says so, and its interfaces a moment later.
fn keep(
    machines: &mut [Machine],
    call: &Call<'_>,
    forwarder: &Forwarder,
    options: &Options,
) -> Result<()> {
    let mut said = String::new();
    loop {
        thread::sleep(LOOK);
        match mend(machines, call, forwarder, options) {
            Ok(()) => said.clear(),
            Err(error) => {
                let text = format!("{error:#}");
                if text != said {
                    complain(&text);
                    said = text;
                }
            }
        }
    }
}

fn mend(
    machines: &mut [Machine],
    call: &Call<'_>,
    forwarder: &Forwarder,
    options: &Options,
) -> Result<()> {
    for machine in &mut *machines {
        if machine.child.try_wait()?.is_none() {
            continue;
        }
        machine.restart(call)?;
    }
    let [control, nodes @ ..] = machines else {
        bail!("a cluster has a control plane");
    };
    if !control.connected {
        forwarder.lead_to(control.pid);
        network::bridge(control.pid, options)?;
        control.connected = true;
        // The cables ended with the bridge.
        nodes.iter_mut().for_each(|node| node.connected = false);
    }
    for node in nodes.iter_mut().filter(|node| !node.connected) {
        network::plug(control.pid, node.pid, options, node.number)?;
        node.connected = true;
    }
    Ok(())
}

/// Into this process's log.
#[expect(clippy::print_stderr, reason = "the log is standard error")]
fn complain(text: &str) {
    eprintln!("{text}");
}

/// Makes the directory and puts this process's name on it; the program that machines start with is kept there.
fn claim(place: &Place, options: &Options) -> Result<PathBuf> {
    let state = place.state();
    if cgroups::exists(&place.cgroup())? {
        bail!(
            "a cluster {} stands already, perhaps of another checkout",
            place.id()
        );
    }
    fs::create_dir_all(&state).with_context(|| format!("making {}", state.display()))?;
    if statfs(&state)?.filesystem_type() == OVERLAYFS_SUPER_MAGIC {
        bail!(
            "{} is on an overlay file system, on which containers cannot have theirs: put the checkout, or what \
             CARGO_TARGET_DIR names, on another",
            state.display()
        );
    }
    fs::write(place.owner(), ProcessRecord::current()?.to_text())?;
    fs::write(place.options(), serde_json::to_string(options)?)?;
    // Later builds replace the program where it is now.
    let program = state.join("init");
    // This path leads to it also where a build has replaced it already.
    fs::copy("/proc/self/exe", &program).context("copying this program")?;
    Ok(program)
}

/// How a machine's first process is called.
struct Call<'a> {
    program: &'a Path,
    arguments: &'a [&'a str],
}

/// A machine that runs.
struct Machine {
    number: u8,
    spec: Spec,
    child: Child,
    /// Its first process.
    pid: i32,
    /// Whether it has its part of the network.
    connected: bool,
}

impl Machine {
    fn start(number: u8, spec: Spec, call: &Call<'_>) -> Result<Self> {
        let (child, pid) = start(&spec, call)?;
        Ok(Self {
            number,
            spec,
            child,
            pid,
            connected: false,
        })
    }

    /// As after a reset: files stay, and nothing else.
    fn restart(&mut self, call: &Call<'_>) -> Result<()> {
        cgroups::remove(&self.spec.cgroup)?;
        (self.child, self.pid) = start(&self.spec, call)?;
        self.connected = false;
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let ready = self.spec.directory.join("status").join(READY);
        let deadline = Instant::now() + PATIENCE;
        while !ready.exists() {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(log(&self.spec)).unwrap_or_default();
                bail!("{} ended, {status}: {}", self.spec.name, log.trim());
            }
            if Instant::now() > deadline {
                bail!("{} does not get ready", self.spec.name);
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

fn start(spec: &Spec, call: &Call<'_>) -> Result<(Child, i32)> {
    let ready = spec.directory.join("status").join(READY);
    if ready.exists() {
        fs::remove_file(&ready)?;
    }
    for cgroup in init::cgroups_of(spec) {
        cgroups::create(&cgroup)?;
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log(spec))?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--fork"])
        .args(["--kill-child", "--"])
        .arg(call.program)
        .args(call.arguments)
        .arg(spec.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    let die_with_owner = || Ok(prctl::set_pdeathsig(Signal::SIGKILL)?);
    #[expect(unsafe_code, reason = "a machine ends with its owner")]
    // SAFETY: between fork and exec only one system call with a number is made.
    unsafe {
        command.pre_exec(die_with_owner);
    }
    let child = command
        .spawn()
        .with_context(|| format!("starting {}", spec.name))?;
    let pid = first_process(&child)?;
    let record = ProcessRecord::of(pid).with_context(|| format!("{} has ended", spec.name))?;
    fs::write(spec.directory.join("pid"), record.to_text())?;
    Ok((child, pid))
}

/// The child of `unshare`, as this process sees it.
fn first_process(child: &Child) -> Result<i32> {
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(&children).context("unshare has ended")?;
        if let Some(pid) = text.split_whitespace().next() {
            return Ok(pid.parse()?);
        }
        if Instant::now() > deadline {
            bail!("unshare starts nothing");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn log(spec: &Spec) -> PathBuf {
    spec.directory.join("init.log")
}

/// How late the end of a machine is noticed.
const LOOK: Duration = Duration::from_millis(50);
/// How long a machine may take to start.
const PATIENCE: Duration = Duration::from_secs(300);
