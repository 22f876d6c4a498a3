//! `keelson tls-check`: is what is sent to each service what its pods take.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use admin_api::ConfigDump;
use anyhow::{Result, bail};
use model::policy::{Connection, Verdict, decide};
use model::workload::TunnelProtocol;
use model::{MeshState, PolicyKind, Service, Workload};
use serde::Serialize;

use crate::output::Answer;
use crate::reach::Mesh;
use crate::table::Table;

/// Show for each port of each service what its pods take, what captured clients send, and the PeerAuthentication that
/// says so.
///
/// Clients follow the server, so the two never disagree; what may surprise is told in STATUS: pods of one service that
/// are in the mesh and others that are not, or clients outside of the mesh that a STRICT port refuses.
///
/// Exit codes: 0; 1, a service has pods in and out of the mesh; 2, nobody could be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this service: NAMESPACE/NAME or its host name.
    service: Option<String>,
    /// Only of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// One port of a service.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Port {
    host: String,
    port: u16,
    /// `OK`, `MIXED` or `NO PODS`.
    status: &'static str,
    /// What the pods take.
    server: String,
    /// What captured clients send.
    client: String,
    /// The objects that make it STRICT.
    objects: Vec<String>,
}

pub(crate) fn answer(args: &Args, mesh: &Mesh) -> Result<Answer> {
    let dump = mesh.any_dump(None)?;
    let is_meant = |service: &Service| {
        let of = args
            .namespace
            .as_deref()
            .is_none_or(|only| *service.namespace == *only);
        let named = args.service.as_deref().is_none_or(|name| {
            *service.hostname == *name || format!("{}/{}", service.namespace, service.name) == name
        });
        of && named
    };
    let services: Vec<&Service> = dump
        .services
        .iter()
        .map(|one| &**one)
        .filter(|one| is_meant(one))
        .collect();
    if services.is_empty() {
        bail!("the mesh knows no such service; keelson proxy-config service lists them");
    }
    let ports = ports(&dump, &services);
    let mut table = Table::new(["HOST:PORT", "STATUS", "SERVER", "CLIENT", "POLICY"]);
    for port in &ports {
        table.row([
            format!("{}:{}", port.host, port.port),
            port.status.to_owned(),
            port.server.clone(),
            port.client.clone(),
            port.objects.join(", "),
        ]);
    }
    let is_good = ports.iter().all(|port| port.status != MIXED);
    Ok(Answer::good(&ports, table.to_string())?.but(is_good))
}

fn ports(dump: &ConfigDump, services: &[&Service]) -> Vec<Port> {
    let mut state = MeshState::default();
    for policy in &dump.policies {
        state.insert_policy((**policy).clone());
    }
    let mut ports = Vec::new();
    for service in services {
        let key = service.key();
        for declared in &service.ports {
            let mut modes = BTreeSet::new();
            let mut objects = BTreeSet::new();
            for pod in dump
                .workloads
                .iter()
                .filter(|pod| pod.services.contains_key(&key))
            {
                let mapped = pod.mappings(&key, declared.port).next();
                let target = mapped.map_or(declared.target_port, |mapping| mapping.target_port);
                let (mode, object) = mode(&state, pod, target);
                modes.insert(mode);
                objects.extend(object);
            }
            let all: Vec<&str> = modes.iter().map(|mode| mode.as_str()).collect();
            let in_mesh = modes.iter().filter(|mode| **mode != Mode::Plain).count();
            ports.push(Port {
                host: service.hostname.to_string(),
                port: declared.port,
                status: match (modes.len(), in_mesh) {
                    (0, _) => "NO PODS",
                    (all, in_mesh) if in_mesh == 0 || in_mesh == all => "OK",
                    _ => MIXED,
                },
                server: all.join(" and "),
                client: match (modes.len(), in_mesh) {
                    (0, _) => "",
                    (_, 0) => "plain",
                    (all, in_mesh) if in_mesh == all => "mTLS",
                    _ => "mTLS or plain, by pod",
                }
                .to_owned(),
                objects: objects.into_iter().collect(),
            });
        }
    }
    ports.sort();
    ports
}

