use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::address::NetworkAddress;
use crate::service::{IpFamilies, LoadBalancing};
use crate::workload::{Locality, PortMapping};

const PORT: u16 = 80;

fn front(load_balancing: LoadBalancing) -> Service {
    let address = NetworkAddress::single("", "10.96.0.1".parse().unwrap());
    Service {
        name: "front".into(),
        namespace: "shop".into(),
        hostname: "front.shop.svc.cluster.local".into(),
        addresses: vec![address],
        ports: vec![ServicePort {
            port: PORT,
            target_port: 8080,
            app_protocol: Default::default(),
        }],
        load_balancing,
        ..Service::default()
    }
}

/// An endpoint of [`front`] that can take anything; its name is the last part of its address.
fn endpoint(last: u8) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/shop/e{last:03}").into(),
        name: last.to_string().into(),
        namespace: "shop".into(),
        addresses: vec![[10, 244, 1, last].into()],
        services: [(front(LoadBalancing::default()).key(), vec![])].into(),
        ..Workload::default()
    }
}

fn at(last: u8, region: &str, zone: &str, node: &str) -> Workload {
    Workload {
        locality: Locality {
            region: region.into(),
            zone: zone.into(),
            subzone: "".into(),
        },
        node: node.into(),
        ..endpoint(last)
    }
}

fn state(endpoints: impl IntoIterator<Item = Workload>) -> MeshState {
    let mut state = MeshState::default();
    for endpoint in endpoints {
        state.insert_workload(endpoint);
    }
    state
}

/// Who is drawn in many draws, by the last part of the address.
fn drawn(service: &Service, state: &MeshState, source: &Workload) -> Result<Vec<u8>, Missing> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut drawn = Vec::new();
    for _ in 0..200 {
        match pick(state, service, PORT, Family::V4, source, &mut rng) {
            Ok(endpoint) => drawn.push(endpoint.workload.name.parse().unwrap()),
            Err(NoEndpoint { reason, .. }) => return Err(reason),
        }
    }
    drawn.sort_unstable();
    drawn.dedup();
    Ok(drawn)
}

fn preferring(mode: Mode, routing_preference: &[Scope]) -> Service {
    front(LoadBalancing {
        routing_preference: routing_preference.to_vec(),
        mode,
        health_policy: HealthPolicy::OnlyHealthy,
    })
}

#[test]
fn draws_are_in_proportion_to_capacity() {
    const DRAWS: u32 = 60_000;
    let weights = [1_u32, 2, 3, 0, 10, 4];
    let state = state((0..).zip(weights).map(|(last, capacity)| Workload {
        capacity,
        ..endpoint(last)
    }));
    let service = front(LoadBalancing::default());
    let source = Workload::default();
    let mut rng = StdRng::seed_from_u64(7);
    let mut counts = [0_u32; 6];
    for _ in 0..DRAWS {
        let picked = pick(&state, &service, PORT, Family::V4, &source, &mut rng).unwrap();
        counts[picked.workload.name.parse::<usize>().unwrap()] += 1;
    }
    let total = f64::from(weights.iter().sum::<u32>());
    let chi_square: f64 = counts
        .iter()
        .zip(weights)
        .filter(|(_, weight)| *weight > 0)
        .map(|(&count, weight)| {
            let expected = f64::from(DRAWS) * f64::from(weight) / total;
            (f64::from(count) - expected).powi(2) / expected
        })
        .sum();
    // Four degrees of freedom: 18.5 is exceeded by chance once in a thousand seeds.
    assert!(chi_square < 18.5, "{chi_square} from {counts:?}");
    assert_eq!(counts[3], 0);
}

#[test]
fn weights_do_not_overflow() {
    let state = state((0..4).map(|last| Workload {
        capacity: u32::MAX,
        ..endpoint(last)
    }));
    let all = drawn(
        &front(LoadBalancing::default()),
        &state,
        &Workload::default(),
    );
    assert_eq!(all, Ok(vec![0, 1, 2, 3]));
}

