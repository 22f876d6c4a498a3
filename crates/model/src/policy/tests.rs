use std::sync::LazyLock;

use super::*;

static CART: LazyLock<Identity> =
    LazyLock::new(|| "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap());

/// From 10.1.0.7, as shop/cart, to 10.2.0.9:8080.
fn from_cart() -> Connection<'static> {
    Connection {
        source: Some(&CART),
        source_ip: "10.1.0.7".parse().unwrap(),
        destination_ip: "10.2.0.9".parse().unwrap(),
        destination_port: 8080,
    }
}

pub(super) fn from_nobody() -> Connection<'static> {
    Connection {
        source: None,
        ..from_cart()
    }
}

pub(super) fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        key: PolicyKey::new("shop", name),
        scope: Scope::Namespace,
        action,
        rules,
        dry_run: false,
        unenforceable: None,
    }
}

fn rule(matches: Vec<Match>) -> Rule {
    Rule {
        clauses: vec![Clause { matches }],
    }
}

fn ports(ports: &[u16]) -> Match {
    Match {
        destination_ports: ports.to_vec(),
        ..Match::default()
    }
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(text.into())
}

fn suffix(text: &str) -> StringMatch {
    StringMatch::Suffix(text.into())
}

fn check(what: &str, m: Match, connection: Connection<'_>, expected: bool) {
    let policy = policy("p", Action::Deny, vec![rule(vec![m])]);
    let got = policy.matching_rule(&connection).is_some();
    assert_eq!(got, expected, "{what}: {:?}", policy.rules);
}

/// A field with the value, and the same with its `not` form.
type Pair<T> = (fn(T) -> Match, fn(T) -> Match);

/// A value that fits must make the field hold and its negation fail; one that does not, the
/// reverse.
fn check_pair<T: Clone>(
    what: &str,
    (yes, no): Pair<T>,
    value: T,
    connection: Connection<'_>,
    fits: bool,
) {
    check(what, yes(value.clone()), connection, fits);
    check(&format!("not {what}"), no(value), connection, !fits);
}

const NAMESPACES: Pair<Vec<StringMatch>> = (
    |namespaces| Match {
        namespaces,
        ..Match::default()
    },
    |not_namespaces| Match {
        not_namespaces,
        ..Match::default()
    },
);
const PRINCIPALS: Pair<Vec<StringMatch>> = (
    |principals| Match {
        principals,
        ..Match::default()
    },
    |not_principals| Match {
        not_principals,
        ..Match::default()
    },
);
const SOURCE_IPS: Pair<Vec<IpNet>> = (
    |source_ips| Match {
        source_ips,
        ..Match::default()
    },
    |not_source_ips| Match {
        not_source_ips,
        ..Match::default()
    },
);
const DESTINATION_IPS: Pair<Vec<IpNet>> = (
    |destination_ips| Match {
        destination_ips,
        ..Match::default()
    },
    |not_destination_ips| Match {
        not_destination_ips,
        ..Match::default()
    },
);
const PORTS: Pair<Vec<u16>> = (
    |destination_ports| Match {
        destination_ports,
        ..Match::default()
    },
    |not_destination_ports| Match {
        not_destination_ports,
        ..Match::default()
    },
);
const ACCOUNTS: Pair<Vec<ServiceAccountMatch>> = (
    |service_accounts| Match {
        service_accounts,
        ..Match::default()
    },
    |not_service_accounts| Match {
        not_service_accounts,
        ..Match::default()
    },
);

#[test]
fn namespaces_match_that_of_the_identity() {
    for (value, fits) in [
        (vec![exact("shop")], true),
        (vec![exact("sho")], false),
        (vec![exact("shopp")], false),
        (vec![exact("Shop")], false),
        (vec![prefix("sh")], true),
        (vec![prefix("shop")], true),
        (vec![prefix("shopp")], false),
        (vec![prefix("hop")], false),
        (vec![suffix("op")], true),
        (vec![suffix("sho")], false),
        (vec![StringMatch::Presence], true),
        (vec![exact("bank"), exact("shop")], true),
        (vec![exact("bank"), exact("mail")], false),
    ] {
        let what = format!("namespaces {value:?}");
        check_pair(&what, NAMESPACES, value.clone(), from_cart(), fits);
        check_pair(&what, NAMESPACES, value, from_nobody(), false);
    }
}

