//! What nodes report of pods that they hold captured, as their agents do once everything is there.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use proto::agent::{CapturedPod, NodeReport};
use xds_client::NodeClient;

use super::{Plan, controller};

/// Every node reports its pods once, one node after another.
///
/// # Errors
/// A line cannot be read, or the controller does not take a report.
pub(super) async fn report<'n>(
    plan: &Plan,
    file: &Path,
    nodes: impl Iterator<Item = &'n str>,
) -> Result<()> {
    let text = fs::read_to_string(file).context("the captured pods")?;
    let mut reports: HashMap<&str, NodeReport> = HashMap::new();
    for line in text.lines() {
        let (node, pod) = read(line).with_context(|| format!("{line:?}"))?;
        let report = reports.entry(node).or_default();
        let CapturedPod {
            namespace, name, ..
        } = &pod;
        report
            .captured
            .push(format!("Kubernetes//Pod/{namespace}/{name}"));
        report.pods.push(pod);
    }
    for node in nodes {
        let mut report = reports.remove(node).unwrap_or_default();
        report.node = node.to_owned();
        report.agent_version = env!("CARGO_PKG_VERSION").to_owned();
        NodeClient::new(controller(plan, node))
            .report(report)
            .await
            .with_context(|| format!("the report of {node}"))?;
    }
    Ok(())
}

/// Node, namespace, name, uid and address.
fn read(line: &str) -> Result<(&str, CapturedPod)> {
    let mut words = line.split_whitespace();
    let mut word = || words.next().context("a word is missing");
    let node = word()?;
    let (namespace, name) = (word()?.to_owned(), word()?.to_owned());
    let pod_uid = word()?.to_owned();
    let addresses = match word()?.parse()? {
        IpAddr::V4(ip) => vec![ip.octets().to_vec()],
        IpAddr::V6(ip) => vec![ip.octets().to_vec()],
    };
    let pod = CapturedPod {
        namespace,
        name,
        pod_uid,
        addresses,
    };
    Ok((node, pod))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_node_and_its_pod() {
        let (node, pod) = read("n1 shop cart-1 7a 10.0.0.7").unwrap();
        assert_eq!(node, "n1");
        assert_eq!(pod.namespace, "shop");
        assert_eq!(pod.name, "cart-1");
        assert_eq!(pod.pod_uid, "7a");
        assert_eq!(pod.addresses, [[10, 0, 0, 7]]);
        for bad in ["", "n1 shop cart-1 7a", "n1 shop cart-1 7a nowhere"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
