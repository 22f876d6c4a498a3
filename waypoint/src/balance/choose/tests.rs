use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use l7::ClusterKey;
use l7::backend::{Cluster, Endpoint, LocalityPolicy, Member, TrafficPolicy};
use model::service::AppProtocol;
use model::{MeshState, ServiceKey};

use super::*;
use crate::balance::state::Registry;

fn place(text: &str) -> Locality {
    let mut parts = text.split('/').map(Arc::from);
    let mut next = || parts.next().unwrap_or_default();
    Locality {
        region: next(),
        zone: next(),
        subzone: next(),
    }
}

/// An endpoint 10.0.0.N, where it runs and whether it is ready.
fn member(n: u8, locality: &str, ready: bool) -> Member {
    let address = SocketAddr::from(([10, 0, 0, n], 80));
    let endpoint = Endpoint {
        uid: format!("Kubernetes//Pod/shop/{n}").as_str().into(),
        addresses: vec![address.ip()],
        hostname: None,
        identity: None,
        namespace: "shop".into(),
        labels: Arc::default(),
        node: "n1".into(),
        locality: place(locality),
        weight: 1,
        ports: Vec::new(),
        policies: Vec::new(),
    };
    Member {
        endpoint: Arc::new(endpoint),
        address,
        ready,
    }
}

fn resolve(policy: &TrafficPolicy, members: Vec<Member>, registry: &Registry) -> Resolved {
    let cluster = Cluster {
        key: ClusterKey {
            service: ServiceKey::new("shop", "cart"),
            port: 80,
            subset: None,
        },
        origin: None,
        policy: Arc::new(policy.clone()),
        protocol: AppProtocol::Http11,
        members,
    };
    Resolved::new(Arc::new(cluster), &MeshState::default(), registry)
}

/// How often each endpoint is chosen in a thousand times, by the last part of its address.
fn counts(resolved: &Resolved, asked: Asked<'_>) -> BTreeMap<u8, u32> {
    let mut counts = BTreeMap::new();
    for _ in 0..1000 {
        let chosen = choose(resolved, asked, &mut rand::rng()).unwrap();
        let IpAddr::V4(address) = chosen.member.address.ip() else {
            panic!("{chosen:?}");
        };
        *counts.entry(address.octets()[3]).or_default() += 1;
    }
    counts
}

fn asked<'a>(active: &'a Active, tried: &'a [SocketAddr], elsewhere: bool) -> Asked<'a> {
    Asked {
        tried,
        elsewhere,
        ..Asked::of(active)
    }
}

fn at(locality: &str) -> Active {
    Active {
        own: place(locality),
        ..Active::default()
    }
}

#[test]
fn a_new_endpoint_gets_less_at_first_and_its_share_when_it_is_warm() {
    let policy = TrafficPolicy {
        warm_up: Some(WarmUp {
            duration: Duration::from_millis(600),
            minimum_percent: 10.0,
            aggression: 1.0,
        }),
        ..TrafficPolicy::default()
    };
    let registry = Registry::default();
    let active = Active::default();
    let share = |members| counts(&resolve(&policy, members, &registry), Asked::of(&active));
    // The second one takes long to start; that is none of its warm-up.
    share(vec![member(1, "", true), member(2, "", false)]);
    std::thread::sleep(Duration::from_millis(700));
    let both = || vec![member(1, "", true), member(2, "", true)];
    let new = share(both());
    assert!(new[&2] < 250, "a tenth to begin with: {new:?}");
    std::thread::sleep(Duration::from_millis(650));
    let warm = share(both());
    assert_eq!(warm, [(1, 500), (2, 500)].into());
}

#[test]
fn requests_are_distributed_over_localities_as_is_said() {
    let shares = vec![("eu/b/*".into(), 80), ("us/*".into(), 20)];
    let other = vec![("us/*".into(), 100)];
    let distribute = vec![("us/*".into(), other), ("eu/a/*".into(), shares)];
    let policy = TrafficPolicy {
        locality: Some(LocalityPolicy::Distribute(distribute)),
        ..TrafficPolicy::default()
    };
    let registry = Registry::default();
    let members = || {
        vec![
            member(1, "eu/a/1", true),
            member(2, "eu/b/1", true),
            member(3, "us/a/1", true),
        ]
    };
    let (eu, asia) = (at("eu/a/1"), at("asia/a/1"));
    let counted = counts(&resolve(&policy, members(), &registry), Asked::of(&eu));
    // 20 % of 1,000 has a deviation of 13: five of them.
    assert!((135..=265).contains(&counted[&3]), "F61: {counted:?}");
    assert_eq!(counted[&2] + counted[&3], 1000, "F61: {counted:?}");
    // What nothing is said of goes everywhere, and what has no endpoint gets nothing.
    let counted = counts(&resolve(&policy, members(), &registry), Asked::of(&asia));
    assert_eq!(counted.len(), 3, "{counted:?}");
    let without = members().into_iter().take(2).collect();
    let counted = counts(&resolve(&policy, without, &registry), Asked::of(&eu));
    assert_eq!(counted, [(2, 1000)].into());
}

#[test]
fn a_retry_stays_near_unless_it_shall_go_elsewhere() {
    let policy = TrafficPolicy {
        locality: Some(LocalityPolicy::Failover(BTreeMap::new())),
        ..TrafficPolicy::default()
    };
    let members = vec![
        member(1, "eu/a/1", true),
        member(2, "eu/a/1", true),
        member(3, "us/a/1", true),
    ];
    let registry = Registry::default();
    let resolved = resolve(&policy, members, &registry);
    let active = at("eu/a/1");
    let tried = [1, 2].map(|n| SocketAddr::from(([10, 0, 0, n], 80)));
    let one = &tried[..1];
    let counted = counts(&resolved, asked(&active, one, false));
    assert_eq!(counted, [(2, 1000)].into(), "the other one that is near");
    let counted = counts(&resolved, asked(&active, one, true));
    assert_eq!(counted, [(3, 1000)].into(), "another locality");
    let counted = counts(&resolved, asked(&active, &tried, false));
    assert!(!counted.contains_key(&3), "it stays near: {counted:?}");
}

#[test]
fn those_that_share_most_labels_are_first() {
    let wanted = vec![
        ("topology.kubernetes.io/region".into(), None),
        ("topology.kubernetes.io/zone".into(), None),
    ];
    let policy = TrafficPolicy {
        locality: Some(LocalityPolicy::Priority(wanted)),
        ..TrafficPolicy::default()
    };
    let registry = Registry::default();
    let near = |ready| {
        vec![
            member(1, "eu/a/1", ready),
            member(2, "eu/b/1", true),
            member(3, "us/a/1", true),
        ]
    };
    let active = at("eu/a/9");
    for (members, first) in [(near(true), 1), (near(false), 2)] {
        let counted = counts(&resolve(&policy, members, &registry), Asked::of(&active));
        assert_eq!(counted, [(first, 1000)].into(), "F61");
    }
}