#[test]
fn principals_match_the_identity_without_its_scheme() {
    for (value, fits) in [
        (exact("cluster.local/ns/shop/sa/cart"), true),
        (exact("spiffe://cluster.local/ns/shop/sa/cart"), false),
        (exact("cluster.local/ns/shop/sa/car"), false),
        (exact("cluster.local/ns/shop/sa/carts"), false),
        (exact("other.td/ns/shop/sa/cart"), false),
        (exact("/ns/shop/sa/cart"), false),
        (exact(""), false),
        (prefix("cluster.local/"), true),
        (prefix("cluster.local/ns/shop/"), true),
        (prefix("cluster.local/ns/shop/sa/cart"), true),
        (prefix("cluster.local/ns/shop/sa/cartx"), false),
        (prefix("cluster.local/ns/sho/"), false),
        (prefix("spiffe://cluster.local/"), false),
        (suffix("/sa/cart"), true),
        (suffix("p/sa/cart"), true),
        (suffix("cluster.local/ns/shop/sa/cart"), true),
        (suffix("xcluster.local/ns/shop/sa/cart"), false),
        (suffix("/sa/car"), false),
        (suffix("/ns/bank/sa/cart"), false),
        (StringMatch::Presence, true),
    ] {
        let what = format!("principals {value:?}");
        check_pair(&what, PRINCIPALS, vec![value.clone()], from_cart(), fits);
        check_pair(&what, PRINCIPALS, vec![value], from_nobody(), false);
    }
}

#[test]
fn service_accounts_match_in_any_trust_domain() {
    let elsewhere: Identity = "spiffe://other.td/ns/shop/sa/cart".parse().unwrap();
    let from_elsewhere = Connection {
        source: Some(&elsewhere),
        ..from_cart()
    };
    for (namespace, service_account, fits) in [
        ("shop", "cart", true),
        ("shop", "pay", false),
        ("bank", "cart", false),
        ("cart", "shop", false),
    ] {
        let value = vec![ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: service_account.into(),
        }];
        let what = format!("service account {namespace}/{service_account}");
        check_pair(&what, ACCOUNTS, value.clone(), from_cart(), fits);
        check_pair(&what, ACCOUNTS, value.clone(), from_elsewhere, fits);
        check_pair(&what, ACCOUNTS, value, from_nobody(), false);
    }
}

#[test]
fn ranges_match_addresses_of_their_family() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for (range, address, fits) in [
        ("10.1.0.0/16", "10.1.0.7", true),
        ("10.1.0.7/32", "10.1.0.7", true),
        ("10.1.0.6/32", "10.1.0.7", false),
        ("10.1.99.99/16", "10.1.0.7", true),
        ("0.0.0.0/0", "10.1.0.7", true),
        ("0.0.0.0/0", "fd00::7", false),
        ("::/0", "fd00::7", true),
        ("::/0", "10.1.0.7", false),
        ("fd00::/64", "fd00::7", true),
        ("fd00:0:0:1::/64", "fd00::7", false),
        ("10.1.0.0/16", "::ffff:10.1.0.7", true),
        ("10.2.0.0/16", "::ffff:10.1.0.7", false),
        ("::ffff:10.1.0.0/112", "10.1.0.7", true),
        ("::ffff:10.1.0.0/112", "::ffff:10.1.0.7", true),
        ("::ffff:10.2.0.0/112", "10.1.0.7", false),
    ] {
        let value: Vec<IpNet> = vec![range.parse().unwrap()];
        for connection in [from_cart(), from_nobody()] {
            let source = Connection {
                source_ip: ip(address),
                ..connection
            };
            let what = format!("{address} in {range}");
            check_pair(&what, SOURCE_IPS, value.clone(), source, fits);
            let destination = Connection {
                destination_ip: ip(address),
                ..connection
            };
            check_pair(&what, DESTINATION_IPS, value.clone(), destination, fits);
        }
    }
}

#[test]
fn ports_match_that_of_the_destination() {
    for (value, fits) in [
        (vec![8080], true),
        (vec![80, 8080], true),
        (vec![80], false),
        (vec![0], false),
    ] {
        for connection in [from_cart(), from_nobody()] {
            check_pair("ports", PORTS, value.clone(), connection, fits);
        }
    }
}

#[test]
fn a_negative_form_holds_without_an_identity() {
    // This is what STRICT is compiled to.
    let strict = policy(
        "strict",
        Action::Deny,
        vec![rule(vec![(PRINCIPALS.1)(vec![StringMatch::Presence])])],
    );
    assert!(!decide([&strict].into_iter(), &from_nobody()).is_allow());
    assert!(decide([&strict].into_iter(), &from_cart()).is_allow());
}

#[test]
fn fields_are_and_ed_and_values_or_ed() {
    let m = |port| Match {
        namespaces: vec![exact("shop")],
        destination_ports: vec![1, port],
        ..Match::default()
    };
    check("both hold", m(8080), from_cart(), true);
    check("one holds", m(9090), from_cart(), false);
    let but_not = Match {
        not_destination_ports: vec![8080],
        ..m(8080)
    };
    check("the not form vetoes", but_not, from_cart(), false);
}

