use std::time::Duration;

use http::StatusCode;
use l7::backend::{
    BackendRule, EndpointPort, HashKey, Keepalive, Limits, LoadBalancer, Locality, LocalityPolicy,
    Outliers, Roots, Subset, TlsMode, TrafficPolicy, Upgrade, WarmUp,
};
use l7::policy::{self, Scope, Template};
use l7::route::{
    Abort, Action, Attachment, Backend, Cors, DirectResponse, Fault, Forward, HeaderChanges,
    HeaderMatch, HeaderOperations, Match, Mirror, PathMatch, PathRewrite, Precedence, QueryMatch,
    Redirect, RedirectPort, Retries, RetryOn, Rewrite, RouteRule, Rule, Share, Substitution,
    Treatment, WeightedBackend,
};
use l7::{ClusterKey, Endpoint, Policy};
use model::policy::Match as ConnectionMatch;

use super::backend::backend_out;
use super::*;

fn key() -> ServiceKey {
    ServiceKey::new("shop", "cart.shop.svc.cluster.local")
}

fn origin() -> Origin {
    Origin {
        kind: Kind::VirtualService,
        namespace: "shop".into(),
        name: "cart".into(),
        rule: 3,
        rule_name: Some("v1".into()),
    }
}

fn cluster(subset: Option<&str>) -> ClusterKey {
    ClusterKey {
        service: key(),
        port: 80,
        subset: subset.map(Arc::from),
    }
}

fn operations() -> HeaderOperations {
    let header = |name, value| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    };
    HeaderOperations::from(HeaderChanges {
        remove: vec![HeaderName::from_static("x-gone")],
        set: vec![header("x-set", "1")],
        add: vec![header("x-add", "2"), header("x-add", "3")],
    })
}

fn substitution() -> PathRewrite {
    let pattern = Regex::new("^/a/(.*)").unwrap();
    PathRewrite::Regex {
        pattern: Box::new(Substitution::new(&pattern, r"/b/\1").unwrap()),
    }
}

fn texts() -> Vec<TextMatch> {
    vec![
        TextMatch::Exact("a".into()),
        TextMatch::ExactIgnoringCase("b".into()),
        TextMatch::Prefix("c".into()),
        TextMatch::PrefixIgnoringCase("d".into()),
        TextMatch::Suffix("e".into()),
        TextMatch::Regex(Regex::new("f+").unwrap()),
        TextMatch::Present,
    ]
}

/// A rule in which nothing has its default, but for what excludes another.
fn rule(action: Action, path: PathMatch) -> RouteRule {
    let m = Match {
        path,
        method: Some(TextMatch::Exact("GET".into())),
        scheme: Some(TextMatch::Exact("https".into())),
        authority: Some(TextMatch::Prefix("cart".into())),
        headers: texts()
            .into_iter()
            .map(|value| HeaderMatch {
                name: HeaderName::from_static("x-h"),
                value,
                negated: true,
            })
            .collect(),
        query: vec![QueryMatch {
            name: "q".into(),
            value: TextMatch::Present,
        }],
        port: Some(80),
        client_labels: vec![("app".into(), "web".into())],
        client_namespace: Some("web".into()),
        connection: Some(Box::new(l7::route::ConnectionMatch {
            server_names: vec![
                l7::HostPattern::new("*.example.com"),
                l7::HostPattern::new("a.b"),
            ],
            subnets: vec![
                "10.128.0.0/16".parse().unwrap(),
                "fd00::/8".parse().unwrap(),
            ],
        })),
    };
    RouteRule {
        attachments: vec![Attachment {
            service: key(),
            port: Some(80),
            client_namespace: Some("web".into()),
        }],
        precedence: Precedence::Specific("shop/cart".into()),
        matches: vec![m, Match::default()],
        rule: Arc::new(Rule::new(
            origin(),
            Treatment {
                action,
                timeout: Some(Duration::from_millis(1500)),
                fault: Some(Box::new(Fault {
                    delay: Some((Share::ALL, Duration::from_secs(5))),
                    abort: Some((Share::millionths(7), Abort::Grpc(14))),
                })),
                cors: Some(Box::new(Cors {
                    origins: texts(),
                    methods: vec!["GET".into()],
                    headers: vec!["*".into()],
                    expose: vec!["x".into()],
                    max_age: Some(Duration::ZERO),
                    credentials: true,
                    forward_unmatched: true,
                })),
                request_headers: operations(),
                response_headers: operations(),
            },
        )),
    }
}

