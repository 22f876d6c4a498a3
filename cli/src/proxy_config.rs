//! `keelson proxy-config`: what an agent knows, holds and carries, and what waypoints route by.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use admin_api::{Certificate, ConfigDump, LiveView, page};
use anyhow::{Result, bail};
use clap::Subcommand;
use model::policy::Action;
use model::workload::{Health, TunnelProtocol};
use model::{GatewayAddress, Policy, Service, Workload};
use serde::Serialize;

use crate::output::Answer;
use crate::proxy_pods;
use crate::reach::Mesh;
use crate::status::duration;
use crate::table::Table;

/// Show what agents know, hold and carry, and what waypoints and gateways route by.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
    /// The node whose agent is asked. Workloads, services and policies are those of the first that answers if none is
    /// named: all know the same mesh. Certificates and connections are then those of all nodes.
    #[arg(long, global = true)]
    node: Option<String>,
    /// Of what agents are asked, only that of this namespace.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Pods and what else runs: address, node, how it is reached, its policies.
    Workload,
    /// Services: addresses, ports, endpoints.
    Service,
    /// Policies as the agents go by them.
    Policy,
    /// Certificates: identity, state, validity, what the last attempt failed with.
    Certificate,
    /// Connections that are open: who, whom, how protected, bytes, age.
    Connections,
    /// Where a gateway listens for clients from outside, and for which hosts.
    Listener(proxy_pods::Of),
    /// Rules of a waypoint or gateway: on which service or host, conditions, where to, and the object that says so.
    Route(proxy_pods::Of),
    /// Services and subsets that a waypoint or gateway sends to, and the DestinationRule that shapes them.
    Cluster(proxy_pods::Of),
    /// Endpoints of a waypoint or gateway: health, and which are left alone.
    Endpoint(proxy_pods::Of),
    /// The filter of the agent's log.
    Log {
        /// Replace it, for example by debug or info,tunnel=debug.
        #[arg(long)]
        level: Option<String>,
    },
}

pub(crate) fn answer(args: &Args, mesh: &Mesh) -> Result<Answer> {
    let is_of_a_pod = matches!(
        args.what,
        What::Listener(_) | What::Route(_) | What::Cluster(_) | What::Endpoint(_)
    );
    if is_of_a_pod && (args.node.is_some() || args.namespace.is_some()) {
        bail!(
            "--node and --namespace are for what agents are asked; the pod is named as NAMESPACE/NAME"
        );
    }
    let one = || mesh.any_dump(args.node.as_deref());
    let is_meant = |namespace: &str| {
        args.namespace
            .as_deref()
            .is_none_or(|only| only == namespace)
    };
    match &args.what {
        What::Workload => {
            let mut dump = one()?;
            dump.workloads.retain(|one| is_meant(&one.namespace));
            Answer::good(&dump.workloads, workloads(&dump.workloads))
        }
        What::Service => {
            let mut dump = one()?;
            dump.services.retain(|one| is_meant(&one.namespace));
            Answer::good(&dump.services, services(&dump))
        }
        What::Policy => {
            let mut dump = one()?;
            dump.policies.retain(|one| is_meant(&one.key.namespace));
            Answer::good(&dump.policies, policies(&dump.policies))
        }
        What::Certificate => {
            let mut all: Vec<Of<Certificate>> = each(args, mesh, page::CERTIFICATES)?;
            all.retain(|one| is_meant(part(&one.what.identity, "/ns/")));
            let text = certificates(&all)?;
            Answer::good(&all, text)
        }
        What::Connections => {
            let mut all: Vec<Of<LiveView>> = each(args, mesh, page::CONNECTIONS)?;
            all.retain(|one| {
                let pod = &one.what.connection.pod;
                is_meant(pod.split('/').next().unwrap_or_default())
            });
            Answer::good(&all, connections(&all))
        }
        What::Listener(of) => proxy_pods::listeners(mesh, of),
        What::Route(of) => proxy_pods::routes(mesh, of),
        What::Cluster(of) => proxy_pods::clusters(mesh, of),
        What::Endpoint(of) => proxy_pods::endpoints(mesh, of),
        What::Log { level } => log(args, mesh, level.as_deref()),
    }
}