#[test]
fn failover_takes_the_nearest_and_strict_only_the_near() {
    use Scope::{Node, Region, Zone};
    let source = at(99, "r1", "z1", "n1");
    let near = at(1, "r1", "z1", "n1");
    let zone = at(2, "r1", "z1", "n2");
    let region = at(3, "r1", "z2", "n1");
    let far = at(4, "r2", "z1", "n1");
    let all = [near.clone(), zone.clone(), region.clone(), far.clone()];
    let others = [zone.clone(), region.clone(), far.clone()];
    let (strict, failover) = (Mode::Strict, Mode::Failover);
    let by_node: &[Scope] = &[Region, Zone, Node];
    for (endpoints, mode, preference, expected) in [
        (all.as_slice(), Mode::Any, by_node, Ok(vec![1, 2, 3, 4])),
        (&all, failover, by_node, Ok(vec![1])),
        (&others, failover, by_node, Ok(vec![2])),
        (&others[1..], failover, by_node, Ok(vec![3])),
        (&others[2..], failover, by_node, Ok(vec![4])),
        (&all, failover, &[], Ok(vec![1, 2, 3, 4])),
        (&all, failover, &[Region], Ok(vec![1, 2, 3])),
        // The order counts: what comes after a mismatch is not looked at.
        (&others[1..], failover, &[Zone, Region], Ok(vec![4])),
        (&all, strict, by_node, Ok(vec![1])),
        (&others, strict, by_node, Err(Missing::Locality)),
        (&all, strict, &[Node], Ok(vec![1, 3, 4])),
        (&all, strict, &[], Ok(vec![1, 2, 3, 4])),
        (&[], strict, by_node, Err(Missing::Workload)),
    ] {
        let state = state(endpoints.iter().cloned());
        let got = drawn(&preferring(mode, preference), &state, &source);
        assert_eq!(
            got,
            expected,
            "{mode:?} {preference:?} of {}",
            endpoints.len()
        );
    }
}

#[test]
fn a_network_that_comes_first_weighs_more_than_all_else() {
    use Scope::{Network, Region, Zone};
    let source = at(99, "r1", "z1", "n1");
    let abroad = |workload| Workload {
        network: "other".into(),
        ..workload
    };
    let here = at(1, "r2", "z2", "n9");
    let there = abroad(at(2, "r1", "z1", "n1"));
    let preference = [Network, Region, Zone];
    let rank = |workload: &Workload| nearness(&preference, &source, workload).rank;
    assert!(rank(&here) > rank(&there));
    assert!(rank(&there) > rank(&abroad(at(3, "r1", "z2", "n1"))));
    assert!(!nearness(&preference, &source, &there).in_everything);
    assert!(nearness(&preference, &source, &source).in_everything);
}

#[test]
fn health_counts_unless_the_service_says_otherwise() {
    let ill = |last| Workload {
        status: Health::Unhealthy,
        ..endpoint(last)
    };
    let careless = front(LoadBalancing {
        health_policy: HealthPolicy::AllowAll,
        ..LoadBalancing::default()
    });
    let careful = front(LoadBalancing::default());
    let mixed = state([endpoint(1), ill(2)]);
    let all_ill = state([ill(1), ill(2)]);
    let source = Workload::default();
    assert_eq!(drawn(&careful, &mixed, &source), Ok(vec![1]));
    assert_eq!(drawn(&careful, &all_ill, &source), Err(Missing::Health));
    assert_eq!(drawn(&careless, &mixed, &source), Ok(vec![1, 2]));
    assert_eq!(drawn(&careless, &all_ill, &source), Ok(vec![1, 2]));
}

#[test]
fn ill_and_near_goes_behind_well_and_far() {
    let source = at(99, "r1", "z1", "n1");
    let near = Workload {
        status: Health::Unhealthy,
        ..at(1, "r1", "z1", "n1")
    };
    let state = state([near, at(2, "r2", "z2", "n2")]);
    let service = preferring(Mode::Failover, &[Scope::Region]);
    assert_eq!(drawn(&service, &state, &source), Ok(vec![2]));
}

