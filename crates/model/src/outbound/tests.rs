use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::address::NetworkAddress;
use crate::service::{LoadBalancing, ServiceKey, ServicePort, Visibility, WeightedWaypoint};
use crate::workload::PortMapping;

/// A mesh of three pods:
/// `a` is captured and an endpoint of `front`, `b` is captured, `plain` is not in the mesh.
struct Mesh {
    state: MeshState,
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn pod(name: &str, address: &str, tunnel: TunnelProtocol) -> Workload {
    Workload {
        uid: uid(name).into(),
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.into(),
        addresses: vec![address.parse().unwrap()],
        tunnel,
        ..Workload::default()
    }
}

fn uid(name: &str) -> String {
    format!("Kubernetes//Pod/shop/{name}")
}

fn service(name: &str, address: &str) -> Service {
    let port = |port, target_port| ServicePort {
        port,
        target_port,
        app_protocol: Default::default(),
    };
    Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: format!("{name}.shop.svc.cluster.local").into(),
        addresses: vec![NetworkAddress::single("", address.parse().unwrap())],
        ports: vec![port(80, 8080), port(81, 0), port(82, 15008)],
        ..Service::default()
    }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("shop", format!("{name}.shop.svc.cluster.local"))
}

fn waypoint() -> GatewayAddress {
    GatewayAddress {
        destination: GatewayDestination::Hostname(key("waypoint")),
        hbone_port: HBONE_PORT,
    }
}

impl Mesh {
    fn new() -> Self {
        let mut state = MeshState::default();
        let hbone = TunnelProtocol::Hbone;
        let named = PortMapping::new(81, 9090);
        state.insert_workload(Workload {
            services: [(key("front"), vec![named])].into(),
            addresses: vec!["10.244.1.10".parse().unwrap(), "fd00::10".parse().unwrap()],
            ..pod("a", "10.244.1.10", hbone)
        });
        state.insert_workload(pod("b", "10.244.2.10", hbone));
        state.insert_workload(pod("plain", "10.244.2.11", TunnelProtocol::None));
        state.insert_service(Service {
            addresses: vec![
                NetworkAddress::single("", "10.96.0.1".parse().unwrap()),
                NetworkAddress::single("", "fd00:96::1".parse().unwrap()),
            ],
            ..service("front", "10.96.0.1")
        });
        state.insert_service(service("empty", "10.96.0.2"));
        Self { state }
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Workload)) {
        let mut workload = Workload::clone(self.state.workload(&uid(name)).unwrap());
        change(&mut workload);
        self.state.insert_workload(workload);
    }

    fn route(&self, source: &str, destination: &str) -> Result<Route, RouteError> {
        let source = self.state.workload(&uid(source)).unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        route(&self.state, source, addr(destination), &mut rng)
    }

    fn check(&self, source: &str, destination: &str, expected: RouteKind) {
        let got = self.route(source, destination).map(|route| route.kind);
        assert_eq!(got, Ok(expected), "{source} to {destination}");
    }

    fn check_refused(&self, source: &str, destination: &str, code: &str, message: &str) {
        let error = self.route(source, destination).unwrap_err();
        assert_eq!(error.reason().as_str(), code, "{source} to {destination}");
        assert_eq!(error.to_string(), message, "{source} to {destination}");
    }
}

fn hbone(dial: &str, authority: &str, expected: &[&str]) -> RouteKind {
    let identity = |name: &&str| {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{name}");
        id.parse().unwrap()
    };
    RouteKind::Hbone {
        dial: addr(dial),
        authority: addr(authority),
        expected: expected.iter().map(identity).collect(),
    }
}

fn plain_to(dial: &str) -> RouteKind {
    RouteKind::Plain { dial: addr(dial) }
}

fn to_self(dial: &str) -> RouteKind {
    RouteKind::ToSelf { dial: addr(dial) }
}

