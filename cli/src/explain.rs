//! `keelson explain`: whether one pod may connect to another, which object says so, and how the bytes would go.
//!
//! The agent of the client and the agent of the server answer, each by the functions that decide on real connections.

mod request;

use std::net::{IpAddr, SocketAddr};

use admin_api::{
    ConfigDump, Decision, Endpoint, InboundAnswer, OutboundAnswer, Path, PodState, page,
};
use anyhow::{Context as _, Result, bail};
use model::{Service, Workload};
use serde::Serialize;

use crate::output::Answer;
use crate::reach::Mesh;
use crate::remedy;

/// Say whether SRC may connect to DST, which object and rule decide, how the connection goes, and what to do if it may
/// not.
///
/// The agents of both nodes are asked, and the waypoint where there is one; they answer by the code that decides on real
/// connections and requests. Whether an application listens is not looked at. A waypoint is asked about GET / if no other
/// request is described.
///
/// Exit codes: 0, allowed; 1, refused, or refused by some of the endpoints; 2, nobody could be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pod that connects: NAMESPACE/POD.
    #[arg(value_name = "SRC")]
    source: String,
    /// What it connects to: a pod or a service, NAMESPACE/NAME or NAME of the same namespace; a service's host name; or
    /// an address. PORT is a service's only port if it is not said.
    #[arg(value_name = "DST[:PORT]")]
    destination: String,
    #[command(flatten)]
    request: request::Asked,
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    source: String,
    source_node: String,
    identity: Option<String>,
    destination: String,
    address: SocketAddr,
    service: Option<String>,
    /// `allowed`, `refused`, or `mixed` where it depends on the endpoint.
    verdict: &'static str,
    ways: Vec<Way>,
}

/// What becomes of the connection at one endpoint, or before one is chosen.
#[derive(Clone, Debug, Serialize)]
struct Way {
    /// Where it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<Endpoint>,
    path: Path,
    /// Who decides: the agent of which node, or nobody in the mesh.
    by: String,
    #[serde(flatten)]
    decision: Decision,
    /// What a waypoint on the way makes of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<request::Routed>,
    /// What to do about a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
}

pub(crate) fn answer(args: &Args, mesh: &Mesh) -> Result<Answer> {
    let explanation = explain(args, mesh)?;
    let is_good = explanation.verdict == ALLOWED;
    Ok(Answer::good(&explanation, explanation.text())?.but(is_good))
}

fn explain(args: &Args, mesh: &Mesh) -> Result<Explanation> {
    let source = args.source.as_str();
    let Some((namespace, _)) = source.split_once('/') else {
        bail!("{source:?} names no pod; write NAMESPACE/POD, for example shop/client");
    };
    let node = mesh
        .node_of(source)?
        .with_context(|| format!("there is no pod {source}"))?;
    let dump = mesh.dump(&node)?;
    let address = resolve(&dump, namespace, &args.destination)?;
    let path = format!("{}?pod={source}&to={address}", page::EXPLAIN);
    let outbound: OutboundAnswer = mesh.agent(&node, &path)?.json(&format!("node {node}"))?;
    let ways = ways(mesh, &node, args, (&outbound, address))?;
    let allowed = ways.iter().filter(|way| way.decision.allowed).count();
    Ok(Explanation {
        source: source.to_owned(),
        source_node: node,
        identity: outbound.identity,
        destination: args.destination.clone(),
        address,
        service: outbound.service,
        verdict: match allowed {
            0 => REFUSED,
            some if some == ways.len() => ALLOWED,
            _ => "mixed",
        },
        ways,
    })
}

/// Asks the agents of the servers about every place where the connection may go.
fn ways(
    mesh: &Mesh,
    node: &str,
    args: &Args,
    (outbound, dialled): (&OutboundAnswer, SocketAddr),
) -> Result<Vec<Way>> {
    if outbound.pod.is_none() {
        let source = &args.source;
        bail!("the agent of node {node} knows no pod {source}; does it run there?");
    }
    if let Some(refused) = &outbound.refused {
        let by = format!("the client's agent, on {node}");
        return Ok(vec![Way::of(None, Path::Refused, by, refused.clone())]);
    }
    let mut ways = Vec::new();
    for endpoint in &outbound.endpoints {
        if endpoint.is_waypoint {
            let asked = request::ask(mesh, &args.request, outbound, endpoint, dialled)?;
            ways.extend(asked);
        } else {
            ways.push(ask(mesh, outbound, endpoint)?);
        }
    }
    Ok(ways)
}

