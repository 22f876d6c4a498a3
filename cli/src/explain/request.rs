//! What a waypoint makes of a request: the rule, where it leads, and what policy says there.

use std::net::{IpAddr, SocketAddr};

use admin_api::{Decision, Endpoint, OutboundAnswer, Path, RequestAnswer, RequestEndpoint, page};
use anyhow::{Result, bail};
use form_urlencoded::Serializer;
use serde::Serialize;

use super::Way;
use crate::reach::Mesh;

/// The request that a waypoint is asked about.
#[derive(Debug, clap::Args)]
pub(super) struct Asked {
    /// Its method, for the rules of a waypoint.
    #[arg(long, default_value = "GET", value_name = "METHOD")]
    method: String,
    /// Its path, with the query if it has one.
    #[arg(long, default_value = "/", value_name = "PATH")]
    path: String,
    /// Its Host. If none is said, the name of the service, or the address.
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// A header of it, as NAME: VALUE; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
}

/// What a waypoint makes of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Routed {
    /// The waypoint's pod.
    pod: String,
    /// `GET /path`; nothing if bytes are passed on that are not read.
    request: Option<String>,
    /// What was dialled.
    on: String,
    /// The rule, by its object.
    rule: Option<String>,
    /// What it does.
    does: Vec<String>,
    /// The cluster that the endpoint is of.
    cluster: Option<String>,
    /// The status that the waypoint answers with by itself.
    status: Option<u16>,
}

/// Asks the waypoint that a connection is led to.
pub(super) fn ask(
    mesh: &Mesh,
    args: &Asked,
    outbound: &OutboundAnswer,
    waypoint: &Endpoint,
    dialled: SocketAddr,
) -> Result<Vec<Way>> {
    let Some(pod) = &waypoint.pod else {
        bail!("the waypoint that the connection is led to has no name");
    };
    let path = args.path(outbound, waypoint, dialled);
    let answer: RequestAnswer = mesh.pod(pod, &path)?.json(&format!("waypoint {pod}"))?;
    let by = format!("the waypoint {pod}");
    let routed = Routed {
        pod: pod.clone(),
        request: answer
            .is_http
            .then(|| format!("{} {}", args.method, args.path)),
        on: answer.on,
        rule: answer.rule,
        does: answer.does,
        cluster: None,
        status: None,
    };
    let way = |endpoint: Option<&Endpoint>, decision: Decision, routed: Routed| {
        let path = match decision.allowed {
            true => waypoint.path,
            false => Path::Refused,
        };
        Way {
            waypoint: Some(routed),
            ..Way::of(endpoint, path, by.clone(), decision)
        }
    };
    let mut ways = Vec::new();
    for one in answer.endpoints {
        let there = of(&one, waypoint.path);
        let cluster = Some(one.cluster.clone());
        let routed = Routed {
            cluster,
            ..routed.clone()
        };
        ways.push(way(Some(&there), with_rest(one), routed));
    }
    if let Some((status, why)) = answer.answered {
        let text = format!("it answers with {status} by itself: {why}");
        let decision = match answer.decision {
            Some(decision) if decision.allowed => Decision { text, ..decision },
            Some(denied) => denied,
            None => Decision {
                allowed: false,
                reason: None,
                text,
                object: None,
                rule: None,
            },
        };
        let status = if decision.allowed || decision.reason.is_none() {
            status
        } else {
            FORBIDDEN
        };
        let status = Some(status);
        ways.push(way(None, decision, Routed { status, ..routed }));
    }
    Ok(ways)
}

fn of(one: &RequestEndpoint, path: Path) -> Endpoint {
    Endpoint {
        address: one.address,
        pod: one.pod.clone(),
        node: one.node.clone(),
        path,
        from: None,
        proves_identity: true,
        is_own: false,
        is_waypoint: false,
    }
}

/// An endpoint that is left alone is allowed, and gets nothing as long as there are others.
fn with_rest(one: RequestEndpoint) -> Decision {
    let mut decision = one.decision;
    if let Some((cause, left)) = one.left_alone {
        decision.text = format!(
            "{}; it is left alone for {left} ms ({cause})",
            decision.text
        );
    }
    decision
}

impl Asked {
    /// The page that has the answer.
    fn path(&self, outbound: &OutboundAnswer, waypoint: &Endpoint, dialled: SocketAddr) -> String {
        let from = waypoint.from.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let service = outbound.service.as_deref();
        let host = match (&self.host, service) {
            (Some(host), _) => host.clone(),
            (None, Some(service)) => service.to_owned(),
            (None, None) => dialled.to_string(),
        };
        let mut query = Serializer::new(String::new());
        query
            .append_pair("to", &dialled.to_string())
            .append_pair("from", &from.to_string())
            .append_pair("method", &self.method)
            .append_pair("path", &self.path)
            .append_pair("host", &host)
            .append_pair("headers", &self.headers.join("\n"));
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        if let (true, Some(identity)) = (waypoint.proves_identity, &outbound.identity) {
            query.append_pair("identity", identity);
        }
        format!("{}?{}", page::EXPLAIN, query.finish())
    }
}

impl Routed {
    pub(super) fn lines(&self) -> Vec<String> {
        let what = match &self.request {
            Some(request) => format!("{request} on {}", self.on),
            None => format!("a connection to {}", self.on),
        };
        let mut lines = vec![format!("  waypoint  {}, {what}", self.pod)];
        if let Some(rule) = &self.rule {
            lines.push(format!("  route     {rule}: {}", self.does.join("; ")));
        }
        if let Some(cluster) = &self.cluster {
            lines.push(format!("  cluster   {cluster}"));
        }
        if let Some(status) = self.status {
            lines.push(format!("  status    {status}"));
        }
        lines
    }
}

const FORBIDDEN: u16 = 403;
