//! A lab: nodes, pods, controller and agents on one machine, and the folder they are made from.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::address;
use crate::cluster::Cluster;
use crate::keep;
use crate::netns::Netns;
use crate::node::{Node, UPLINK};
use crate::objects;
use crate::pod::Pod;
use crate::pod_spec::PodSpec;
use crate::process::Process;
use crate::remove::{self as removal, remove};
use crate::run_dir::RunDir;
use crate::tool;
use crate::yaml;

/// A running lab; dropping it removes everything it made.
#[derive(Debug)]
pub struct Lab {
    id: String,
    pub(crate) run_dir: RunDir,
    nodes: Vec<Node>,
    /// Holds the namespace of the switch, where there are more than two nodes.
    _fabric: Option<Netns>,
    cluster: Mutex<Cluster>,
    // Last, so that it runs after the processes above have been dropped.
    _removal: Removal,
}

/// What a lab shall be made of.
#[derive(Debug, Clone)]
pub struct Builder {
    id: String,
    nodes: u8,
    manifests: Option<PathBuf>,
}

impl Builder {
    /// How many nodes, from 1 to [`crate::MAX_NODES`]; 2 if not said.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// A folder of manifests to begin with; it is copied, the original is never written to.
    #[must_use]
    pub fn manifests(mut self, folder: impl Into<PathBuf>) -> Self {
        self.manifests = Some(folder.into());
        self
    }

    /// Makes nodes and link, then the pods of the manifests.
    ///
    /// # Errors
    /// Not root, a program or kernel ability is missing, or the id is taken. What was made
    /// until then is removed.
    pub fn build(self) -> Result<Lab> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes network namespaces and cgroups: run it as root");
        }
        if self.nodes == 0 || self.nodes > address::MAX_NODES {
            bail!(
                "a lab has 1 to {} nodes, not {}",
                address::MAX_NODES,
                self.nodes
            );
        }
        removal::remove_all_stale()?;
        removal::on_signals()?;
        let run_dir = RunDir::create(&self.id)?;
        let removal = Removal::new(&self.id);
        mount_bpffs()?;
        let nodes = (1..=self.nodes)
            .map(|index| Node::create(&self.id, index, &run_dir))
            .collect::<Result<Vec<_>>>()?;
        let fabric = link(&self.id, &nodes)?;
        let cluster = Cluster::new(&self.id, &nodes, &run_dir);
        let lab = Lab {
            id: self.id,
            run_dir,
            nodes,
            _fabric: fabric,
            cluster: Mutex::new(cluster),
            _removal: removal,
        };
        if let Some(folder) = &self.manifests {
            lab.copy_manifests(folder)?;
        }
        lab.register_nodes()?;
        lab.reconcile()?;
        Ok(lab)
    }
}

impl Lab {
    /// Begins a lab of two nodes; [`crate::unique_id`] makes an id that no other lab has.
    #[must_use]
    pub fn builder(id: impl Into<String>) -> Builder {
        Builder {
            id: id.into(),
            nodes: 2,
            manifests: None,
        }
    }

    /// Its id, which is part of every name that the lab gives.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node `n1`, `n2`, ...
    ///
    /// # Errors
    /// There is none of that name.
    pub fn node(&self, name: &str) -> Result<Node> {
        let node = self.nodes.iter().find(|node| node.name() == name);
        node.cloned()
            .ok_or_else(|| anyhow!("this lab has no node {name}"))
    }