/// Asks the server's side about one endpoint.
fn ask(mesh: &Mesh, outbound: &OutboundAnswer, endpoint: &Endpoint) -> Result<Way> {
    let alone = |text: &str| {
        let decision = Decision {
            allowed: true,
            reason: None,
            text: text.to_owned(),
            object: None,
            rule: None,
        };
        Way::of(
            Some(endpoint),
            Path::Plain,
            "nobody in the mesh".to_owned(),
            decision,
        )
    };
    if endpoint.is_own {
        return Ok(alone("the pod calls itself, which nobody is asked about"));
    }
    let named = endpoint.node.clone().filter(|node| !node.is_empty());
    let node = match (named, endpoint.pod.as_deref()) {
        (Some(node), _) => Some(node),
        (None, Some(pod)) => mesh.node_of(pod)?,
        (None, None) => None,
    };
    // Where no agent is meant to be nothing is captured.
    let Some(node) = node.filter(|node| mesh.nodes().contains(node)) else {
        return Ok(alone(
            "the destination is not in the mesh, which leaves the connection alone",
        ));
    };
    let from = endpoint.from.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let mut path = format!("{}?to={}&from={from}", page::EXPLAIN, endpoint.address);
    if let (true, Some(identity)) = (endpoint.proves_identity, &outbound.identity) {
        path.push_str(&format!("&identity={identity}"));
    }
    let inbound: InboundAnswer = mesh.agent(&node, &path)?.json(&format!("node {node}"))?;
    let by = format!("the server's agent, on {node}");
    let is_captured = inbound
        .pod
        .is_some_and(|pod| pod.state == PodState::Captured);
    let way = match inbound.decision.allowed {
        true if is_captured => Way::of(Some(endpoint), endpoint.path, by, inbound.decision),
        true => Way::of(
            Some(endpoint),
            endpoint.path,
            "nobody in the mesh".to_owned(),
            inbound.decision,
        ),
        false => Way::of(Some(endpoint), Path::Refused, by, inbound.decision),
    };
    Ok(way)
}

impl Way {
    fn of(endpoint: Option<&Endpoint>, path: Path, by: String, decision: Decision) -> Self {
        let remedy = decision
            .reason
            .and_then(|reason| remedy::of(reason.as_str()));
        Self {
            endpoint: endpoint.cloned(),
            path,
            by,
            decision,
            waypoint: None,
            remedy,
        }
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        if let Some(endpoint) = &self.endpoint {
            let pod = endpoint.pod.as_deref().unwrap_or("no pod of the mesh");
            let node = endpoint.node.as_deref().filter(|node| !node.is_empty());
            let node = node.map(|node| format!(" on {node}")).unwrap_or_default();
            lines.push(format!("  to        {} ({pod}{node})", endpoint.address));
        }
        let verdict = if self.decision.allowed {
            ALLOWED
        } else {
            REFUSED
        };
        lines.push(format!("  verdict   {verdict}, by {}", self.by));
        let to = match &self.waypoint {
            Some(_) if self.path != Path::Refused => "to the waypoint, ",
            _ => "",
        };
        lines.push(format!("  path      {to}{}", said(self.path)));
        lines.extend(self.waypoint.iter().flat_map(request::Routed::lines));
        let rule = self.decision.rule.map(|rule| format!(" rules[{rule}]"));
        if let Some(object) = &self.decision.object {
            lines.push(format!("  object    {object}{}", rule.unwrap_or_default()));
        }
        lines.push(format!("  because   {}", self.decision.text));
        if let Some(reason) = self.decision.reason {
            lines.push(format!("  reason    {reason}: {}", reason.meaning()));
        }
        if let Some(remedy) = self.remedy {
            lines.push(format!("  remedy    {remedy}"));
        }
        lines.join("\n") + "\n"
    }
}

fn said(path: Path) -> &'static str {
    match path {
        Path::Direct => {
            "direct: socket to socket in the kernel of the node, which never lets it out"
        }
        Path::Tunnel => "tunnel: mutual TLS",
        Path::Plain => "plain: as it is, not encrypted",
        Path::Refused => "refused",
    }
}

impl Explanation {
    fn text(&self) -> String {
        let identity = self
            .identity
            .as_deref()
            .unwrap_or("none: the pod is not captured");
        let service = self
            .service
            .as_ref()
            .map(|name| format!(" (service {name})"));
        let mut text = format!(
            "{} -> {}: {}\n\n  from      {} on {}, identity {identity}\n  dials     {}{}\n",
            self.source,
            self.destination,
            self.verdict.to_uppercase(),
            self.source,
            self.source_node,
            self.address,
            service.unwrap_or_default(),
        );
        for way in &self.ways {
            text.push('\n');
            text.push_str(&way.text());
        }
        text
    }
}