#[test]
fn where_a_connection_goes() {
    let mesh = Mesh::new();
    let to_a = |authority| hbone("10.244.1.10:15008", authority, &["a"]);
    let to_a6 = |authority| hbone("[fd00::10]:15008", authority, &["a"]);
    for (source, destination, expected) in [
        // A service, by either family.
        ("b", "10.96.0.1:80", to_a("10.244.1.10:8080")),
        ("b", "[fd00:96::1]:80", to_a6("[fd00::10]:8080")),
        ("b", "[::ffff:10.96.0.1]:80", to_a("10.244.1.10:8080")),
        // A named port, which only the endpoint knows.
        ("b", "10.96.0.1:81", to_a("10.244.1.10:9090")),
        // A pod in the mesh, on any port.
        ("b", "10.244.1.10:8080", to_a("10.244.1.10:8080")),
        ("b", "10.244.1.10:1", to_a("10.244.1.10:1")),
        ("b", "[fd00::10]:8080", to_a6("[fd00::10]:8080")),
        ("b", "[::ffff:10.244.1.10]:8080", to_a("10.244.1.10:8080")),
        ("plain", "10.244.1.10:8080", to_a("10.244.1.10:8080")),
        // A pod outside of it, on any port.
        ("a", "10.244.2.11:80", plain_to("10.244.2.11:80")),
        ("a", "10.244.2.11:15008", plain_to("10.244.2.11:15008")),
        // Nothing that is known.
        ("a", "1.2.3.4:443", plain_to("1.2.3.4:443")),
        ("a", "1.2.3.4:15008", plain_to("1.2.3.4:15008")),
        ("a", "[::ffff:1.2.3.4]:443", plain_to("1.2.3.4:443")),
        ("a", "[2001:db8::1]:443", plain_to("[2001:db8::1]:443")),
        // Itself, directly and through its own service.
        ("a", "10.244.1.10:8080", to_self("10.244.1.10:8080")),
        ("a", "10.96.0.1:80", to_self("10.244.1.10:8080")),
        ("a", "10.96.0.1:81", to_self("10.244.1.10:9090")),
    ] {
        mesh.check(source, destination, expected);
    }
}

#[test]
fn a_route_names_the_workload_and_the_service() {
    let mesh = Mesh::new();
    for (destination, workload, service) in [
        ("10.96.0.1:80", Some("a"), Some("front")),
        ("10.244.1.10:80", Some("a"), None),
        ("10.244.2.11:80", Some("plain"), None),
        ("1.2.3.4:80", None, None),
    ] {
        let route = mesh.route("b", destination).unwrap();
        let name = route.destination.map(|w| w.name.to_string());
        assert_eq!(name.as_deref(), workload, "{destination}");
        let name = route.service.map(|s| s.name.to_string());
        assert_eq!(name.as_deref(), service, "{destination}");
    }
}

#[test]
fn a_service_without_endpoints_refuses() {
    let mut mesh = Mesh::new();
    mesh.check_refused(
        "a",
        "10.96.0.2:80",
        "no_endpoint",
        "service shop/empty.shop.svc.cluster.local has no endpoint for port 80: nothing runs \
         behind it",
    );
    mesh.check_refused(
        "a",
        "10.96.0.1:8443",
        "no_such_port",
        "service shop/front.shop.svc.cluster.local has no endpoint for port 8443: the service \
         does not declare it",
    );
    mesh.change("a", |a| a.status = crate::workload::Health::Unhealthy);
    mesh.check_refused(
        "b",
        "10.96.0.1:80",
        "endpoint_unhealthy",
        "service shop/front.shop.svc.cluster.local has no endpoint for port 80: no endpoint is \
         ready",
    );
}

#[test]
fn ports_of_the_mesh_are_not_for_applications() {
    let mesh = Mesh::new();
    for (source, destination, port) in [
        ("b", "10.244.1.10:15001", 15001),
        ("b", "10.244.1.10:15006", 15006),
        ("b", "10.244.1.10:15008", 15008),
        ("b", "[::ffff:10.244.1.10]:15008", 15008),
        ("a", "10.244.1.10:15008", 15008),
        // Behind a service.
        ("b", "10.96.0.1:82", 15008),
        ("a", "10.96.0.1:82", 15008),
    ] {
        mesh.check_refused(
            source,
            destination,
            "reserved_port",
            &format!(
                "port {port} of workload Kubernetes//Pod/shop/a belongs to the mesh and is not \
                 for applications"
            ),
        );
    }
}

#[test]
fn a_workloads_waypoint_is_never_skipped() {
    let mut mesh = Mesh::new();
    mesh.change("a", |a| a.waypoint = Some(waypoint()));
    mesh.check_refused(
        "b",
        "10.244.1.10:8080",
        "waypoint_unreachable",
        "workload Kubernetes//Pod/shop/a requires waypoint \
         shop/waypoint.shop.svc.cluster.local, which has no ready pod in the mesh",
    );
    // Also as the endpoint of a service that has none; itself it may always reach.
    mesh.check_refused(
        "b",
        "10.96.0.1:80",
        "waypoint_unreachable",
        "workload Kubernetes//Pod/shop/a requires waypoint \
         shop/waypoint.shop.svc.cluster.local, which has no ready pod in the mesh",
    );
    mesh.check("a", "10.244.1.10:8080", to_self("10.244.1.10:8080"));
}

