//! Manifests in, resources out.

mod authorization;
mod auto;
mod damaged;
mod endpoints;
mod entries;
mod gateways;
mod held;
mod incremental;
mod ingress;
mod lint;
mod network_policy;
mod never_plain;
mod patterns;
mod pods;
mod scale;
mod services;
mod strictness;
mod view;
mod waypoints;

use std::collections::BTreeMap;

use manifest::{Claim, read_file};
use prost::Message;
use proto::{agent, istio};

use super::*;

/// An index fed with manifests.
struct Mesh {
    index: Index,
}

/// Reads manifests that have no error.
fn objects(text: &str) -> Vec<Upsert> {
    let decoded = read_file(&"f.yaml".into(), text, "istio-system");
    let read = decoded.claims.into_iter().map(|claim| match claim {
        Claim::Good(upsert) => *upsert,
        Claim::Broken {
            fallback: Some(fallback),
            ..
        } => *fallback,
        other => panic!("{other:?}: {:?}", decoded.findings),
    });
    read.collect()
}

impl Mesh {
    fn of(text: &str) -> Self {
        let mut mesh = Self {
            index: Index::new(MeshConfig::default()),
        };
        mesh.apply(text);
        mesh
    }

    fn apply(&mut self, text: &str) -> Changes {
        for upsert in objects(text) {
            self.index.apply(&upsert);
        }
        self.index.flush()
    }

    fn remove(&mut self, text: &str) -> Changes {
        for upsert in objects(text) {
            self.index.remove(&upsert.object.key());
        }
        self.index.flush()
    }

    /// A word of an agent that names its pods and describes none.
    fn report(&mut self, node: &str, uids: &[String]) -> Vec<String> {
        let pods = holdings::named(uids.iter().cloned()).collect();
        let partial = false;
        self.index.report(node, Word { pods, partial })
    }

    fn workload(&self, name: &str) -> istio::workload::Workload {
        let uid = format!("Kubernetes//Pod/{name}");
        self.find_workload(&uid)
            .unwrap_or_else(|| panic!("no workload {uid}: {:?}", self.names()))
    }

    fn find_workload(&self, uid: &str) -> Option<istio::workload::Workload> {
        let resource = self.index.snapshot().addresses.get(uid)?;
        match istio::workload::Address::decode(resource.body())
            .expect("decodes")
            .r#type
        {
            Some(istio::workload::address::Type::Workload(workload)) => Some(workload),
            _ => None,
        }
    }

    fn service(&self, name: &str) -> istio::workload::Service {
        let resource = self
            .index
            .snapshot()
            .addresses
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {:?}", self.names()));
        match istio::workload::Address::decode(resource.body())
            .expect("decodes")
            .r#type
        {
            Some(istio::workload::address::Type::Service(service)) => service,
            other => panic!("{other:?}"),
        }
    }

    fn policy(&self, name: &str) -> istio::security::Authorization {
        self.find_policy(name).unwrap_or_else(|| {
            panic!(
                "no policy {name}: {:?}",
                self.index
                    .snapshot()
                    .authorizations
                    .keys()
                    .collect::<Vec<_>>()
            )
        })
    }

    fn find_policy(&self, name: &str) -> Option<istio::security::Authorization> {
        let resource = self.index.snapshot().authorizations.get(name)?;
        Some(istio::security::Authorization::decode(resource.body()).expect("decodes"))
    }

    fn node_pod(&self, node: &str, name: &str) -> Option<agent::NodePod> {
        let entry = self
            .index
            .snapshot()
            .nodes
            .get(node)?
            .get(format!("Kubernetes//Pod/{name}").as_str())?;
        Some(agent::NodePod::decode(entry.resource.body()).expect("decodes"))
    }

    fn names(&self) -> Vec<String> {
        self.index
            .snapshot()
            .addresses
            .keys()
            .map(ToString::to_string)
            .collect()
    }

    /// `service port>target port` of every service of a workload.
    fn ports(&self, pod: &str) -> BTreeMap<String, Vec<String>> {
        let services = self.workload(pod).services.into_iter();
        let text =
            |port: istio::workload::Port| format!("{}>{}", port.service_port, port.target_port);
        services
            .map(|(name, list)| (name, list.ports.into_iter().map(text).collect()))
            .collect()
    }
}

fn pod(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{app: {name}}}\n  annotations: {{keelson.io/pod-ips: 10.244.1.10}}\n{rest}"
    )
}
