//! Where one mode's traffic runs: a lab of its own, with a client, a server on the client's node and
//! one on the other node, the same in every mode.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lab::{Lab, Netns, Pod, PodSpec, Process};
use serde::{Deserialize, Serialize};

use crate::load::{Load, LoadReport};

/// On which node the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// On the client's.
    SameNode,
    /// On the other.
    TwoNodes,
}

impl Placement {
    /// Both.
    pub const ALL: [Self; 2] = [Self::SameNode, Self::TwoNodes];

    /// As people say it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::SameNode => "same node",
            Self::TwoNodes => "two nodes",
        }
    }
}

/// The processes of a mesh's data path.
#[derive(Debug)]
pub enum Proxies {
    /// There is no mesh.
    None,
    /// The agents of the lab's nodes.
    Agents,
    /// A proxy in each pod: client, server on the same node, server on the other.
    Sidecars(Box<[Process; 3]>),
    /// The agents, and a proxy for requests in the pod with this `namespace/name`, on the client's node.
    AgentsAndPod(String),
    /// A proxy for requests in the pod with this `namespace/name`, on the client's node, without a mesh.
    Pod(String),
}

/// A lab in which one mode runs.
#[derive(Debug)]
pub struct Site {
    // Before the lab: the proxies end while their namespaces stand.
    proxies: Proxies,
    client: Pod,
    servers: [Pod; 2],
    server_pids: [i32; 2],
    /// What the client dials instead of the servers' own addresses.
    dialled: Option<[SocketAddr; 2]>,
    lab: Lab,
}

/// How often and how long traffic is sent in one measurement.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Before counting.
    pub warm_up: Duration,
    /// While counting.
    pub window: Duration,
    /// Everything that takes part on one processor.
    pub pinned: bool,
}