#[test]
fn a_services_waypoint_is_never_skipped() {
    let one = Service {
        waypoint: Some(waypoint()),
        ..service("front", "10.96.0.1")
    };
    let many = Service {
        weighted_waypoints: vec![WeightedWaypoint {
            destination: waypoint(),
            weight: 0,
        }],
        ..service("front", "10.96.0.1")
    };
    let passthrough = Service {
        load_balancing: LoadBalancing {
            mode: Mode::Passthrough,
            ..LoadBalancing::default()
        },
        ..one.clone()
    };
    for service in [one, many, passthrough] {
        let mut mesh = Mesh::new();
        mesh.state.insert_service(service);
        mesh.check_refused(
            "b",
            "10.96.0.1:80",
            "waypoint_unreachable",
            "service shop/front.shop.svc.cluster.local requires waypoint \
             shop/waypoint.shop.svc.cluster.local, which has no ready pod in the mesh",
        );
    }
}

#[test]
fn what_requires_a_waypoint_goes_to_a_ready_pod_of_it() {
    let hbone_pod = TunnelProtocol::Hbone;
    let mut mesh = Mesh::new();
    let gate = |name: &str, address: &str, node: &str| Workload {
        services: [(key("waypoint"), vec![])].into(),
        node: node.into(),
        ..pod(name, address, hbone_pod)
    };
    mesh.state
        .insert_workload(gate("near", "10.244.2.20", "n2"));
    mesh.state.insert_workload(gate("far", "10.244.1.20", "n1"));
    mesh.change("b", |b| b.node = "n2".into());
    mesh.change("a", |a| a.waypoint = Some(waypoint()));
    mesh.state.insert_service(Service {
        waypoint: Some(waypoint()),
        ..service("front", "10.96.0.1")
    });
    // What was asked for is what the waypoint is told; its pod on the client's node goes first.
    let near = |authority| hbone("10.244.2.20:15008", authority, &["near"]);
    let far = |authority| hbone("10.244.1.20:15008", authority, &["far"]);
    mesh.check("b", "10.96.0.1:80", near("10.96.0.1:80"));
    mesh.check("b", "10.244.1.10:8080", near("10.244.1.10:8080"));
    // One that has failed is left out while there is another.
    let source = mesh.state.workload(&uid("b")).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let except = |gone: &'static [&'static str]| {
        move |pod: &Workload, _: SocketAddr| !gone.contains(&&*pod.name)
    };
    for (gone, expected) in [
        (&["near"][..], far("10.96.0.1:80")),
        (&["near", "far"], near("10.96.0.1:80")),
    ] {
        let to = addr("10.96.0.1:80");
        let route = route_among(&mesh.state, source, to, &mut rng, except(gone)).unwrap();
        assert_eq!(route.kind, expected, "{gone:?}");
        assert_eq!(route.waypoint, Some(waypoint()));
    }
    mesh.change("near", |near| {
        near.status = crate::workload::Health::Unhealthy
    });
    mesh.check("b", "10.96.0.1:80", far("10.96.0.1:80"));
    mesh.change("far", |far| far.tunnel = TunnelProtocol::None);
    let refused = mesh.route("b", "10.96.0.1:80").unwrap_err();
    assert_eq!(refused.reason().as_str(), "waypoint_unreachable");
    // For whom it is one.
    let is_for = |name: &str, destination: &str| {
        let workload = mesh.state.workload(&uid(name)).unwrap();
        is_waypoint_for(&mesh.state, workload, addr(destination))
    };
    for (name, destination, expected) in [
        ("near", "10.96.0.1:80", true),
        ("near", "10.244.1.10:8080", true),
        ("near", "10.96.0.2:80", false),
        ("near", "10.244.2.11:80", false),
        ("near", "192.0.2.1:80", false),
        ("b", "10.96.0.1:80", false),
    ] {
        assert_eq!(is_for(name, destination), expected, "{name} {destination}");
    }
}

