//! Any policies on any connection: both implementations must come to the same verdict.

use proptest::prelude::*;
use proptest::sample::select;

use super::naive;
use super::tests::{from_nobody, policy};
use super::*;

fn any_text() -> impl Strategy<Value = Arc<str>> {
    let whole = ["td/ns/a/sa/x", "td/ns/ab/sa/x", "d.td/ns/b/sa/yx", "ab", ""];
    (select(whole.to_vec()), 0..16_usize, 0..16_usize).prop_map(|(text, from, to)| {
        let from = from.min(text.len());
        let to = to.clamp(from, text.len());
        text[from..to].into()
    })
}

fn any_string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        any_text().prop_map(StringMatch::Exact),
        any_text().prop_map(StringMatch::Prefix),
        any_text().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
        select(["td/ns/a/sa/x", "a", "ab"].as_slice())
            .prop_map(|text| StringMatch::Exact(text.into())),
    ]
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    select(
        [
            "10.0.0.1",
            "10.0.0.2",
            "10.128.0.1",
            "::ffff:10.0.0.1",
            "::ffff:10.128.0.1",
            "fd00::1",
            "fd00:8000::1",
            "::",
            "0.0.0.0",
        ]
        .as_slice(),
    )
    .prop_map(|text| text.parse().unwrap())
}

fn any_range() -> impl Strategy<Value = IpNet> {
    (any_ip(), 0..=128_u8).prop_map(|(ip, length)| {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new(ip, length.min(longest)).unwrap()
    })
}

fn any_account() -> impl Strategy<Value = ServiceAccountMatch> {
    let names = select(["a", "ab", "b"].as_slice());
    (names, select(["x", "yx"].as_slice())).prop_map(|(namespace, service_account)| {
        ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    })
}

/// Mostly empty, else hardly any match would hold.
fn few<T: Strategy>(value: T) -> impl Strategy<Value = Vec<T::Value>>
where
    T::Value: Clone,
{
    prop_oneof![
        4 => Just(Vec::new()),
        1 => prop::collection::vec(value, 1..3),
    ]
}

fn any_match() -> impl Strategy<Value = Match> {
    let port = || select([80_u16, 443].as_slice());
    (
        (few(any_string_match()), few(any_string_match())),
        (few(any_string_match()), few(any_string_match())),
        (few(any_range()), few(any_range())),
        (few(any_range()), few(any_range())),
        (few(port()), few(port())),
        (few(any_account()), few(any_account())),
    )
        .prop_map(
            |(namespaces, principals, source_ips, destination_ips, ports, accounts)| Match {
                namespaces: namespaces.0,
                not_namespaces: namespaces.1,
                principals: principals.0,
                not_principals: principals.1,
                source_ips: source_ips.0,
                not_source_ips: source_ips.1,
                destination_ips: destination_ips.0,
                not_destination_ips: destination_ips.1,
                destination_ports: ports.0,
                not_destination_ports: ports.1,
                service_accounts: accounts.0,
                not_service_accounts: accounts.1,
            },
        )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let clause = prop::collection::vec(any_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let action = select([Action::Allow, Action::Deny].as_slice());
    (
        action,
        prop::collection::vec(rule, 0..3),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(action, rules, dry_run)| Policy {
            dry_run,
            ..policy("p", action, rules)
        })
}

fn any_identity() -> impl Strategy<Value = Option<Identity>> {
    let ids = [
        "spiffe://td/ns/a/sa/x",
        "spiffe://td/ns/ab/sa/x",
        "spiffe://d.td/ns/b/sa/yx",
    ];
    prop_oneof![
        1 => Just(None),
        3 => select(ids.to_vec()).prop_map(|id| Some(id.parse().unwrap())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn both_implementations_agree(
        policies in prop::collection::vec(any_policy(), 0..4),
        source in any_identity(),
        source_ip in any_ip(),
        destination_ip in any_ip(),
        destination_port in select([80_u16, 443, 9].as_slice()),
    ) {
        let connection = Connection {
            source: source.as_ref(),
            source_ip,
            destination_ip,
            destination_port,
        };
        let verdict = decide(policies.iter(), &connection);
        prop_assert_eq!(
            verdict.is_allow(),
            naive::allows(&policies, &connection),
            "{}", verdict
        );
    }
}

/// Agreement is worth nothing if nearly all cases end the same way.
#[test]
fn the_property_sees_every_kind_of_verdict() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let strategy = (prop::collection::vec(any_policy(), 0..4), any_identity());
    let mut seen = [0; 4];
    for _ in 0..2000 {
        let (policies, source) = strategy.new_tree(&mut runner).unwrap().current();
        let connection = Connection {
            source: source.as_ref(),
            destination_port: 80,
            ..from_nobody()
        };
        let kind = match decide(policies.iter(), &connection) {
            Verdict::Allow(AllowReason::NoAllowPolicy | AllowReason::Waypoint) => 0,
            Verdict::Allow(AllowReason::Matched { .. }) => 1,
            Verdict::Deny(DenyReason::Matched { .. }) => 2,
            Verdict::Deny(_) => 3,
        };
        seen[kind] += 1;
    }
    assert!(seen.iter().all(|&count| count > 100), "{seen:?}");
}
