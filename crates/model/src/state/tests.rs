use super::*;
use crate::identity::Identity;
use crate::policy::{Action, Rule, Scope};
use crate::service::Visibility;
use crate::workload::{NetworkMode, PortMapping};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn workload(name: &str, addresses: &[&str]) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/shop/{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ..Workload::default()
    }
}

fn service(namespace: &str, name: &str, addresses: &[NetworkAddress]) -> Service {
    Service {
        name: name.into(),
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
        addresses: addresses.to_vec(),
        ..Service::default()
    }
}

fn vip(text: &str) -> NetworkAddress {
    NetworkAddress::single("", ip(text))
}

fn range(text: &str, prefix: u8) -> NetworkAddress {
    NetworkAddress {
        prefix: Some(prefix),
        ..vip(text)
    }
}

fn policy(namespace: &str, name: &str, scope: Scope, action: Action) -> Policy {
    Policy {
        key: PolicyKey::new(namespace, name),
        scope,
        action,
        rules: vec![],
        dry_run: false,
        unenforceable: None,
    }
}

/// Nothing that was ever known is left anywhere.
fn assert_empty(state: &MeshState) {
    assert!(state.workloads.is_empty());
    assert!(state.services.is_empty());
    assert!(state.tombstones.is_empty());
    assert!(state.endpoints.is_empty());
    assert!(state.networks.is_empty());
    assert_eq!(state.policies().len(), 0);
}

#[test]
fn a_workload_is_found_by_each_of_its_addresses_in_its_network_only() {
    let mut state = MeshState::default();
    state.insert_workload(workload("a", &["10.244.1.10", "fd00::10"]));
    for address in ["10.244.1.10", "fd00::10", "::ffff:10.244.1.10"] {
        let found = state.workload_by_ip("", ip(address));
        assert_eq!(found.map(|w| &*w.name), Some("a"), "{address}");
    }
    assert!(state.workload_by_ip("", ip("10.244.1.11")).is_none());
    assert!(state.workload_by_ip("west", ip("10.244.1.10")).is_none());
}

#[test]
fn an_update_moves_a_workload_everywhere() {
    let mut state = MeshState::default();
    let (old, new) = (
        ServiceKey::new("shop", "old"),
        ServiceKey::new("shop", "new"),
    );
    let of = |key: &ServiceKey, address| Workload {
        services: [(key.clone(), vec![])].into(),
        ..workload("a", &[address])
    };
    state.insert_workload(of(&old, "10.244.1.10"));
    state.insert_workload(of(&new, "10.244.1.11"));
    assert!(state.workload_by_ip("", ip("10.244.1.10")).is_none());
    assert!(state.workload_by_ip("", ip("10.244.1.11")).is_some());
    assert!(state.endpoints(&old).is_empty());
    assert_eq!(state.endpoints(&new).len(), 1);
    assert!(state.remove("Kubernetes//Pod/shop/a"));
    assert_empty(&state);
}

#[test]
fn endpoints_may_arrive_before_their_service() {
    let mut state = MeshState::default();
    let front = service("shop", "front", &[vip("10.96.0.1")]);
    let mapping = PortMapping::new(80, 8080);
    state.insert_workload(Workload {
        services: [(front.key(), vec![mapping])].into(),
        ..workload("a", &["10.244.1.10"])
    });
    state.insert_service(front.clone());
    assert_eq!(state.endpoints(&front.key()).len(), 1);
    assert!(state.remove("shop/front.shop.svc.cluster.local"));
    assert!(state.service_by_vip("", ip("10.96.0.1")).is_none());
    assert_eq!(state.endpoints(&front.key()).len(), 1);
}

