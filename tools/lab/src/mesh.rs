//! Controller and agents: how the lab starts, stops and questions them.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::cgroup;
use crate::cni::{self, Enrolment};
use crate::lab::{BPFFS, Lab, wait_until};
use crate::process::Process;
use crate::programs::{self, AgentOptions, ControllerOptions};

/// The running programs of the mesh, and the nodes whose CNI calls an agent.
#[derive(Debug, Default)]
pub(crate) struct Mesh {
    agents: BTreeMap<String, Process>,
    controller: Option<Process>,
    sockets: BTreeMap<String, PathBuf>,
}

impl Mesh {
    /// The agent's socket, on nodes where the CNI plugin has been installed.
    pub(crate) fn cni_socket(&self, node: &str) -> Option<PathBuf> {
        self.sockets.get(node).cloned()
    }
}

impl Lab {
    /// Starts the controller on node `n1` and waits until it is ready.
    ///
    /// # Errors
    /// It ended or was not ready in time; its last lines are in the error.
    pub fn start_controller(&self, options: &ControllerOptions) -> Result<()> {
        let node = self.node("n1")?;
        let directory = self.run_dir.controller();
        let tokens = directory.join("node-tokens");
        if !tokens.exists() {
            self.write_tokens(&tokens)?;
        }
        fs::create_dir_all(directory.join("state"))?;
        let mut flags = vec![
            ("--manifests", self.manifests_dir().display().to_string()),
            ("--listen", self.controller_address()?.to_string()),
            ("--node-tokens", tokens.display().to_string()),
            ("--state-dir", directory.join("state").display().to_string()),
            ("--root-cert-out", self.root_cert().display().to_string()),
            ("--server-name", node.v4().to_string()),
            ("--admin", CONTROLLER_ADMIN.to_string()),
        ];
        if let Some(ttl) = options.cert_ttl {
            flags.push(("--cert-ttl", format!("{}ms", ttl.as_millis())));
        }
        if let Some(cacerts) = &options.cacerts {
            flags.push(("--cacerts", cacerts.display().to_string()));
        }
        let command = command("keelson-controller", flags, &options.args, &options.env)?;
        let mut process = node.spawn_in("controller", "controller", command)?;
        let ready = self.wait_ready(&mut process, || {
            node.http_get(CONTROLLER_ADMIN, "/healthz/ready")
                .map(|answer| answer.status)
        });
        self.cluster().mesh.controller = Some(process);
        ready
    }

    /// Starts the agent of a node, and announces to it the pods that no agent knows yet.
    ///
    /// # Errors
    /// It ended, was not ready in time, or could not take a pod.
    pub fn start_agent(&self, node: &str, options: &AgentOptions) -> Result<()> {
        let mut process = self.spawn_agent(node, options)?;
        let socket = self.agent_socket(node);
        let listening = wait_until("the agent listens for CNI calls", READY, || {
            still_runs(&mut process)?;
            Ok(cni::ask(&socket, &json!({"list": {}})).is_ok())
        });
        let listening = listening.map_err(|error| with_log(error, &process));
        {
            let mut cluster = self.cluster();
            cluster.mesh.agents.insert(node.to_owned(), process);
            listening?;
            cluster.mesh.sockets.insert(node.to_owned(), socket);
        }
        if options.wait_ready {
            self.wait_agent_ready(node)?;
        }
        let mut cluster = self.cluster();
        cluster.announce(node, options.replay_all)?;
        cluster.write_state()
    }

    /// Makes the CNI of a node call whatever listens on [`Lab::agent_socket`], for every pod from
    /// now on. [`Lab::start_agent`] does this for the agent that it starts.
    pub fn install_cni(&self, node: &str) {
        let socket = self.agent_socket(node);
        let sockets = &mut self.cluster().mesh.sockets;
        sockets.insert(node.to_owned(), socket);
    }

