//! What would become of a connection, answered by the functions that decide on real ones.
//!
//! Nothing is opened and nothing is decided here: routes are drawn by [`outbound::draw`], policy is asked by
//! [`inbound::judge`], and of two pods of this node the table is read that the kernel goes by.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use abi::{DirectVerdict, PodState};
use admin_api::{Decision, Endpoint, InboundAnswer, OutboundAnswer, Path};
use ipnet::IpNet;
use model::{
    Identity, MeshState, PolicyKey, Reason, Workload,
    outbound::{Route, RouteKind},
    policy::{AllowReason, DenyReason, RefusingPolicy, Verdict},
};

use crate::{
    agent::admin::Sources,
    carry::{inbound, outbound},
    enrol::Seen,
    host::canonical,
    pod::Pod,
    telemetry::record::Refusal,
};

/// Endpoints are drawn at random, by weight: so often, to see those that are drawn seldom too.
const DRAWS: usize = 512;

/// What becomes of a connection that a pod of this node opens.
pub(crate) async fn outbound(
    sources: &Sources,
    pods: &[Seen],
    name: &str,
    to: SocketAddr,
) -> OutboundAnswer {
    let to = canonical(to);
    let mut answer = OutboundAnswer {
        pod: None,
        identity: None,
        service: None,
        refused: None,
        endpoints: Vec::new(),
    };
    let is_meant = |seen: &&Seen| format!("{}/{}", seen.listed.namespace, seen.listed.name) == name;
    let Some(seen) = pods.iter().find(is_meant) else {
        return answer;
    };
    answer.pod = Some(seen.listed.clone());
    let found = match (held(sources, seen), &seen.pod) {
        (Some(PodState::Captured), Some(pod)) => carried(sources, pods, seen, pod, to).await,
        (Some(PodState::Captured | PodState::Pending), _) => Err(pending(seen)),
        (None | Some(PodState::Exempt | PodState::Joining), _) => Ok(left_alone(sources, seen, to)),
    };
    match found {
        Ok(found) => {
            answer.service = found.service;
            answer.endpoints = found.endpoints.into_iter().collect();
        }
        Err(refused) => answer.refused = Some(refused),
    }
    if held(sources, seen) == Some(PodState::Captured) {
        let pod = seen.pod.as_deref();
        answer.identity = pod.map(|pod| pod.identity.to_string());
    }
    answer
}

/// What becomes of a connection to a pod of this node, by a client that shows an identity or none.
pub(crate) fn inbound(
    sources: &Sources,
    pods: &[Seen],
    from: IpAddr,
    identity: Option<&Identity>,
    to: SocketAddr,
) -> InboundAnswer {
    let to = canonical(to);
    let Some(seen) = owner(pods, to.ip()) else {
        let text = format!("no pod of this node has the address {}", to.ip());
        return InboundAnswer {
            pod: None,
            decision: allowed(text, None, None),
        };
    };
    let decision = match (held(sources, seen), &seen.pod) {
        (Some(PodState::Captured), Some(pod)) => {
            let client = SocketAddr::new(from.to_canonical(), 0);
            judged(&sources.shared.mesh.state(), pod, identity, client, to)
        }
        (Some(PodState::Captured | PodState::Pending), _) => pending(seen),
        (None | Some(PodState::Exempt | PodState::Joining), _) => {
            let text = format!("the pod is not in the mesh: {}", seen.listed.reason);
            allowed(text, None, None)
        }
    };
    InboundAnswer {
        pod: Some(seen.listed.clone()),
        decision,
    }
}

/// Where a pod stands by the kernel's word, which is what counts.
fn held(sources: &Sources, seen: &Seen) -> Option<PodState> {
    let held = sources.shared.kernel.pod(seen.listed.netns_cookie);
    held.map(|(_, state)| state)
}

fn owner(pods: &[Seen], ip: IpAddr) -> Option<&Seen> {
    let has = |seen: &&Seen| {
        let carried = seen.pod.as_ref().is_some_and(|pod| pod.has_address(ip));
        carried || seen.addresses.iter().any(|own| own.to_canonical() == ip)
    };
    pods.iter().find(has)
}

#[derive(Default)]
struct Found {
    service: Option<String>,
    endpoints: BTreeSet<Endpoint>,
}