#[test]
fn the_owner_of_an_address_goes_before_those_who_share_it() {
    let node = |name| Workload {
        network_mode: NetworkMode::HostNetwork,
        ..workload(name, &["192.168.0.1"])
    };
    let own = || workload("own", &["192.168.0.1"]);
    for order in [
        [node("n1"), node("n2"), own()],
        [own(), node("n1"), node("n2")],
        [node("n1"), own(), node("n2")],
    ] {
        let mut state = MeshState::default();
        for workload in order {
            state.insert_workload(workload);
        }
        let found = |state: &MeshState| {
            let found = state.workload_by_ip("", ip("192.168.0.1"));
            found.map(|w| w.name.to_string())
        };
        assert_eq!(found(&state).as_deref(), Some("own"));
        assert!(state.remove("Kubernetes//Pod/shop/own"));
        assert_eq!(found(&state).as_deref(), Some("n2"));
        assert!(state.remove("Kubernetes//Pod/shop/n2"));
        assert_eq!(found(&state).as_deref(), Some("n1"));
        assert!(state.remove("Kubernetes//Pod/shop/n1"));
        assert_empty(&state);
    }
}

#[test]
fn a_reused_address_belongs_to_the_latest_workload() {
    let mut state = MeshState::default();
    state.insert_workload(workload("done", &["10.244.1.10"]));
    state.insert_workload(workload("new", &["10.244.1.10"]));
    let found = state.workload_by_ip("", ip("10.244.1.10")).unwrap();
    assert_eq!(&*found.name, "new");
}

#[test]
fn a_vip_is_found_exactly_or_else_in_the_longest_range() {
    let mut state = MeshState::default();
    state.insert_service(service("shop", "one", &[vip("10.96.0.1")]));
    state.insert_service(service("shop", "full", &[range("10.96.0.2", 32)]));
    state.insert_service(service("shop", "wide", &[range("10.96.0.0", 16)]));
    state.insert_service(service("shop", "narrow", &[range("10.96.0.0", 24)]));
    for (address, expected) in [
        ("10.96.0.1", Some("one")),
        ("::ffff:10.96.0.1", Some("one")),
        ("10.96.0.2", Some("full")),
        ("10.96.0.3", Some("narrow")),
        ("10.96.1.1", Some("wide")),
        ("10.97.0.1", None),
    ] {
        let found = state.service_by_vip("", ip(address));
        assert_eq!(found.map(|s| &*s.name), expected, "{address}");
    }
    for name in ["one", "full", "wide", "narrow"] {
        assert!(state.remove(&format!("shop/{name}.shop.svc.cluster.local")));
    }
    assert_empty(&state);
}

#[test]
fn a_shared_vip_is_that_of_the_clients_namespace_first_then_the_canonical_one() {
    let mut state = MeshState::default();
    let shared = [vip("10.96.0.1"), range("10.97.0.0", 24)];
    state.insert_service(service("a", "s", &shared));
    state.insert_service(service("b", "s", &shared));
    state.insert_service(Service {
        canonical: true,
        ..service("c", "s", &shared)
    });
    state.insert_service(Service {
        visibility: Visibility::Namespace,
        canonical: true,
        ..service("d", "s", &[vip("10.96.0.1"), range("10.97.0.0", 28)])
    });
    for (client, exact, ranged) in [
        (Some("a"), "a", "a"),
        (Some("b"), "b", "b"),
        (Some("d"), "d", "d"),
        (Some("elsewhere"), "c", "c"),
        // Nobody in particular sees everything.
        (None, "c", "d"),
    ] {
        let found = state.service_by_exact_vip("", ip("10.96.0.1"), client);
        assert_eq!(found.map(|s| &*s.namespace), Some(exact), "{client:?}");
        let found = state.service_by_range("", ip("10.97.0.1"), client);
        assert_eq!(found.map(|s| &*s.namespace), Some(ranged), "{client:?}");
    }
}