/// The address that a client of `namespace` means, by what its agent knows.
fn resolve(dump: &ConfigDump, namespace: &str, destination: &str) -> Result<SocketAddr> {
    if let Ok(address) = destination.parse::<SocketAddr>() {
        return Ok(address);
    }
    if let Ok(ip) = destination.parse::<IpAddr>() {
        bail!("{ip} has no port; write {}", SocketAddr::new(ip, 80));
    }
    let (name, port) = match destination.rsplit_once(':') {
        Some((name, port)) => {
            let number = port.parse::<u16>();
            let number = number.with_context(|| format!("{port:?} is not a port"))?;
            (name, Some(number))
        }
        None => (destination, None),
    };
    if let Some(service) = find_service(dump, namespace, name) {
        return of_service(service, port);
    }
    let (of, pod) = name.split_once('/').unwrap_or((namespace, name));
    let is_meant = |one: &&std::sync::Arc<Workload>| *one.namespace == *of && *one.name == *pod;
    let Some(workload) = dump.workloads.iter().find(is_meant) else {
        bail!(
            "the mesh knows neither a service nor a pod {of}/{pod}; an address works too, for example 10.244.2.10:8080"
        );
    };
    let ip = workload.addresses.first();
    let ip = ip.with_context(|| format!("pod {of}/{pod} has no address"))?;
    let port =
        port.with_context(|| format!("which port of pod {of}/{pod}? Write {destination}:PORT"))?;
    Ok(SocketAddr::new(*ip, port))
}

/// By namespace and name, or by host name from its first part on.
fn find_service<'d>(dump: &'d ConfigDump, namespace: &str, name: &str) -> Option<&'d Service> {
    let is_meant = |service: &&std::sync::Arc<Service>| {
        let own = &*service.namespace == namespace;
        match name.split_once('/') {
            Some((of, name)) => *service.namespace == *of && *service.name == *name,
            None if !name.contains('.') => own && *service.name == *name,
            None => {
                let rest = service.hostname.strip_prefix(name);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            }
        }
    };
    dump.services
        .iter()
        .find(is_meant)
        .map(|service| &**service)
}

fn of_service(service: &Service, port: Option<u16>) -> Result<SocketAddr> {
    let key = service.key();
    let ports: Vec<u16> = service.ports.iter().map(|port| port.port).collect();
    let port = match (port, ports.as_slice()) {
        (Some(port), _) => port,
        (None, [port]) => *port,
        (None, ports) => bail!("which port of {key}? It has {ports:?}"),
    };
    let single = service
        .addresses
        .iter()
        .find(|address| address.range().is_none());
    let Some(address) = single else {
        bail!("service {key} has no address of its own (it is headless); name one of its pods");
    };
    Ok(SocketAddr::new(address.ip, port))
}

const ALLOWED: &str = "allowed";
const REFUSED: &str = "refused";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::NetworkAddress;
    use model::service::{AppProtocol, ServicePort};

    use super::*;

    fn dump() -> ConfigDump {
        let service = |name: &str, namespace: &str, ip: Option<[u8; 4]>, ports: &[u16]| {
            let port = |port: &u16| ServicePort {
                port: *port,
                target_port: 8080,
                app_protocol: AppProtocol::Unknown,
            };
            Arc::new(Service {
                name: name.into(),
                namespace: namespace.into(),
                hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
                addresses: ip
                    .map(|ip| NetworkAddress::single("", ip.into()))
                    .into_iter()
                    .collect(),
                ports: ports.iter().map(port).collect(),
                ..Service::default()
            })
        };
        let pod = Workload {
            name: "web-0".into(),
            namespace: "shop".into(),
            addresses: vec![[10, 0, 0, 9].into()],
            ..Workload::default()
        };
        ConfigDump {
            services: vec![
                service("web", "shop", Some([10, 96, 0, 1]), &[80]),
                service("two", "shop", Some([10, 96, 0, 2]), &[80, 81]),
                service("db", "data", None, &[5432]),
            ],
            workloads: vec![Arc::new(pod)],
            ..ConfigDump::default()
        }
    }

    #[test]
    fn a_destination_is_an_address_a_service_or_a_pod() {
        let resolved = |text: &str| match resolve(&dump(), "shop", text) {
            Ok(address) => address.to_string(),
            Err(error) => error.to_string(),
        };
        for (text, expected) in [
            ("10.1.2.3:80", "10.1.2.3:80"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("10.1.2.3", "10.1.2.3 has no port; write 10.1.2.3:80"),
            ("web", "10.96.0.1:80"),
            ("web:8080", "10.96.0.1:8080"),
            ("shop/web", "10.96.0.1:80"),
            ("web.shop", "10.96.0.1:80"),
            ("web.shop.svc.cluster.local:80", "10.96.0.1:80"),
            (
                "two",
                "which port of shop/two.shop.svc.cluster.local? It has [80, 81]",
            ),
            (
                "data/db",
                "service data/db.data.svc.cluster.local has no address of its own (it is headless); name one of its pods",
            ),
            ("web-0:8080", "10.0.0.9:8080"),
            ("shop/web-0:8080", "10.0.0.9:8080"),
            ("web-0", "which port of pod shop/web-0? Write web-0:PORT"),
            ("web:http", "\"http\" is not a port"),
            (
                "x/y:1",
                "the mesh knows neither a service nor a pod x/y; an address works too, for example 10.244.2.10:8080",
            ),
        ] {
            assert_eq!(resolved(text), expected, "{text}");
        }
    }
}
