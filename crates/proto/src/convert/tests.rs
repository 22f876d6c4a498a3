use model::address::Family;
use model::policy::{Action, Clause, Match, Rule, ServiceAccountMatch, StringMatch};
use model::workload::{Health, Isolated, TunnelProtocol};
use model::{Policy, PolicyKey, Service, Workload};
use prost::Message;

use super::*;
use crate::istio::{security as pb, workload as pb_workload};

fn workload() -> pb_workload::Workload {
    pb_workload::Workload {
        uid: "Kubernetes//Pod/shop/a".to_owned(),
        ..Default::default()
    }
}

fn service() -> pb_workload::Service {
    pb_workload::Service {
        namespace: "shop".to_owned(),
        hostname: "a.shop.svc.cluster.local".to_owned(),
        ..Default::default()
    }
}

/// A policy with one match.
fn authorization(m: pb::Match) -> pb::Authorization {
    pb::Authorization {
        name: "p".to_owned(),
        namespace: "shop".to_owned(),
        scope: pb::Scope::WorkloadSelector.into(),
        rules: vec![pb::Rule {
            clauses: vec![pb::Clause { matches: vec![m] }],
        }],
        ..Default::default()
    }
}

#[test]
fn what_is_empty_has_the_meaning_that_istio_gives_it() {
    let workload = Workload::try_from(workload()).unwrap();
    assert_eq!(workload.trust_domain.as_str(), "cluster.local");
    assert_eq!(&*workload.service_account, "default");
    assert_eq!(&*workload.cluster_id, "Kubernetes");
    assert_eq!(workload.capacity, 1);
    assert_eq!(workload.status, Health::Healthy);
    assert_eq!(workload.tunnel, TunnelProtocol::None);
    assert!(workload.waypoint.is_none());
}

#[test]
fn a_capacity_of_zero_is_not_one_that_is_missing() {
    let none = pb_workload::Workload {
        capacity: Some(0),
        ..workload()
    };
    assert_eq!(Workload::try_from(none).unwrap().capacity, 0);
}

