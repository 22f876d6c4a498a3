//! What the agent is told on its command line, checked before anything is touched.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, CommandFactory, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::agent::presence::{Account, DaemonSet};
use crate::host::readers;
use crate::mesh::SameNode;

/// Captures the pods of this node that belong to the mesh.
#[derive(Debug, Parser)]
#[command(
    name = "keelson-node-agent",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub run: Option<RunArgs>,
}

impl Cli {
    /// Reads a command line and the environment.
    ///
    /// How to run is looked at only where nothing else is to be done: a pod's environment says how its agent runs, also to
    /// a `cleanup` that somebody starts in it.
    ///
    /// # Errors
    /// It cannot be read; the error is written for whoever typed it.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = <Self as CommandFactory>::command();
        let mut matches = command.try_get_matches_from_mut(words)?;
        let read = if matches.subcommand_name().is_some() {
            Command::from_arg_matches_mut(&mut matches).map(|command| Self {
                command: Some(command),
                run: None,
            })
        } else {
            Self::from_arg_matches_mut(&mut matches)
        };
        read.map_err(|error| error.format(&mut command))
    }
}

/// What to do instead of running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Release all pods of this node and remove every program, map and rule. For uninstalling: while
    /// no agent runs, captured pods are otherwise refused, never released.
    Cleanup(CleanupArgs),
    /// Try what an agent needs of this node, and write what was found as JSON. Nothing is attached and nothing stays.
    Probe(ProbeArgs),
    /// Fail while another instance is in charge of this node, which then answers at the node's page of health. For a pod's
    /// startup probe.
    Started(StartedArgs),
}

/// Who asks whether it has started.
#[derive(Clone, Debug, Args)]
pub struct StartedArgs {
    /// The agent's runtime directory.
    #[arg(long, default_value = "/run/keelson")]
    pub runtime_dir: PathBuf,
    /// As given to the agent.
    #[arg(long, env = "KEELSON_INSTANCE", default_value = "")]
    pub instance: String,
}

/// Where things are on the node.
#[derive(Clone, Debug, Args)]
pub struct ProbeArgs {
    /// Where cgroup2 is mounted.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    pub cgroup_root: PathBuf,
    /// A BPF file system.
    #[arg(long, default_value = "/sys/fs/bpf")]
    pub bpf_fs: PathBuf,
}

/// Where the agent kept its state.
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Directory of the pinned programs and maps, as given to the agent.
    #[arg(long, default_value = "/sys/fs/bpf/keelson")]
    pub bpf_dir: PathBuf,
    /// The agent's runtime directory.
    #[arg(long, default_value = "/run/keelson")]
    pub runtime_dir: PathBuf,
}

/// What agents of one mesh say to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Framing {
    /// The same requests and bytes as in HBONE, in fewer words; HBONE where the peer knows no other.
    Thin,
    /// HBONE.
    Hbone,
}

/// Who makes the TLS records of tunnels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Records {
    /// rustls.
    Rustls,
    /// This project, with keys that rustls hands over.
    Own,
}

fn tunnel_age(text: &str) -> Result<Duration, String> {
    let age = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if age < Duration::from_secs(1) {
        return Err("a tunnel lives for at least 1s".to_owned());
    }
    Ok(age)
}