#[test]
fn the_reason_is_that_of_the_endpoint_that_came_furthest() {
    let plain = front(LoadBalancing::default());
    let abroad = Workload {
        network: "other".into(),
        ..endpoint(1)
    };
    let bare = Workload {
        addresses: vec![],
        ..endpoint(2)
    };
    let ill = Workload {
        status: Health::Unhealthy,
        ..endpoint(3)
    };
    let weightless = Workload {
        capacity: 0,
        ..endpoint(4)
    };
    for (endpoints, expected) in [
        (vec![], Missing::Workload),
        (vec![abroad.clone()], Missing::Network),
        (vec![abroad.clone(), bare.clone()], Missing::Address),
        (vec![ill.clone(), abroad, bare], Missing::Health),
        (vec![weightless, ill], Missing::Capacity),
    ] {
        let got = drawn(&plain, &state(endpoints), &Workload::default());
        assert_eq!(got, Err(expected));
    }
    let nothing = MeshState::default();
    let mut rng = StdRng::seed_from_u64(1);
    let unknown = pick(
        &nothing,
        &plain,
        81,
        Family::V4,
        &Workload::default(),
        &mut rng,
    );
    assert_eq!(
        unknown.unwrap_err().to_string(),
        "service shop/front.shop.svc.cluster.local has no endpoint for port 81: the service does \
         not declare it"
    );
}

#[test]
fn the_clients_family_is_preferred_and_the_services_kept() {
    let (v4, v6): (IpAddr, IpAddr) = ([10, 244, 1, 1].into(), "fd00::1".parse().unwrap());
    let any = IpFamilies::Automatic;
    for (addresses, families, family, expected) in [
        (vec![v4, v6], any, Family::V4, Some(v4)),
        (vec![v4, v6], any, Family::V6, Some(v6)),
        (vec![v6, v4], IpFamilies::Dual, Family::V4, Some(v4)),
        (vec![v4], any, Family::V6, Some(v4)),
        (vec![v6], any, Family::V4, Some(v6)),
        (vec![v4, v6], IpFamilies::V6Only, Family::V4, Some(v6)),
        (vec![v4], IpFamilies::V6Only, Family::V4, None),
        (vec![v6], IpFamilies::V4Only, Family::V6, None),
    ] {
        let service = Service {
            ip_families: families,
            ..front(LoadBalancing::default())
        };
        let state = state([Workload {
            addresses: addresses.clone(),
            ..endpoint(1)
        }]);
        let mut rng = StdRng::seed_from_u64(1);
        let got = pick(
            &state,
            &service,
            PORT,
            family,
            &Workload::default(),
            &mut rng,
        );
        assert_eq!(
            got.ok().map(|endpoint| endpoint.ip),
            expected,
            "{addresses:?} {families:?} {family:?}"
        );
    }
}

#[test]
fn the_endpoints_own_port_goes_before_that_of_the_service() {
    let mapping = PortMapping::new;
    for (of_service, of_endpoint, expected) in [
        (8080, vec![], Ok(8080)),
        (8080, vec![mapping(PORT, 9090)], Ok(9090)),
        (8080, vec![mapping(443, 9090)], Ok(8080)),
        (8080, vec![mapping(PORT, 0)], Ok(8080)),
        // Named ports.
        (0, vec![mapping(PORT, 9090)], Ok(9090)),
        (0, vec![mapping(443, 9090)], Err(Missing::TargetPort)),
        (0, vec![], Err(Missing::TargetPort)),
    ] {
        let mut service = front(LoadBalancing::default());
        service.ports[0].target_port = of_service;
        let state = state([Workload {
            services: [(service.key(), of_endpoint.clone())].into(),
            ..endpoint(1)
        }]);
        let mut rng = StdRng::seed_from_u64(1);
        let got = pick(
            &state,
            &service,
            PORT,
            Family::V4,
            &Workload::default(),
            &mut rng,
        )
        .map(|endpoint| endpoint.target_port)
        .map_err(|none| none.reason);
        assert_eq!(got, expected, "{of_service} {of_endpoint:?}");
    }
}

#[test]
fn endpoints_without_the_named_port_are_left_out() {
    let mut service = front(LoadBalancing::default());
    service.ports[0].target_port = 0;
    let ports = vec![PortMapping::new(PORT, 9090)];
    let with = Workload {
        services: [(service.key(), ports)].into(),
        ..endpoint(1)
    };
    let state = state([with, endpoint(2)]);
    assert_eq!(drawn(&service, &state, &Workload::default()), Ok(vec![1]));
}

