use super::*;
use model::{NetworkAddress, Workload, service::LoadBalancing};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn here() -> Here {
    Here {
        node: "n1".into(),
        network: "".into(),
        addresses: [ip("10.0.1.1")].into(),
    }
}

fn workload(name: &str, address: &str, node: &str) -> Workload {
    Workload {
        uid: name.into(),
        name: name.into(),
        node: node.into(),
        tunnel: TunnelProtocol::Hbone,
        addresses: vec![ip(address)],
        ..Workload::default()
    }
}

fn service(name: &str, address: &str) -> Service {
    Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: name.into(),
        addresses: vec![NetworkAddress {
            network: "".into(),
            ip: ip(address),
            prefix: None,
        }],
        ..Service::default()
    }
}

#[test]
fn what_is_captured_on_another_node_and_what_is_a_services_has_a_wall() {
    let mut state = MeshState::default();
    state.insert_workload(workload("known", "10.0.2.1", "n2"));
    state.insert_workload(workload("new", "10.0.2.2", "n2"));
    state.insert_workload(workload("moved", "10.0.2.3", "n2"));
    state.insert_workload(workload("neighbour", "10.0.1.2", "n1"));
    // A pod of this node has an address that the mesh gives to another: it is here.
    state.insert_workload(workload("double", "10.0.1.1", "n2"));
    state.insert_workload(Workload {
        tunnel: TunnelProtocol::None,
        ..workload("plain", "10.0.2.4", "n2")
    });
    state.insert_workload(Workload {
        network_mode: NetworkMode::HostNetwork,
        ..workload("host", "10.0.2.5", "n2")
    });
    state.insert_service(service("cart", "10.96.0.1"));
    state.insert_service(Service {
        load_balancing: LoadBalancing {
            mode: Mode::Passthrough,
            ..LoadBalancing::default()
        },
        ..service("through", "10.96.0.2")
    });
    let announced = [
        ("known", "10.0.2.1"),
        ("moved", "10.0.9.9"),
        ("neighbour", "10.0.1.2"),
        ("double", "10.0.1.1"),
        ("plain", "10.0.2.4"),
        ("host", "10.0.2.5"),
    ];
    let announced = announced.map(|(name, address)| (name.to_owned(), vec![ip(address)]));
    let announced = Announced::from(announced);
    for (address, wall) in [
        ("10.0.2.1", Some(Wall::Enforce)),
        ("10.0.2.2", Some(Wall::Count)),
        ("10.0.2.3", Some(Wall::Count)),
        ("10.0.1.2", None),
        ("10.0.1.1", None),
        ("10.0.2.4", None),
        ("10.0.2.5", None),
        ("10.96.0.1", Some(Wall::Enforce)),
        ("10.96.0.2", None),
        ("192.0.2.1", None),
    ] {
        let found = wall_of(&state, &announced, &here(), ip(address));
        assert_eq!(found, wall, "{address}");
    }
    let all: BTreeSet<IpAddr> = all_addresses(&state).collect();
    assert_eq!(all.len(), 9);
}