/// How to run.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Name of this node, as in the Node object.
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// The controller, as https://HOST:PORT.
    #[arg(long)]
    pub controller: String,
    /// PEM file with the root that the controller's certificate ends in.
    #[arg(long)]
    pub controller_ca: PathBuf,
    /// File with the token that proves to the controller which node this is; read anew at each use.
    #[arg(long)]
    pub token_file: PathBuf,
    /// Istio's control plane, as `https://istiod.istio-system.svc:15012`. Workloads, services, policies and certificates are
    /// its then, and the controller, started with --captures-only, says which pods are to be captured.
    #[arg(long, value_name = "URL", requires_all = ["istiod_root", "istiod_token_file"])]
    pub istiod: Option<String>,
    /// PEM file with the root that its certificate ends in, as of the ConfigMap istio-ca-root-cert; read anew at each connection.
    #[arg(long, value_name = "FILE", requires = "istiod")]
    pub istiod_root: Option<PathBuf>,
    /// File with the token that proves to it which node this is, for its audience (istio-ca) and bound to this agent's pod;
    /// read anew at each use.
    #[arg(long, value_name = "FILE", requires = "istiod")]
    pub istiod_token_file: Option<PathBuf>,
    /// Who signs certificates, where it is not istiod itself, as https://HOST:PORT with a certificate of the same root.
    #[arg(long, value_name = "URL", requires = "istiod")]
    pub istiod_ca: Option<String>,
    /// Name of this cluster in the names of workloads, and of the control plane's callers.
    #[arg(long, value_name = "NAME", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// The DNS suffix of Services.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Name of this agent's pod, as control planes show it; node-agent-NODE if it is not said.
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod_name: String,
    /// Namespace of this agent's pod. Istio's control plane holds it against the token.
    #[arg(long, env = "POD_NAMESPACE", default_value = "keelson-system")]
    pub pod_namespace: String,
    /// Address of this agent's pod, which is the node's.
    #[arg(long, env = "POD_IP", default_value = "127.0.0.1")]
    pub pod_ip: IpAddr,
    /// Lifetime of certificates that is asked for; who signs may give less.
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    pub certificate_life: Duration,
    /// Where the last good configuration is kept; the agent starts from it while the controller is away.
    #[arg(long, default_value = "/var/lib/keelson")]
    pub state_dir: PathBuf,
    /// Where sandboxes and keys are kept over a restart, not over a reboot: must be a memory file system (tmpfs).
    #[arg(long, default_value = "/run/keelson")]
    pub runtime_dir: PathBuf,
    /// Where programs and maps are pinned: must be on a BPF file system.
    #[arg(long, default_value = "/sys/fs/bpf/keelson")]
    pub bpf_dir: PathBuf,
    /// Where cgroup2 is mounted. With a directory below it, only pods in there can be captured.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    pub cgroup_root: PathBuf,
    /// The kubelet's cgroup: what it connects to is a probe and reaches pods under STRICT. Without it no probe is exempt.
    #[arg(long)]
    pub kubelet_cgroup: Option<PathBuf>,
    /// Unix socket for the CNI plugin.
    #[arg(long, default_value = "/run/keelson/cni.sock")]
    pub cni_socket: PathBuf,
    /// The CNI plugin's program, to be kept installed while this agent is in charge; if nothing is said somebody else installs
    /// it.
    #[arg(long, value_name = "PROGRAM")]
    pub cni_plugin: Option<PathBuf>,
    /// Where the runtime looks for plugins.
    #[arg(long, default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// Where the runtime looks for network configurations.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Namespaces whose pods start without the agent: what a node needs before the agent can run.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kube-system,keelson-system"
    )]
    pub cni_exclude_namespaces: Vec<String>,
    /// The DaemonSet that this agent is a pod of. When it is stopped it asks the API server whether that still wants an agent
    /// on this node; if not, it lets its pods go and removes what it made. Without this, and whenever nobody says otherwise,
    /// they stay captured.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub daemon_set: Option<DaemonSet>,
    /// A service account that may read that DaemonSet and this node, and whose tokens this agent may make. By one of them it
    /// asks where the API server refuses its own token, which it does when the agent's pod is gone, and not only when the
    /// mesh is.
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "daemon_set")]
    pub presence_account: Option<Account>,
    /// Where settings of pods' namespaces are written. A container's own is read-only: mount the node's.
    #[arg(long, value_name = "DIR", default_value = "/proc/sys/net")]
    pub net_settings: PathBuf,
    /// The switch by which the kernel waits less for its readers while a pod's programs are attached or detached. Empty:
    /// it is left alone, and each pod takes some 40 ms longer.
    #[arg(long, value_name = "FILE", default_value = readers::DEFAULT)]
    pub rcu_expedited: PathBuf,
    /// Address of the admin pages; loopback only.
    #[arg(long, default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// How captured pods of this node talk to each other.
    #[arg(long, value_enum, default_value = "direct")]
    pub same_node: SameNode,
    /// What tunnels to other agents of this mesh are framed in. Peers of another make always get HBONE.
    #[arg(long, value_enum, default_value = "thin")]
    pub tunnel_framing: Framing,
    /// Who makes the TLS records of tunnels in the thin framing: rustls, or code of this project that does
    /// less work in bulk and that fewer people have read.
    #[arg(long, value_enum, default_value = "rustls")]
    pub tunnel_records: Records,
    /// How old a tunnel may become; the connections in it go on when another takes its place.
    #[arg(long, default_value = "1h", value_parser = tunnel_age)]
    pub tunnel_max_age: Duration,
    /// How long a worker may stay awake for bytes that it expects at once; 0s puts it to sleep at once.
    #[arg(long, default_value = "100us", value_parser = humantime::parse_duration)]
    pub busy_poll: Duration,
    /// Threads that carry traffic; 0 is one per core.
    #[arg(long, default_value_t = 0)]
    pub workers: usize,
    /// How log lines look: text or json; text:TEMPLATE or json:TEMPLATE for lines of the access log.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: runtime::log::Format,
    /// What is logged, such as `info`, `info,access=errors`, `info,access=off` or `debug,h2=info`; changeable at /logging.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "info")]
    pub log: String,
    /// Log what the kernel half decides, with pod and reason, under the target `ebpf`. Only debug builds that were
    /// made for it can: `cargo xtask build --ebpf-log`.
    #[arg(long)]
    pub ebpf_log: bool,
    /// After SIGTERM or after another agent has taken over, how long connections may go on before they are reset.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub drain_deadline: Duration,
    /// How long taking over from a running agent may take, and how long that one may leave a question
    /// of the successor unanswered before it counts as hung and is killed.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub takeover_timeout: Duration,
    /// What this agent is an instance of, such as the uid of its own pod: an instance that has been
    /// succeeded does not take over again when it is restarted, but stands by.
    #[arg(long, env = "KEELSON_INSTANCE", default_value = "")]
    pub instance: String,
    /// How often the kernel is compared with what should be, and repaired.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub audit_interval: Duration,
    /// How long a running pod is left out of the mesh while its first certificate is awaited.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub certificate_wait: Duration,
    /// How long a leaving pod still ends its peers' tunnels.
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    pub release_wait: Duration,
    /// How long a TCP connection may take to be established.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub connect_timeout: Duration,
    /// Room for ports of services that have an endpoint on this node. The agent draws endpoints of those beyond it.
    #[arg(long, default_value_t = 16384)]
    pub max_service_ports: u32,
    /// Room for the slots that endpoints of these services are drawn from. The agent draws endpoints of those beyond it.
    #[arg(long, default_value_t = 65536)]
    pub max_service_slots: u32,
    /// Room for what policy says about pairs of captured pods of this node. The agent carries and judges those beyond it.
    #[arg(long, default_value_t = 262_144)]
    pub max_verdicts: u32,
    /// Connections between pods of this node that may be opening at once. Beyond it the oldest
    /// are judged by their servers as connections of a client without identity.
    #[arg(long, default_value_t = 65536)]
    pub max_direct_flows: u32,
    /// Room for addresses that are captured on other nodes, and for those of services. Plain traffic to an address
    /// beyond it is neither dropped nor counted by the wall.
    #[arg(long, default_value_t = 131_072)]
    pub max_walled_addresses: u32,
    /// Room for plain connections that are older than the wall between their ends. One beyond it ends when the wall
    /// is enforced.
    #[arg(long, default_value_t = 16384)]
    pub max_plain_flows: u32,
    /// Attach guard and wall by clsact, as on kernels without tcx. For tests.
    #[arg(long, hide = true)]
    pub no_tcx: bool,
    /// Addresses of the mesh that connections may have to be carried to. While there are more the agent carries
    /// all connections, also those that could be left alone.
    #[arg(long, default_value_t = 262_144)]
    pub max_carried: u32,
    /// Version of the kernel contract that pins are kept under. For tests of upgrades: an agent with another
    /// one shares no program and no map with this one.
    #[arg(long, hide = true, default_value_t = abi::ABI_VERSION)]
    pub abi_version: u32,
    /// Room for pods in the kernel's maps. A pod beyond it is refused capture and reported.
    #[arg(long, default_value_t = 1024)]
    pub max_pods: u32,
    /// Room for listening ports of all captured pods in the kernel's maps, each counted once for IPv4 and once for
    /// IPv6. A port beyond it is refused and counted.
    #[arg(long, default_value_t = 65536)]
    pub max_listening_ports: u32,
    /// How much of it one pod may use, so that none leaves the others without; 0 is one part in 64.
    #[arg(long, default_value_t = 0)]
    pub max_listening_ports_per_pod: u32,
    /// Connections that the agent carries for all pods together; 0 derives it from the limit of open
    /// files. Half of them are divided among the captured pods, the other half is for whoever needs more.
    #[arg(long, default_value_t = 0)]
    pub max_connections: usize,
    /// Connections that the agent carries for one pod, however much room there is; 0 is no such limit.
    #[arg(long, default_value_t = 0)]
    pub max_connections_per_pod: usize,
}
