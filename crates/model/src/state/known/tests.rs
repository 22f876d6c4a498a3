use super::*;
use crate::address::NetworkAddress;
use crate::state::Tombstone;
use crate::workload::{NetworkMode, Workload};
use crate::{Service, TrustDomain};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn workload(name: &str, address: &str, tunnel: TunnelProtocol) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/shop/{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        trust_domain: TrustDomain::default(),
        addresses: vec![ip(address)],
        tunnel,
        ..Workload::default()
    }
}

fn tombstone(name: &str, address: &str) -> Tombstone {
    Tombstone {
        uid: Tombstone::uid("Kubernetes", "shop", name, ip(address)),
        namespace: "shop".into(),
        name: name.into(),
        network: "".into(),
        addresses: vec![ip(address)],
    }
}

fn known(state: &MeshState) -> Vec<(String, AddressClass)> {
    let mut all: Vec<_> = state
        .known_addresses()
        .map(|known| (known.range.to_string(), known.class))
        .collect();
    all.sort();
    all
}

#[test]
fn every_known_address_and_range_is_listed_once_with_its_class() {
    let (hbone, none) = (TunnelProtocol::Hbone, TunnelProtocol::None);
    let mut state = MeshState::default();
    state.insert_workload(workload("a", "10.244.1.10", hbone));
    state.insert_workload(workload("b", "fd00::10", none));
    state.insert_tombstone(tombstone("gone", "10.244.1.11"));
    // Who has the address now, counts.
    state.insert_tombstone(tombstone("gone", "10.244.1.10"));
    state.insert_service(Service {
        namespace: "shop".into(),
        hostname: "front.shop.svc.cluster.local".into(),
        addresses: vec![
            NetworkAddress::single("", ip("10.96.0.1")),
            NetworkAddress {
                prefix: Some(16),
                ..NetworkAddress::single("", ip("10.97.0.0"))
            },
        ],
        ..Service::default()
    });
    let expected = [
        ("10.244.1.10/32", AddressClass::Captured),
        ("10.244.1.11/32", AddressClass::Tombstone),
        ("10.96.0.1/32", AddressClass::Service),
        ("10.97.0.0/16", AddressClass::ServiceRange),
        ("fd00::10/128", AddressClass::Uncaptured),
    ];
    let expected = expected.map(|(range, class)| (range.to_owned(), class));
    assert_eq!(known(&state), expected);
}

#[test]
fn a_sharer_of_an_address_does_not_take_it_out_of_its_grave() {
    let mut state = MeshState::default();
    state.insert_tombstone(tombstone("gone", "10.244.1.11"));
    state.insert_workload(Workload {
        network_mode: NetworkMode::HostNetwork,
        ..workload("by-hand", "10.244.1.11", TunnelProtocol::None)
    });
    assert_eq!(known(&state)[0].1, AddressClass::Tombstone);
    assert!(state.tombstone_by_ip("", ip("10.244.1.11")).is_some());
    state.insert_workload(workload("new", "10.244.1.11", TunnelProtocol::None));
    assert_eq!(known(&state)[0].1, AddressClass::Uncaptured);
    assert!(state.tombstone_by_ip("", ip("10.244.1.11")).is_none());
}

#[test]
fn a_tombstone_ends_by_its_name() {
    let mut state = MeshState::default();
    let buried = tombstone("gone", "10.244.1.11");
    assert!(Tombstone::is_uid(&buried.uid));
    assert!(!Tombstone::is_uid("Kubernetes//Pod/shop/gone"));
    state.insert_tombstone(buried.clone());
    assert!(state.is_or_was_captured("", ip("::ffff:10.244.1.11")));
    assert!(state.remove(&buried.uid));
    assert!(!state.remove(&buried.uid));
    assert!(known(&state).is_empty());
}
