//! The conditions that come of a value, and what they mean for identities: compared with the meaning written down a
//! second time, and asked by the function that decides on connections.

use std::net::IpAddr;

use model::Identity;
use model::policy::{Connection, Policy, decide};
use proptest::prelude::*;
use proptest::sample::select;
use proto::istio::security as pb;

use super::*;

fn check(value: &str, expected: &[&str]) {
    let domains = TrustDomains::new("corp", ["old.corp"]);
    let found = domains.principals(&[value.to_owned()]);
    let text = |found: &StringMatch| match found.match_type.as_ref().unwrap() {
        MatchType::Exact(text) => text.clone(),
        MatchType::Prefix(text) => format!("{text}*"),
        MatchType::Suffix(text) => format!("*{text}"),
        MatchType::Presence(()) => "*".to_owned(),
    };
    let found: Vec<String> = found.iter().map(text).collect();
    assert_eq!(found, expected, "{value}");
}

/// As many as fit into an object, and each of them twice. Each compared with all others takes a minute.
#[test]
fn tens_of_thousands_of_principals_are_told_apart_in_no_time() {
    let values: Vec<String> = (0..60_000)
        .map(|number| format!("cluster.local/ns/n/sa/{}", number % 30_000))
        .collect();
    let domains = TrustDomains::new("corp", ["old.corp"]);
    let began = std::time::Instant::now();
    assert_eq!(domains.principals(&values).len(), 60_000);
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_local_name_stands_for_every_local_trust_domain() {
    let both = ["corp/ns/a/sa/x", "old.corp/ns/a/sa/x"];
    check("cluster.local/ns/a/sa/x", &both);
    check("corp/ns/a/sa/x", &both);
    check("old.corp/ns/a/sa/x", &both);
    check("cluster.local/ns/a/*", &["corp/ns/a/*", "old.corp/ns/a/*"]);
    check("cluster.*", &["cluster.*", "corp/*", "old.corp/*"]);
    check(
        "*.local/ns/a/sa/x",
        &["*.local/ns/a/sa/x", "corp/ns/a/sa/x", "old.corp/ns/a/sa/x"],
    );
    for stranger in [
        "*",
        "elsewhere/ns/a/sa/x",
        "elsewhere/*",
        "*/ns/a/sa/x",
        "*/sa/x",
        "*x",
        "else*",
        "*where/ns/a/sa/x",
        "x",
    ] {
        check(stranger, &[stranger]);
    }
}

/// What a value means: an identity of a local trust domain fits if it would under any of the local names; in full, such
/// a name means nobody else.
fn means(domains: &TrustDomains, value: &str, domain: &str, rest: &str) -> bool {
    let fits = |text: &str| match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(end), _) => text.ends_with(end),
        (None, Some(start)) => text.starts_with(start),
        (None, None) => text == value,
    };
    let is_local = domains.domains.iter().any(|local| local == domain);
    if is_local {
        let mut names = domains.names();
        return names.any(|name| fits(&format!("{name}{rest}")));
    }
    let in_full = value
        .split_once('/')
        .is_some_and(|(name, _)| !name.starts_with('*') && domains.is_name(name));
    !in_full && fits(&format!("{domain}{rest}"))
}

fn any_value() -> impl Strategy<Value = String> {
    let domain = select(vec!["cluster.local", "corp", "old.corp", "else.local"]);
    let rest = select(vec!["/ns/a/sa/x", "/ns/a/sa/xx", "/ns/b/sa/x"]);
    (domain, rest, 0..3_u8, 0..24_usize).prop_map(|(domain, rest, shape, at)| {
        let whole = format!("{domain}{rest}");
        let at = at.min(whole.len());
        match shape {
            0 => whole,
            1 => format!("{}*", &whole[..at]),
            _ => format!("*{}", &whole[at..]),
        }
    })
}

proptest! {
    #[test]
    fn policies_mean_the_local_trust_domain_by_every_name_of_it(
        values in proptest::collection::vec(any_value(), 1..3),
        negated in any::<bool>(),
        aliased in any::<bool>(),
        local in select(vec!["corp", "cluster.local"]),
        domain in select(vec!["cluster.local", "corp", "old.corp", "else.local"]),
        rest in select(vec!["/ns/a/sa/x", "/ns/a/sa/xx", "/ns/b/sa/x"]),
    ) {
        let domains = TrustDomains::new(local, aliased.then_some("old.corp"));
        let principals = domains.principals(&values);
        let condition = match negated {
            true => pb::Match { not_principals: principals, ..pb::Match::default() },
            false => pb::Match { principals, ..pb::Match::default() },
        };
        let policy = Policy::try_from(pb::Authorization {
            name: "p".into(),
            namespace: "shop".into(),
            scope: pb::Scope::Namespace.into(),
            action: pb::Action::Deny.into(),
            rules: vec![pb::Rule { clauses: vec![pb::Clause { matches: vec![condition] }] }],
            ..pb::Authorization::default()
        }).unwrap();
        let identity: Identity = format!("spiffe://{domain}{rest}").parse().unwrap();
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let connection = Connection {
            source: Some(&identity),
            source_ip: ip,
            destination_ip: ip,
            destination_port: 80,
        };
        let denied = !decide(std::iter::once(&policy), &connection).is_allow();
        let any = values.iter().any(|value| means(&domains, value, domain, rest));
        prop_assert_eq!(denied, any != negated, "{:?} {} {}", values, domain, local);
    }
}