/// Whoever may write a service by hand in one namespace takes nothing that others dial of another namespace's workload.
#[test]
fn a_service_by_hand_stands_for_no_address_of_a_foreign_workload() {
    let mut state = MeshState::default();
    // `workload` makes those of namespace `shop`.
    state.insert_workload(workload("cart", &["10.244.1.10"]));
    let takes = |state: &MeshState, client| {
        let found = state.service_by_exact_vip("", ip("10.244.1.10"), client);
        found.map(|service| service.namespace.to_string())
    };
    state.insert_service(service("bank", "s", &[vip("10.244.1.10")]));
    for client in [None, Some("shop"), Some("elsewhere")] {
        assert_eq!(takes(&state, client), None, "{client:?}");
    }
    assert_eq!(
        takes(&state, Some("bank")).as_deref(),
        Some("bank"),
        "its own"
    );
    // One of the workload's own namespace is what its writers mean.
    state.insert_service(service("shop", "s", &[vip("10.244.1.10")]));
    assert_eq!(takes(&state, Some("elsewhere")).as_deref(), Some("shop"));
    // Where nobody is known to be it stands for it.
    let nobody = service("bank", "t", &[vip("192.0.2.1")]);
    state.insert_service(nobody);
    assert!(
        state
            .service_by_exact_vip("", ip("192.0.2.1"), Some("shop"))
            .is_some()
    );
}

#[test]
fn a_snapshot_does_not_see_later_changes() {
    let mut state = MeshState::default();
    let key = ServiceKey::new("shop", "front");
    let member = |name, address| Workload {
        services: [(key.clone(), vec![])].into(),
        ..workload(name, &[address])
    };
    state.insert_workload(member("a", "10.244.1.10"));
    let snapshot = state.clone();
    state.insert_workload(member("b", "10.244.1.11"));
    state.remove("Kubernetes//Pod/shop/a");
    let names = |state: &MeshState| -> Vec<String> {
        let endpoints = state.endpoints(&key).iter();
        endpoints.map(|w| w.name.to_string()).collect()
    };
    assert_eq!(names(&snapshot), ["a"]);
    assert_eq!(names(&state), ["b"]);
}

#[test]
fn policies_are_those_of_the_namespace_the_mesh_and_the_workload_each_once() {
    use Scope::{Global, Namespace, WorkloadSelector};
    let mut state = MeshState::default();
    for (namespace, name, scope) in [
        ("shop", "own", Namespace),
        ("bank", "other", Namespace),
        ("istio-system", "mesh", Global),
        ("shop", "selected", WorkloadSelector),
        ("shop", "not-selected", WorkloadSelector),
        ("bank", "borrowed", Namespace),
    ] {
        state.insert_policy(policy(namespace, name, scope, Action::Deny));
    }
    let named = [
        "shop/selected",
        "shop/own",
        "istio-system/mesh",
        "bank/borrowed",
    ];
    let a = Workload {
        authorization_policies: named.iter().map(|name| name.parse().unwrap()).collect(),
        ..workload("a", &[])
    };
    let names: Vec<String> = state
        .policies_for(&a)
        .unwrap()
        .iter()
        .map(|policy| policy.key.to_string())
        .collect();
    assert_eq!(
        names,
        [
            "shop/own",
            "istio-system/mesh",
            "shop/selected",
            "bank/borrowed"
        ]
    );
}

#[test]
fn a_policy_that_changes_its_scope_leaves_the_old_one() {
    let mut state = MeshState::default();
    let a = workload("a", &[]);
    for scope in [Scope::Global, Scope::Namespace, Scope::WorkloadSelector] {
        state.insert_policy(policy("shop", "p", scope, Action::Deny));
        let expected = usize::from(scope != Scope::WorkloadSelector);
        assert_eq!(state.policies_for(&a).unwrap().len(), expected, "{scope:?}");
    }
    assert!(state.remove_policy("shop/p"));
    assert!(!state.remove_policy("shop/p"));
    assert_empty(&state);
}

#[test]
fn an_unknown_policy_name_refuses() {
    let mut state = MeshState::default();
    let a = Workload {
        authorization_policies: vec![PolicyKey::new("shop", "late")],
        ..workload("a", &[])
    };
    let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let connection = Connection {
        source: Some(&identity),
        source_ip: ip("10.244.1.10"),
        destination_ip: ip("10.244.2.10"),
        destination_port: 80,
    };
    let everything = |name, action| Policy {
        rules: vec![Rule::default()],
        ..policy("shop", name, Scope::WorkloadSelector, action)
    };

    assert!(state.policies_for(&a).is_err());
    let verdict = state.authorize(&a, &connection);
    assert_eq!(
        verdict.to_string(),
        "denied: policy shop/late is named by the destination and has not been received"
    );
    state.insert_policy(everything("late", Action::Allow));
    assert!(state.authorize(&a, &connection).is_allow());
    state.insert_policy(everything("late", Action::Deny));
    assert!(!state.authorize(&a, &connection).is_allow());
    state.remove_policy("shop/late");
    assert!(!state.authorize(&a, &connection).is_allow());
}

