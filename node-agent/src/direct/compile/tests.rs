//! The kernel's tables against the decision that user space takes for each connection.

use std::{collections::BTreeSet, net::IpAddr};

use abi::{ANY_PORT, Addr, DirectVerdict, Endpoint, VerdictKey};
use model::{
    Identity, MeshState, NetworkAddress, Policy, PolicyKey, Service, TrustDomain, Workload,
    policy::{Action, Clause, Connection, Match, Rule, Scope, ServiceAccountMatch, StringMatch},
    service::{AppProtocol, ServicePort},
    workload::PortMapping,
};
use proptest::prelude::*;

use super::{LocalPod, Tables, compile};
use crate::direct::AllSaid;

const ACCOUNTS: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 4] = [80, 443, 8080, 9090];

fn workload(index: u32, account: &str, node: &str) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/shop/p{index}").as_str().into(),
        name: format!("p{index}").into(),
        namespace: "shop".into(),
        service_account: account.into(),
        node: node.into(),
        addresses: addresses(index),
        ..Workload::default()
    }
}

fn addresses(index: u32) -> Vec<IpAddr> {
    vec![
        format!("10.244.1.{}", index + 10).parse().unwrap(),
        format!("fd00::{}", index + 10).parse().unwrap(),
    ]
}

fn local(index: u32, account: &str) -> LocalPod {
    LocalPod {
        id: index + 1,
        workload: format!("Kubernetes//Pod/shop/p{index}").as_str().into(),
        identity: Identity::new(
            "cluster.local".parse::<TrustDomain>().unwrap(),
            "shop",
            account,
        ),
        addresses: addresses(index),
    }
}

/// What the kernel's program does with the tables: `maps::verdict` in the kernel half.
fn kernel(tables: &Tables, source: u32, destination: u32, port: u16) -> DirectVerdict {
    let get = |port| {
        tables.verdicts.get(&VerdictKey {
            source,
            destination,
            port,
            way: 0,
        })
    };
    get(port)
        .or_else(|| get(ANY_PORT))
        .copied()
        .unwrap_or(DirectVerdict::Agent)
}

fn any_string() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        prop::sample::select(&ACCOUNTS[..])
            .prop_map(|a| StringMatch::Exact(format!("cluster.local/ns/shop/sa/{a}").into())),
        Just(StringMatch::Prefix("cluster.local/ns/shop".into())),
        prop::sample::select(&ACCOUNTS[..])
            .prop_map(|a| StringMatch::Suffix(format!("/{a}").into())),
        Just(StringMatch::Presence),
    ]
}

fn any_match() -> impl Strategy<Value = Match> {
    let strings = || prop::collection::vec(any_string(), 0..2);
    let ports = || prop::collection::vec(prop::sample::select(&PORTS[..]), 0..3);
    let nets = || {
        prop::collection::vec(
            prop::sample::select(
                &[
                    "10.244.1.10/32",
                    "10.244.1.8/30",
                    "10.0.0.0/8",
                    "fd00::10/124",
                ][..],
            )
            .prop_map(|net| net.parse().unwrap()),
            0..2,
        )
    };
    let accounts = || {
        prop::collection::vec(
            prop::sample::select(&ACCOUNTS[..]).prop_map(|a| ServiceAccountMatch {
                namespace: "shop".into(),
                service_account: a.into(),
            }),
            0..2,
        )
    };
    let names = (strings(), strings());
    let ports = (ports(), ports());
    let nets = (nets(), nets(), nets());
    (names, ports, nets, accounts()).prop_map(|(names, ports, nets, service_accounts)| Match {
        principals: names.0,
        not_principals: names.1,
        destination_ports: ports.0,
        not_destination_ports: ports.1,
        source_ips: nets.0,
        not_source_ips: nets.1,
        destination_ips: nets.2,
        service_accounts,
        ..Match::default()
    })
}

fn any_policies() -> impl Strategy<Value = Vec<Policy>> {
    let clause = prop::collection::vec(any_match(), 1..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 1..3).prop_map(|clauses| Rule { clauses });
    let policy = (
        prop::bool::ANY,
        prop::bool::weighted(0.1),
        prop::collection::vec(rule, 0..3),
    );
    prop::collection::vec(policy, 0..5).prop_map(|policies| {
        let numbered = policies.into_iter().enumerate();
        let policy = |(number, (deny, dry_run, rules))| Policy {
            key: PolicyKey::new("shop", format!("policy-{number}")),
            scope: Scope::Namespace,
            action: if deny { Action::Deny } else { Action::Allow },
            rules,
            dry_run,
            unenforceable: None,
        };
        numbered.map(policy).collect()
    })
}

