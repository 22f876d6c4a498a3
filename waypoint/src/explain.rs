//! What would become of a request, answered by the functions that decide on real ones. Nothing is sent.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use admin_api::{Decision, RequestAnswer, RequestEndpoint};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use l7::backend::Member;
use l7::route::{Abort, Action, Backend};
use l7::{ClusterKey, Decision as Routed, NoRoute, Path, Rule};
use model::Identity;
use model::service::AppProtocol;
use proto::proxy_protocol::Header;
use runtime::admin::Query;

use crate::active::Active;
use crate::authorize;
use crate::balance::state::{self, Registry};
use crate::caller::{Caller, Dialled, Known};
use crate::shown;

/// Answers a question, or says what is wrong with it.
pub(crate) fn answer(
    query: &Query,
    active: &Active,
    registry: &Registry,
) -> Result<RequestAnswer, String> {
    Asked::read(query)?.answer(active, registry)
}

/// A request that somebody might send.
struct Asked {
    caller: Caller,
    method: Method,
    target: String,
    authority: String,
    headers: HeaderMap,
}

impl Asked {
    fn read(query: &Query) -> Result<Self, String> {
        let dialled: SocketAddr = needed(query, "to")?;
        let client: IpAddr = needed(query, "from")?;
        let identity: Option<Identity> = query.get("identity").map(read).transpose()?;
        let authority = query.get("host");
        let mut headers = HeaderMap::new();
        let lines = query.get("headers").unwrap_or_default().lines();
        for line in lines {
            let wrong = || format!("{line:?} is not a header; write NAME: VALUE");
            let (name, value) = line.split_once(':').ok_or_else(wrong)?;
            let name = HeaderName::from_str(name.trim()).map_err(|_unreadable| wrong())?;
            let value = HeaderValue::from_str(value.trim()).map_err(|_unreadable| wrong())?;
            headers.append(name, value);
        }
        Ok(Self {
            caller: Caller::new(Header {
                client: SocketAddr::new(client, 0),
                dialled,
                identity,
                service: query.get("service").map(str::to_owned),
            }),
            method: query.get("method").map_or(Ok(Method::GET), read)?,
            target: query.get("path").unwrap_or("/").to_owned(),
            authority: authority.map_or_else(|| dialled.to_string(), str::to_owned),
            headers,
        })
    }

    fn answer(&self, active: &Active, registry: &Registry) -> Result<RequestAnswer, String> {
        let known = self.caller.known(active);
        let path = Path::new(&self.target).map_err(|error| error.to_string())?;
        let destination = known.dialled.as_destination();
        let is_http = active.l7.protocol(destination) != AppProtocol::Tcp;
        let request = l7::Request {
            client: self.caller.as_client(&known),
            destination,
            protocol: if is_http {
                l7::Protocol::Http
            } else {
                l7::Protocol::Tcp
            },
            scheme: self.caller.scheme(),
            method: &self.method,
            authority: &self.authority,
            path: &path,
            headers: &self.headers,
        };
        let routed = match is_http {
            true => active.l7.decide(&request),
            false => {
                let address = self.caller.dialled.ip();
                active
                    .l7
                    .decide_connection(request.client, destination, address, None)
            }
        };
        let on = match &known.dialled {
            Dialled::Service { key, .. } => key.to_string(),
            Dialled::Workload(address) => address.to_string(),
        };
        let mut explaining = Explaining {
            active,
            left_alone: registry.left_alone(),
            known: &known,
            request: &request,
            answer: RequestAnswer {
                on,
                is_http,
                ..RequestAnswer::default()
            },
        };
        explaining.follow(routed, self.caller.dialled);
        Ok(explaining.answer)
    }
}

struct Explaining<'a> {
    active: &'a Active,
    /// Endpoints that are left alone, by the name of their cluster.
    left_alone: HashMap<(String, SocketAddr), (&'static str, u64)>,
    known: &'a Known,
    request: &'a l7::Request<'a>,
    answer: RequestAnswer,
}