/// What a pod takes on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    /// Mutual TLS alone.
    Strict,
    /// Mutual TLS, and plaintext of those outside.
    Permissive,
    /// It is not in the mesh.
    Plain,
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "mTLS (STRICT)",
            Self::Permissive => "mTLS or plain (PERMISSIVE)",
            Self::Plain => "plain (not in the mesh)",
        }
    }
}

/// Asks the policies that PeerAuthentications were made into about a client without identity.
fn mode(state: &MeshState, pod: &Workload, port: u16) -> (Mode, Option<String>) {
    if pod.tunnel != TunnelProtocol::Hbone {
        return (Mode::Plain, None);
    }
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let connection = Connection {
        source: None,
        source_ip: nobody,
        destination_ip: pod.addresses.first().copied().unwrap_or(nobody),
        destination_port: port,
    };
    let Ok(policies) = state.policies_for(pod) else {
        return (Mode::Strict, None);
    };
    let peers = policies
        .iter()
        .copied()
        .filter(|policy| policy.key.kind != PolicyKind::AuthorizationPolicy);
    match decide(peers, &connection) {
        Verdict::Allow(_) => (Mode::Permissive, None),
        Verdict::Deny(reason) => {
            let policy = reason
                .policy()
                .map(|key| match (&pod.strict_by, key.object()) {
                    (Some(by), None) => by
                        .object()
                        .map_or_else(|| by.to_string(), |one| one.to_string()),
                    (_, Some(object)) => object.to_string(),
                    (None, None) => key.to_string(),
                });
            (Mode::Strict, policy)
        }
    }
}

const MIXED: &str = "MIXED";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::policy::{Action, Rule, Scope};
    use model::service::{AppProtocol, ServicePort};
    use model::workload::PortMapping;
    use model::{Policy, PolicyKey};

    use super::*;

    /// A pod behind `web`, in the mesh or not, that names a policy or none.
    fn pod(name: &str, tunnel: TunnelProtocol, policy: Option<&PolicyKey>) -> Arc<Workload> {
        let service = model::ServiceKey::new("shop", "web.shop.svc.cluster.local");
        Arc::new(Workload {
            uid: name.into(),
            name: name.into(),
            namespace: "shop".into(),
            tunnel,
            services: [(service, vec![PortMapping::new(80, 8080)])].into(),
            authorization_policies: policy.into_iter().cloned().collect(),
            ..Workload::default()
        })
    }

    #[test]
    fn a_port_is_what_its_pods_take() {
        let service = Service {
            name: "web".into(),
            namespace: "shop".into(),
            hostname: "web.shop.svc.cluster.local".into(),
            ports: vec![ServicePort {
                port: 80,
                target_port: 8080,
                app_protocol: AppProtocol::Unknown,
            }],
            ..Service::default()
        };
        let strict = Policy {
            key: PolicyKey::peer_authentication("shop", "only-mtls"),
            scope: Scope::WorkloadSelector,
            action: Action::Deny,
            rules: vec![Rule::default()],
            dry_run: false,
            unenforceable: None,
        };
        let (hbone, none) = (TunnelProtocol::Hbone, TunnelProtocol::None);
        let a_strict = || pod("strict", hbone, Some(&strict.key));
        let (open, out) = (|| pod("open", hbone, None), || pod("out", none, None));
        for (pods, status, server, client, object) in [
            (vec![], "NO PODS", "", "", ""),
            (vec![open()], "OK", "mTLS or plain (PERMISSIVE)", "mTLS", ""),
            (
                vec![a_strict()],
                "OK",
                "mTLS (STRICT)",
                "mTLS",
                "PeerAuthentication shop/only-mtls",
            ),
            (vec![out()], "OK", "plain (not in the mesh)", "plain", ""),
            (
                vec![open(), out()],
                "MIXED",
                "mTLS or plain (PERMISSIVE) and plain (not in the mesh)",
                "mTLS or plain, by pod",
                "",
            ),
        ] {
            let dump = ConfigDump {
                workloads: pods,
                policies: vec![Arc::new(strict.clone())],
                ..ConfigDump::default()
            };
            let found = ports(&dump, &[&service]);
            let [port] = found.as_slice() else {
                panic!("{found:?}");
            };
            assert_eq!(
                (
                    port.status,
                    &*port.server,
                    &*port.client,
                    &*port.objects.join(",")
                ),
                (status, server, client, object)
            );
        }
    }
}