#[test]
fn an_empty_match_never_holds() {
    check("alone", Match::default(), from_cart(), false);
    let beside = policy(
        "p",
        Action::Allow,
        vec![rule(vec![Match::default(), ports(&[8080])])],
    );
    assert_eq!(beside.matching_rule(&from_cart()), Some(0));
}

#[test]
fn a_policy_without_rules_never_matches() {
    let allow = policy("nobody", Action::Allow, vec![]);
    let deny = policy("nothing", Action::Deny, vec![]);
    assert!(!decide([&allow].into_iter(), &from_cart()).is_allow());
    assert!(decide([&deny].into_iter(), &from_cart()).is_allow());
}

#[test]
fn a_rule_without_clauses_and_a_clause_without_matches_hold() {
    for everything in [Rule::default(), rule(vec![])] {
        let deny = policy("all", Action::Deny, vec![everything]);
        assert_eq!(deny.matching_rule(&from_nobody()), Some(0));
    }
}

#[test]
fn clauses_are_and_ed_matches_and_rules_or_ed() {
    let clause = |ports_: &[u16]| Clause {
        matches: ports_.iter().map(|&port| ports(&[port])).collect(),
    };
    let both = Rule {
        clauses: vec![clause(&[8080]), clause(&[1, 8080])],
    };
    let one = Rule {
        clauses: vec![clause(&[8080]), clause(&[1])],
    };
    let policy = policy("p", Action::Deny, vec![one, both]);
    assert_eq!(policy.matching_rule(&from_cart()), Some(1));
}

#[test]
fn deny_goes_before_allow_and_allow_before_the_default() {
    let everything = || vec![rule(vec![ports(&[8080])])];
    let nothing = || vec![rule(vec![ports(&[1])])];
    let (allow, deny) = (Action::Allow, Action::Deny);
    for (policies, expected) in [
        (vec![], true),
        (vec![(deny, nothing())], true),
        (vec![(deny, everything())], false),
        (vec![(allow, everything())], true),
        (vec![(allow, nothing())], false),
        (vec![(allow, nothing()), (allow, everything())], true),
        (vec![(allow, everything()), (deny, everything())], false),
        (vec![(allow, everything()), (deny, nothing())], true),
        (vec![(allow, nothing()), (deny, nothing())], false),
    ] {
        let policies: Vec<Policy> = policies
            .into_iter()
            .map(|(action, rules)| policy("p", action, rules))
            .collect();
        let verdict = decide(policies.iter(), &from_cart());
        assert_eq!(verdict.is_allow(), expected, "{policies:?}: {verdict}");
    }
}

#[test]
fn dry_run_takes_no_part() {
    for action in [Action::Allow, Action::Deny] {
        for port in [1, 8080] {
            let dry = Policy {
                dry_run: true,
                ..policy("dry", action, vec![rule(vec![ports(&[port])])])
            };
            let verdict = decide([&dry].into_iter(), &from_cart());
            assert_eq!(verdict, Verdict::Allow(AllowReason::NoAllowPolicy));
        }
    }
}

#[test]
fn what_cannot_be_enforced_denies_with_its_reason() {
    let broken = Policy::unenforceable(
        PolicyKey::new("shop", "broken"),
        Scope::Global,
        "rules[0].clauses[0]: makes no sense",
    );
    for connection in [from_cart(), from_nobody()] {
        let verdict = decide([&broken].into_iter(), &connection);
        assert_eq!(
            verdict.to_string(),
            "denied: policy shop/broken cannot be enforced: rules[0].clauses[0]: makes no sense"
        );
    }
}

#[test]
fn an_allow_policy_that_is_enforced_in_part_says_so_when_it_refuses() {
    let partly = Policy {
        unenforceable: Some("paths need a waypoint".into()),
        ..policy("viewer", Action::Allow, vec![rule(vec![ports(&[1])])])
    };
    let other = policy("other", Action::Allow, vec![]);
    let verdict = decide([&other, &partly].into_iter(), &from_cart());
    assert_eq!(
        verdict.to_string(),
        "denied: no ALLOW policy matches; there are shop/other, shop/viewer (cannot be enforced \
         in full: paths need a waypoint)"
    );
    let matching = Policy {
        rules: vec![rule(vec![ports(&[8080])])],
        ..partly
    };
    assert!(decide([&matching].into_iter(), &from_cart()).is_allow());
}

#[test]
fn a_verdict_names_the_policy_and_the_rule() {
    let rules = vec![rule(vec![ports(&[1])]), rule(vec![ports(&[8080])])];
    for (action, expected) in [
        (
            Action::Deny,
            "denied: DENY policy shop/p matches (rules[1])",
        ),
        (
            Action::Allow,
            "allowed: ALLOW policy shop/p matches (rules[1])",
        ),
    ] {
        let policy = policy("p", action, rules.clone());
        let verdict = decide([&policy].into_iter(), &from_cart());
        assert_eq!(verdict.to_string(), expected);
    }
}
