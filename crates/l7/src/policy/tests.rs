use http::{HeaderMap, HeaderValue, Method};
use model::Identity;

use super::*;
use crate::origin::Kind;
use crate::path::Path;
use crate::request::{Client, Destination, Protocol};

const TARGET: Target = Target {
    address: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)),
    port: 8080,
};

fn policy(name: &str, action: Action, matches: Vec<Match>) -> Policy {
    Policy {
        origin: Origin {
            kind: Kind::AuthorizationPolicy,
            namespace: "shop".into(),
            name: name.into(),
            rule: 0,
            rule_name: None,
        },
        scope: Scope::Endpoints,
        action,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![Clause { matches }],
        }],
        unenforceable: None,
    }
}

fn method(name: &str) -> Match {
    Match {
        methods: vec![TextMatch::Exact(name.into())],
        ..Match::default()
    }
}

fn asks(
    policies: &[Policy],
    (http_method, authority, target): (Method, &str, &str),
    headers: &HeaderMap,
    source: Option<&Identity>,
) -> bool {
    let asked = (http_method, authority, target);
    asks_by(Protocol::Http, policies, asked, headers, source)
}

fn asks_by(
    protocol: Protocol,
    policies: &[Policy],
    (http_method, authority, target): (Method, &str, &str),
    headers: &HeaderMap,
    source: Option<&Identity>,
) -> bool {
    let path = Path::new(target).unwrap();
    let key = ServiceKey::new("shop", "cart.shop.svc.cluster.local");
    let request = Request {
        client: Client {
            address: [10, 0, 0, 1].into(),
            identity: source,
            namespace: None,
            labels: None,
        },
        destination: Destination::Service {
            key: &key,
            port: 80,
        },
        protocol,
        scheme: "http",
        method: &http_method,
        authority,
        path: &path,
        headers,
    };
    let verdict = verdict(policies.iter(), &request, TARGET);
    matches!(verdict, Verdict::Allow { .. })
}

fn get(policies: &[Policy], target: &str) -> bool {
    let asked = (Method::GET, "cart", target);
    asks(policies, asked, &HeaderMap::new(), None)
}

#[test]
fn deny_goes_before_allow_and_allow_before_nothing() {
    let allow = policy("allow", Action::Allow, vec![method("GET")]);
    let deny = policy("deny", Action::Deny, vec![method("GET")]);
    let other = policy("other", Action::Allow, vec![method("POST")]);
    let audit = policy("audit", Action::Audit, vec![method("GET")]);
    assert!(get(&[], "/"));
    assert!(get(std::slice::from_ref(&audit), "/"));
    assert!(get(&[other.clone(), allow.clone()], "/"));
    assert!(!get(std::slice::from_ref(&other), "/"));
    assert!(!get(&[allow.clone(), deny.clone()], "/"));
    let dry = Policy {
        dry_run: true,
        ..deny
    };
    assert!(get(&[allow, dry], "/"));
}

#[test]
fn what_is_no_request_passes_no_deny_and_no_allow_that_speaks_of_requests() {
    let tcp = |policies: &[Policy]| {
        let asked = (Method::GET, "", "*");
        asks_by(Protocol::Tcp, policies, asked, &HeaderMap::new(), None)
    };
    let paths = || Match {
        paths: vec![PathMatch::Text(TextMatch::Prefix("/admin".into()))],
        ..Match::default()
    };
    let except = || Match {
        not_methods: vec![TextMatch::Exact("GET".into())],
        ..Match::default()
    };
    let of_port = |port: u16| {
        let ports = vec![port];
        Match {
            connection: Some(ConnectionMatch {
                destination_ports: ports,
                ..ConnectionMatch::default()
            }),
            ..paths()
        }
    };
    let plain = || Match {
        connection: of_port(8080).connection,
        ..Match::default()
    };
    assert!(tcp(&[]));
    for matches in [paths(), except(), of_port(8080)] {
        assert!(!tcp(&[policy("deny", Action::Deny, vec![matches.clone()])]));
        assert!(!tcp(&[policy("allow", Action::Allow, vec![matches])]));
    }
    assert!(tcp(&[policy("other port", Action::Deny, vec![of_port(9)])]));
    assert!(tcp(&[policy("allow", Action::Allow, vec![plain()])]));
    assert!(!tcp(&[policy("deny", Action::Deny, vec![plain()])]));
}