/// Where a captured pod's connection goes.
async fn carried(
    sources: &Sources,
    pods: &[Seen],
    seen: &Seen,
    pod: &Pod,
    to: SocketAddr,
) -> Result<Found, Decision> {
    let state = sources.shared.mesh.state();
    let from = from(pod.addresses.iter(), to);
    if to.ip().is_loopback() || pod.has_address(to.ip()) {
        return Ok(own(seen, to, from));
    }
    if matches!(to.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        let text = "an IPv6 link-local address of another has a scope and no identity".to_owned();
        return Err(no(Reason::LinkLocal, text));
    }
    if from.is_none() && state.carries(&IpNet::from(to.ip())) {
        let text = format!(
            "pod {} has no address of the family of {}",
            pod.name,
            to.ip()
        );
        return Err(no(Reason::NoFamily, text));
    }
    let source = outbound::own_workload(&state, pod).map_err(refused)?;
    let mut routes = BTreeMap::new();
    let mut service = None;
    for _ in 0..DRAWS {
        let route = outbound::draw(&state, source, to, |_, _| true).map_err(refused)?;
        service = name_of_service(&route);
        routes.insert(application(&route), route);
        if service.is_none() {
            break;
        }
    }
    let mut endpoints = BTreeSet::new();
    for route in routes.values() {
        endpoints.insert(reached(sources, pods, pod, from, route).await?);
    }
    Ok(Found { service, endpoints })
}

/// One route as it is taken.
async fn reached(
    sources: &Sources,
    pods: &[Seen],
    pod: &Pod,
    from: Option<IpAddr>,
    route: &Route,
) -> Result<Endpoint, Decision> {
    let address = application(route);
    let path = match &route.kind {
        RouteKind::Plain { .. } | RouteKind::ToSelf { .. } => Path::Plain,
        RouteKind::Hbone { .. } if route.waypoint.is_some() => {
            if sources.direct.leads(pod.id, address).await {
                Path::Direct
            } else {
                Path::Tunnel
            }
        }
        RouteKind::Hbone { .. } => {
            let neighbour = owner(pods, address.ip()).and_then(|seen| seen.pod.as_ref());
            let verdict = match neighbour {
                Some(server) => {
                    let port = address.port();
                    sources.direct.verdict(pod.id, server.id, port).await
                }
                None => None,
            };
            match verdict {
                Some(DirectVerdict::Allow) => Path::Direct,
                Some(DirectVerdict::Deny) => Path::Refused,
                Some(DirectVerdict::Agent) | None => Path::Tunnel,
            }
        }
    };
    if path == Path::Tunnel && pod.cert.borrow().is_none() {
        return Err(refused(outbound::no_certificate(pod)));
    }
    let is_own = matches!(route.kind, RouteKind::ToSelf { .. });
    let destination = route.destination.as_deref();
    Ok(Endpoint {
        is_waypoint: route.waypoint.is_some(),
        ..endpoint(address, destination, path, from, is_own)
    })
}

/// Where the connection of a pod goes that is not in the mesh: as it is, to what the cluster gives it.
fn left_alone(sources: &Sources, seen: &Seen, to: SocketAddr) -> Found {
    let state = sources.shared.mesh.state();
    let from = from(seen.addresses.iter(), to);
    if to.ip().is_loopback() || seen.addresses.contains(&to.ip()) {
        return own(seen, to, from);
    }
    let wanted = sources.shared.mesh.wanted().borrow().clone();
    let is_meant = |(name, _): &(&crate::pod::PodName, _)| {
        name.namespace == seen.listed.namespace && name.name == seen.listed.name
    };
    let wish = wanted.iter().find(is_meant);
    let source = wish.and_then(|(_, wish)| state.workload(wish.workload.as_ref()));
    let mut found = Found::default();
    for _ in 0..DRAWS {
        // Without a mesh nothing refuses on the way; who is dialled is asked.
        let route = source.and_then(|source| outbound::draw(&state, source, to, |_, _| true).ok());
        let Some(route) = route else {
            let there = endpoint(to, None, Path::Plain, from, false);
            found.endpoints.insert(there);
            break;
        };
        found.service = name_of_service(&route);
        let destination = route.destination.as_deref();
        let there = endpoint(application(&route), destination, Path::Plain, from, false);
        found.endpoints.insert(there);
        if found.service.is_none() {
            break;
        }
    }
    found
}

/// Where the application is that a route leads to.
fn application(route: &Route) -> SocketAddr {
    match route.kind {
        RouteKind::Plain { dial } | RouteKind::ToSelf { dial } => dial,
        RouteKind::Hbone { authority, .. } => authority,
    }
}

fn name_of_service(route: &Route) -> Option<String> {
    let service = route.service.as_ref();
    service.map(|service| service.hostname.to_string())
}

fn own(seen: &Seen, to: SocketAddr, from: Option<IpAddr>) -> Found {
    let pod = format!("{}/{}", seen.listed.namespace, seen.listed.name);
    let mut there = endpoint(to, None, Path::Plain, from, true);
    there.pod = Some(pod);
    Found {
        service: None,
        endpoints: BTreeSet::from([there]),
    }
}

fn endpoint(
    address: SocketAddr,
    workload: Option<&Workload>,
    path: Path,
    from: Option<IpAddr>,
    is_own: bool,
) -> Endpoint {
    Endpoint {
        address,
        pod: workload.map(|one| format!("{}/{}", one.namespace, one.name)),
        node: workload.map(|one| one.node.to_string()),
        path,
        from,
        proves_identity: path != Path::Plain,
        is_own,
        is_waypoint: false,
    }
}