/// An endpoint is what is said of it for its port and family: another port's, family's or service's word does not
/// count.
#[test]
fn an_endpoint_is_what_is_said_of_its_port_and_family() {
    use Family::{V4, V6};
    use Health::{Healthy, Unhealthy};
    let said = |service_port, target_port, family, status| PortMapping {
        service_port,
        target_port,
        family: Some(family),
        status: Some(status),
    };
    let [a4, b4] = ["10.244.1.1", "10.244.1.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let [a6, b6] = ["fd00::1", "fd00::2"].map(|ip| ip.parse::<IpAddr>().unwrap());
    for (of_a, of_b, family, expected) in [
        // One target for each slice that lists the port.
        (
            vec![said(PORT, 8080, V4, Healthy), said(PORT, 8081, V4, Healthy)],
            vec![],
            V4,
            Ok(vec![(a4, 8080), (a4, 8081)]),
        ),
        // Another port's readiness says nothing.
        (
            vec![
                said(PORT, 8080, V4, Unhealthy),
                said(443, 8443, V4, Healthy),
            ],
            vec![said(PORT, 9090, V4, Healthy)],
            V4,
            Ok(vec![(b4, 9090)]),
        ),
        // Ports by family.
        (
            vec![said(PORT, 8080, V4, Healthy), said(PORT, 8086, V6, Healthy)],
            vec![],
            V6,
            Ok(vec![(a6, 8086)]),
        ),
        // Not ready by the family that was asked for: not by the other one either.
        (
            vec![
                said(PORT, 8080, V4, Healthy),
                said(PORT, 8086, V6, Unhealthy),
            ],
            vec![said(PORT, 9096, V6, Healthy)],
            V6,
            Ok(vec![(b6, 9096)]),
        ),
        (
            vec![
                said(PORT, 8080, V4, Healthy),
                said(PORT, 8086, V6, Unhealthy),
            ],
            vec![],
            V6,
            Err(Missing::Health),
        ),
        // An endpoint of the other family only where there is none of the one that was asked for.
        (
            vec![said(PORT, 8080, V4, Healthy)],
            vec![said(PORT, 9096, V6, Healthy)],
            V6,
            Ok(vec![(b6, 9096)]),
        ),
        (
            vec![said(PORT, 8080, V4, Healthy)],
            vec![],
            V6,
            Ok(vec![(a4, 8080)]),
        ),
        (
            vec![],
            vec![said(443, 8443, V4, Healthy)],
            V4,
            Err(Missing::TargetPort),
        ),
    ] {
        let mut service = front(LoadBalancing::default());
        service.ports[0].target_port = 0;
        let of = |last: u8, addresses: Vec<IpAddr>, mappings: &Vec<PortMapping>| Workload {
            addresses,
            services: [(service.key(), mappings.clone())].into(),
            ..endpoint(last)
        };
        let state = state([of(1, vec![a4, a6], &of_a), of(2, vec![b4, b6], &of_b)]);
        let listed = candidates(&state, &service, PORT, family, &Workload::default());
        let got = listed
            .map(|listed| {
                let ends = listed
                    .iter()
                    .map(|(endpoint, _)| (endpoint.ip, endpoint.target_port));
                let mut ends: Vec<_> = ends.collect();
                ends.sort_unstable();
                ends
            })
            .map_err(|none| none.reason);
        assert_eq!(got, expected, "{family:?} {of_a:?} {of_b:?}");
        let mut rng = StdRng::seed_from_u64(1);
        let picked = pick(
            &state,
            &service,
            PORT,
            family,
            &Workload::default(),
            &mut rng,
        );
        match (picked, expected) {
            (Ok(picked), Ok(ends)) => assert!(ends.contains(&(picked.ip, picked.target_port))),
            (picked, expected) => assert_eq!(
                picked.map(|_| ()).map_err(|none| none.reason),
                expected.map(|_| ())
            ),
        }
    }
}