    /// Starts an agent that belongs to the caller, such as a second one beside the first.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_agent(&self, node: &str, options: &AgentOptions) -> Result<Process> {
        let node = self.node(node)?;
        let directory = self.run_dir.node(node.name());
        let controller = self.controller_address()?;
        let path = |path: &Path| path.display().to_string();
        let flags = vec![
            ("--node", node.name().to_owned()),
            ("--controller", format!("https://{controller}")),
            ("--controller-ca", path(&self.root_cert())),
            ("--token-file", path(&self.token_file(node.name())?)),
            ("--state-dir", path(&directory.join("state"))),
            ("--runtime-dir", path(&directory.join("runtime"))),
            ("--bpf-dir", path(&self.bpf_dir(node.name()))),
            ("--cgroup-root", path(&cgroup2_root()?)),
            (
                "--kubelet-cgroup",
                path(node.cgroup().child("kubelet")?.path()),
            ),
            ("--cni-socket", path(&self.agent_socket(node.name()))),
            ("--admin", AGENT_ADMIN.to_string()),
            ("--workers", options.workers.to_string()),
            (
                "--drain-deadline",
                format!("{}ms", options.drain_deadline.as_millis()),
            ),
        ];
        let command = command(&options.program, flags, &options.args, &options.env)?;
        node.spawn_in(&options.cgroup, "agent", command)
    }

    /// Starts a second agent beside the one of a node and waits until it has taken over. Gives the
    /// first one back: it drains, and is killed when it is dropped.
    ///
    /// # Errors
    /// None runs, or the second ended or had not taken over in time; it is killed then.
    pub fn succeed_agent(&self, node: &str, options: &AgentOptions) -> Result<Process> {
        if self.agent_pid(node).is_none() {
            bail!("no agent runs on {node} that could be succeeded");
        }
        let mut process = self.spawn_agent(node, options)?;
        self.wait_in_charge(node, &mut process)?;
        let before = self
            .cluster()
            .mesh
            .agents
            .insert(node.to_owned(), process)
            .with_context(|| format!("the first agent of {node} is gone"))?;
        Ok(before)
    }

    /// Waits until a process is the agent that answers for its node.
    ///
    /// # Errors
    /// It ended, or was not in charge in time; its last lines are in the error.
    pub fn wait_in_charge(&self, node: &str, process: &mut Process) -> Result<()> {
        let pid = process.pid();
        let what = format!("agent {pid} is in charge of {node}");
        let waited = wait_until(&what, READY, || {
            still_runs(process)?;
            let page = self.agent_json(node, "/config_dump")?;
            Ok(page.get("pid") == Some(&json!(pid)))
        });
        waited.map_err(|error| with_log(error, process))
    }

    /// Takes the process of a node's agent out of the lab's hands, running as it is.
    ///
    /// # Errors
    /// No agent runs there.
    pub fn release_agent(&self, node: &str) -> Result<Process> {
        self.take_agent(node)
    }

    /// Makes a process the agent of a node, as [`Lab::start_agent`] does with those it starts. Gives
    /// back the one before.
    pub fn adopt_agent(&self, node: &str, process: Process) -> Option<Process> {
        self.cluster().mesh.agents.insert(node.to_owned(), process)
    }

    /// Kills the agent of a node with SIGKILL. The node's CNI still wants one: pods made from now
    /// on do not start until there is an agent again.
    ///
    /// # Errors
    /// No agent runs there.
    pub fn kill_agent(&self, node: &str) -> Result<()> {
        self.take_agent(node)?.kill()
    }

    /// Asks the agent of a node with SIGTERM to end, and waits for it.
    ///
    /// # Errors
    /// No agent runs there, or it did not end within `timeout`; it is killed then.
    pub fn stop_agent(&self, node: &str, timeout: Duration) -> Result<ExitStatus> {
        let mut process = self.take_agent(node)?;
        process.signal(Signal::SIGTERM)?;
        match process.wait(timeout)? {
            Some(status) => Ok(status),
            None => Err(with_log(
                anyhow!("the agent of {node} did not end within {timeout:?}"),
                &process,
            )),
        }
    }

    /// Stops the agent of a node if one runs, releases the node's pods with its `cleanup` command
    /// and takes the CNI plugin away.
    ///
    /// # Errors
    /// The cleanup failed; what it wrote is in the error.
    pub fn uninstall_agent(&self, node: &str) -> Result<()> {
        if self.agent_pid(node).is_some() {
            self.stop_agent(node, Duration::from_secs(40))?;
        }
        self.cluster().mesh.sockets.remove(node);
        let directory = self.run_dir.node(node);
        let mut cleanup = Command::new(programs::find(programs::AGENT)?);
        cleanup.arg("cleanup");
        cleanup.arg("--bpf-dir").arg(self.bpf_dir(node));
        cleanup.arg("--runtime-dir").arg(directory.join("runtime"));
        let mut process = self.node(node)?.spawn_in("agent", "cleanup", cleanup)?;
        match process.wait(Duration::from_secs(20))? {
            Some(status) if status.success() => Ok(()),
            ended => Err(with_log(
                anyhow!("the agent's cleanup on {node} ended with {ended:?}"),
                &process,
            )),
        }
    }

    /// The pid of a node's agent, if it runs.
    #[must_use]
    pub fn agent_pid(&self, node: &str) -> Option<i32> {
        let mut cluster = self.cluster();
        let process = cluster.mesh.agents.get_mut(node)?;
        matches!(process.exited(), Ok(None)).then(|| process.pid())
    }

    /// What the agents of a node have written so far, earlier ones included.
    #[must_use]
    pub fn agent_log(&self, node: &str) -> String {
        read_lossy(&self.run_dir.log(&format!("{node}/agent")))
    }

    /// What the controllers have written so far, earlier ones included.
    #[must_use]
    pub fn controller_log(&self) -> String {
        read_lossy(&self.run_dir.log("n1/controller"))
    }

    /// The pid of the controller, if it runs.
    #[must_use]
    pub fn controller_pid(&self) -> Option<i32> {
        let mut cluster = self.cluster();
        let process = cluster.mesh.controller.as_mut()?;
        matches!(process.exited(), Ok(None)).then(|| process.pid())
    }

    /// Kills the controller with SIGKILL.
    ///
    /// # Errors
    /// None runs.
    pub fn kill_controller(&self) -> Result<()> {
        let process = self.cluster().mesh.controller.take();
        process.context("no controller runs")?.kill()
    }

    /// One of the agent's admin pages; anything but 200 is an error.
    ///
    /// # Errors
    /// No answer, or another status.
    pub fn agent_get(&self, node: &str, path: &str) -> Result<String> {
        let answer = self.node(node)?.http_get(AGENT_ADMIN, path)?;
        ok(answer.status, answer.body, path)
    }

    /// As [`Lab::agent_get`], read as JSON.
    ///
    /// # Errors
    /// As [`Lab::agent_get`], or the page is not JSON.
    pub fn agent_json(&self, node: &str, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.agent_get(node, path)?)?)
    }

    /// One of the controller's admin pages; anything but 200 is an error.
    ///
    /// # Errors
    /// No answer, or another status.
    pub fn controller_get(&self, path: &str) -> Result<String> {
        let answer = self.node("n1")?.http_get(CONTROLLER_ADMIN, path)?;
        ok(answer.status, answer.body, path)
    }

    /// The pods that a node's agent knows: `[{namespace, name, uid, pod_id, state, reason}]`.
    ///
    /// # Errors
    /// No agent answers.
    pub fn agent_pods(&self, node: &str) -> Result<Vec<Value>> {
        cni::pods(&self.agent_socket(node))
    }

    /// What the agent answered when the pod was announced; `None` if it never was.
    #[must_use]
    pub fn enrolment(&self, pod: &str) -> Option<Enrolment> {
        self.cluster().enrolment(pod)
    }

    /// Waits until the agent of a node says that it is ready.
    ///
    /// # Errors
    /// It ended or was not ready in time; its last lines are in the error.
    pub fn wait_agent_ready(&self, node: &str) -> Result<()> {
        let place = self.node(node)?;
        let Some(mut process) = self.cluster().mesh.agents.remove(node) else {
            bail!("no agent runs on {node}");
        };
        let ready = self.wait_ready(&mut process, || {
            place
                .http_get(AGENT_ADMIN, "/healthz/ready")
                .map(|answer| answer.status)
        });
        self.cluster().mesh.agents.insert(node.to_owned(), process);
        ready
    }

    /// Where agents find the controller.
    ///
    /// # Errors
    /// The lab has no node `n1`.
    pub fn controller_address(&self) -> Result<SocketAddr> {
        Ok((self.node("n1")?.v4(), CONTROLLER_PORT).into())
    }

    /// The root certificate that the controller writes for its clients.
    #[must_use]
    pub fn root_cert(&self) -> PathBuf {
        self.run_dir.controller().join("root-cert.pem")
    }

    /// The directory below bpffs where the agent of a node pins.
    #[must_use]
    pub fn bpf_dir(&self, node: &str) -> PathBuf {
        Path::new(BPFFS)
            .join(format!("keelson-lab-{}", self.id()))
            .join(node)
    }

    /// The CNI socket of a node's agent.
    #[must_use]
    pub fn agent_socket(&self, node: &str) -> PathBuf {
        self.run_dir.node(node).join("cni.sock")
    }

    /// The file with the token by which a node's agent is known to the controller.
    ///
    /// # Errors
    /// It could not be written.
    pub fn token_file(&self, node: &str) -> Result<PathBuf> {
        let path = self.run_dir.node(node).join("token");
        if !path.exists() {
            let mut random = [0; 16];
            fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
            let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            fs::write(&path, token)?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        }
        Ok(path)
    }

    fn write_tokens(&self, file: &Path) -> Result<()> {
        let mut lines = String::new();
        for node in self.nodes() {
            let token = fs::read_to_string(self.token_file(node.name())?)?;
            lines += &format!("{token} {}\n", node.name());
        }
        lines += &crate::waypoint::tokens(&self.run_dir);
        fs::write(file, lines)?;
        fs::set_permissions(file, Permissions::from_mode(0o600))?;
        Ok(())
    }

    fn take_agent(&self, node: &str) -> Result<Process> {
        let process = self.cluster().mesh.agents.remove(node);
        process.with_context(|| format!("no agent runs on {node}"))
    }

    fn wait_ready(&self, process: &mut Process, status: impl Fn() -> Result<u16>) -> Result<()> {
        let what = format!("{} is ready", process.name());
        let ready = wait_until(&what, READY, || {
            still_runs(process)?;
            Ok(status()? == 200)
        });
        ready.map_err(|error| with_log(error, process))
    }
}

