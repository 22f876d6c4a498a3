//! Whom the kernel leads to a waypoint, and for what.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use abi::{ANY_PORT, Addr, DirectVerdict, Endpoint, LED, VerdictKey};
use model::{
    GatewayAddress, Identity, MeshState, NetworkAddress, PolicyKey, Service, TrustDomain, Workload,
    address::GatewayDestination,
    policy::{Action, Clause, Match, Policy, Rule, Scope},
    service::{AppProtocol, ServiceKey, ServicePort},
    workload::{ApplicationProtocol, ApplicationTunnel, Health, Isolated, PortMapping},
};

use super::{AllSaid, Callers, Said};
use crate::direct::compile::{LocalPod, Tables, compile};

const CART: &str = "10.96.0.7:80";
const WAYPOINT: u32 = 1;
const FRONT: u32 = 2;
const TELLER: u32 = 3;

fn identity(account: &str) -> Identity {
    Identity::new(TrustDomain::default(), "shop", account)
}

fn gateway() -> GatewayAddress {
    GatewayAddress {
        destination: GatewayDestination::Hostname(ServiceKey::new("shop", "waypoint")),
        hbone_port: 15008,
    }
}

fn service(name: &str, address: &str, waypoint: Option<GatewayAddress>) -> Service {
    Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: name.into(),
        addresses: vec![NetworkAddress::single("", address.parse().unwrap())],
        ports: vec![ServicePort {
            port: 80,
            target_port: 8080,
            app_protocol: AppProtocol::Http11,
        }],
        waypoint,
        ..Service::default()
    }
}

struct Node {
    state: MeshState,
    pods: Vec<LocalPod>,
    said: AllSaid,
}

impl Node {
    /// `front` and `teller`, and the waypoint of `cart`, which has heard of both.
    fn new() -> Self {
        let mut node = Self {
            state: MeshState::default(),
            pods: Vec::new(),
            said: AllSaid::default(),
        };
        node.add(WAYPOINT, "waypoint", |pod| {
            pod.application_tunnel = Some(ApplicationTunnel {
                protocol: ApplicationProtocol::Proxy,
                port: Some(15088),
            });
            let own = ServiceKey::new("shop", "waypoint");
            pod.services
                .insert(own, vec![PortMapping::new(15008, 15008)]);
        });
        node.add(FRONT, "front", |_| {});
        node.add(TELLER, "teller", |_| {});
        node.state
            .insert_service(service("waypoint", "10.96.0.1", None));
        node.state
            .insert_service(service("cart", "10.96.0.7", Some(gateway())));
        node.says(&[FRONT, TELLER], &[(CART, 61_440)]);
        node
    }

    fn add(&mut self, id: u32, account: &str, change: impl FnOnce(&mut Workload)) {
        let address = format!("10.244.1.{id}").parse().unwrap();
        let mut workload = Workload {
            uid: format!("Kubernetes//Pod/shop/p{id}").as_str().into(),
            name: format!("p{id}").into(),
            namespace: "shop".into(),
            service_account: account.into(),
            node: "n1".into(),
            addresses: vec![address],
            ..Workload::default()
        };
        change(&mut workload);
        self.pods.push(LocalPod {
            id,
            workload: workload.uid.clone(),
            identity: identity(account),
            addresses: vec![address],
        });
        self.state.insert_workload(workload);
    }

    fn says(&mut self, callers: &[u32], doors: &[(&str, u16)]) {
        let known = self.pods.iter().filter(|pod| callers.contains(&pod.id));
        let callers: Callers = known
            .map(|pod| (pod.addresses[0], pod.identity.clone()))
            .collect();
        let doors = doors.iter().map(|(to, at)| (to.parse().unwrap(), *at));
        let said = Said {
            callers: Arc::new(callers),
            doors: doors.collect::<BTreeMap<SocketAddr, u16>>(),
        };
        self.said.insert(WAYPOINT, said);
    }

    fn tables(&self) -> Tables {
        compile(&self.state, &self.pods, &self.said)
    }

    fn may(&self, client: u32) -> bool {
        let key = VerdictKey {
            source: client,
            destination: WAYPOINT,
            port: ANY_PORT,
            way: LED,
        };
        self.tables().verdicts.get(&key) == Some(&DirectVerdict::Allow)
    }

    /// The ports where connections to the address of a service are led.
    fn leads(&self, service: &str) -> Vec<(u32, u16)> {
        let to: SocketAddr = service.parse().unwrap();
        let to = Endpoint::new(Addr::from(to.ip()), to.port());
        let table = self.tables().services.get(&to).cloned().unwrap_or_default();
        let targets = table.targets.into_iter();
        targets
            .map(|(target, _)| (target.pod, target.endpoint.port))
            .collect()
    }
}