#[test]
fn who_requires_a_waypoint_takes_connections_from_it_only() {
    use crate::address::{GatewayAddress, GatewayDestination};

    let key = ServiceKey::new("shop", "w.shop.svc.cluster.local");
    let by_name = GatewayDestination::Hostname(key.clone());
    let by_address = GatewayDestination::Address(vip("10.244.1.20"));
    for destination in [by_name, by_address] {
        let waypoint = GatewayAddress {
            destination,
            hbone_port: 15008,
        };
        let a = Workload {
            waypoint: Some(waypoint.clone()),
            ..workload("a", &["10.244.1.10"])
        };
        let mut state = MeshState::default();
        let gate: Identity = "spiffe://cluster.local/ns/shop/sa/gate".parse().unwrap();
        let other: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let verdict = |state: &MeshState, source| {
            let connection = Connection {
                source,
                source_ip: ip("10.244.1.20"),
                destination_ip: ip("10.244.1.10"),
                destination_port: 80,
            };
            state.authorize(&a, &connection)
        };
        assert!(
            !verdict(&state, Some(&gate)).is_allow(),
            "nobody is known to be it"
        );
        state.insert_workload(Workload {
            service_account: "gate".into(),
            services: [(key.clone(), vec![])].into(),
            ..workload("gate", &["10.244.1.20"])
        });
        assert!(verdict(&state, Some(&gate)).is_allow());
        for source in [Some(&other), None] {
            let Verdict::Deny(reason) = verdict(&state, source) else {
                panic!("{source:?} is let in past {waypoint}");
            };
            assert_eq!(reason.reason().as_str(), "waypoint_required");
        }
        // It has asked policy itself, with the identity of the client, which is not shown here.
        let deny = Policy {
            rules: vec![Rule::default()],
            ..policy("shop", "deny", Scope::Namespace, Action::Deny)
        };
        state.insert_policy(deny);
        assert!(verdict(&state, Some(&gate)).is_allow());
        assert!(!verdict(&state, Some(&other)).is_allow());
    }
}

#[test]
fn a_waypoint_of_a_service_is_let_in_and_others_are_under_policy() {
    use crate::address::{GatewayAddress, GatewayDestination};

    let key = |name: &str| ServiceKey::new("shop", format!("{name}.shop.svc.cluster.local"));
    let mut state = MeshState::default();
    state.insert_service(Service {
        name: "front".into(),
        namespace: "shop".into(),
        hostname: "front.shop.svc.cluster.local".into(),
        waypoint: Some(GatewayAddress {
            destination: GatewayDestination::Hostname(key("w")),
            hbone_port: 15008,
        }),
        ..Service::default()
    });
    state.insert_workload(Workload {
        service_account: "gate".into(),
        services: [(key("w"), vec![])].into(),
        ..workload("gate", &["10.244.1.20"])
    });
    let a = Workload {
        services: [(key("front"), vec![])].into(),
        ..workload("a", &["10.244.1.10"])
    };
    state.insert_policy(Policy {
        rules: vec![Rule::default()],
        ..policy("shop", "deny", Scope::Namespace, Action::Deny)
    });
    for (account, allowed) in [("gate", true), ("cart", false)] {
        let source = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        let source: Identity = source.parse().unwrap();
        let connection = Connection {
            source: Some(&source),
            source_ip: ip("10.244.1.20"),
            destination_ip: ip("10.244.1.10"),
            destination_port: 80,
        };
        let verdict = state.authorize(&a, &connection);
        assert_eq!(verdict.is_allow(), allowed, "{account}");
    }
}