fn actions() -> Vec<Action> {
    let weighted = |backend, weight| WeightedBackend {
        backend,
        weight,
        request_headers: operations(),
        response_headers: HeaderOperations::default(),
        authority: Some("other".into()),
    };
    let all = RetryOn {
        connect_failure: true,
        refused_stream: true,
        reset: true,
        reset_before_request: true,
        server_error: true,
        gateway_error: true,
        retriable_4xx: true,
        statuses: true,
        attempt_timeout: true,
        grpc_cancelled: true,
        grpc_deadline_exceeded: true,
        grpc_internal: true,
        grpc_resource_exhausted: true,
        grpc_unavailable: true,
    };
    let forward = Forward {
        backends: vec![
            weighted(Backend::Cluster(cluster(Some("v1"))), 90),
            weighted(Backend::Cluster(cluster(None)), 0),
            weighted(
                Backend::Invalid {
                    status: StatusCode::INTERNAL_SERVER_ERROR,
                    reason: "no such Service".into(),
                },
                10,
            ),
        ],
        rewrite: Rewrite {
            path: Some(substitution()),
            authority: Some("x".into()),
        },
        retries: Arc::new(Retries {
            attempts: 3,
            on: all,
            statuses: vec![StatusCode::SERVICE_UNAVAILABLE],
            backoff: Some(Duration::from_millis(10)),
            other_localities: true,
        }),
        attempt_timeout: Some(Duration::from_millis(500)),
        mirrors: vec![Mirror {
            backend: cluster(Some("v2")),
            share: Share::millionths(500_000),
        }],
    };
    let redirect = |port, path| {
        Action::Redirect(Redirect {
            status: StatusCode::PERMANENT_REDIRECT,
            scheme: Some("https".into()),
            host: Some("x".into()),
            port,
            path: Some(path),
        })
    };
    vec![
        Action::Forward(forward),
        Action::Forward(Forward::default()),
        redirect(RedirectPort::Number(8443), substitution()),
        redirect(RedirectPort::FromScheme, PathRewrite::Full("/f".into())),
        redirect(RedirectPort::Dialled, PathRewrite::Prefix("/p".into())),
        redirect(RedirectPort::Unsaid, PathRewrite::Full("/".into())),
        Action::Respond(DirectResponse {
            status: StatusCode::IM_A_TEAPOT,
            body: Arc::from(&b"short and stout"[..]),
        }),
        Action::Fail("filter ExtensionRef is not supported".into()),
    ]
}

fn endpoint() -> Endpoint {
    Endpoint {
        uid: "c//Pod/shop/cart-1".into(),
        addresses: vec![[10, 0, 0, 1].into(), "fd00::1".parse().unwrap()],
        hostname: Some("db.example.com".into()),
        identity: Some("spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()),
        namespace: "shop".into(),
        labels: Arc::new(Labels::from([("version".into(), "v1".into())])),
        node: "n1".into(),
        locality: Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: "s".into(),
        },
        weight: 2,
        ports: vec![EndpointPort {
            service: key(),
            port: 80,
            target: 8080,
            ready: false,
        }],
        policies: vec!["shop/p".into()],
    }
}

