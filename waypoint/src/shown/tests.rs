//! What is shown of rules, clusters and listeners.

use std::sync::Arc;

use l7::backend::{Endpoint, EndpointPort, Locality};
use l7::config::{Resource, Store};
use l7::listener::{HostPattern, Listener};
use l7::route::HeaderOperations;
use l7::route::{Forward, HeaderMatch, Precedence, Rule, Treatment, WeightedBackend};
use l7::text::Regex;
use l7::{Origin, Service};
use model::ServiceKey;
use model::service::{AppProtocol, ServicePort};

use super::*;
use crate::balance::state::Outcome;

fn key() -> ServiceKey {
    ServiceKey::new("shop", "cart.shop.svc.cluster.local")
}

fn to(port: u16, weight: u32) -> WeightedBackend {
    WeightedBackend {
        backend: Backend::Cluster(ClusterKey {
            service: key(),
            port,
            subset: None,
        }),
        weight,
        request_headers: HeaderOperations::NONE,
        response_headers: HeaderOperations::NONE,
        authority: None,
    }
}

fn forward(backends: Vec<WeightedBackend>) -> Action {
    Action::Forward(Forward {
        backends,
        ..Forward::default()
    })
}

fn rule(index: u32, matches: Vec<Match>, action: Action) -> Resource {
    let origin = Origin {
        kind: l7::Kind::VirtualService,
        namespace: "shop".into(),
        name: "cart".into(),
        rule: index,
        rule_name: None,
    };
    let rule = RouteRule {
        attachments: vec![Attachment {
            service: key(),
            port: None,
            client_namespace: None,
        }],
        precedence: Precedence::Listed("shop/cart".into()),
        matches,
        rule: Arc::new(Rule::new(
            origin,
            Treatment {
                action,
                timeout: None,
                fault: None,
                cors: None,
                request_headers: HeaderOperations::NONE,
                response_headers: HeaderOperations::NONE,
            },
        )),
    };
    Resource::Route(format!("cart/{index}").into(), rule)
}

fn store() -> Store {
    let mut store = Store::default();
    store.apply(Resource::Service(Service {
        key: key(),
        addresses: Vec::new(),
        ports: vec![ServicePort {
            port: 80,
            target_port: 0,
            app_protocol: AppProtocol::Http11,
        }],
        attached: true,
    }));
    for last in [1, 2, 3] {
        store.apply(Resource::Endpoint(Endpoint {
            uid: format!("pod-{last}").into(),
            addresses: vec![[10, 0, 0, last].into()],
            hostname: None,
            identity: None,
            namespace: "shop".into(),
            labels: Arc::default(),
            node: "".into(),
            locality: Locality::default(),
            weight: 1,
            ports: vec![EndpointPort {
                service: key(),
                port: 80,
                target: 8080,
                ready: last != 3,
            }],
            policies: Vec::new(),
        }));
    }
    store
}

fn shown(store: &mut Store, registry: &Registry) -> ProxyConfig {
    let active = Active {
        l7: store.config(),
        ..Active::default()
    };
    all(&active, store.rules(), registry)
}

#[test]
fn rules_come_in_their_order_and_in_words() {
    let mut store = store();
    let header = |name, value, negated| HeaderMatch {
        name: http::HeaderName::from_static(name),
        value,
        negated,
    };
    let both = Match {
        path: PathMatch::Segments("/v1".into()),
        method: Some(TextMatch::Exact("GET".into())),
        headers: vec![
            header("end-user", TextMatch::Prefix("j".into()), false),
            header("x-old", TextMatch::Present, true),
        ],
        client_labels: vec![("app".into(), "front".into())],
        ..Match::default()
    };
    let pattern = Match {
        path: PathMatch::Text(TextMatch::Regex(Regex::new("/a.*").unwrap())),
        ..Match::default()
    };
    // The last in the order of texts is not the last of the object.
    for index in 4..11 {
        let answer = Action::Fail("not yet".into());
        store.apply(rule(index, vec![pattern.clone()], answer));
    }
    store.apply(rule(3, Vec::new(), forward(vec![to(80, 0), to(81, 0)])));
    store.apply(rule(
        2,
        vec![Match::default()],
        forward(vec![to(80, 1), to(0, 3)]),
    ));
    store.apply(rule(1, vec![both, pattern], forward(vec![to(0, 1)])));
    let all = shown(&mut store, &Registry::default()).routes;
    let objects: Vec<_> = all.iter().map(|one| one.object.clone()).collect();
    let expected: Vec<_> = (1..11)
        .map(|index| format!("VirtualService shop/cart rule {index}"))
        .collect();
    assert_eq!(objects, expected);
    assert_eq!(
        all[0].when,
        [
            "path /v1 and below, method = GET, header end-user j*, not header x-old is there, client label app=front",
            "path ~ /a.*"
        ]
    );
    let name = "cart.shop.svc.cluster.local";
    assert_eq!(all[0].to, [format!("outbound|*||{name}")]);
    assert_eq!(all[1].when, ["always"]);
    assert_eq!(
        all[1].to,
        [
            format!("outbound|80||{name} (1 of 4)"),
            format!("outbound|*||{name} (3 of 4)")
        ]
    );
    assert_eq!(all[2].to, ["500: no backend has a share"]);
    assert_eq!(all[3].to, ["500: not yet"]);
}

#[test]
fn endpoints_say_who_is_ready_and_who_is_left_alone() {
    let mut store = store();
    let registry = Registry::default();
    let cluster = registry.cluster(&ClusterKey {
        service: key(),
        port: 80,
        subset: None,
    });
    let second = cluster.endpoint("10.0.0.2:8080".parse().unwrap());
    cluster.note(&second, Outcome::Unreachable, None, 3);
    let shown = shown(&mut store, &registry);
    let [cluster] = shown.clusters.as_slice() else {
        panic!("{:?}", shown.clusters);
    };
    let endpoints = cluster.endpoints.iter().map(|one| {
        let cause = one.left_alone.as_ref().map(|(cause, _)| cause.as_str());
        (one.address.ip().to_string(), one.ready, cause)
    });
    assert_eq!(
        endpoints.collect::<Vec<_>>(),
        [
            ("10.0.0.1".to_owned(), true, None),
            ("10.0.0.2".to_owned(), true, Some("unreachable")),
            ("10.0.0.3".to_owned(), false, None)
        ]
    );
}

#[test]
fn a_listener_shows_its_hosts_and_no_key() {
    let mut store = store();
    let listener = Listener {
        name: "https".into(),
        port: 443,
        host: HostPattern::new("*.example.com"),
        tls: Some(vec![l7::listener::Certificate {
            chain: b"chain".to_vec(),
            key: b"very secret".to_vec(),
        }]),
        reads: Reads::Requests,
        client_roots: Some(b"roots".to_vec()),
        hosts: vec![l7::listener::VirtualHost {
            host: HostPattern::new("a.example.com"),
            key: key(),
        }],
    };
    store.apply(Resource::Listener("443".into(), listener));
    let all = shown(&mut store, &Registry::default());
    let expected = ProxyListener {
        name: "https".to_owned(),
        port: 443,
        host: "*.example.com".to_owned(),
        tls: true,
        mutual: true,
        reads: "requests".to_owned(),
        hosts: vec!["a.example.com".to_owned()],
    };
    assert_eq!(all.listeners, [expected]);
    assert!(!serde_json::to_string(&all).unwrap().contains("secret"));
}