/// kubernetes#103675: whoever may write slices in one namespace names any pod as an endpoint of a service there.
#[test]
fn a_waypoint_of_another_namespaces_service_is_under_the_policy_of_the_workload() {
    use crate::address::{GatewayAddress, GatewayDestination};

    let key = |name: &str| ServiceKey::new("tenant", format!("{name}.tenant.svc.cluster.local"));
    let mut state = MeshState::default();
    state.insert_service(Service {
        name: "trap".into(),
        namespace: "tenant".into(),
        hostname: "trap.tenant.svc.cluster.local".into(),
        waypoint: Some(GatewayAddress {
            destination: GatewayDestination::Hostname(key("w")),
            hbone_port: 15008,
        }),
        ..Service::default()
    });
    state.insert_workload(Workload {
        namespace: "tenant".into(),
        service_account: "mallory".into(),
        services: [(key("w"), vec![])].into(),
        ..workload("mallory", &["10.244.1.20"])
    });
    let victim = Workload {
        services: [(key("trap"), vec![])].into(),
        ..workload("a", &["10.244.1.10"])
    };
    state.insert_policy(Policy {
        rules: vec![Rule::default()],
        ..policy("shop", "deny", Scope::Namespace, Action::Deny)
    });
    let source: Identity = "spiffe://cluster.local/ns/tenant/sa/mallory"
        .parse()
        .unwrap();
    let connection = Connection {
        source: Some(&source),
        source_ip: ip("10.244.1.20"),
        destination_ip: ip("10.244.1.10"),
        destination_port: 80,
    };
    assert!(!state.authorize(&victim, &connection).is_allow());
}

#[test]
fn a_strict_refusal_names_the_object_that_somebody_wrote() {
    let anonymous = Connection {
        source: None,
        source_ip: ip("10.244.1.20"),
        destination_ip: ip("10.244.1.10"),
        destination_port: 80,
    };
    let deny = |key: &PolicyKey| Policy {
        key: key.clone(),
        rules: vec![Rule::default()],
        ..policy("", "", Scope::WorkloadSelector, Action::Deny)
    };
    let statically = PolicyKey::new("istio-system", "istio_converted_static_strict");
    let own = PolicyKey::peer_authentication("shop", "own");
    let mesh_wide = PolicyKey::peer_authentication("istio-system", "default");
    for (named, strict_by, expected) in [
        (
            &statically,
            Some(&mesh_wide),
            "PeerAuthentication istio-system/default is STRICT",
        ),
        (
            &statically,
            None,
            "a PeerAuthentication is STRICT (policy istio-system/istio_converted_static_strict)",
        ),
        (&own, None, "PeerAuthentication shop/own is STRICT"),
        (
            &PolicyKey::new("shop", "own"),
            None,
            "DENY policy shop/own matches (rules[0])",
        ),
    ] {
        let mut state = MeshState::default();
        let server = Workload {
            authorization_policies: vec![named.clone()],
            strict_by: strict_by.cloned().map(Box::new),
            ..workload("a", &["10.244.1.10"])
        };
        for key in [&statically, &own, &PolicyKey::new("shop", "own")] {
            state.insert_policy(deny(key));
        }
        let Verdict::Deny(reason) = state.authorize(&server, &anonymous) else {
            panic!("{named} lets in");
        };
        assert!(reason.to_string().starts_with(expected), "{reason}");
    }
}

#[test]
fn objects_of_two_kinds_may_have_one_name() {
    let keys = [
        PolicyKey::new("shop", "own"),
        PolicyKey::peer_authentication("shop", "own"),
    ];
    let mut state = MeshState::default();
    for key in &keys {
        assert_eq!(key.to_string().parse(), Ok(key.clone()));
        state.insert_policy(Policy {
            key: key.clone(),
            ..policy("", "", Scope::Namespace, Action::Deny)
        });
    }
    assert_eq!(state.policies().len(), 2);
    assert!(state.remove_policy("shop/converted_peer_authentication_own"));
    assert!(state.policy(&keys[0]).is_some());
    assert!(state.policy(&keys[1]).is_none());
}