fn traffic(load_balancer: LoadBalancer, locality: LocalityPolicy, tls: TlsMode) -> TrafficPolicy {
    TrafficPolicy {
        load_balancer: Some(load_balancer),
        locality: Some(locality),
        warm_up: Some(WarmUp {
            duration: Duration::from_secs(30),
            minimum_percent: 10.0,
            aggression: 1.5,
        }),
        limits: Some(Limits {
            connections: Some(1),
            pending: Some(2),
            requests: Some(3),
            requests_per_connection: Some(4),
            retries: Some(5),
            streams_per_connection: Some(6),
            connect_timeout: Some(Duration::from_secs(7)),
            idle_timeout: Some(Duration::from_secs(8)),
            connection_life: Some(Duration::from_secs(9)),
            keepalive: Some(Keepalive {
                probes: Some(1),
                time: Some(Duration::from_secs(2)),
                interval: Some(Duration::from_secs(3)),
            }),
            upgrade: Upgrade::AsClient,
        }),
        outliers: Some(Outliers {
            gateway_errors: Some(1),
            local_failures: Some(0),
            ..Outliers::default()
        }),
        tls: Some(tls),
    }
}

fn backend() -> BackendRule {
    let policies = [
        traffic(
            LoadBalancer::LeastRequest,
            LocalityPolicy::Off,
            TlsMode::Mesh,
        ),
        traffic(
            LoadBalancer::Hash(HashKey::Cookie {
                name: "user".into(),
                path: Some("/".into()),
                ttl: Some(Duration::ZERO),
            }),
            LocalityPolicy::Failover(Labels::from([("a".into(), "b".into())])),
            TlsMode::Disable,
        ),
        traffic(
            LoadBalancer::Hash(HashKey::Header(HeaderName::from_static("x"))),
            LocalityPolicy::Priority(vec![("l".into(), None), ("m".into(), Some("v".into()))]),
            TlsMode::Simple {
                sni: Some("s".into()),
                names: vec!["n".into()],
                insecure: true,
                roots: Roots::Given(b"pem".as_slice().into()),
            },
        ),
        traffic(
            LoadBalancer::Hash(HashKey::QueryParameter("q".into())),
            LocalityPolicy::Distribute(vec![("a/*".into(), vec![("b/*".into(), 100)])]),
            TlsMode::Mesh,
        ),
    ];
    let policies = policies.map(Arc::new);
    BackendRule {
        origin: Some(origin()),
        policy: Arc::clone(&policies[0]),
        ports: BTreeMap::from([(80, Arc::clone(&policies[1]))]),
        subsets: BTreeMap::from([(
            "v1".into(),
            Subset {
                labels: Labels::from([("version".into(), "v1".into())]),
                policy: Arc::clone(&policies[2]),
                ports: BTreeMap::from([(80, Arc::clone(&policies[3]))]),
            },
        )]),
    }
}

fn policy(scope: Scope, action: policy::Action) -> Policy {
    let paths = vec![
        policy::PathMatch::Text(TextMatch::Prefix("/a".into())),
        policy::PathMatch::Template(Template::new("/a/{*}/{**}").unwrap()),
    ];
    let m = policy::Match {
        connection: Some(ConnectionMatch {
            destination_ports: vec![80],
            ..ConnectionMatch::default()
        }),
        hosts: texts(),
        not_hosts: texts(),
        methods: texts(),
        not_methods: texts(),
        paths: paths.clone(),
        not_paths: paths,
        headers: vec![policy::HeaderMatch {
            name: HeaderName::from_static("x"),
            values: texts(),
            not_values: texts(),
        }],
    };
    Policy {
        origin: Origin {
            kind: Kind::AuthorizationPolicy,
            ..origin()
        },
        scope,
        action,
        dry_run: true,
        rules: vec![policy::Rule {
            clauses: vec![policy::Clause { matches: vec![m] }],
        }],
        unenforceable: Some("because".into()),
    }
}

fn read(type_url: &str, message: &impl Message) -> Resource {
    let bytes = message.encode_to_vec();
    resource(type_url, "shop/cart", &bytes).unwrap().unwrap()
}