impl Explaining<'_> {
    fn follow(&mut self, routed: Routed<'_>, dialled: SocketAddr) {
        match routed {
            Routed::None(NoRoute::NoMatch) => {
                self.fails(self.allowed_anywhere(), 404, "no rule matches")
            }
            Routed::None(NoRoute::UnknownDestination) => {
                self.answered(404, "nothing that is served here was dialled");
            }
            Routed::Workload(endpoint) => {
                let member = Member {
                    endpoint: Arc::clone(endpoint),
                    address: dialled,
                    ready: true,
                };
                self.endpoint(&dialled.to_string(), &member);
            }
            Routed::Service(cluster) => self.cluster(&cluster.key, "it"),
            Routed::Rule { rule, .. } => self.by(rule),
        }
    }

    fn by(&mut self, rule: &Rule) {
        self.answer.rule = Some(rule.origin.to_string());
        self.answer.does = shown::action(&rule.action);
        self.answer.does.extend(faults(rule));
        match &rule.action {
            Action::Forward(to) => {
                let total: u64 = to.backends.iter().map(|one| u64::from(one.weight)).sum();
                if total == 0 {
                    let decision = self.allowed_anywhere();
                    return self.fails(decision, 500, "no backend has a weight");
                }
                for one in to.backends.iter().filter(|one| one.weight > 0) {
                    match &one.backend {
                        Backend::Cluster(key) => self.cluster(key, &rule.origin.to_string()),
                        Backend::Invalid { status, reason } => {
                            let decision = self.allowed_anywhere();
                            self.fails(decision, status.as_u16(), reason);
                        }
                    }
                }
            }
            Action::Redirect(to) => self.at_once(to.status.as_u16(), "the rule redirects"),
            Action::Respond(to) => self.at_once(to.status.as_u16(), "the rule answers"),
            Action::Fail(reason) => self.fails(self.allowed_anywhere(), 500, reason),
        }
    }

    /// The members of a cluster; that there is none is said of `who`.
    fn cluster(&mut self, key: &ClusterKey, who: &str) {
        let port = self.known.dialled.as_destination().port();
        let name = state::name(key);
        let Some(cluster) = self.active.l7.cluster(key, port) else {
            let decision = self.allowed_anywhere();
            return self.fails(
                decision,
                503,
                &format!("{who} names {name}, which does not exist"),
            );
        };
        let before = self.answer.endpoints.len();
        for member in cluster.ready() {
            self.endpoint(&state::name(&cluster.key), member);
        }
        if self.answer.endpoints.len() == before {
            let nobody = authorize::nobody(&cluster.key.service.namespace, port);
            let some = cluster.members.first().unwrap_or(&nobody);
            let decision = authorize::explain(self.active, self.request, some);
            self.fails(
                decision,
                503,
                &format!("{name} has no endpoint that is ready"),
            );
        }
    }

    fn endpoint(&mut self, cluster: &str, member: &Member) {
        let endpoint = &member.endpoint;
        // A name of the mesh is CLUSTER/GROUP/KIND/NAMESPACE/NAME.
        let pod = endpoint.uid.as_str().rsplit_once("/Pod/");
        let alone = self.left_alone.get(&(cluster.to_owned(), member.address));
        self.answer.endpoints.push(RequestEndpoint {
            cluster: cluster.to_owned(),
            address: member.address,
            pod: pod.map(|(_, name)| name.to_owned()),
            node: Some(endpoint.node.to_string()).filter(|node| !node.is_empty()),
            left_alone: alone.map(|(cause, left)| ((*cause).to_owned(), *left)),
            decision: authorize::explain(self.active, self.request, member),
        });
    }

    /// Policy is asked before anything is answered at once, with the first endpoint that the service has.
    fn at_once(&mut self, status: u16, why: &str) {
        self.answer.decision = Some(self.allowed_anywhere());
        self.answered(status, why);
    }

    fn allowed_anywhere(&self) -> Decision {
        let (namespace, member) = match &self.known.dialled {
            Dialled::Workload(_) => ("", None),
            Dialled::Service { key, port } => {
                let whole = ClusterKey {
                    service: key.clone(),
                    port: *port,
                    subset: None,
                };
                let cluster = self.active.l7.cluster(&whole, *port);
                (&*key.namespace, cluster.and_then(|one| one.members.first()))
            }
        };
        let nobody = authorize::nobody(namespace, self.request.destination.port());
        authorize::explain(self.active, self.request, member.unwrap_or(&nobody))
    }

    /// What cannot be forwarded is refused first, if policy refuses it.
    fn fails(&mut self, decision: Decision, status: u16, why: &str) {
        if !decision.allowed {
            self.answer.decision = Some(decision);
        }
        self.answered(status, why);
    }

    fn answered(&mut self, status: u16, why: &str) {
        self.answer.answered = Some((status, why.to_owned()));
    }
}

/// What goes wrong on purpose, in words.
fn faults(rule: &Rule) -> Vec<String> {
    let Some(fault) = &rule.fault else {
        return Vec::new();
    };
    let percent = |share: l7::route::Share| f64::from(share.as_millionths()) / 10_000.0;
    let delay = fault
        .delay
        .map(|(share, delay)| format!("delays {} % by {delay:?}", percent(share)));
    let abort = fault.abort.map(|(share, abort)| {
        let status = match abort {
            Abort::Http(status) => status.as_u16().to_string(),
            Abort::Grpc(status) => format!("gRPC status {status}"),
        };
        format!("answers {} % with {status}", percent(share))
    });
    delay.into_iter().chain(abort).collect()
}

fn needed<T: FromStr>(query: &Query, name: &str) -> Result<T, String> {
    read(
        query
            .get(name)
            .ok_or_else(|| format!("{name}= is missing"))?,
    )
}

fn read<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_unreadable| format!("{text:?} cannot be read"))
}