/// Issue 12: 400 connections of 10 clients over 4 replicas of other nodes, and 10 that last and are asked to move on.
#[test]
fn connections_to_a_waypoint_of_other_nodes_take_turns() {
    let mut mesh = Mesh::new();
    // A waypoint that no other test asks for: its pods take turns in the whole process.
    let of = |name: &str| GatewayAddress {
        destination: GatewayDestination::Hostname(key(name)),
        hbone_port: 0,
    };
    for (waypoint, network) in [("turns", 3), ("others", 4)] {
        for last in 1..=4 {
            let address = format!("10.244.{network}.{last}");
            mesh.state.insert_workload(Workload {
                services: [(key(waypoint), vec![])].into(),
                ..pod(
                    &format!("{waypoint}-{last}"),
                    &address,
                    TunnelProtocol::Hbone,
                )
            });
        }
    }
    for (name, ip, waypoint) in [
        ("front", "10.96.0.1", "turns"),
        ("back", "10.96.0.2", "others"),
    ] {
        mesh.state.insert_service(Service {
            waypoint: Some(of(waypoint)),
            ..service(name, ip)
        });
    }
    let drawn = |target: &str| {
        let route = mesh.route("b", target).unwrap();
        route.destination.unwrap().name.to_string()
    };
    // Those of another waypoint come between and change nothing.
    let sequence: Vec<String> = (0..400)
        .map(|number| {
            for _ in 0..number % 3 {
                drawn("10.96.0.2:80");
            }
            drawn("10.96.0.1:80")
        })
        .collect();
    for connections in [10, 40, 400] {
        for window in sequence.windows(connections) {
            for last in 1..=4 {
                let name = format!("turns-{last}");
                let own = window.iter().filter(|one| **one == name).count();
                let share = connections / 4;
                assert!((share..=share + 1).contains(&own), "{own} of {connections}");
            }
        }
    }
}

#[test]
fn an_endpoint_that_requires_a_waypoint_is_reached_through_it_by_its_service_too() {
    let mut mesh = Mesh::new();
    mesh.state.insert_workload(Workload {
        services: [(key("waypoint"), vec![])].into(),
        ..pod("gate", "10.244.2.20", TunnelProtocol::Hbone)
    });
    mesh.change("a", |a| a.waypoint = Some(waypoint()));
    // It is told which endpoint was chosen.
    let through = hbone("10.244.2.20:15008", "10.244.1.10:8080", &["gate"]);
    mesh.check("b", "10.96.0.1:80", through);
    let direct = hbone("10.244.1.10:15008", "10.244.1.10:8080", &["a"]);
    mesh.check("gate", "10.96.0.1:80", direct);
}

#[test]
fn a_waypoint_itself_reaches_what_is_behind_it() {
    let by_address = GatewayAddress {
        destination: GatewayDestination::Address(NetworkAddress::single(
            "",
            "10.244.2.10".parse().unwrap(),
        )),
        hbone_port: HBONE_PORT,
    };
    for gateway in [waypoint(), by_address] {
        let mut mesh = Mesh::new();
        mesh.change("b", |b| {
            b.services.insert(key("waypoint"), vec![]);
        });
        mesh.change("a", |a| a.waypoint = Some(gateway));
        let direct = hbone("10.244.1.10:15008", "10.244.1.10:8080", &["a"]);
        mesh.check("b", "10.244.1.10:8080", direct);
        // Everybody else goes through it.
        let through = hbone("10.244.2.10:15008", "10.244.1.10:8080", &["b"]);
        mesh.check("plain", "10.244.1.10:8080", through);
    }
}

#[test]
fn a_service_may_name_further_identities() {
    let mut mesh = Mesh::new();
    let id = |name: &str| {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{name}");
        id.parse::<Identity>().unwrap()
    };
    mesh.state.insert_service(Service {
        subject_alt_names: vec![id("a"), id("old-a")],
        ..service("front", "10.96.0.1")
    });
    let authority = "10.244.1.10:8080";
    let as_service = hbone("10.244.1.10:15008", authority, &["a", "old-a"]);
    mesh.check("b", "10.96.0.1:80", as_service);
    let as_pod = hbone("10.244.1.10:15008", authority, &["a"]);
    mesh.check("b", authority, as_pod);
}

#[test]
fn passthrough_goes_where_it_was_going() {
    let mut mesh = Mesh::new();
    mesh.state.insert_service(Service {
        load_balancing: LoadBalancing {
            mode: Mode::Passthrough,
            ..LoadBalancing::default()
        },
        ..service("outside", "203.0.113.1")
    });
    let route = mesh.route("a", "203.0.113.1:12345").unwrap();
    assert_eq!(route.kind, plain_to("203.0.113.1:12345"));
    assert!(route.service.is_some());
}