#[test]
fn a_mapped_address_is_ipv4() {
    let mapped = pb_workload::Workload {
        addresses: vec![vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 1]],
        ..workload()
    };
    let workload = Workload::try_from(mapped).unwrap();
    assert_eq!(workload.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_kind_of_owner_that_is_newer_than_us_is_no_error() {
    let newer = pb_workload::Workload {
        workload_type: 99,
        ..workload()
    };
    assert!(Workload::try_from(newer).is_ok());
}

#[test]
fn an_error_in_a_workload_names_the_field() {
    type Change = fn(&mut pb_workload::Workload);
    let check = |expected: &str, change: Change| {
        let mut bad = workload();
        change(&mut bad);
        let error = Workload::try_from(bad).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check("uid: is missing", |w| w.uid.clear());
    check(
        "addresses[1]: is 5 bytes long; an address has 4 or 16",
        |w| w.addresses = vec![vec![10, 0, 0, 1], vec![0; 5]],
    );
    check("tunnel_protocol: is 9, which has no meaning here", |w| {
        w.tunnel_protocol = 9;
    });
    check(
        "tunnel_protocol: is LEGACY_ISTIO_MTLS, which is not supported",
        |w| w.tunnel_protocol = pb_workload::TunnelProtocol::LegacyIstioMtls.into(),
    );
    check("status: is 7, which has no meaning here", |w| w.status = 7);
    check("network_mode: is -1, which has no meaning here", |w| {
        w.network_mode = -1;
    });
    check(
        "trust_domain: \"a/b\" cannot be the trust domain of an identity: use letters, digits, \
         '.', '-', '_'",
        |w| w.trust_domain = "a/b".to_owned(),
    );
    check("waypoint.destination: is missing", |w| {
        w.waypoint = Some(pb_workload::GatewayAddress::default());
    });
    check(
        "services[\"shop\"]: \"shop\" is not of the form namespace/hostname",
        |w| {
            w.services.insert("shop".to_owned(), Default::default());
        },
    );
    check(
        "services[\"shop/a\"].ports[0].target_port: is 65536; a port is at most 65535",
        |w| {
            let port = pb_workload::Port {
                target_port: 65536,
                ..Default::default()
            };
            let ports = pb_workload::PortList { ports: vec![port] };
            w.services.insert("shop/a".to_owned(), ports);
        },
    );
    check(
        "authorization_policies[0]: \"strict\" is not of the form namespace/name",
        |w| w.authorization_policies = vec!["strict".to_owned()],
    );
    check(
        "application_tunnel.protocol: is 2, which has no meaning here",
        |w| {
            w.application_tunnel = Some(pb_workload::ApplicationTunnel {
                protocol: 2,
                port: 0,
            });
        },
    );
}

#[test]
fn an_error_in_a_service_names_the_field() {
    type Change = fn(&mut pb_workload::Service);
    let check = |expected: &str, change: Change| {
        let mut bad = service();
        change(&mut bad);
        let error = Service::try_from(bad).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check("hostname: is missing", |s| s.hostname.clear());
    check("namespace: is missing", |s| s.namespace.clear());
    check(
        "addresses[0].length: is 33, which is too long for 10.0.0.0",
        |s| {
            s.addresses = vec![pb_workload::NetworkAddress {
                address: vec![10, 0, 0, 0],
                length: Some(33),
                ..Default::default()
            }];
        },
    );
    check(
        "ports[0].service_port: is 70000; a port is at most 65535",
        |s| {
            s.ports = vec![pb_workload::Port {
                service_port: 70000,
                ..Default::default()
            }];
        },
    );
    check("ip_families: is 4, which has no meaning here", |s| {
        s.ip_families = 4;
    });
    check("visibility: is 2, which has no meaning here", |s| {
        s.visibility = 2;
    });
    check(
        "load_balancing.routing_preference[1]: is 7, which has no meaning here",
        |s| {
            s.load_balancing = Some(pb_workload::LoadBalancing {
                routing_preference: vec![1, 7],
                ..Default::default()
            });
        },
    );
    check(
        "load_balancing.mode: is 4, which has no meaning here",
        |s| {
            s.load_balancing = Some(pb_workload::LoadBalancing {
                mode: 4,
                ..Default::default()
            });
        },
    );
    check("weighted_waypoints[0].destination: is missing", |s| {
        s.weighted_waypoints = vec![Default::default()];
    });
}

#[test]
fn a_name_that_is_no_identity_is_left_out() {
    let spiffe = "spiffe://cluster.local/ns/shop/sa/a";
    let from = pb_workload::Service {
        subject_alt_names: vec!["www.example.com".to_owned(), spiffe.to_owned()],
        ..service()
    };
    let names = Service::try_from(from).unwrap().subject_alt_names;
    assert_eq!(names, [spiffe.parse().unwrap()]);
}

#[test]
fn an_error_in_an_authorization_names_the_field_and_leaves_a_policy_that_denies() {
    let no_condition = || vec![pb::StringMatch { match_type: None }];
    let range = |bytes: usize, length| {
        vec![pb::Address {
            address: vec![0; bytes],
            length,
        }]
    };
    let m = pb::Match::default;
    for (bad, expected) in [
        (
            pb::Match {
                principals: no_condition(),
                ..m()
            },
            "principals[0]: has none of exact, prefix, suffix and presence",
        ),
        (
            pb::Match {
                not_namespaces: no_condition(),
                ..m()
            },
            "not_namespaces[0]: has none of exact, prefix, suffix and presence",
        ),
        (
            pb::Match {
                source_ips: range(3, 8),
                ..m()
            },
            "source_ips[0].address: is 3 bytes long; an address has 4 or 16",
        ),
        (
            pb::Match {
                not_destination_ips: range(4, 64),
                ..m()
            },
            "not_destination_ips[0].length: is 64, which is too long for 0.0.0.0",
        ),
        (
            pb::Match {
                destination_ports: vec![80, 65536 + 80],
                ..m()
            },
            "destination_ports[1]: is 65616; a port is at most 65535",
        ),
        (
            pb::Match {
                service_accounts: vec![Default::default()],
                ..m()
            },
            "service_accounts[0].namespace: is missing",
        ),
        (
            pb::Match {
                extensions: vec![pb_workload::Extension {
                    name: "new".to_owned(),
                    config: None,
                }],
                ..m()
            },
            "extensions[0]: \"new\" is not known, and may narrow what matches",
        ),
    ] {
        let expected = format!("rules[0].clauses[0].matches[0].{expected}");
        let rejected = Policy::try_from(authorization(bad)).unwrap_err();
        assert_eq!(rejected.to_string(), expected);
        let substitute = rejected.substitute.unwrap();
        assert_eq!(substitute.key, PolicyKey::new("shop", "p"));
        assert_eq!(substitute.scope, Scope::WorkloadSelector);
        assert_eq!(substitute.action, Action::Deny);
        assert_eq!(substitute.rules, [Rule::default()]);
        assert_eq!(substitute.unenforceable.as_deref(), Some(&*expected));
    }
}

#[test]
fn an_action_or_scope_that_is_newer_than_us_denies() {
    for bad in [
        pb::Authorization {
            action: 2,
            ..authorization(pb::Match::default())
        },
        pb::Authorization {
            scope: 3,
            ..authorization(pb::Match::default())
        },
    ] {
        let rejected = Policy::try_from(bad).unwrap_err();
        assert_eq!(rejected.substitute.unwrap().action, Action::Deny);
    }
}

#[test]
fn a_broken_dry_run_refuses_nobody() {
    let bad = pb::Authorization {
        dry_run: true,
        action: 2,
        ..authorization(pb::Match::default())
    };
    let rejected = Policy::try_from(bad).unwrap_err();
    assert!(rejected.substitute.unwrap().dry_run);
}

#[test]
fn bytes_that_are_no_authorization_refuse_under_the_name_of_the_resource() {
    let garbage: &[u8] = &[0xff, 0xff];
    let rejected = super::authorization("shop/p", garbage).unwrap_err();
    assert_eq!(
        rejected.substitute.unwrap().key,
        PolicyKey::new("shop", "p")
    );
    let nameless = pb::Authorization::default().encode_to_vec();
    let rejected = super::authorization("shop/p", &nameless).unwrap_err();
    assert_eq!(rejected.to_string(), "namespace: is missing");
    assert_eq!(
        rejected.substitute.unwrap().key,
        PolicyKey::new("shop", "p")
    );
    let rejected = super::authorization("nonsense", garbage).unwrap_err();
    assert!(rejected.substitute.is_none());
}

#[test]
fn an_unreadable_reason_is_still_a_reason() {
    let with = |config| pb::Authorization {
        extensions: vec![pb_workload::Extension {
            name: UNENFORCEABLE.to_owned(),
            config,
        }],
        ..authorization(pb::Match::default())
    };
    let reason = pack(type_url::STRING_VALUE, &"paths".to_owned());
    for (config, expected) in [
        (Some(reason), "paths"),
        (None, "no readable reason was given"),
        (
            Some(Any {
                type_url: String::new(),
                value: vec![0xff],
            }),
            "no readable reason was given",
        ),
    ] {
        let policy = Policy::try_from(with(config)).unwrap();
        assert_eq!(policy.unenforceable.as_deref(), Some(expected));
    }
}

#[test]
fn a_policy_comes_back_as_it_went() {
    let text = |text: &str| StringMatch::Exact(text.into());
    let m = Match {
        namespaces: vec![text("a")],
        not_namespaces: vec![StringMatch::Prefix("b".into())],
        principals: vec![StringMatch::Suffix("c".into())],
        not_principals: vec![StringMatch::Presence],
        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        not_source_ips: vec!["fd00::/8".parse().unwrap()],
        destination_ips: vec!["0.0.0.0/0".parse().unwrap()],
        not_destination_ips: vec!["::1/128".parse().unwrap()],
        destination_ports: vec![1],
        not_destination_ports: vec![65535],
        service_accounts: vec![ServiceAccountMatch {
            namespace: "d".into(),
            service_account: "e".into(),
        }],
        not_service_accounts: vec![ServiceAccountMatch {
            namespace: "f".into(),
            service_account: "g".into(),
        }],
    };
    let clauses = vec![
        Clause {
            matches: vec![m, Match::default()],
        },
        Clause::default(),
    ];
    let policy = Policy {
        key: PolicyKey::new("shop", "p"),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![Rule { clauses }, Rule::default()],
        dry_run: true,
        unenforceable: Some("because".into()),
    };
    for policy in [
        policy.clone(),
        Policy::unenforceable(PolicyKey::new("shop", "q"), Scope::Global, "why"),
    ] {
        let bytes = policy_resource(&policy).value;
        let name = policy.key.to_string();
        assert_eq!(super::authorization(&name, &bytes), Ok(policy));
    }
}

#[test]
fn a_workload_comes_back_as_it_went() {
    use model::workload::{
        ApplicationProtocol, ApplicationTunnel, Locality, NetworkMode, PortMapping, WorkloadType,
    };
    use model::{GatewayAddress, GatewayDestination, NetworkAddress, ServiceKey};

    let mapping = PortMapping::new(80, 8080);
    let full = Workload {
        uid: "Kubernetes//Pod/shop/a".into(),
        name: "a".into(),
        namespace: "shop".into(),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        hostname: "a.example".into(),
        network: "west".into(),
        tunnel: TunnelProtocol::Hbone,
        trust_domain: "td".parse().unwrap(),
        service_account: "sa".into(),
        waypoint: Some(GatewayAddress {
            destination: GatewayDestination::Hostname(ServiceKey::new("shop", "w.shop")),
            hbone_port: 15008,
        }),
        network_gateway: Some(GatewayAddress {
            destination: GatewayDestination::Address(NetworkAddress::single(
                "east",
                "192.0.2.1".parse().unwrap(),
            )),
            hbone_port: 15008,
        }),
        node: "n1".into(),
        canonical_name: "app".into(),
        canonical_revision: "v1".into(),
        workload_type: WorkloadType::Job,
        workload_name: "owner".into(),
        native_tunnel: true,
        application_tunnel: Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            port: Some(15088),
        }),
        services: [(ServiceKey::new("shop", "a.shop"), vec![mapping])].into(),
        authorization_policies: vec![
            PolicyKey::new("shop", "p"),
            PolicyKey::peer_authentication("shop", "p"),
        ],
        egress_closed: true,
        isolated: Isolated {
            ingress: true,
            egress: true,
        },
        strict_by: Some(Box::new(PolicyKey::peer_authentication("shop", "default"))),
        status: Health::Unhealthy,
        cluster_id: "c1".into(),
        locality: Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: "s".into(),
        },
        network_mode: NetworkMode::HostNetwork,
        capacity: 0,
    };
    let empty = Workload {
        uid: "u".into(),
        ..Workload::default()
    };
    let split = Workload {
        services: [(
            ServiceKey::new("shop", "a.shop"),
            vec![
                PortMapping {
                    family: Some(Family::V4),
                    ..PortMapping::new(80, 8080)
                },
                PortMapping {
                    family: Some(Family::V6),
                    status: Some(Health::Unhealthy),
                    ..PortMapping::new(80, 8081)
                },
                PortMapping {
                    status: Some(Health::Healthy),
                    ..PortMapping::new(81, 9000)
                },
            ],
        )]
        .into(),
        ..empty.clone()
    };
    for workload in [full, empty, split] {
        let resource = workload_resource(&workload);
        assert_eq!(resource.type_url, type_url::ADDRESS);
        assert_eq!(address(&resource.value), Ok(Address::Workload(workload)));
    }
}