    /// The pod `namespace/name`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn pod(&self, key: &str) -> Result<Pod> {
        self.cluster()
            .pod(key)
            .ok_or_else(|| anyhow!("this lab has no pod {key}"))
    }

    /// All pods, by `namespace/name`.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        self.cluster().pods()
    }

    /// The directory of this lab: `manifests`, `logs`, and one directory per node.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        self.run_dir.path()
    }

    /// The live folder, which the controller watches.
    #[must_use]
    pub fn manifests_dir(&self) -> PathBuf {
        self.run_dir.manifests()
    }

    /// Writes a manifest into the live folder and acts on it as the kubelets and kube-proxies do.
    ///
    /// # Errors
    /// A pod of it could not be made, or the agent did not take it.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        objects::write(&self.manifests_dir().join(file), text)?;
        self.reconcile()
    }

    /// Removes a manifest from the live folder, and with it the pods that it described.
    ///
    /// # Errors
    /// There is no such file, or a pod could not be removed.
    pub fn delete(&self, file: &str) -> Result<()> {
        fs::remove_file(self.manifests_dir().join(file))
            .with_context(|| format!("deleting the manifest {file}"))?;
        self.reconcile()
    }

    /// Sets or, with `None`, removes a label of a Namespace object.
    ///
    /// # Errors
    /// The live folder holds no Namespace of that name.
    pub fn label_namespace(&self, namespace: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.label("Namespace", None, namespace, key, value)
    }

    /// Sets or removes a label of the pod `namespace/name`.
    ///
    /// # Errors
    /// The live folder holds no such Pod.
    pub fn label_pod(&self, pod: &str, key: &str, value: Option<&str>) -> Result<()> {
        let (namespace, name) = split_key(pod)?;
        self.label("Pod", Some(namespace), name, key, value)
    }

    fn label(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        objects::label(&self.manifests_dir(), kind, namespace, name, (key, value))?;
        self.reconcile()
    }

    /// Creates a pod and waits until its containers have been started.
    ///
    /// # Errors
    /// The pod could not be made, or the agent of its node did not take it.
    pub fn create(&self, spec: &PodSpec) -> Result<Pod> {
        self.apply(&spec.file_name(), &yaml::emit(&[spec.manifest()]))?;
        self.pod(&spec.key())
    }

    /// Deletes the pod `namespace/name`, wherever its manifest stands.
    ///
    /// # Errors
    /// There is no such pod, or it could not be removed.
    pub fn delete_pod(&self, key: &str) -> Result<()> {
        let (namespace, name) = split_key(key)?;
        let deleted = objects::delete(&self.manifests_dir(), |document| {
            objects::kind(document) == "Pod"
                && objects::name(document) == name
                && objects::namespace(document) == namespace
        })?;
        if deleted == 0 {
            bail!("the live folder holds no Pod {key}");
        }
        self.reconcile()
    }

    /// Removes a pod as somebody does who tidies up a node by hand: its processes, interface and namespace go,
    /// and nobody tells the agent. Its manifest goes too. Other holders of the pod keep its namespace alive.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn lose_pod(&self, pod: Pod) -> Result<()> {
        objects::delete(&self.manifests_dir(), |document| {
            objects::kind(document) == "Pod"
                && objects::name(document) == pod.name()
                && objects::namespace(document) == pod.namespace()
        })?;
        self.cluster().lose(&pod)?;
        self.reconcile()
    }

    /// Makes what runs equal to what the live folder says; called by everything that changes it.
    ///
    /// # Errors
    /// Names every pod that could not be made or removed; the others are done.
    pub fn reconcile(&self) -> Result<()> {
        self.cluster().reconcile()
    }

    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `look` on the processes of a pod's containers, in the order of the manifest.
    pub fn containers<T>(&self, pod: &str, look: impl FnOnce(&mut [Process]) -> T) -> T {
        look(self.cluster().containers(pod))
    }

    fn copy_manifests(&self, folder: &Path) -> Result<()> {
        for file in objects::files(folder)? {
            let name = file.file_name().unwrap_or_default();
            fs::copy(&file, self.manifests_dir().join(name))
                .with_context(|| format!("copying {}", file.display()))?;
        }
        Ok(())
    }

    /// A kubelet makes the Node object of its node if it is missing.
    fn register_nodes(&self) -> Result<()> {
        let folder = self.manifests_dir();
        let mut known = Vec::new();
        for file in objects::files(&folder)? {
            let documents = objects::documents(&file).unwrap_or_default();
            let nodes = documents
                .iter()
                .filter(|document| objects::kind(document) == "Node");
            known.extend(nodes.map(|node| objects::name(node).to_owned()));
        }
        let missing: Vec<Value> = self
            .nodes
            .iter()
            .filter(|node| !known.iter().any(|known| known == node.name()))
            .map(node_object)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        objects::write(&folder.join("registered-nodes.yaml"), &yaml::emit(&missing))
    }
}

/// Before the processes and what else a lab is made of go one after the other, somebody may want to look at them.
impl Drop for Lab {
    fn drop(&mut self) {
        keep::hold(&self.id);
    }
}

/// Asks again until the answer is yes.
///
/// # Errors
/// `timeout` has passed; the last error of `condition`, if it had one, is the source.
pub fn wait_until(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    testkit::eventually(what, timeout, || {
        ensure!(condition()?, "the answer is no");
        Ok(())
    })
}

fn split_key(pod: &str) -> Result<(&str, &str)> {
    pod.split_once('/')
        .ok_or_else(|| anyhow!("a pod is named namespace/name, not {pod:?}"))
}

fn node_object(node: &Node) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name(), "labels": {
            "kubernetes.io/hostname": node.name(),
            "topology.kubernetes.io/region": "lab",
            "topology.kubernetes.io/zone": format!("lab-{}", node.name()),
        }},
        "spec": {
            "podCIDR": address::pods_v4(node.index()),
            "podCIDRs": [address::pods_v4(node.index()), address::pods_v6(node.index())],
        },
    })
}

/// Two nodes get one cable; more get a switch in a namespace of its own.
fn link(id: &str, nodes: &[Node]) -> Result<Option<Netns>> {
    let fabric = match nodes {
        [first, second] => {
            let peer = second.netns().name();
            let line = format!("link add {UPLINK} type veth peer name {UPLINK} netns {peer}\n");
            tool::ip_batch(first.netns(), &line)?;
            None
        }
        _ => {
            let fabric = Netns::create(&format!("k{id}-switch"))?;
            let mut lines = String::from("link add br0 type bridge\nlink set br0 up\n");
            for node in nodes {
                let (port, peer) = (node.name(), node.netns().name());
                lines += &format!(
                    "link add {port} type veth peer name {UPLINK} netns {peer}\nlink set {port} master br0 up\n"
                );
            }
            tool::ip_batch(&fabric, &lines)?;
            Some(fabric)
        }
    };
    let count = u8::try_from(nodes.len())?;
    nodes
        .iter()
        .try_for_each(|node| node.configure_uplink(count))?;
    Ok(fabric)
}

/// Mounts bpffs where agents pin; it stays, as every program on the machine shares it.
fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    });
    if mounted {
        return Ok(());
    }
    let none: Option<&str> = None;
    nix::mount::mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        none,
    )
    .with_context(|| format!("mounting bpffs on {BPFFS}"))
}

/// Removes a lab when it is dropped, also halfway through its making.
#[derive(Debug)]
struct Removal {
    id: String,
}

impl Removal {
    fn new(id: &str) -> Self {
        removal::register(id);
        Self { id: id.to_owned() }
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.id) {
            tracing::error!(lab = %self.id, error = format!("{error:#}"), "not wholly removed");
        }
        removal::forget(&self.id);
    }
}

/// Where BPF file systems are mounted.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