#[test]
fn who_is_known_is_led_to_the_door_of_the_service() {
    let node = Node::new();
    assert_eq!(node.leads(CART), [(WAYPOINT, 61_440)]);
    assert!(node.may(FRONT) && node.may(TELLER));
    assert!(!node.may(WAYPOINT), "what it dials is for those behind it");
}

#[test]
fn whom_the_waypoint_does_not_know_is_the_agents() {
    let mut node = Node::new();
    node.says(&[FRONT], &[(CART, 61_440)]);
    assert!(node.may(FRONT) && !node.may(TELLER));
    // The address was another's, whom the waypoint still knows by it.
    let mut node = Node::new();
    let stale = Callers::from([([10, 244, 1, 3].into(), identity("front"))]);
    node.said.get_mut(&WAYPOINT).unwrap().callers = Arc::new(stale);
    assert!(!node.may(TELLER));
    node.said.clear();
    assert!(!node.may(FRONT));
    assert_eq!(node.leads(CART), []);
}

#[test]
fn a_waypoint_speaks_for_the_services_that_are_behind_it_and_for_no_other() {
    let mut node = Node::new();
    node.state
        .insert_service(service("bank", "10.96.0.8", None));
    node.says(
        &[FRONT],
        &[
            (CART, 61_440),
            ("10.96.0.8:80", 61_441),
            ("10.96.0.7:81", 61_442),
            ("10.244.1.3:80", 61_443),
        ],
    );
    assert_eq!(node.leads(CART), [(WAYPOINT, 61_440)]);
    for other in ["10.96.0.8:80", "10.96.0.7:81", "10.244.1.3:80"] {
        assert_eq!(node.leads(other), [], "{other}");
    }
}

#[test]
fn a_pod_that_is_none_or_not_ready_leads_nobody_astray() {
    let mut node = Node::new();
    let mut own = (**node.state.workload("Kubernetes//Pod/shop/p1").unwrap()).clone();
    own.status = Health::Unhealthy;
    node.state.insert_workload(own.clone());
    assert_eq!(node.leads(CART), []);
    own.status = Health::Healthy;
    own.application_tunnel = None;
    node.state.insert_workload(own);
    assert_eq!(node.leads(CART), []);
    assert!(!node.may(FRONT));
}

#[test]
fn a_waypoints_own_ports_are_the_agents_to_guard() {
    let node = Node::new();
    let tables = node.tables();
    let key = |destination, way| VerdictKey {
        source: FRONT,
        destination,
        port: ANY_PORT,
        way,
    };
    let said = |destination| tables.verdicts.get(&key(destination, 0)).copied();
    assert_eq!(said(WAYPOINT), Some(DirectVerdict::Agent));
    assert_eq!(said(TELLER), Some(DirectVerdict::Allow));
    assert_eq!(tables.verdicts.get(&key(TELLER, LED)), None);
}

/// A NetworkPolicy that opens 15008 alone is enforced by the network too, on the doors.
#[test]
fn whom_a_network_policy_keeps_from_the_doors_is_the_agents() {
    let mut node = Node::new();
    let key = PolicyKey::new("shop", "only-tunnels");
    let refuses = |ports: &[u16]| Policy {
        key: key.clone(),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![Match {
                    not_destination_ports: ports.to_vec(),
                    ..Match::default()
                }],
            }],
        }],
        dry_run: false,
        unenforceable: None,
    };
    node.state.insert_policy(refuses(&[15008]));
    let own = node.state.workload("Kubernetes//Pod/shop/p1").unwrap();
    let mut own = (**own).clone();
    own.authorization_policies = vec![key.clone()];
    node.state.insert_workload(own);
    assert!(!node.may(FRONT), "the SYN to a door would be dropped");
    // One that names a door is not looked into.
    node.state.insert_policy(refuses(&[15008, 61_440]));
    assert!(!node.may(FRONT));
}

/// The mesh enforces no NetworkPolicy then, and the network may.
#[test]
fn whom_the_clusters_network_isolates_is_the_agents() {
    let mut node = Node::new();
    let isolate = |node: &mut Node, id: u32, by: Isolated| {
        let uid = format!("Kubernetes//Pod/shop/p{id}");
        let mut one = (**node.state.workload(&uid).unwrap()).clone();
        one.isolated = by;
        node.state.insert_workload(one);
    };
    let egress = Isolated {
        egress: true,
        ..Isolated::default()
    };
    isolate(&mut node, FRONT, egress);
    assert!(!node.may(FRONT));
    assert!(node.may(TELLER));
    isolate(&mut node, WAYPOINT, egress);
    assert!(node.may(TELLER), "its own calls are the agent's");
    let ingress = Isolated {
        ingress: true,
        ..Isolated::default()
    };
    isolate(&mut node, WAYPOINT, ingress);
    assert!(!node.may(TELLER));
}