#[test]
fn a_service_comes_back_as_it_went() {
    use model::service::{
        AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope, ServicePort, Visibility,
        WeightedWaypoint,
    };
    use model::{GatewayAddress, GatewayDestination, NetworkAddress, ServiceKey};

    let waypoint = GatewayAddress {
        destination: GatewayDestination::Hostname(ServiceKey::new("shop", "w.shop")),
        hbone_port: 15008,
    };
    let port = |port, app_protocol| ServicePort {
        port,
        target_port: 0,
        app_protocol,
    };
    let full = Service {
        name: "a".into(),
        namespace: "shop".into(),
        hostname: "a.shop".into(),
        addresses: vec![
            NetworkAddress::single("west", "10.96.0.1".parse().unwrap()),
            NetworkAddress {
                prefix: Some(64),
                ..NetworkAddress::single("", "fd00::".parse().unwrap())
            },
        ],
        ports: vec![
            port(1, AppProtocol::Unknown),
            port(2, AppProtocol::Http11),
            port(3, AppProtocol::Http2),
            port(4, AppProtocol::Grpc),
            port(5, AppProtocol::Tcp),
            port(6, AppProtocol::Tls),
        ],
        subject_alt_names: vec!["spiffe://td/ns/shop/sa/a".parse().unwrap()],
        waypoint: Some(waypoint.clone()),
        weighted_waypoints: vec![WeightedWaypoint {
            destination: waypoint,
            weight: 10,
        }],
        load_balancing: LoadBalancing {
            routing_preference: vec![
                Scope::Network,
                Scope::Region,
                Scope::Zone,
                Scope::Subzone,
                Scope::Node,
                Scope::Cluster,
            ],
            mode: Mode::Strict,
            health_policy: HealthPolicy::AllowAll,
        },
        session_timeout: Some(std::time::Duration::from_secs(10_800)),
        ip_families: IpFamilies::Dual,
        canonical: true,
        ingress_use_waypoint: true,
        visibility: Visibility::Namespace,
    };
    let empty = Service {
        namespace: "shop".into(),
        hostname: "b.shop".into(),
        ..Service::default()
    };
    for service in [full, empty] {
        let resource = service_resource(&service);
        assert_eq!(address(&resource.value), Ok(Address::Service(service)));
    }
}