/// Something of a node.
#[derive(Debug, Serialize)]
struct Of<T> {
    node: String,
    #[serde(flatten)]
    what: T,
}

/// The entries of a page of all agents, or of the one that is meant.
fn each<T: serde::de::DeserializeOwned>(
    args: &Args,
    mesh: &Mesh,
    path: &str,
) -> Result<Vec<Of<T>>> {
    let nodes = match &args.node {
        Some(node) => vec![node.clone()],
        None => mesh.nodes(),
    };
    let mut all = Vec::new();
    for node in nodes {
        let entries: Vec<T> = mesh.agent(&node, path)?.json(&format!("node {node}"))?;
        let of = |what| Of {
            node: node.clone(),
            what,
        };
        all.extend(entries.into_iter().map(of));
    }
    Ok(all)
}

fn workloads(all: &[std::sync::Arc<Workload>]) -> String {
    let mut table = Table::new([
        "NAMESPACE",
        "NAME",
        "ADDRESS",
        "NODE",
        "REACHED BY",
        "HEALTH",
        "WAYPOINT",
        "POLICIES",
    ]);
    for one in all {
        let policies = one.authorization_policies.iter();
        table.row([
            one.namespace.to_string(),
            one.name.to_string(),
            joined(one.addresses.iter().map(IpAddr::to_string)),
            one.node.to_string(),
            match one.tunnel {
                TunnelProtocol::Hbone => "tunnel (mutual TLS)".to_owned(),
                TunnelProtocol::None => "plain TCP".to_owned(),
            },
            match one.status {
                Health::Healthy => "ready".to_owned(),
                Health::Unhealthy => "not ready".to_owned(),
            },
            one.waypoint
                .as_ref()
                .map(GatewayAddress::to_string)
                .unwrap_or_default(),
            joined(policies.map(|key| {
                match (&one.strict_by, key.object()) {
                    (_, Some(object)) => object.to_string(),
                    (Some(by), None) => by
                        .object()
                        .map_or_else(|| by.to_string(), |object| object.to_string()),
                    (None, None) => key.to_string(),
                }
            })),
        ]);
    }
    table.sorted().to_string()
}

fn services(dump: &ConfigDump) -> String {
    let mut table = Table::new([
        "NAMESPACE",
        "NAME",
        "ADDRESS",
        "PORTS",
        "ENDPOINTS",
        "WAYPOINT",
    ]);
    for one in &dump.services {
        let key = one.key();
        let behind = dump
            .workloads
            .iter()
            .filter(|pod| pod.services.contains_key(&key));
        let ready = behind
            .clone()
            .filter(|pod| pod.status == Health::Healthy)
            .count();
        table.row([
            one.namespace.to_string(),
            one.name.to_string(),
            addresses(one),
            joined(one.ports.iter().map(|port| match port.target_port {
                0 => port.port.to_string(),
                target => format!("{}->{target}", port.port),
            })),
            format!("{ready}/{} ready", behind.count()),
            one.waypoint
                .as_ref()
                .map(GatewayAddress::to_string)
                .unwrap_or_default(),
        ]);
    }
    table.sorted().to_string()
}

fn addresses(service: &Service) -> String {
    if service.addresses.is_empty() {
        return "headless".to_owned();
    }
    joined(
        service
            .addresses
            .iter()
            .map(|address| match address.range() {
                Some(range) => range.to_string(),
                None => address.ip.to_string(),
            }),
    )
}

