//! A pod: a namespace with one interface, a cgroup, and programs that run in both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

use crate::address;
use crate::capture::Capture;
use crate::cgroup::Cgroup;
use crate::netns::{Netns, on_thread};
use crate::node::Node;
use crate::process::{self, Placement, Process};
use crate::programs;
use crate::run_dir::RunDir;
use crate::tool;

/// One pod of a lab; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pod {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    namespace: String,
    name: String,
    uid: String,
    service_account: String,
    ips: Vec<IpAddr>,
    node: Node,
    netns: Netns,
    cgroup: Cgroup,
    interface: String,
    run_dir: RunDir,
    started: AtomicU32,
}

/// What a pod is made from.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) service_account: String,
    pub(crate) ips: Vec<IpAddr>,
}

impl Pod {
    /// Makes the sandbox: namespace, interface, addresses, routes, cgroup. Nothing runs in it.
    pub(crate) fn create(
        id: &str,
        number: u32,
        node: &Node,
        run_dir: &RunDir,
        plan: Plan,
    ) -> Result<Self> {
        let netns = Netns::create(&format!("k{id}-{}-{}", plan.namespace, plan.name))?;
        let cgroup = node.cgroup().child("kubepods")?;
        let cgroup = cgroup.child(&format!("pod{}", plan.uid))?;
        let pod = Self {
            inner: Arc::new(Inner {
                namespace: plan.namespace,
                name: plan.name,
                uid: plan.uid,
                service_account: plan.service_account,
                ips: plan.ips,
                node: node.clone(),
                netns,
                cgroup,
                interface: format!("kp{number}"),
                run_dir: run_dir.clone(),
                started: AtomicU32::new(0),
            }),
        };
        pod.connect()?;
        Ok(pod)
    }

    fn connect(&self) -> Result<()> {
        let Inner {
            node,
            netns,
            interface,
            ips,
            ..
        } = &*self.inner;
        netns.sysctls(&[
            ("net.ipv6.conf.default.accept_dad", "0"),
            ("net.ipv6.conf.default.accept_ra", "0"),
        ])?;
        let cubic = prefer_cubic(netns);
        let [gateway4, gateway6] = address::pod(node.index(), 1);
        let mut host = format!(
            "link add {interface} type veth peer name eth0 netns {}\n\
             addr add {gateway4}/32 dev {interface}\n\
             addr add {gateway6}/128 dev {interface} nodad\n\
             link set {interface} up\n",
            netns.name()
        );
        let mut inside = String::from("link set eth0 up\n");
        for ip in ips {
            if ip.is_ipv4() {
                host += &format!("route add {ip}/32 dev {interface} src {}\n", node.v4());
                inside += &format!("addr add {ip}/32 dev eth0\n");
            } else {
                host += &format!("route add {ip}/128 dev {interface} src {}\n", node.v6());
                inside += &format!("addr add {ip}/128 dev eth0 nodad\n");
            }
        }
        if ips.iter().any(IpAddr::is_ipv4) {
            inside += &format!(
                "route add {gateway4} dev eth0 scope link\nroute add default via {gateway4} dev eth0{cubic}\n"
            );
        }
        if ips.iter().any(IpAddr::is_ipv6) {
            inside += &format!(
                "route add {gateway6} dev eth0\nroute add ::/0 via {gateway6} dev eth0{cubic}\n"
            );
        }
        tool::ip_batch(node.netns(), &host)?;
        tool::ip_batch(netns, &inside)
    }

    /// Ends the pod's processes and removes its interface, namespace and cgroup.
    pub(crate) fn destroy(&self) -> Result<()> {
        let Inner {
            node,
            netns,
            cgroup,
            interface,
            ..
        } = &*self.inner;
        cgroup.remove()?;
        // Not left to the end of the namespace, which somebody's open socket may delay.
        tool::ip(&["-n", node.netns().name(), "link", "del", interface])?;
        crate::netns::delete(netns.name())
    }

