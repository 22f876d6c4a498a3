//! The programs of a lab of this machine, each in its network namespace.

use anyhow::{Context as _, Result};
use lab::Standing;

use super::{Page, Programs};

/// A lab that stands.
#[derive(Debug)]
pub(super) struct Lab(Standing);

impl Lab {
    pub(super) fn open(id: &str) -> Result<Self> {
        let standing = Standing::open(id).context("`cargo xtask lab up` starts one")?;
        Ok(Self(standing))
    }
}

impl Programs for Lab {
    fn nodes(&self) -> Vec<String> {
        self.0.nodes.iter().map(|node| node.name.clone()).collect()
    }

    fn node_of(&self, pod: &str) -> Result<Option<String>> {
        let found = self.0.pods.iter().find(|known| known.key() == pod);
        Ok(found.map(|pod| pod.node.clone()))
    }

    fn agent(&self, method: &str, node: &str, path: &str) -> Result<Page> {
        let answer = self
            .0
            .agent_page(method, node, path)
            .with_context(|| format!("the agent of node {node} does not answer; does it run?"))?;
        Ok(Page {
            status: answer.status,
            body: answer.body,
            // All of a lab have this machine's clock.
            date: None,
        })
    }

    fn pod(&self, pod: &str, path: &str) -> Result<Page> {
        let answer = self
            .0
            .pod_page(pod, super::WAYPOINT_ADMIN, path)
            .with_context(|| {
                format!("pod {pod} does not answer; is it a waypoint's or a gateway's?")
            })?;
        Ok(Page {
            status: answer.status,
            body: answer.body,
            date: None,
        })
    }

    fn controllers(&self, path: &str) -> Result<Vec<(String, Result<Page>)>> {
        let answer = self
            .0
            .controller_page(path)
            .context("the controller does not answer; does it run?")?;
        let page = Page {
            status: answer.status,
            body: answer.body,
            // All of a lab have this machine's clock.
            date: None,
        };
        Ok(vec![("controller".to_owned(), Ok(page))])
    }

    fn versions(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}
