//! What a route takes in memory, as the allocator counts it. Alone in its program: other tests allocate as well.

use std::sync::Arc;

use l7::route::{
    Action, Attachment, Backend, Forward, HeaderOperations, Match, PathMatch, Precedence, Retries,
    RouteRule, Rule, Treatment, WeightedBackend,
};
use l7::{ClusterKey, Kind, Origin, Store};
use model::ServiceKey;
use prost::Message as _;
use proto::convert::l7::resource;
use proto::type_url;
use runtime::memory::in_use;

const ROUTES: usize = 10_000;

/// A route as an HTTPRoute with one prefix and one backend becomes, encoded as it is delivered.
fn route(index: usize) -> (String, Vec<u8>) {
    let object = format!("near-{}", index / 16);
    let service = |name: &str| ServiceKey::new("bench", name);
    let rule = RouteRule {
        attachments: vec![Attachment {
            service: service("gateway/8081/http|*"),
            port: Some(8081),
            client_namespace: None,
        }],
        precedence: Precedence::Specific(format!("2026-11-29T00:00:00Z/bench/{object}").into()),
        matches: vec![Match {
            path: PathMatch::Segments(format!("/team-{}/service-{index}", index % 97).into()),
            ..Match::default()
        }],
        rule: Arc::new(Rule::new(
            Origin {
                kind: Kind::HttpRoute,
                namespace: "bench".into(),
                name: object.as_str().into(),
                rule: u32::try_from(index % 16).unwrap_or_default(),
                rule_name: None,
            },
            Treatment {
                action: Action::Forward(Forward {
                    backends: vec![WeightedBackend {
                        backend: Backend::Cluster(ClusterKey {
                            service: service("near.bench.svc.cluster.local"),
                            port: 8080,
                            subset: None,
                        }),
                        weight: 1,
                        request_headers: HeaderOperations::default(),
                        response_headers: HeaderOperations::default(),
                        authority: None,
                    }],
                    retries: Retries::standard().into(),
                    ..Forward::default()
                }),
                timeout: None,
                fault: None,
                cors: None,
                request_headers: HeaderOperations::default(),
                response_headers: HeaderOperations::default(),
            },
        )),
    };
    let name = format!("HTTPRoute/bench/{object}/{}", index % 16);
    (name, proto::l7::Route::from(&rule).encode_to_vec())
}

/// Issue 12 D: what is kept of a route, with what finds it, is small.
#[test]
fn a_route_takes_little_memory() {
    let routes: Vec<_> = (0..ROUTES).map(route).collect();
    let mut store = Store::default();
    store.apply(l7::Resource::Service(l7::Service {
        key: ServiceKey::new("bench", "gateway/8081/http|*"),
        addresses: Vec::new(),
        ports: Vec::new(),
        attached: true,
    }));
    let before = in_use();
    for (name, bytes) in &routes {
        let read = resource(type_url::L7_ROUTE, name, bytes).unwrap().unwrap();
        store.apply(read);
    }
    let config = store.config();
    let each = (in_use() - before) / ROUTES;
    assert_eq!(config.services().count(), 1);
    assert!(each < LIMIT, "{each} bytes");
}

/// Bytes; it is 428 today.
const LIMIT: usize = 480;