/// The cgroup2 root, for tests that name it to an agent instead of the node's tree.
///
/// # Errors
/// cgroup2 is not mounted.
pub fn cgroup2_root() -> Result<PathBuf> {
    cgroup::mount_point()
}

/// The lab's flags, without those that `args` gives itself.
fn command(
    program: &str,
    flags: Vec<(&str, String)>,
    args: &[String],
    env: &[(String, String)],
) -> Result<Command> {
    let mut command = Command::new(programs::find(program)?);
    for (flag, value) in flags {
        let given = |arg: &String| arg == flag || arg.starts_with(&format!("{flag}="));
        if !args.iter().any(given) {
            command.arg(flag).arg(value);
        }
    }
    command.args(args).envs(env.iter().cloned());
    Ok(command)
}

fn still_runs(process: &mut Process) -> Result<()> {
    match process.exited()? {
        Some(status) => bail!("{} ended: {status}", process.name()),
        None => Ok(()),
    }
}

fn with_log(error: anyhow::Error, process: &Process) -> anyhow::Error {
    let log = process.log();
    let skip = log.lines().count().saturating_sub(15);
    let tail: Vec<&str> = log.lines().skip(skip).collect();
    error.context(format!(
        "{}, which wrote last:\n{}",
        process.name(),
        tail.join("\n")
    ))
}

fn ok(status: u16, body: String, path: &str) -> Result<String> {
    if status != 200 {
        bail!("GET {path} was answered with {status}: {}", body.trim());
    }
    Ok(body)
}

fn read_lossy(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// The agent's admin page, in its node's namespace.
pub const AGENT_ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
/// The controller's admin page, in the namespace of node `n1`.
pub const CONTROLLER_ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15014);
/// The controller's port.
pub(crate) const CONTROLLER_PORT: u16 = 15012;
const READY: Duration = Duration::from_secs(15);
