//! What a cluster is made of, where its files lie and which addresses it has.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

/// What kind of cluster is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct Options {
    /// How many nodes run pods, besides the one of the control plane: 1 to 9.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub nodes: u8,
    /// How kube-proxy translates the addresses of services.
    #[arg(long, value_enum, default_value_t = Proxy::Iptables)]
    pub proxy: Proxy,
    /// Pods and services have IPv4 and IPv6 addresses.
    #[arg(long)]
    pub dual_stack: bool,
    /// NetworkPolicy is enforced, by kube-router.
    #[arg(long)]
    pub network_policy: bool,
}

/// A mode of kube-proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Proxy {
    /// By iptables.
    Iptables,
    /// By nftables.
    Nftables,
}

impl fmt::Display for Proxy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// Where the files of all clusters of one checkout lie, and of one of them.
#[derive(Debug, Clone)]
pub struct Place {
    base: PathBuf,
    id: String,
}

impl Place {
    /// The cluster `id` of the directory `base`, whether it stands or not.
    ///
    /// # Errors
    /// The id is malformed: it becomes part of the names of directories and cgroups.
    pub fn new(base: &Path, id: &str) -> Result<Self> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if id.is_empty() || id.len() > 16 || !id.bytes().all(plain) {
            bail!("{id:?} is no id for a cluster: 1 to 16 of a-z and 0-9");
        }
        Ok(Self {
            base: base.to_owned(),
            id: id.to_owned(),
        })
    }

    /// The cluster's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Programs of Kubernetes, statically linked.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.base.join("bin")
    }

    /// Debian packages, unpacked.
    #[must_use]
    pub fn debian(&self) -> PathBuf {
        self.base.join("debian")
    }

    /// Images that every node has.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.base.join("images")
    }

    /// All that this cluster has; it goes with it.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.base.join("run").join(&self.id)
    }

    /// What an administrator reaches the API server with.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.state().join("kubeconfig")
    }

    /// The logs of the machines' programs, each with the machine's name; of a cluster that did not start, too.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn logs(&self) -> Result<Vec<(String, PathBuf)>> {
        let owner = self.state().join("owner.log");
        let mut logs = vec![("owner".to_owned(), owner)];
        logs.retain(|(_, log)| log.is_file());
        for machine in machines(&self.read_options()?) {
            let init = self.machine(&machine).join("init.log");
            let programs = self.machine(&machine).join("var/log");
            let entries = fs::read_dir(&programs).into_iter().flatten().flatten();
            let all = entries.map(|entry| entry.path()).chain([init]);
            let files = all.filter(|path| path.is_file());
            logs.extend(files.map(|path| (machine.clone(), path)));
        }
        Ok(logs)
    }

    pub(crate) fn machine(&self, name: &str) -> PathBuf {
        self.state().join(name)
    }

    pub(crate) fn owner(&self) -> PathBuf {
        self.state().join("owner")
    }

    pub(crate) fn options(&self) -> PathBuf {
        self.state().join("options.json")
    }

    /// Exists once the nodes have been started.
    pub(crate) fn started(&self) -> PathBuf {
        self.state().join("started")
    }

    /// The cluster's cgroup below the root of every hierarchy.
    pub(crate) fn cgroup(&self) -> String {
        format!("keelson-cluster-{}", self.id)
    }

    pub(crate) fn read_options(&self) -> Result<Options> {
        let text = fs::read_to_string(self.options())
            .with_context(|| format!("no cluster {} stands here", self.id))?;
        serde_json::from_str(&text).with_context(|| format!("{}", self.options().display()))
    }
}

/// The name of the machine that runs the control plane and no pods.
pub(crate) const CONTROL: &str = "control";

/// The name of a node, counted from 1.
pub(crate) fn node_name(number: u8) -> String {
    format!("node{number}")
}

/// Names of all machines, the control plane's first.
pub(crate) fn machines(options: &Options) -> Vec<String> {
    let nodes = (1..=options.nodes).map(node_name);
    std::iter::once(CONTROL.to_owned()).chain(nodes).collect()
}

/// The addresses of a machine on the link between them; number 0 is the control plane.
pub(crate) fn addresses(number: u8) -> [IpAddr; 2] {
    let host = if number == 0 { 1 } else { 10 + number };
    [
        Ipv4Addr::new(172, 30, 255, host).into(),
        Ipv6Addr::new(0xfd00, 172, 30, 255, 0, 0, 0, host.into()).into(),
    ]
}

/// The prefix lengths of the link.
pub(crate) const LINK_PREFIX: [u8; 2] = [24, 64];

/// The pods' prefixes of a node.
pub(crate) fn pod_cidrs(number: u8) -> [String; 2] {
    [
        format!("10.244.{number}.0/24"),
        format!("fd00:10:244:{number}::/64"),
    ]
}

/// The prefixes of all pods.
pub(crate) const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// The prefixes of services.
pub(crate) const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// The service of the cluster's DNS.
pub(crate) const DNS_ADDRESS: &str = "10.96.0.10";
/// The API server's port.
pub(crate) const API_PORT: u16 = 6443;

/// One of each family, or the IPv4 one only.
pub(crate) fn families<T: Clone>(options: &Options, both: &[T; 2]) -> Vec<T> {
    let count = if options.dual_stack { 2 } else { 1 };
    both.iter().take(count).cloned().collect()
}

/// The same, as Kubernetes writes it on command lines.
pub(crate) fn comma<T: Clone + ToString>(options: &Options, both: &[T; 2]) -> String {
    let texts: Vec<String> = families(options, both)
        .iter()
        .map(ToString::to_string)
        .collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_name_somebody_elses_things_are_refused() {
        for bad in ["", "a-b", "..", "a/b", "UPPER", "seventeenletters1"] {
            assert!(Place::new(Path::new("/x"), bad).is_err(), "{bad}");
        }
        assert!(Place::new(Path::new("/x"), "up1").is_ok());
    }

    #[test]
    fn machines_have_addresses_of_their_own() {
        let mut all: Vec<IpAddr> = (0..=9).flat_map(addresses).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 20);
    }
}