    /// Its Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// `namespace/name`, as [`crate::Lab::pod`] takes it.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.inner.namespace, self.inner.name)
    }

    /// Its `metadata.uid`.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.inner.uid
    }

    /// Its service account; `default` if the manifest names none.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.inner.service_account
    }

    /// The node it runs on.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.inner.node
    }

    /// Its addresses, in the order of its annotation.
    #[must_use]
    pub fn ips(&self) -> &[IpAddr] {
        &self.inner.ips
    }

    /// Its IPv4 address.
    ///
    /// # Errors
    /// It has none.
    pub fn v4(&self) -> Result<Ipv4Addr> {
        let mut ips = self.ips().iter();
        match ips.find_map(|ip| {
            if let IpAddr::V4(ip) = ip {
                Some(*ip)
            } else {
                None
            }
        }) {
            Some(ip) => Ok(ip),
            None => bail!("pod {} has no IPv4 address", self.key()),
        }
    }

    /// Its IPv6 address.
    ///
    /// # Errors
    /// It has none.
    pub fn v6(&self) -> Result<Ipv6Addr> {
        let mut ips = self.ips().iter();
        match ips.find_map(|ip| {
            if let IpAddr::V6(ip) = ip {
                Some(*ip)
            } else {
                None
            }
        }) {
            Some(ip) => Ok(ip),
            None => bail!("pod {} has no IPv6 address", self.key()),
        }
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.inner.netns
    }

    /// Its cgroup; containers and threads run in children of it.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.inner.cgroup
    }

    /// The node's end of its interface.
    #[must_use]
    pub fn host_interface(&self) -> &str {
        &self.inner.interface
    }

    /// Runs `work` on a fresh thread in the pod's namespace and cgroup, as an application there.
    ///
    /// # Errors
    /// The thread could not get there; `work` did not run.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let cgroup = self.inner.cgroup.child("app")?;
        on_thread(|| {
            self.enter_into(&cgroup)?;
            Ok(work())
        })
    }

    /// Runs `work` on a thread in the pod's namespace, but in the cgroup `stray` of its node:
    /// what `kubectl debug` or a misplaced process looks like.
    ///
    /// # Errors
    /// As [`Pod::run`].
    pub fn run_outside_cgroup<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let cgroup = self.node().cgroup().child("stray")?;
        on_thread(|| {
            self.enter_into(&cgroup)?;
            Ok(work())
        })
    }

    /// Moves the calling thread into the pod for good; for threads that serve inside it.
    ///
    /// # Errors
    /// The thread could not get there; it may then be in the cgroup but not in the namespace.
    pub fn enter(&self) -> Result<()> {
        self.enter_into(&self.inner.cgroup.child("app")?)
    }

    fn enter_into(&self, cgroup: &Cgroup) -> Result<()> {
        cgroup.enter()?;
        self.inner.netns.enter()
    }

    /// Starts a program in the pod; `keelson-lab-app` is found beside the running program.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        let number = self.inner.started.fetch_add(1, Ordering::Relaxed);
        self.start(&format!("exec-{number}"), command)
    }

    /// Starts a program as the container `container`.
    pub(crate) fn start(&self, container: &str, command: Command) -> Result<Process> {
        let command = programs::resolve(command)?;
        let name = format!("{}/{container}", self.key());
        let log = self.inner.run_dir.log(&name);
        Process::start(&name, command, &self.placement()?, log)
    }

    /// Runs a program in the pod to its end and returns what it wrote.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn output(&self, command: Command) -> Result<Output> {
        process::output(programs::resolve(command)?, &self.placement()?)
    }

    /// The place of a process in this pod.
    ///
    /// # Errors
    /// The cgroup cannot be made.
    pub fn placement(&self) -> Result<Placement> {
        let hosts = self.inner.run_dir.hosts(self.namespace());
        let hosts = hosts.exists().then_some(hosts);
        let cgroup = self.inner.cgroup.child("app")?;
        Placement::new(&self.inner.netns, &cgroup, hosts.as_deref())
    }

    /// Captures what crosses the pod's interface, seen from inside.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.inner.netns, "eth0")
    }
}

/// Sets cubic for the namespace, or returns the route attribute that does it where the sysctl is
/// refused: other algorithms (bbr) are much slower over veth and would distort comparisons.
fn prefer_cubic(netns: &Netns) -> &'static str {
    match netns.sysctl("net.ipv4.tcp_congestion_control", "cubic") {
        Ok(()) => "",
        Err(_) => " congctl cubic",
    }
}
