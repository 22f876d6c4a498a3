//! Any mesh, any destination: what is not carried goes on as it is, whoever asks.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{MeshState, Tombstone, of_name, of_service, of_tombstone, of_workload};
use crate::address::{GatewayAddress, GatewayDestination, NetworkAddress};
use crate::outbound::{RouteKind, route};
use crate::service::Service;
use crate::workload::{NetworkMode, TunnelProtocol, Workload};

const ADDRESSES: [&str; 5] = [
    "10.244.1.1",
    "10.244.1.2",
    "10.96.0.1",
    "fd00::1",
    "::ffff:10.244.1.2",
];

#[derive(Clone, Debug)]
enum Change {
    Workload(Workload),
    Service(Service),
    Tombstone(Tombstone),
    Remove(String),
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    select(ADDRESSES.as_slice()).prop_map(|text| text.parse().unwrap())
}

fn any_network() -> impl Strategy<Value = &'static str> {
    select(["", "other"].as_slice())
}

fn any_workload() -> impl Strategy<Value = Workload> {
    (
        select(["a", "b", "c"].as_slice()),
        any_network(),
        prop::collection::vec(any_ip(), 0..3),
        (any::<bool>(), any::<bool>(), 0..4_u8),
    )
        .prop_map(
            |(name, network, addresses, (hbone, shares, waypoint))| Workload {
                uid: name.into(),
                network: network.into(),
                addresses,
                tunnel: if hbone {
                    TunnelProtocol::Hbone
                } else {
                    TunnelProtocol::None
                },
                network_mode: if shares {
                    NetworkMode::HostNetwork
                } else {
                    NetworkMode::default()
                },
                waypoint: (waypoint == 0).then(|| GatewayAddress {
                    destination: GatewayDestination::Address(NetworkAddress::single(
                        "",
                        "10.0.0.9".parse().unwrap(),
                    )),
                    hbone_port: 15008,
                }),
                ..Workload::default()
            },
        )
}

fn any_service() -> impl Strategy<Value = Service> {
    let address = (any_network(), any_ip(), prop::option::of(8..=32_u8));
    (
        select(["s", "t"].as_slice()),
        prop::collection::vec(address, 0..3),
    )
        .prop_map(|(name, addresses)| Service {
            name: name.into(),
            namespace: "shop".into(),
            hostname: name.into(),
            addresses: addresses
                .into_iter()
                .map(|(network, ip, prefix)| NetworkAddress {
                    network: network.into(),
                    ip,
                    prefix,
                })
                .collect(),
            ..Service::default()
        })
}

fn any_tombstone() -> impl Strategy<Value = Tombstone> {
    let name = select(["g", "h"].as_slice());
    (name, any_network(), any_ip()).prop_map(|(name, network, ip)| Tombstone {
        uid: name.into(),
        namespace: "shop".into(),
        name: name.into(),
        network: network.into(),
        addresses: vec![ip],
    })
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => any_workload().prop_map(Change::Workload),
        2 => any_service().prop_map(Change::Service),
        1 => any_tombstone().prop_map(Change::Tombstone),
        2 => select(["a", "b", "c", "g", "h", "shop/s", "shop/t"].as_slice())
            .prop_map(|name| Change::Remove(name.to_owned())),
    ]
}

fn apply(state: &mut MeshState, change: Change) {
    match change {
        Change::Workload(workload) => state.insert_workload(workload),
        Change::Service(service) => state.insert_service(service),
        Change::Tombstone(tombstone) => state.insert_tombstone(tombstone),
        Change::Remove(name) => drop(state.remove(&name)),
    }
}

proptest! {
    #[test]
    fn what_is_not_carried_goes_on_as_it_is(
        changes in prop::collection::vec(any_change(), 0..12),
        network in any_network(),
        port in select([80_u16, 15001, 15008].as_slice()),
    ) {
        let mut state = MeshState::default();
        changes.into_iter().for_each(|change| apply(&mut state, change));
        let carried: BTreeSet<IpNet> = state.carried().collect();
        let source = Workload {
            uid: "source".into(),
            network: network.into(),
            ..Workload::default()
        };
        for ip in ADDRESSES.map(|text| text.parse::<IpAddr>().unwrap().to_canonical()) {
            prop_assert_eq!(state.carries(&ip.into()), carried.contains(&ip.into()), "{}", ip);
            if carried.iter().any(|net| net.contains(&ip)) {
                continue;
            }
            let dial = SocketAddr::new(ip, port);
            let way = route(&state, &source, dial, &mut StdRng::seed_from_u64(1));
            prop_assert_eq!(way.map(|way| way.kind), Ok(RouteKind::Plain { dial }));
        }
    }

    #[test]
    fn only_what_a_change_names_comes_or_goes(
        changes in prop::collection::vec(any_change(), 1..12),
    ) {
        let mut state = MeshState::default();
        for change in changes {
            let before: BTreeSet<IpNet> = state.carried().collect();
            let mut named: BTreeSet<IpNet> = BTreeSet::new();
            match &change {
                Change::Workload(workload) => {
                    named.extend(of_workload(workload));
                    named.extend(of_name(&state, &workload.uid));
                }
                Change::Service(service) => {
                    named.extend(of_service(service));
                    named.extend(of_name(&state, &service.key().to_string()));
                }
                Change::Tombstone(tombstone) => {
                    named.extend(of_tombstone(tombstone));
                    named.extend(of_name(&state, &tombstone.uid));
                }
                Change::Remove(name) => named.extend(of_name(&state, name)),
            }
            apply(&mut state, change);
            let after: BTreeSet<IpNet> = state.carried().collect();
            for net in before.symmetric_difference(&after) {
                prop_assert!(named.contains(net), "{} is not among {:?}", net, named);
            }
        }
    }
}

#[test]
fn whom_a_captured_pod_simply_dials_is_left_alone() {
    let mut state = MeshState::default();
    let workload = |name: &str, address: &str, tunnel| Workload {
        uid: name.into(),
        addresses: vec![address.parse().unwrap()],
        tunnel,
        ..Workload::default()
    };
    state.insert_workload(workload("captured", "10.244.1.1", TunnelProtocol::Hbone));
    state.insert_workload(workload("plain", "10.244.1.2", TunnelProtocol::None));
    state.insert_tombstone(Tombstone {
        uid: "gone".into(),
        namespace: "shop".into(),
        name: "gone".into(),
        network: "".into(),
        addresses: vec!["10.244.1.3".parse().unwrap()],
    });
    for (ip, expected) in [
        ("10.244.1.1", true),
        ("10.244.1.2", false),
        ("10.244.1.3", true),
        ("93.184.216.34", false),
    ] {
        let ip: IpAddr = ip.parse().unwrap();
        assert_eq!(state.carries(&ip.into()), expected, "{ip}");
    }
}