#[test]
fn no_spelling_of_a_path_passes_a_deny() {
    let paths = vec![PathMatch::Text(TextMatch::Prefix("/admin".into()))];
    let deny = policy(
        "deny",
        Action::Deny,
        vec![Match {
            paths,
            ..Match::default()
        }],
    );
    for target in [
        "/admin",
        "//admin/x",
        "/x/../admin",
        "/./admin",
        "/%61dmin",
        "/x/%2e%2e/admin",
        "/x%2f..%2fadmin",
        "\\admin",
        "/x\\..\\admin?y",
        "/%2Fadmin#z",
        "/x/%2E./%61%64min",
    ] {
        assert!(!get(std::slice::from_ref(&deny), target), "{target}");
    }
    assert!(get(&[deny], "/public"));
}

#[test]
fn hosts_have_no_case_and_no_port() {
    let hosts = vec![TextMatch::Exact("Cart.shop".into())];
    let deny = policy(
        "deny",
        Action::Deny,
        vec![Match {
            hosts,
            ..Match::default()
        }],
    );
    for authority in ["cart.shop", "CART.shop", "cart.SHOP:80"] {
        let asked = (Method::GET, authority, "/");
        assert!(!asks(
            std::slice::from_ref(&deny),
            asked,
            &HeaderMap::new(),
            None
        ));
    }
    let suffix = TextMatch::Suffix(".example.com".into());
    assert!(host_holds(&suffix, "A.EXAMPLE.com") && !host_holds(&suffix, "com"));
}

#[test]
fn a_header_that_is_not_there_fails_every_value_and_passes_every_negation() {
    let name = HeaderName::from_static("x-token");
    let with = |values: Vec<TextMatch>, not_values: Vec<TextMatch>| {
        let header = HeaderMatch {
            name: name.clone(),
            values,
            not_values,
        };
        policy(
            "allow",
            Action::Allow,
            vec![Match {
                headers: vec![header],
                ..Match::default()
            }],
        )
    };
    let admin = || vec![TextMatch::Exact("admin".into())];
    let mut headers = HeaderMap::new();
    let ask = |policy: &Policy, headers: &HeaderMap| {
        let asked = (Method::GET, "cart", "/");
        asks(std::slice::from_ref(policy), asked, headers, None)
    };
    assert!(!ask(&with(admin(), vec![]), &headers));
    assert!(ask(&with(vec![], admin()), &headers));
    headers.insert(&name, HeaderValue::from_static("admin"));
    assert!(ask(&with(admin(), vec![]), &headers));
    assert!(!ask(&with(vec![], admin()), &headers));
}

#[test]
fn ports_are_the_endpoints_own_but_for_policies_of_a_service() {
    let connection = ConnectionMatch {
        destination_ports: vec![8080],
        ..ConnectionMatch::default()
    };
    let mut deny = policy(
        "deny",
        Action::Deny,
        vec![Match {
            connection: Some(connection),
            ..Match::default()
        }],
    );
    assert!(!get(std::slice::from_ref(&deny), "/"));
    deny.scope = Scope::All;
    assert!(get(&[deny], "/"));
}

#[test]
fn an_empty_match_never_holds_and_an_empty_rule_always() {
    let never = policy("deny", Action::Deny, vec![Match::default()]);
    assert!(get(&[never], "/"));
    let origin = policy("x", Action::Deny, vec![]).origin;
    let broken = Policy::unenforceable(origin, Scope::All, "cannot be read");
    assert!(!get(&[broken], "/"));
}

#[test]
fn a_principal_is_that_of_the_client() {
    let principals = vec![model::policy::StringMatch::Exact(
        "cluster.local/ns/shop/sa/web".into(),
    )];
    let connection = ConnectionMatch {
        principals,
        ..ConnectionMatch::default()
    };
    let allow = policy(
        "allow",
        Action::Allow,
        vec![Match {
            connection: Some(connection),
            ..method("GET")
        }],
    );
    let web: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let other: Identity = "spiffe://cluster.local/ns/shop/sa/x".parse().unwrap();
    let ask = |method: Method, source| {
        let asked = (method, "cart", "/");
        asks(
            std::slice::from_ref(&allow),
            asked,
            &HeaderMap::new(),
            source,
        )
    };
    assert!(ask(Method::GET, Some(&web)));
    assert!(!ask(Method::POST, Some(&web)));
    assert!(!ask(Method::GET, Some(&other)));
    assert!(!ask(Method::GET, None));
}