fn state(policies: Vec<Policy>) -> (MeshState, Vec<LocalPod>) {
    let mut state = MeshState::default();
    let mut pods = Vec::new();
    for (index, account) in (0..).zip(ACCOUNTS) {
        state.insert_workload(workload(index, account, "n1"));
        pods.push(local(index, account));
    }
    policies
        .into_iter()
        .for_each(|policy| state.insert_policy(policy));
    (state, pods)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn the_kernel_never_disagrees_with_user_space(policies in any_policies()) {
        let (state, pods) = state(policies);
        let tables = compile(&state, &pods, &AllSaid::default());
        for client in &pods {
            for server in pods.iter().filter(|server| server.id != client.id) {
                for port in PORTS.into_iter().chain([1, 22, 65535]) {
                    let verdict = kernel(&tables, client.id, server.id, port);
                    let mut answers = BTreeSet::new();
                    for (source_ip, destination_ip) in client.addresses.iter().zip(&server.addresses) {
                        let workload = state.workload(server.workload.as_ref()).unwrap();
                        let connection = Connection { source: Some(&client.identity), source_ip: *source_ip, destination_ip: *destination_ip, destination_port: port };
                        answers.insert(state.authorize(workload, &connection).is_allow());
                    }
                    let expected = match answers.into_iter().collect::<Vec<_>>()[..] {
                        [true] => DirectVerdict::Allow,
                        [false] => DirectVerdict::Deny,
                        _ => DirectVerdict::Agent,
                    };
                    prop_assert_eq!(verdict, expected, "{:?} -> {:?}:{}", client.workload, server.workload, port);
                }
            }
        }
    }
}

#[test]
fn the_meshs_own_ports_are_left_to_the_agent() {
    let (state, pods) = state(Vec::new());
    let tables = compile(&state, &pods, &AllSaid::default());
    for port in [15001, 15006, 15008] {
        assert_eq!(kernel(&tables, 1, 2, port), DirectVerdict::Agent, "{port}");
    }
    assert_eq!(kernel(&tables, 1, 2, 80), DirectVerdict::Allow);
    assert_eq!(
        kernel(&tables, 1, 9, 80),
        DirectVerdict::Agent,
        "an unknown pod"
    );
}

#[test]
fn a_policy_that_has_not_arrived_leaves_nothing_to_the_kernel() {
    let (mut state, pods) = state(Vec::new());
    let mut waiting = workload(1, "b", "n1");
    waiting.authorization_policies = vec![PolicyKey::new("shop", "not-here")];
    state.insert_workload(waiting);
    let tables = compile(&state, &pods, &AllSaid::default());
    assert_eq!(kernel(&tables, 1, 2, 80), DirectVerdict::Agent);
    assert_eq!(tables.local_pods.get(&Addr::from(addresses(1)[0])), None);
    assert_eq!(kernel(&tables, 1, 3, 80), DirectVerdict::Allow);
}

#[test]
fn a_service_keeps_the_shares_of_its_remote_endpoints() {
    let (mut state, pods) = state(Vec::new());
    let mut remote = workload(7, "b", "n2");
    remote.capacity = 3;
    let service = Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        addresses: vec![NetworkAddress {
            network: "".into(),
            ip: "10.96.0.7".parse().unwrap(),
            prefix: None,
        }],
        ports: vec![ServicePort {
            port: 80,
            target_port: 8080,
            app_protocol: AppProtocol::Unknown,
        }],
        ..Service::default()
    };
    for mut member in [workload(1, "b", "n1"), remote] {
        member
            .services
            .insert(service.key(), vec![PortMapping::new(80, 8080)]);
        state.insert_workload(member);
    }
    let mut sticky = service.clone();
    state.insert_service(service);
    let tables = compile(&state, &pods, &AllSaid::default());
    let vip = Endpoint::new(Addr::from("10.96.0.7".parse::<IpAddr>().unwrap()), 80);
    let shares: BTreeSet<(u32, u64)> = tables.services[&vip]
        .targets
        .iter()
        .map(|(target, weight)| (target.pod, *weight))
        .collect();
    assert_eq!(
        shares,
        BTreeSet::from([(2, 1), (0, 3)]),
        "the local endpoint by its pod, the remote one by none"
    );
    assert_eq!(tables.services[&vip].session_seconds, 0);
    assert!(tables.reached.contains(&pods[1].workload));
    for (timeout, expected) in [(10_800, 10_800), (0, 1), (u64::MAX, u32::MAX)] {
        sticky.session_timeout = Some(std::time::Duration::from_secs(timeout));
        state.insert_service(sticky.clone());
        let tables = compile(&state, &pods, &AllSaid::default());
        assert_eq!(tables.services[&vip].session_seconds, expected);
    }
}
