//! How agents and controller are reached: in the cluster by the rights that the caller has there, in the lab by its
//! namespaces. Neither opens a new listener.

use std::collections::BTreeMap;

use admin_api::{ConfigDump, StreamStatus, page};
use anyhow::{Context as _, Result, bail};
use lab::Standing;
use serde::de::DeserializeOwned;

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
        default_missing_value = "up"
    )]
    lab: Option<String>,
}

/// The programs of one mesh.
#[derive(Debug)]
pub(crate) enum Mesh {
    Lab(Standing),
}

/// A page as it came.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Where {
    /// Finds the mesh.
    pub(crate) fn open(&self) -> Result<Mesh> {
        match &self.lab {
            Some(id) => Ok(Mesh::Lab(
                Standing::open(id).context("`cargo xtask lab up` starts one")?,
            )),
            None => bail!("clusters cannot be asked yet; --lab asks a lab of this machine"),
        }
    }
}

impl Mesh {
    /// The nodes that should have an agent.
    pub(crate) fn nodes(&self) -> Vec<String> {
        match self {
            Self::Lab(lab) => lab.nodes.iter().map(|node| node.name.clone()).collect(),
        }
    }

    /// The node that a pod, `namespace/name`, is on.
    pub(crate) fn node_of(&self, pod: &str) -> Option<String> {
        match self {
            Self::Lab(lab) => {
                let found = lab.pods.iter().find(|known| known.key() == pod);
                found.map(|pod| pod.node.clone())
            }
        }
    }

    /// A page of the agent of a node, whatever its status.
    pub(crate) fn agent(&self, node: &str, path: &str) -> Result<Page> {
        self.ask_agent("GET", node, path)
    }

    /// Asks the agent of a node to change something.
    pub(crate) fn change_agent(&self, node: &str, path: &str) -> Result<Page> {
        self.ask_agent("POST", node, path)
    }

    fn ask_agent(&self, method: &str, node: &str, path: &str) -> Result<Page> {
        let Self::Lab(lab) = self;
        let answer = lab
            .agent_page(method, node, path)
            .with_context(|| format!("the agent of node {node} does not answer; does it run?"))?;
        Ok(Page {
            status: answer.status,
            body: answer.body,
        })
    }

    /// A page of the controller, whatever its status.
    pub(crate) fn controller(&self, path: &str) -> Result<Page> {
        let Self::Lab(lab) = self;
        let answer = lab
            .controller_page(path)
            .context("the controller does not answer; does it run?")?;
        Ok(Page {
            status: answer.status,
            body: answer.body,
        })
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

    /// Who is connected to the controller, by node. Other clients than agents are left out.
    pub(crate) fn streams(&self) -> Result<BTreeMap<String, StreamStatus>> {
        let streams: BTreeMap<String, StreamStatus> =
            self.controller(page::SYNC)?.json("the controller")?;
        let by_node = streams.into_values().map(|one| (one.node.clone(), one));
        Ok(by_node.collect())
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
