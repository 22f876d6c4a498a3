use http::{HeaderMap, Method};
use model::service::{AppProtocol, ServicePort};

use super::*;
use crate::backend::{BackendRule, EndpointPort, Locality, Subset};
use crate::origin::{Kind, Origin};
use crate::path::Path;
use crate::policy::{self, Scope};
use crate::request::Client;
use crate::route::{Attachment, HeaderOperations, Precedence, RouteRule, Treatment};

fn key() -> ServiceKey {
    ServiceKey::new("shop", "cart.shop.svc.cluster.local")
}

fn service() -> Service {
    Service {
        key: key(),
        addresses: vec![[10, 96, 0, 1].into()],
        ports: vec![ServicePort {
            port: 80,
            target_port: 0,
            app_protocol: AppProtocol::Http11,
        }],
        attached: true,
    }
}

fn endpoint(name: &str, last: u8, version: &str) -> Endpoint {
    Endpoint {
        uid: format!("c//Pod/shop/{name}").as_str().into(),
        addresses: vec![[10, 0, 0, last].into()],
        hostname: None,
        identity: None,
        namespace: "shop".into(),
        labels: Arc::new(BTreeMap::from([("version".into(), version.into())])),
        node: "n1".into(),
        locality: Locality::default(),
        weight: 1,
        ports: vec![EndpointPort {
            service: key(),
            port: 80,
            target: 8080,
            ready: true,
        }],
        policies: Vec::new(),
    }
}

fn route(name: &str, client: Option<&str>) -> (Arc<str>, RouteRule) {
    let rule = Rule::new(
        Origin {
            kind: Kind::HttpRoute,
            namespace: "shop".into(),
            name: name.into(),
            rule: 0,
            rule_name: None,
        },
        Treatment {
            action: crate::Action::Fail("never carried out".into()),
            timeout: None,
            fault: None,
            cors: None,
            request_headers: HeaderOperations::default(),
            response_headers: HeaderOperations::default(),
        },
    );
    let route = RouteRule {
        attachments: vec![Attachment {
            service: key(),
            port: None,
            client_namespace: client.map(Arc::from),
        }],
        precedence: Precedence::Specific(name.into()),
        matches: Vec::new(),
        rule: Arc::new(rule),
    };
    (name.into(), route)
}

fn decided(config: &Config, client: &str, port: u16) -> String {
    let (path, key) = (Path::new("/").unwrap(), key());
    let request = Request {
        client: Client {
            address: [10, 0, 0, 9].into(),
            identity: None,
            namespace: Some(client),
            labels: None,
        },
        destination: Destination::Service { key: &key, port },
        protocol: crate::Protocol::Http,
        scheme: "http",
        method: &Method::GET,
        authority: "whatever",
        path: &path,
        headers: &HeaderMap::new(),
    };
    match config.decide(&request) {
        Decision::Rule { rule, .. } => rule.origin.name.to_string(),
        Decision::Service(cluster) => format!("{} members", cluster.members.len()),
        Decision::Workload(_) => "workload".to_owned(),
        Decision::None(why) => format!("{why:?}"),
    }
}

#[test]
fn a_service_without_routes_goes_to_its_own_endpoints() {
    let mut store = Store::default();
    assert_eq!(decided(&store.config(), "a", 80), "UnknownDestination");
    store.apply(Resource::Service(service()));
    store.apply(Resource::Endpoint(endpoint("cart-1", 1, "v1")));
    assert_eq!(decided(&store.config(), "a", 80), "1 members");
    assert_eq!(decided(&store.config(), "a", 81), "UnknownDestination");
    store.remove(&ResourceName::Endpoint("c//Pod/shop/cart-1".into()));
    assert_eq!(decided(&store.config(), "a", 80), "0 members");
    store.remove(&ResourceName::Service(key()));
    assert_eq!(decided(&store.config(), "a", 80), "UnknownDestination");
}

#[test]
fn consumer_routes_stand_in_the_place_of_producer_routes_for_their_namespace() {
    let mut store = Store::default();
    store.apply(Resource::Service(service()));
    for (name, client) in [("producer", None), ("consumer", Some("web"))] {
        let (name, rule) = route(name, client);
        store.apply(Resource::Route(name, rule));
    }
    assert_eq!(decided(&store.config(), "web", 80), "consumer");
    assert_eq!(decided(&store.config(), "other", 80), "producer");
    store.remove(&ResourceName::Route("consumer".into()));
    assert_eq!(decided(&store.config(), "web", 80), "producer");
}

#[test]
fn f26_subsets_hold_the_endpoints_with_their_labels_and_f27_may_be_empty() {
    let mut store = Store::default();
    store.apply(Resource::Service(service()));
    store.apply(Resource::Endpoint(endpoint("cart-1", 1, "v1")));
    store.apply(Resource::Endpoint(endpoint("cart-2", 2, "v2")));
    let subset = |version: &str| Subset {
        labels: BTreeMap::from([("version".into(), version.into())]),
        ..Subset::default()
    };
    let rule = BackendRule {
        subsets: BTreeMap::from([("v1".into(), subset("v1")), ("v3".into(), subset("v3"))]),
        ..BackendRule::default()
    };
    store.apply(Resource::Backend(key(), rule));
    let config = store.config();
    let members = |subset: Option<&str>| {
        let key = ClusterKey {
            service: key(),
            port: 80,
            subset: subset.map(Arc::from),
        };
        Some(config.cluster(&key, 80)?.ready().count())
    };
    assert_eq!(members(None), Some(2));
    assert_eq!(members(Some("v1")), Some(1));
    assert_eq!(members(Some("v3")), Some(0));
    assert_eq!(members(Some("v9")), None);
    let only = ClusterKey {
        service: key(),
        port: 0,
        subset: None,
    };
    assert!(config.cluster(&only, 9999).is_some(), "the only port");
}