impl Site {
    /// A lab with two nodes and nothing else, its namespace [`NAMESPACE`] with these labels.
    ///
    /// # Errors
    /// The lab could not be made.
    pub fn nodes(labels: &[(&str, &str)]) -> Result<Lab> {
        let lab = Lab::builder(lab::unique_id()).nodes(2).build()?;
        let mut manifest = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels:\n    kubernetes.io/metadata.name: {NAMESPACE}\n"
        );
        for (key, value) in labels {
            manifest += &format!("    {key}: \"{value}\"\n");
        }
        lab.apply("bench.yaml", &manifest)?;
        for node in lab.nodes() {
            tune(node.netns())?;
        }
        Ok(lab)
    }

    /// Puts client and servers into the lab and waits until the servers listen.
    ///
    /// # Errors
    /// A pod could not be made, or a server did not start.
    pub fn settle(lab: Lab) -> Result<Self> {
        let client =
            lab.create(&PodSpec::new(NAMESPACE, "client", "n1").service_account("client"))?;
        let port = PORT.to_string();
        let serve = ["keelson-bench-load", "serve", "--port", &port];
        let mut servers = Vec::new();
        for (name, node) in [("server-near", "n1"), ("server-far", "n2")] {
            let spec = PodSpec::new(NAMESPACE, name, node)
                .service_account("server")
                .container("server", &serve);
            servers.push(lab.create(&spec)?);
        }
        let servers: [Pod; 2] = servers.try_into().ok().context("two servers")?;
        let mut pids = [0; 2];
        for (server, pid) in servers.iter().zip(&mut pids) {
            tune(server.netns())?;
            let found = lab.containers(&server.key(), |processes| {
                processes.first().map(Process::pid)
            });
            *pid = found.context("a server without a process")?;
        }
        tune(client.netns())?;
        Ok(Self {
            proxies: Proxies::None,
            client,
            servers,
            server_pids: pids,
            dialled: None,
            lab,
        })
    }

    /// The same with a mesh's processes.
    #[must_use]
    pub fn with(self, proxies: Proxies) -> Self {
        Self { proxies, ..self }
    }

    /// The same, where the client dials these for the server on its node and for that on the other.
    #[must_use]
    pub fn dialling(self, near: SocketAddr, far: SocketAddr) -> Self {
        Self {
            dialled: Some([near, far]),
            ..self
        }
    }

    /// The servers' own addresses: on the client's node, on the other.
    ///
    /// # Errors
    /// A server has no address of IPv4.
    pub fn server_addresses(&self) -> Result<[SocketAddr; 2]> {
        let [near, far] = &self.servers;
        Ok([
            SocketAddr::from((near.v4()?, PORT)),
            SocketAddr::from((far.v4()?, PORT)),
        ])
    }

    /// What the client dials for the server on its node.
    ///
    /// # Errors
    /// The server has no address of IPv4.
    pub fn dialled_near(&self) -> Result<SocketAddr> {
        let [near, _far] = match self.dialled {
            Some(dialled) => dialled,
            None => self.server_addresses()?,
        };
        Ok(near)
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Client, server on the same node, server on the other.
    #[must_use]
    pub fn pods(&self) -> [&Pod; 3] {
        let [near, far] = &self.servers;
        [&self.client, near, far]
    }

    /// The processes of the mesh that traffic passes: those whose cost is the mesh's cost.
    #[must_use]
    pub fn mesh_pids(&self, placement: Placement) -> Vec<i32> {
        match (&self.proxies, placement) {
            (Proxies::None, _) => Vec::new(),
            (Proxies::Agents, placement) => self.agent_pids(placement),
            (Proxies::AgentsAndPod(pod), placement) => {
                let mut pids = self.agent_pids(placement);
                pids.extend(self.pod_pid(pod));
                pids
            }
            (Proxies::Pod(pod), _) => self.pod_pid(pod).into_iter().collect(),
            (Proxies::Sidecars(sidecars), placement) => {
                let [client, near, far] = &**sidecars;
                let server = match placement {
                    Placement::SameNode => near,
                    Placement::TwoNodes => far,
                };
                vec![client.pid(), server.pid()]
            }
        }
    }

    fn agent_pids(&self, placement: Placement) -> Vec<i32> {
        let nodes: &[&str] = match placement {
            Placement::SameNode => &["n1"],
            Placement::TwoNodes => &["n1", "n2"],
        };
        nodes
            .iter()
            .filter_map(|node| self.lab.agent_pid(node))
            .collect()
    }

    fn pod_pid(&self, pod: &str) -> Option<i32> {
        self.lab
            .containers(pod, |processes| processes.first().map(Process::pid))
    }

    /// Sends one kind of traffic and returns what the client saw.
    ///
    /// # Errors
    /// The client failed; what it wrote is in the error.
    pub fn run(&self, placement: Placement, load: Load, timing: Timing) -> Result<LoadReport> {
        self.run_watching(placement, load, timing, &self.mesh_pids(placement))
    }

    /// As [`Site::run`], with these processes counted as the mesh's.
    ///
    /// # Errors
    /// As there.
    pub fn run_watching(
        &self,
        placement: Placement,
        load: Load,
        timing: Timing,
        mesh: &[i32],
    ) -> Result<LoadReport> {
        let index = match placement {
            Placement::SameNode => 0,
            Placement::TwoNodes => 1,
        };
        let own = self.server_addresses()?;
        let dialled = self.dialled.as_ref().unwrap_or(&own);
        let (Some(address), Some(pid)) = (dialled.get(index), self.server_pids.get(index)) else {
            bail!("two servers");
        };
        let mut command = Command::new("keelson-bench-load");
        match load {
            Load::Closed { connections } => {
                option(command.arg("closed"), "--connections", connections)
            }
            Load::Paced { connections, rate } => {
                option(command.arg("paced"), "--connections", connections);
                option(&mut command, "--rate", rate);
            }
            Load::Connects { clients } => option(command.arg("connects"), "--clients", clients),
            Load::Bulk => {
                command.arg("bulk");
            }
            Load::Idle { connections } => option(command.arg("idle"), "--connections", connections),
        }
        option(&mut command, "--server", address);
        option(&mut command, "--warm-up", timing.warm_up.as_millis());
        option(&mut command, "--window", timing.window.as_millis());
        option(&mut command, "--load", pid);
        if timing.pinned {
            command.arg("--pinned");
        }
        for pid in mesh {
            option(&mut command, "--mesh", pid);
        }
        let output = self.client.output(command)?;
        if !output.status.success() {
            bail!(
                "the client failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        serde_json::from_slice(&output.stdout).context("the client's report")
    }

    /// Whether the load's text can be read on the link between the nodes.
    ///
    /// # Errors
    /// No traffic came through at all.
    pub fn is_readable(&self) -> Result<bool> {
        let link = self.lab.node("n1")?.capture_uplink()?;
        let timing = Timing {
            warm_up: Duration::ZERO,
            window: Duration::from_millis(30),
            pinned: false,
        };
        self.run(Placement::TwoNodes, Load::Closed { connections: 1 }, timing)?;
        link.contains(crate::load::PLAINTEXT.as_bytes())
    }
}

fn option(command: &mut Command, name: &str, value: impl ToString) {
    command.arg(name).arg(value.to_string());
}

/// The same network for everybody: cubic, and room for many short connections.
///
/// # Errors
/// A setting could not be made.
pub fn tune(netns: &Netns) -> Result<()> {
    netns.sysctls(&[
        ("net.ipv4.tcp_congestion_control", "cubic"),
        ("net.ipv4.ip_local_port_range", "10000 65000"),
        ("net.ipv4.tcp_tw_reuse", "1"),
        ("net.ipv4.tcp_max_tw_buckets", "400000"),
    ])
}

/// The namespace of client and servers.
pub const NAMESPACE: &str = "bench";
const PORT: u16 = 8080;