#[test]
fn what_is_written_reads_back() {
    let paths = [
        PathMatch::Any,
        PathMatch::Exact("/a".into()),
        PathMatch::Prefix("/a".into()),
        PathMatch::Segments("/a".into()),
        PathMatch::Text(TextMatch::Regex(Regex::new("/a.*").unwrap())),
    ];
    for action in actions() {
        for path in &paths {
            let rule = rule(action.clone(), path.clone());
            let back = read(type_url::L7_ROUTE, &pb::Route::from(&rule));
            assert_eq!(back, Resource::Route("shop/cart".into(), rule));
        }
    }
    let back = read(type_url::L7_ENDPOINT, &pb::Endpoint::from(&endpoint()));
    assert_eq!(back, Resource::Endpoint(endpoint()));
    let back = read(type_url::L7_BACKEND, &backend_out(&key(), &backend()));
    assert_eq!(back, Resource::Backend(key(), backend()));
    for scope in [
        Scope::All,
        Scope::Endpoints,
        Scope::Namespace("shop".into()),
        Scope::Services(vec![key()]),
    ] {
        let policy = policy(scope, policy::Action::Audit);
        let back = read(type_url::L7_POLICY, &pb::Policy::from(&policy));
        assert_eq!(back, Resource::Policy("shop/cart".into(), policy));
    }
    let service = Service {
        key: key(),
        addresses: vec![[10, 96, 0, 1].into()],
        ports: vec![ServicePort {
            port: 80,
            target_port: 0,
            app_protocol: AppProtocol::Grpc,
        }],
        attached: true,
    };
    let back = read(type_url::L7_SERVICE, &pb::Service::from(&service));
    assert_eq!(back, Resource::Service(service));
}

#[test]
fn a_field_that_is_not_known_refuses_the_resource() {
    let rule = rule(actions().remove(0), PathMatch::Any);
    let mut bytes = pb::Route::from(&rule).encode_to_vec();
    // Field 1000, a varint.
    bytes.extend([0xc0, 0x3e, 0x01]);
    let error = resource(type_url::L7_ROUTE, "x", &bytes)
        .unwrap()
        .unwrap_err();
    assert!(matches!(error.problem, Problem::Extension(_)), "{error}");
}

#[test]
fn what_makes_no_sense_names_its_field() {
    let good = || pb::Route::from(&rule(actions().remove(0), PathMatch::Any));
    let refused = |route: pb::Route| {
        let bytes = route.encode_to_vec();
        let error = resource(type_url::L7_ROUTE, "x", &bytes).unwrap();
        error.unwrap_err().field
    };
    let mut route = good();
    route.action = None;
    assert_eq!(refused(route), "action");
    let mut route = good();
    route.matches[0].headers[0].value = None;
    assert_eq!(refused(route), "matches[0].headers[0].value");
    let mut route = good();
    route.matches[1].port = 70_000;
    assert_eq!(refused(route), "matches[1].port");
    let mut route = good();
    if let Some(pb::route::Action::Forward(forward)) = &mut route.action {
        forward.retries.get_or_insert_default().on.push(99);
    }
    assert_eq!(refused(route), "forward.retries.on");
    let mut route = good();
    route.matches[0].method = Some(pb::Text {
        condition: Some(pb::text::Condition::Regex("(".into())),
    });
    assert_eq!(refused(route), "matches[0].method");
}

#[test]
fn names_are_read_by_type() {
    let name = "shop/cart.shop.svc.cluster.local";
    let of = |type_url| resource_name(type_url, name);
    assert_eq!(of(type_url::L7_SERVICE), Some(ResourceName::Service(key())));
    assert_eq!(of(type_url::L7_BACKEND), Some(ResourceName::Backend(key())));
    assert_eq!(
        of(type_url::L7_ROUTE),
        Some(ResourceName::Route(name.into()))
    );
    assert_eq!(of(type_url::ADDRESS), None);
    assert!(resource(type_url::ADDRESS, name, &[]).is_none());
}
