//! A node: a namespace that routes between its pods and the link, with a cgroup of its own.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::address;
use crate::capture::Capture;
use crate::cgroup::Cgroup;
use crate::http::{self, Response};
use crate::netns::{Netns, on_thread};
use crate::process::{Placement, Process};
use crate::run_dir::RunDir;
use crate::tool;

/// One node of a lab; cheap to clone.
#[derive(Debug, Clone)]
pub struct Node {
    name: Arc<str>,
    index: u8,
    netns: Netns,
    cgroup: Cgroup,
    run_dir: RunDir,
}

impl Node {
    /// Makes the namespace with its loopback, sysctls and cgroups, not yet linked.
    pub(crate) fn create(id: &str, index: u8, run_dir: &RunDir) -> Result<Self> {
        let name = format!("n{index}");
        let netns = Netns::create(&format!("k{id}-{name}"))?;
        let cgroup = Cgroup::create(&format!("keelson-lab-{id}/{name}"))?;
        for part in ["agent", "kubelet", "host", "kubepods", "controller"] {
            cgroup.child(part)?;
        }
        for part in ["state", "runtime"] {
            std::fs::create_dir_all(run_dir.node(&name).join(part))?;
        }
        run_dir.tmpfs(&run_dir.node(&name).join("runtime"))?;
        // Before there is any interface: each takes the defaults when it appears.
        netns.sysctls(&[
            ("net.ipv6.conf.default.accept_dad", "0"),
            ("net.ipv6.conf.default.accept_ra", "0"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "1"),
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
        ])?;
        tool::nft(&netns, SOURCE_GUARD)?;
        Ok(Self {
            name: name.into(),
            index,
            netns,
            cgroup,
            run_dir: run_dir.clone(),
        })
    }

    /// Gives the link its addresses and the routes to the services and the other nodes' pods.
    pub(crate) fn configure_uplink(&self, nodes: u8) -> Result<()> {
        let (v4, v6) = (self.v4(), self.v6());
        let mut lines = format!(
            "link set {UPLINK} up\n\
             addr add {v4}/24 dev {UPLINK}\n\
             addr add {v6}/64 dev {UPLINK} nodad\n\
             route add {} dev {UPLINK} src {v4}\n\
             route add {} dev {UPLINK} src {v6}\n",
            address::SERVICES_V4,
            address::SERVICES_V6,
        );
        for other in (1..=nodes).filter(|other| *other != self.index) {
            lines += &format!(
                "route add {} via {} src {v4}\nroute add {} via {} src {v6}\n",
                address::pods_v4(other),
                address::node_v4(other),
                address::pods_v6(other),
                address::node_v6(other),
            );
        }
        tool::ip_batch(&self.netns, &lines).with_context(|| format!("linking node {}", self.name))
    }

    /// `n1`, `n2`, ...
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number, from 1.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The cgroup that holds everything of this node: `agent`, `kubelet`, `kubepods`, `host`.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its IPv4 address on the link.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        address::node_v4(self.index)
    }

    /// Its IPv6 address on the link.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        address::node_v6(self.index)
    }

    /// Runs `work` on a thread in the node's namespace and its cgroup `host`: neither the
    /// kubelet nor an agent nor a pod.
    ///
    /// # Errors
    /// The thread could not get there; `work` did not run.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.run_in("host", work)
    }

    /// Runs `work` on a thread that counts as the kubelet: its connections are probes.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn run_as_kubelet<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.run_in("kubelet", work)
    }

    /// Runs `work` on a thread in the node's namespace and the named cgroup below the node's.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn run_in<T: Send>(&self, cgroup: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        let cgroup = self.cgroup.child(cgroup)?;
        on_thread(|| {
            cgroup.enter()?;
            self.netns.enter()?;
            Ok(work())
        })
    }

    /// Starts a program in the node's namespace and the named cgroup below the node's.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn_in(&self, cgroup: &str, name: &str, command: Command) -> Result<Process> {
        let place = self.placement(cgroup)?;
        let name = format!("{}/{name}", self.name);
        let log = self.run_dir.log(&name);
        Process::start(&name, command, &place, log)
    }

    /// The place of a process in the node's namespace and the named cgroup below the node's.
    ///
    /// # Errors
    /// The cgroup cannot be made.
    pub fn placement(&self, cgroup: &str) -> Result<Placement> {
        Placement::new(&self.netns, &self.cgroup.child(cgroup)?, None)
    }

    /// Captures what crosses this node's end of the link.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn capture_uplink(&self) -> Result<Capture> {
        Capture::start(&self.netns, UPLINK)
    }

    /// Asks an HTTP server that this node can reach.
    ///
    /// # Errors
    /// No answer, or one that is not HTTP.
    pub fn http_get(&self, server: SocketAddr, path: &str) -> Result<Response> {
        self.run(|| http::ask("GET", server, path))?
    }

    /// As [`Node::http_get`], with a POST.
    ///
    /// # Errors
    /// As [`Node::http_get`].
    pub fn http_post(&self, server: SocketAddr, path: &str) -> Result<Response> {
        self.run(|| http::ask("POST", server, path))?
    }
}

/// The interface of each node on the link between the nodes.
pub const UPLINK: &str = "uplink";

/// Strict source validation at the pods' interfaces for IPv6, which has no `rp_filter`.
const SOURCE_GUARD: &str = "
add table ip6 source-guard
table ip6 source-guard {
 chain prerouting {
  type filter hook prerouting priority raw;
  iifname \"kp*\" ip6 saddr != fe80::/10 ip6 saddr != :: fib saddr . iif oif 0 drop
 }
}
";