/// The address that a client has towards another.
fn from<'a>(mut own: impl Iterator<Item = &'a IpAddr>, to: SocketAddr) -> Option<IpAddr> {
    own.find(|ip| ip.is_ipv4() == to.is_ipv4()).copied()
}

/// What policy says, as connections are told.
fn judged(
    state: &MeshState,
    pod: &Pod,
    identity: Option<&Identity>,
    client: SocketAddr,
    to: SocketAddr,
) -> Decision {
    if let (Some(_), Some(text)) = (identity, inbound::reserved(to)) {
        return no(Reason::BadRequest, text);
    }
    match inbound::judge(state, pod, identity, client, to) {
        Ok((_, verdict)) => said(&verdict),
        Err(refusal) => refused(refusal),
    }
}

fn said(verdict: &Verdict) -> Decision {
    match verdict {
        Verdict::Allow(reason) => {
            let (object, rule) = match reason {
                AllowReason::NoAllowPolicy | AllowReason::Waypoint => (None, None),
                AllowReason::Matched { policy, rule } => (Some(object(policy)), Some(*rule)),
            };
            allowed(reason.to_string(), object, rule)
        }
        Verdict::Deny(reason) => {
            let (object, rule) = match reason {
                DenyReason::Matched { policy, rule } => {
                    let is_written = policy.key.kind == model::PolicyKind::AuthorizationPolicy;
                    (Some(made_by(policy)), is_written.then_some(*rule))
                }
                DenyReason::NoAllowMatched { policies } => {
                    let all: Vec<String> = policies.iter().map(made_by).collect();
                    (Some(all.join(", ")), None)
                }
                DenyReason::UnknownPolicy { policy } => (Some(object(policy)), None),
                DenyReason::WaypointRequired { .. } => (None, None),
            };
            Decision {
                object,
                rule,
                ..no(reason.reason(), reason.to_string())
            }
        }
    }
}

/// The object that a person wrote, as far as it is known.
fn made_by(policy: &RefusingPolicy) -> String {
    object(policy.made_by.as_ref().unwrap_or(&policy.key))
}

fn object(key: &PolicyKey) -> String {
    key.object()
        .map_or_else(|| key.to_string(), |object| object.to_string())
}

fn pending(seen: &Seen) -> Decision {
    let text = format!("the pod's capture is not complete: {}", seen.listed.reason);
    no(Reason::CapturePending, text)
}

fn refused(refusal: Refusal) -> Decision {
    no(refusal.reason, refusal.text)
}

fn no(reason: Reason, text: String) -> Decision {
    Decision {
        allowed: false,
        reason: Some(reason),
        text,
        object: None,
        rule: None,
    }
}

fn allowed(text: String, object: Option<String>, rule: Option<usize>) -> Decision {
    Decision {
        allowed: true,
        reason: None,
        text,
        object,
        rule,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_the_one_that_a_person_wrote() {
        let refusing = |key: PolicyKey, made_by| RefusingPolicy {
            key,
            made_by,
            unenforceable: None,
        };
        let guard = PolicyKey::new("shop", "guard");
        let strict = PolicyKey::new("istio-system", model::policy::STATIC_STRICT);
        let default = PolicyKey::peer_authentication("shop", "default");
        for (verdict, object, rule, reason) in [
            (
                Verdict::Deny(DenyReason::Matched {
                    policy: refusing(guard.clone(), None),
                    rule: 2,
                }),
                Some("AuthorizationPolicy shop/guard"),
                Some(2),
                Some(Reason::PolicyDeny),
            ),
            (
                Verdict::Deny(DenyReason::Matched {
                    policy: refusing(strict, Some(default)),
                    rule: 0,
                }),
                Some("PeerAuthentication shop/default"),
                None,
                Some(Reason::PolicyDeny),
            ),
            (
                Verdict::Deny(DenyReason::NoAllowMatched {
                    policies: vec![refusing(guard.clone(), None)],
                }),
                Some("AuthorizationPolicy shop/guard"),
                None,
                Some(Reason::PolicyNoAllow),
            ),
            (
                Verdict::Allow(AllowReason::Matched {
                    policy: guard,
                    rule: 1,
                }),
                Some("AuthorizationPolicy shop/guard"),
                Some(1),
                None,
            ),
            (Verdict::Allow(AllowReason::NoAllowPolicy), None, None, None),
        ] {
            let decision = said(&verdict);
            assert_eq!(
                (decision.object.as_deref(), decision.rule, decision.reason),
                (object, rule, reason),
                "{verdict}"
            );
            assert_eq!(decision.allowed, verdict.is_allow());
        }
    }
}
