//! How agents and controllers are reached: in the cluster by the rights that the caller has there, in the lab by its
//! namespaces. Neither opens a new listener.

mod cluster;
mod lab;

use std::collections::BTreeMap;
use std::fmt;

use admin_api::{ConfigDump, StreamStatus, page};
use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use crate::api::{self, Api};
use cluster::Cluster;
pub(crate) use cluster::{AGENT, CONTROLLER, USUAL_NAMESPACE, health};
use lab::Lab;

/// Where waypoints and gateways have their pages.
const WAYPOINT_ADMIN: u16 = 15020;

/// Where the mesh is that is asked.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Where {
    /// Ask a lab of this machine (`cargo xtask lab up`), instead of the cluster of the kubeconfig.
    #[arg(
        long,
        global = true,
        value_name = "ID",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "up",
        conflicts_with_all = ["kubeconfig", "context", "mesh_namespace"]
    )]
    lab: Option<String>,
    #[command(flatten)]
    access: api::Access,
    /// The namespace that the mesh is installed in. If none is named, keelson-system, or the one that has the agents.
    #[arg(long, global = true, value_name = "NAMESPACE")]
    mesh_namespace: Option<String>,
}

/// The programs of one mesh, wherever it runs.
trait Programs: fmt::Debug {
    /// The nodes that should have an agent.
    fn nodes(&self) -> Vec<String>;

    /// The node that a pod, `namespace/name`, is on.
    fn node_of(&self, pod: &str) -> Result<Option<String>>;

    /// Asks the agent of a node.
    fn agent(&self, method: &str, node: &str, path: &str) -> Result<Page>;

    /// Asks a waypoint's or a gateway's pod, `namespace/name`.
    fn pod(&self, pod: &str, path: &str) -> Result<Page>;

    /// Asks every controller; an error if there is none. Each has its name.
    fn controllers(&self, path: &str) -> Result<Vec<(String, Result<Page>)>>;

    /// The versions of programs that have no page for it, by name.
    fn versions(&self) -> Vec<(String, String)>;
}

/// The programs of one mesh.
#[derive(Debug)]
pub(crate) struct Mesh {
    programs: Box<dyn Programs>,
}

/// A page as it came.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) body: String,
    /// When it was written by the clock of who wrote it, in seconds since 1970.
    pub(crate) date: Option<i64>,
}

impl Where {
    /// Finds the mesh.
    pub(crate) fn open(&self) -> Result<Mesh> {
        let programs: Box<dyn Programs> = match &self.lab {
            Some(id) => Box::new(Lab::open(id)?),
            None => Box::new(Cluster::open(self.api()?, self.mesh_namespace.as_deref())?),
        };
        Ok(Mesh { programs })
    }

    /// Whether a lab is asked, which has no API server.
    pub(crate) fn is_lab(&self) -> bool {
        self.lab.is_some()
    }

    /// The API server of the cluster that is meant.
    pub(crate) fn api(&self) -> Result<Api> {
        if self.lab.is_some() {
            bail!("a lab has no API server; leave --lab out");
        }
        self.access.connect()
    }
}

impl Mesh {
    /// The nodes that should have an agent.
    pub(crate) fn nodes(&self) -> Vec<String> {
        self.programs.nodes()
    }

    /// The node that a pod, `namespace/name`, is on.
    pub(crate) fn node_of(&self, pod: &str) -> Result<Option<String>> {
        self.programs.node_of(pod)
    }

    /// A page of the agent of a node, whatever its status.
    pub(crate) fn agent(&self, node: &str, path: &str) -> Result<Page> {
        self.programs.agent("GET", node, path)
    }

    /// Asks the agent of a node to change something.
    pub(crate) fn change_agent(&self, node: &str, path: &str) -> Result<Page> {
        self.programs.agent("POST", node, path)
    }

    /// A page of a waypoint's or a gateway's pod, `namespace/name`.
    pub(crate) fn pod(&self, pod: &str, path: &str) -> Result<Page> {
        self.programs.pod(pod, path)
    }

    /// A page of every controller, whatever its status.
    pub(crate) fn controllers(&self, path: &str) -> Result<Vec<(String, Result<Page>)>> {
        self.programs.controllers(path)
    }

    /// The versions of programs that have no page for it, by name.
    pub(crate) fn versions(&self) -> Vec<(String, String)> {
        self.programs.versions()
    }

    /// What the agent of a node knows and holds.
    pub(crate) fn dump(&self, node: &str) -> Result<ConfigDump> {
        self.agent(node, page::CONFIG_DUMP)?
            .json(&format!("node {node}"))
    }

    /// What the first agent knows that answers; of `node` if one is meant. The mesh is the same to all that are in step.
    pub(crate) fn any_dump(&self, node: Option<&str>) -> Result<ConfigDump> {
        if let Some(node) = node {
            return self.dump(node);
        }
        let mut last = None;
        for node in self.nodes() {
            match self.dump(&node) {
                Ok(dump) => return Ok(dump),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("the mesh has no nodes")))
    }

    /// Who is connected to a controller, by node. Other clients than agents are left out. A controller that does not
    /// answer is named, and does not hide what the others say.
    pub(crate) fn streams(&self) -> Result<(BTreeMap<String, StreamStatus>, Vec<String>)> {
        let (mut by_node, mut silent) = (BTreeMap::new(), Vec::new());
        for (name, page) in self.controllers(page::SYNC)? {
            let streams = page.and_then(|page| {
                page.json::<BTreeMap<String, StreamStatus>>(&format!("the controller {name}"))
            });
            match streams {
                Ok(streams) => {
                    by_node.extend(streams.into_values().map(|one| (one.node.clone(), one)));
                }
                Err(error) => silent.push(format!("{error:#}")),
            }
        }
        Ok((by_node, silent))
    }
}

impl Page {
    /// Reads the page of `whom`.
    pub(crate) fn json<T: DeserializeOwned>(&self, whom: &str) -> Result<T> {
        if self.status != 200 {
            bail!("{whom} answered with {}: {}", self.status, self.body.trim());
        }
        serde_json::from_str(&self.body).with_context(|| {
            format!("{whom} says something that this version does not understand; is keelson older than the mesh?")
        })
    }
}
