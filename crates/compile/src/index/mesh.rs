//! What is the same for the whole mesh, and its replacement while the mesh runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use manifest::NamespacedName;
use proto::agent;

use super::Index;
use super::enrolment::AmbientLabel;

/// What is the same for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// Name of this cluster in workload names.
    pub cluster_id: String,
    /// DNS suffix of Services.
    pub cluster_domain: String,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Other names of it in policies.
    pub trust_domain_aliases: Vec<String>,
    /// The namespace whose policies are for the whole mesh.
    pub root_namespace: String,
    /// How captured pods of one node talk to each other; agents decide where it is not said.
    pub same_node: agent::SameNode,
    /// Nodes that try another setting first.
    pub canary: Option<Canary>,
    /// Whether `NetworkPolicy` objects hold for captured pods by the mesh too.
    pub network_policies: bool,
    /// Whose the pods are that Istio's label names.
    pub ambient_label: AmbientLabel,
}

/// Settings that some nodes have in place of the mesh's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canary {
    /// The nodes, by name.
    pub nodes: BTreeSet<String>,
    /// In place of [`MeshConfig::same_node`].
    pub same_node: agent::SameNode,
}

impl Default for MeshConfig {
    /// Istio's defaults.
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".into(),
            same_node: agent::SameNode::Unsaid,
            canary: None,
            network_policies: false,
            ambient_label: AmbientLabel::Keelson,
        }
    }
}

impl MeshConfig {
    /// How captured pods of this node talk to each other.
    pub(super) fn same_node_on(&self, node: &str) -> agent::SameNode {
        let canary = self.canary.iter().find(|one| one.nodes.contains(node));
        canary.map_or(self.same_node, |canary| canary.same_node)
    }

    /// The first setting that differs and that a mesh has for life: names and identities are made of it, or the source
    /// reads by it.
    fn fixed_difference(&self, other: &Self) -> Option<&'static str> {
        let fixed = [
            ("clusterId", self.cluster_id == other.cluster_id),
            ("clusterDomain", self.cluster_domain == other.cluster_domain),
            ("trustDomain", self.trust_domain == other.trust_domain),
            ("rootNamespace", self.root_namespace == other.root_namespace),
            (
                "networkPolicies",
                self.network_policies == other.network_policies,
            ),
            ("ambientLabel", self.ambient_label == other.ambient_label),
        ];
        fixed
            .iter()
            .find(|(_, same)| !same)
            .map(|(setting, _)| *setting)
    }
}

/// A setting would change that a running controller cannot change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{setting} cannot change while the controller runs; restart it with the new value")]
pub struct FixedSetting {
    /// Its name in the settings file.
    pub setting: &'static str,
}

impl Index {
    /// Replaces what is the same for the whole mesh. What depends on it is rebuilt by the next flush.
    ///
    /// # Errors
    /// A setting differs that is fixed for the life of an index; then nothing is replaced.
    pub fn set_mesh(&mut self, mesh: MeshConfig) -> Result<(), FixedSetting> {
        if let Some(setting) = self.mesh.fixed_difference(&mesh) {
            return Err(FixedSetting { setting });
        }
        let before = std::mem::replace(&mut self.mesh, mesh);
        if before.trust_domain_aliases != self.mesh.trust_domain_aliases {
            self.recompile_policies();
        }
        let nodes = self.pods_by_node.iter().filter(|(node, _)| {
            let (before, now) = (before.same_node_on(node), self.mesh.same_node_on(node));
            before != now
        });
        let told = nodes
            .flat_map(|(node, pods)| pods.iter().map(|pod| (Arc::clone(node), Arc::clone(pod))));
        self.dirty.node_pods.extend(told);
        Ok(())
    }

    /// Compiles all policies anew.
    fn recompile_policies(&mut self) {
        let facts: Vec<_> = self
            .policies
            .iter()
            .map(|(key, (facts, _))| (key.clone(), facts.clone()))
            .collect();
        for (key, facts) in facts {
            let key: NamespacedName = key;
            self.set_policy(&key, None);
            self.set_policy(&key, Some(facts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mesh_has_for_life_is_named_and_nothing_is_replaced() {
        let mut index = Index::new(MeshConfig::default());
        let other = MeshConfig {
            trust_domain: "other.domain".to_owned(),
            same_node: agent::SameNode::Mtls,
            ..MeshConfig::default()
        };
        let error = index.set_mesh(other).expect_err("refused");
        assert_eq!(error.setting, "trustDomain");
        assert_eq!(index.mesh, MeshConfig::default());
    }
}