#[test]
fn a_policy_that_an_endpoint_names_and_nobody_delivered_denies() {
    let mut store = Store::default();
    store.apply(Resource::Service(service()));
    let mut cart = endpoint("cart-1", 1, "v1");
    cart.policies.push("shop/p".into());
    store.apply(Resource::Endpoint(cart));
    let verdict = |config: &Config| {
        let (path, key) = (Path::new("/").unwrap(), key());
        let headers = HeaderMap::new();
        let request = Request {
            client: Client {
                address: [10, 0, 0, 9].into(),
                identity: None,
                namespace: None,
                labels: None,
            },
            destination: Destination::Service {
                key: &key,
                port: 80,
            },
            protocol: crate::Protocol::Http,
            scheme: "http",
            method: &Method::GET,
            authority: "cart",
            path: &path,
            headers: &headers,
        };
        let endpoint = config.endpoint_at([10, 0, 0, 1].into()).unwrap();
        let target = Target {
            address: [10, 0, 0, 1].into(),
            port: 8080,
        };
        match config.authorize(&request, endpoint, target) {
            Verdict::Allow { .. } => "allow",
            Verdict::Deny(Denial::Undelivered { .. }) => "undelivered",
            Verdict::Deny(_) => "deny",
        }
    };
    assert_eq!(verdict(&store.config()), "undelivered");
    let policy = |scope: Scope, action| Policy {
        origin: route("p", None).1.rule.origin.clone(),
        scope,
        action,
        dry_run: false,
        rules: vec![policy::Rule::default()],
        unenforceable: None,
    };
    let allow = policy(Scope::Endpoints, Action::Allow);
    store.apply(Resource::Policy("shop/p".into(), allow));
    assert_eq!(verdict(&store.config()), "allow");
    for scope in [
        Scope::All,
        Scope::Namespace("shop".into()),
        Scope::Services(vec![key()]),
    ] {
        let deny = policy(scope, Action::Deny);
        store.apply(Resource::Policy("shop/q".into(), deny));
        assert_eq!(verdict(&store.config()), "deny");
    }
    let elsewhere = policy(Scope::Namespace("other".into()), Action::Deny);
    store.apply(Resource::Policy("shop/q".into(), elsewhere));
    assert_eq!(verdict(&store.config()), "allow");
}

/// F22, Y48: connections have rules of their own, by port, by the address that was dialled, and by what TLS asks for.
#[test]
fn f22_connections_are_led_by_port_address_and_the_name_that_tls_asks_for() {
    let mut store = Store::default();
    let mut both = service();
    both.ports.push(ServicePort {
        port: 9090,
        target_port: 0,
        app_protocol: AppProtocol::Tcp,
    });
    store.apply(Resource::Service(both));
    let connection = |index: u32, port: Option<u16>, names: &[&str], subnets: &[&str]| {
        let (name, mut rule) = route(&format!("rule-{index}"), None);
        rule.precedence = Precedence::Listed(format!("{index}").as_str().into());
        let names = names.iter().map(|name| crate::HostPattern::new(name));
        let subnets = subnets.iter().map(|text| text.parse().unwrap());
        rule.matches = vec![crate::route::Match {
            port,
            connection: Some(Box::new(crate::route::ConnectionMatch {
                server_names: names.collect(),
                subnets: subnets.collect(),
            })),
            ..crate::route::Match::default()
        }];
        Resource::Route(name, rule)
    };
    store.apply(connection(0, Some(9090), &[], &["10.128.0.0/16"]));
    store.apply(connection(1, Some(9090), &[], &[]));
    let config = store.config();
    let client = Client {
        address: [10, 0, 0, 9].into(),
        identity: None,
        namespace: None,
        labels: None,
    };
    let decided = |config: &Config, port: u16, address: [u8; 4], name: Option<&str>| {
        let key = key();
        let destination = Destination::Service { key: &key, port };
        match config.decide_connection(client, destination, address.into(), name) {
            Decision::Rule { rule, .. } => rule.origin.name.to_string(),
            Decision::Service(_) => "service".to_owned(),
            other => format!("{other:?}"),
        }
    };
    let key = key();
    let asks = |config: &Config| {
        let destination = Destination::Service {
            key: &key,
            port: 9090,
        };
        config.asks_for_names(client, destination)
    };
    assert_eq!(decided(&config, 9090, [10, 128, 3, 4], None), "rule-0");
    assert_eq!(decided(&config, 9090, [10, 129, 3, 4], None), "rule-1");
    assert_eq!(decided(&config, 80, [10, 128, 3, 4], None), "service");
    assert!(!asks(&config));
    // Rules for connections are none for requests.
    assert_eq!(self::decided(&config, "a", 80), "0 members");
    // A name goes before what asks for none, wherever it is written.
    store.apply(connection(9, None, &["example.api.company.com"], &[]));
    let config = store.config();
    assert!(asks(&config));
    let named = Some("example.api.company.com");
    assert_eq!(decided(&config, 9090, [10, 129, 3, 4], named), "rule-9");
    let other = Some("other.company.com");
    assert_eq!(decided(&config, 9090, [10, 129, 3, 4], other), "rule-1");
}