fn policies(all: &[std::sync::Arc<Policy>]) -> String {
    let mut table = Table::new(["NAMESPACE", "OBJECT", "ACTION", "SCOPE", "RULES", "NOTE"]);
    for one in all {
        let object = one.key.object();
        table.row([
            one.key.namespace.to_string(),
            object.map_or_else(
                || "every STRICT PeerAuthentication".to_owned(),
                |object| object.to_string(),
            ),
            match one.action {
                Action::Allow => "ALLOW".to_owned(),
                Action::Deny => "DENY".to_owned(),
            },
            match one.scope {
                model::policy::Scope::Global => "mesh".to_owned(),
                model::policy::Scope::Namespace => "namespace".to_owned(),
                model::policy::Scope::WorkloadSelector => "pods that name it".to_owned(),
            },
            one.rules.len().to_string(),
            match (&one.unenforceable, one.dry_run) {
                (_, true) => "dry run: never takes part in a verdict".to_owned(),
                (Some(why), false) => format!("refuses more than it says: {why}"),
                (None, false) => String::new(),
            },
        ]);
    }
    table.sorted().to_string()
}

fn certificates(all: &[Of<Certificate>]) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut table = Table::new([
        "NODE",
        "IDENTITY",
        "STATE",
        "SERIAL",
        "ENDS IN",
        "RENEWAL IN",
        "FAILURES",
        "LAST ERROR",
    ]);
    for Of { node, what: one } in all {
        let until = |time: Option<u64>| match time {
            Some(time) => duration(time.saturating_sub(now)),
            None => String::new(),
        };
        table.row([
            node.clone(),
            one.identity.clone(),
            one.state.clone(),
            one.serial.clone().unwrap_or_default(),
            until(one.not_after),
            until(one.renewal),
            one.failures.to_string(),
            one.last_error.clone().unwrap_or_default(),
        ]);
    }
    Ok(table.sorted().to_string())
}

fn connections(all: &[Of<LiveView>]) -> String {
    let mut table = Table::new([
        "NODE",
        "POD",
        "DIRECTION",
        "FROM",
        "TO",
        "SERVICE",
        "SECURITY",
        "SENT",
        "RECEIVED",
        "AGE",
    ]);
    for Of { node, what: one } in all {
        let connection = &one.connection;
        let end = |end: &admin_api::ConnectionEnd| match (&end.namespace, &end.workload, end.addr) {
            (Some(namespace), Some(name), Some(addr)) => format!("{namespace}/{name} ({addr})"),
            (_, _, Some(addr)) => addr.to_string(),
            _ => String::new(),
        };
        let older = if one.older_than_capture {
            " (older than capture)"
        } else {
            ""
        };
        table.row([
            node.clone(),
            connection.pod.clone(),
            connection.direction.as_str().to_owned(),
            end(&connection.source),
            end(&connection.destination),
            connection.service.clone().unwrap_or_default(),
            format!("{}{older}", connection.security),
            one.request_bytes.to_string(),
            one.response_bytes.to_string(),
            duration(one.age_ms / 1000),
        ]);
    }
    table.sorted().to_string()
}

fn log(args: &Args, mesh: &Mesh, level: Option<&str>) -> Result<Answer> {
    let nodes = match &args.node {
        Some(node) => vec![node.clone()],
        None => mesh.nodes(),
    };
    let mut found = Vec::new();
    let mut table = Table::new(["NODE", "FILTER"]);
    for node in nodes {
        let page = match level {
            Some(level) => mesh.change_agent(&node, &format!("{}?level={level}", page::LOGGING))?,
            None => mesh.agent(&node, page::LOGGING)?,
        };
        if page.status != 200 {
            bail!("node {node}: {}", page.body.trim());
        }
        let filter = page.body.trim().to_owned();
        table.row([node.clone(), filter.clone()]);
        found.push(serde_json::json!({ "node": node, "filter": filter }));
    }
    Answer::good(&found, table.to_string())
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

/// What stands behind a word, up to the next slash.
fn part<'t>(text: &'t str, word: &str) -> &'t str {
    let rest = text.split_once(word).map_or("", |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}