#[test]
fn what_is_or_was_a_captured_workloads_address_is_never_dialled_in_plain() {
    let mut mesh = Mesh::new();
    let gone = |ip: &str| Tombstone {
        uid: Tombstone::uid("Kubernetes", "shop", "gone", ip.parse().unwrap()),
        namespace: "shop".into(),
        name: "gone".into(),
        network: "".into(),
        addresses: vec![ip.parse().unwrap()],
    };
    mesh.state.insert_tombstone(gone("10.244.2.12"));
    let refusal = "10.244.2.12 was the address of captured workload shop/gone, and its node has \
                   not let go of it";
    mesh.check_refused("a", "10.244.2.12:80", "address_tombstone", refusal);
    // Endpoints written by hand, which may name any address, and services that pass through.
    let by_hand = |name: &str, address: &str| Workload {
        network_mode: crate::workload::NetworkMode::HostNetwork,
        services: [(key("hand"), vec![])].into(),
        ..pod(name, address, TunnelProtocol::None)
    };
    mesh.state.insert_service(service("hand", "10.96.0.3"));
    let passing = Service {
        load_balancing: LoadBalancing {
            mode: Mode::Passthrough,
            ..LoadBalancing::default()
        },
        ..service("passing", "10.244.2.10")
    };
    mesh.state.insert_service(passing);
    mesh.state.insert_workload(by_hand("hand", "10.244.2.12"));
    mesh.check_refused("a", "10.244.2.12:80", "address_tombstone", refusal);
    mesh.check_refused("a", "10.96.0.3:80", "address_tombstone", refusal);
    mesh.state.insert_workload(by_hand("hand", "10.244.2.10"));
    let to_b = |authority| hbone("10.244.2.10:15008", authority, &["b"]);
    mesh.check("a", "10.96.0.3:80", to_b("10.244.2.10:8080"));
    mesh.check("a", "10.244.2.10:80", to_b("10.244.2.10:80"));
    // Somebody else has it.
    let heir = pod("heir", "10.244.2.12", TunnelProtocol::None);
    mesh.state.insert_workload(heir);
    mesh.check("a", "10.244.2.12:80", plain_to("10.244.2.12:80"));
}

#[test]
fn a_workloads_address_wins_over_a_range_that_contains_it() {
    let mut mesh = Mesh::new();
    mesh.state.insert_service(Service {
        addresses: vec![NetworkAddress {
            prefix: Some(8),
            ..NetworkAddress::single("", "10.0.0.0".parse().unwrap())
        }],
        ..service("wide", "10.0.0.0")
    });
    let direct = hbone("10.244.1.10:15008", "10.244.1.10:80", &["a"]);
    mesh.check("b", "10.244.1.10:80", direct);
    let error = mesh.route("b", "10.9.9.9:80").unwrap_err();
    assert_eq!(error.reason().as_str(), "no_endpoint");
}

#[test]
fn a_service_that_the_client_may_not_see_is_not_there() {
    let mut mesh = Mesh::new();
    mesh.state.insert_service(Service {
        visibility: Visibility::Namespace,
        ..service("front", "10.96.0.1")
    });
    assert!(mesh.route("b", "10.96.0.1:80").unwrap().service.is_some());
    mesh.change("b", |b| b.namespace = "bank".into());
    mesh.check("b", "10.96.0.1:80", plain_to("10.96.0.1:80"));
}

#[test]
fn addresses_of_other_networks_are_not_confused_with_ours() {
    let mut mesh = Mesh::new();
    mesh.change("a", |a| a.network = "other".into());
    mesh.check("b", "10.244.1.10:80", plain_to("10.244.1.10:80"));
    let error = mesh.route("b", "10.96.0.1:80").unwrap_err();
    assert_eq!(error.reason().as_str(), "endpoint_in_other_network");
}

/// F42: whose egress is closed reaches whom the mesh knows and nobody else, and the kernel half is told to look at everything
/// as long as there is such a one.
#[test]
fn f42_closed_egress_reaches_whom_the_mesh_knows_and_nobody_else() {
    let everything = |state: &MeshState| {
        let all: Vec<ipnet::IpNet> = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).into();
        let carried: Vec<_> = state.carried().collect();
        let held = all.iter().filter(|net| state.carries(net)).count();
        assert_eq!(held, all.iter().filter(|net| carried.contains(net)).count());
        held
    };
    let mut mesh = Mesh::new();
    mesh.check("a", "192.0.2.1:443", plain_to("192.0.2.1:443"));
    assert_eq!(everything(&mesh.state), 0);
    mesh.change("a", |client| client.egress_closed = true);
    assert_eq!(everything(&mesh.state), 2);
    for outside in ["192.0.2.1:443", "[2001:db8::1]:443"] {
        let error = mesh.route("a", outside).unwrap_err();
        assert_eq!(error.reason(), Reason::EgressClosed, "{error}");
        assert!(error.to_string().contains(outside), "{error}");
    }
    mesh.check("a", "10.244.2.11:80", plain_to("10.244.2.11:80"));
    mesh.change("a", |client| client.egress_closed = false);
    assert_eq!(everything(&mesh.state), 0);
    mesh.check("a", "192.0.2.1:443", plain_to("192.0.2.1:443"));
}
