//! Field numbers and types as other implementations have them.
//!
//! The bytes are put together by hand, so that a slip in a `.proto` file cannot hide in a round
//! trip through the code that is generated from it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

use model::policy::{Action, Scope, StringMatch};
use model::workload::{Health, NetworkMode, TunnelProtocol, WorkloadType};
use model::{GatewayDestination, Policy, PolicyKey, ServiceKey, Workload};
use proptest::prelude::*;
use prost::Message;
use proto::convert::{self, Address};
use proto::{agent, envoy, istio};

/// A message that is written field by field.
#[derive(Default)]
struct Wire(Vec<u8>);

impl Wire {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap());
    }

    fn int(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.varint(field << 3 | 2);
        self.varint(u64::try_from(value.len()).unwrap());
        self.0.extend_from_slice(value);
        self
    }

    fn message(self, field: u64, value: Self) -> Self {
        self.bytes(field, value.0)
    }
}

fn wire() -> Wire {
    Wire::default()
}

fn workload(wire_: Wire) -> Workload {
    match convert::address(&wire().message(1, wire_).0) {
        Ok(Address::Workload(workload)) => workload,
        other => panic!("{other:?}"),
    }
}

fn service(wire_: Wire) -> model::Service {
    match convert::address(&wire().message(2, wire_).0) {
        Ok(Address::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

#[test]
fn workload_fields() {
    let port = wire().int(1, 80).int(2, 8080).int(3, 1);
    let ports = wire().message(1, port);
    let entry = wire().bytes(1, "shop/a.shop.svc").message(2, ports);
    let gateway_name = wire().bytes(1, "shop").bytes(2, "way.shop.svc");
    let gateway_address = wire().bytes(1, "east").bytes(2, [192, 0, 2, 1]);
    let workload = workload(
        wire()
            .bytes(1, "a")
            .bytes(2, "shop")
            .bytes(3, [10, 244, 1, 10])
            .bytes(3, [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
            .bytes(4, "west")
            .int(5, 1)
            .bytes(6, "td")
            .bytes(7, "cart")
            .message(8, wire().message(1, gateway_name).int(3, 15008))
            .bytes(9, "node-1")
            .bytes(10, "app")
            .bytes(11, "v1")
            .int(12, 3)
            .bytes(13, "owner")
            .int(14, 1)
            .bytes(16, "shop/p")
            .int(17, 1)
            .bytes(18, "c1")
            .message(19, wire().message(2, gateway_address).int(3, 15009))
            .bytes(20, "c1//Pod/shop/a")
            .bytes(21, "a.example")
            .message(22, entry)
            .message(23, wire().int(1, 1).int(2, 15088))
            .message(24, wire().bytes(1, "r").bytes(2, "z").bytes(3, "s"))
            .int(25, 1)
            .message(27, wire().int(1, 7))
            // A field of a later version.
            .bytes(200, "new"),
    );
    assert_eq!(&*workload.name, "a");
    assert_eq!(&*workload.namespace, "shop");
    let addresses: Vec<String> = workload.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.244.1.10", "fd00::1"]);
    assert_eq!(&*workload.network, "west");
    assert_eq!(workload.tunnel, TunnelProtocol::Hbone);
    assert_eq!(workload.identity().principal(), "td/ns/shop/sa/cart");
    let waypoint = workload.waypoint.unwrap();
    let name = ServiceKey::new("shop", "way.shop.svc");
    assert_eq!(waypoint.destination, GatewayDestination::Hostname(name));
    assert_eq!(waypoint.hbone_port, 15008);
    assert_eq!(&*workload.node, "node-1");
    assert_eq!(&*workload.canonical_name, "app");
    assert_eq!(&*workload.canonical_revision, "v1");
    assert_eq!(workload.workload_type, WorkloadType::Job);
    assert_eq!(&*workload.workload_name, "owner");
    assert!(workload.native_tunnel);
    assert_eq!(
        workload.authorization_policies,
        [PolicyKey::new("shop", "p")]
    );
    assert_eq!(workload.status, Health::Unhealthy);
    assert_eq!(&*workload.cluster_id, "c1");
    let gateway = workload.network_gateway.unwrap();
    assert_eq!(gateway.to_string(), "east/192.0.2.1");
    assert_eq!(gateway.hbone_port, 15009);
    assert_eq!(workload.uid.as_str(), "c1//Pod/shop/a");
    assert_eq!(&*workload.hostname, "a.example");
    let (key, ports) = workload.services.iter().next().unwrap();
    assert_eq!(key.to_string(), "shop/a.shop.svc");
    assert_eq!((ports[0].service_port, ports[0].target_port), (80, 8080));
    assert_eq!(workload.application_tunnel.unwrap().port, Some(15088));
    assert_eq!(&*workload.locality.region, "r");
    assert_eq!(&*workload.locality.zone, "z");
    assert_eq!(&*workload.locality.subzone, "s");
    assert_eq!(workload.network_mode, NetworkMode::HostNetwork);
    assert_eq!(workload.capacity, 7);
}

#[test]
fn service_fields() {
    use model::service::{AppProtocol, HealthPolicy, IpFamilies, Mode, Scope, Visibility};

    let way = |host: &str| {
        let name = wire().bytes(1, "shop").bytes(2, host);
        wire().message(1, name)
    };
    let service = service(
        wire()
            .bytes(1, "a")
            .bytes(2, "shop")
            .bytes(3, "a.shop.svc")
            .message(4, wire().bytes(1, "west").bytes(2, [10, 96, 0, 1]))
            .message(4, wire().bytes(2, [10, 97, 0, 0]).int(3, 16))
            .message(5, wire().int(1, 80).int(2, 8080).int(3, 5))
            .bytes(6, "spiffe://td/ns/shop/sa/a")
            .message(7, way("w1"))
            // Packed, as proto3 writes repeated enums.
            .message(8, wire().bytes(1, [6, 1, 2, 3, 4, 5]).int(2, 2).int(3, 1))
            .int(9, 3)
            .int(11, 1)
            .int(12, 1)
            .message(13, wire().message(1, way("w2")).int(2, 30))
            .int(14, 1),
    );
    assert_eq!(&*service.name, "a");
    assert_eq!(service.key().to_string(), "shop/a.shop.svc");
    assert_eq!(service.addresses[0].to_string(), "west/10.96.0.1");
    assert_eq!(service.addresses[1].to_string(), "/10.97.0.0/16");
    let port = service.ports[0];
    assert_eq!((port.port, port.target_port), (80, 8080));
    assert_eq!(port.app_protocol, AppProtocol::Tls);
    assert_eq!(service.subject_alt_names[0].principal(), "td/ns/shop/sa/a");
    assert_eq!(service.waypoint.unwrap().to_string(), "shop/w1");
    assert_eq!(
        service.load_balancing.routing_preference,
        [
            Scope::Network,
            Scope::Region,
            Scope::Zone,
            Scope::Subzone,
            Scope::Node,
            Scope::Cluster
        ]
    );
    assert_eq!(service.load_balancing.mode, Mode::Failover);
    assert_eq!(service.load_balancing.health_policy, HealthPolicy::AllowAll);
    assert_eq!(service.ip_families, IpFamilies::Dual);
    assert!(service.canonical);
    assert!(service.ingress_use_waypoint);
    let weighted = &service.weighted_waypoints[0];
    assert_eq!(weighted.destination.to_string(), "shop/w2");
    assert_eq!(weighted.weight, 30);
    assert_eq!(service.visibility, Visibility::Namespace);
}

#[test]
fn authorization_fields() {
    let string = |field, text: &str| wire().bytes(field, text);
    let range = |a, length| wire().bytes(1, [a, 0, 0, 0]).int(2, length);
    let account = |name: &str| wire().bytes(1, "shop").bytes(2, name);
    let m = wire()
        .message(1, string(1, "ns"))
        .message(2, string(2, "not-ns"))
        .message(3, string(3, "principal"))
        .message(4, wire().message(4, wire()))
        .message(5, range(1, 8))
        .message(6, range(2, 9))
        .message(7, range(3, 10))
        .message(8, range(4, 11))
        .bytes(9, [80, 81])
        // Not packed, which a reader has to accept too.
        .int(10, 443)
        .message(11, account("sa"))
        .message(12, account("not-sa"));
    // The clause keeps its matches in field 2.
    let rule = wire().message(1, wire().message(2, m));
    let reason = wire()
        .bytes(1, "type.googleapis.com/google.protobuf.StringValue")
        .message(2, wire().bytes(1, "because"));
    let extension = wire()
        .bytes(1, "keelson.io/unenforceable")
        .message(2, reason);
    let authorization = wire()
        .bytes(1, "p")
        .bytes(2, "shop")
        .int(3, 2)
        .int(4, 1)
        .message(5, rule)
        .int(6, 1)
        .message(7, extension);
    let policy: Policy = convert::authorization("shop/p", &authorization.0).unwrap();
    assert_eq!(policy.key, PolicyKey::new("shop", "p"));
    assert_eq!(policy.scope, Scope::WorkloadSelector);
    assert_eq!(policy.action, Action::Deny);
    assert!(policy.dry_run);
    assert_eq!(policy.unenforceable.as_deref(), Some("because"));
    let m = &policy.rules[0].clauses[0].matches[0];
    assert_eq!(m.namespaces, [StringMatch::Exact("ns".into())]);
    assert_eq!(m.not_namespaces, [StringMatch::Prefix("not-ns".into())]);
    assert_eq!(m.principals, [StringMatch::Suffix("principal".into())]);
    assert_eq!(m.not_principals, [StringMatch::Presence]);
    assert_eq!(m.source_ips[0].to_string(), "1.0.0.0/8");
    assert_eq!(m.not_source_ips[0].to_string(), "2.0.0.0/9");
    assert_eq!(m.destination_ips[0].to_string(), "3.0.0.0/10");
    assert_eq!(m.not_destination_ips[0].to_string(), "4.0.0.0/11");
    assert_eq!(m.destination_ports, [80, 81]);
    assert_eq!(m.not_destination_ports, [443]);
    assert_eq!(&*m.service_accounts[0].namespace, "shop");
    assert_eq!(&*m.service_accounts[0].service_account, "sa");
    assert_eq!(&*m.not_service_accounts[0].service_account, "not-sa");
}

#[test]
fn a_policy_is_written_with_the_same_numbers() {
    let policy = Policy {
        key: PolicyKey::new("shop", "p"),
        scope: Scope::Namespace,
        action: Action::Deny,
        rules: vec![Default::default()],
        dry_run: false,
        unenforceable: None,
    };
    let expected = wire()
        .bytes(1, "p")
        .bytes(2, "shop")
        .int(3, 1)
        .int(4, 1)
        .message(5, wire());
    assert_eq!(convert::policy_resource(&policy).value, expected.0);
}

#[test]
fn a_workload_is_written_with_the_same_numbers() {
    let workload = Workload {
        uid: "u".into(),
        name: "a".into(),
        addresses: vec![[10, 0, 0, 1].into()],
        tunnel: TunnelProtocol::Hbone,
        capacity: 0,
        ..Workload::default()
    };
    let resource = convert::workload_resource(&workload);
    let expected = wire()
        .bytes(1, "a")
        .bytes(3, [10, 0, 0, 1])
        .int(5, 1)
        .bytes(20, "u")
        .message(27, wire());
    assert_eq!(resource.value, wire().message(1, expected).0);
}

#[test]
fn discovery_fields() {
    let version = wire().bytes(1, "name").bytes(2, "7");
    let status = wire().int(1, 13).bytes(2, "bad");
    let request = wire()
        .message(1, wire().bytes(1, "id").bytes(2, "cluster"))
        .bytes(2, "type")
        .bytes(3, "more")
        .bytes(4, "less")
        .message(5, version)
        .bytes(6, "nonce")
        .message(7, status);
    let request = envoy::discovery::DeltaDiscoveryRequest::decode(&*request.0).unwrap();
    let node = request.node.unwrap();
    assert_eq!((&*node.id, &*node.cluster), ("id", "cluster"));
    assert_eq!(request.type_url, "type");
    assert_eq!(request.resource_names_subscribe, ["more"]);
    assert_eq!(request.resource_names_unsubscribe, ["less"]);
    assert_eq!(request.initial_resource_versions["name"], "7");
    assert_eq!(request.response_nonce, "nonce");
    let detail = request.error_detail.unwrap();
    assert_eq!((detail.code, &*detail.message), (13, "bad"));

    let any = wire().bytes(1, "type").bytes(2, "content");
    let resource = wire()
        .bytes(1, "7")
        .message(2, any)
        .bytes(3, "name")
        .bytes(4, "alias");
    let response = wire()
        .bytes(1, "system")
        .message(2, resource)
        .bytes(4, "type")
        .bytes(5, "nonce")
        .bytes(6, "gone");
    let response = envoy::discovery::DeltaDiscoveryResponse::decode(&*response.0).unwrap();
    assert_eq!(response.system_version_info, "system");
    assert_eq!(response.type_url, "type");
    assert_eq!(response.nonce, "nonce");
    assert_eq!(response.removed_resources, ["gone"]);
    let resource = &response.resources[0];
    assert_eq!((&*resource.version, &*resource.name), ("7", "name"));
    assert_eq!(resource.aliases, ["alias"]);
    assert_eq!(resource.resource.as_ref().unwrap().value, b"content");
}

#[test]
fn certificate_fields() {
    let identity = wire().bytes(3, "spiffe://td/ns/n/sa/s");
    let entry = wire().bytes(1, "ImpersonatedIdentity").message(2, identity);
    let request = wire()
        .bytes(1, "csr")
        .int(3, 86400)
        .message(4, wire().message(1, entry));
    let request = istio::ca::IstioCertificateRequest::decode(&*request.0).unwrap();
    assert_eq!((&*request.csr, request.validity_duration), ("csr", 86400));
    let fields = request.metadata.unwrap().fields;
    let Some(prost_types::value::Kind::StringValue(identity)) =
        &fields["ImpersonatedIdentity"].kind
    else {
        panic!("{fields:?}");
    };
    assert_eq!(identity, "spiffe://td/ns/n/sa/s");

    let response = wire().bytes(1, "leaf").bytes(1, "root");
    let response = istio::ca::IstioCertificateResponse::decode(&*response.0).unwrap();
    assert_eq!(response.cert_chain, ["leaf", "root"]);
}

#[test]
fn node_fields() {
    let pod = wire()
        .bytes(1, "uid")
        .bytes(2, "shop")
        .bytes(3, "a")
        .bytes(4, "pod-uid")
        .bytes(5, [10, 0, 0, 1])
        .bytes(6, "sa")
        .int(7, 1)
        .bytes(8, "label")
        .bytes(9, "td")
        .int(10, 2)
        .int(11, 8086);
    let expected = agent::NodePod {
        uid: "uid".to_owned(),
        namespace: "shop".to_owned(),
        name: "a".to_owned(),
        pod_uid: "pod-uid".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        service_account: "sa".to_owned(),
        capture: agent::Capture::Capture.into(),
        reason: "label".to_owned(),
        trust_domain: "td".to_owned(),
        same_node: agent::SameNode::Mtls.into(),
        probe_ports: vec![8086],
    };
    assert_eq!(agent::NodePod::decode(&*pod.0).unwrap(), expected);

    let report = wire()
        .bytes(1, "node-1")
        .bytes(2, "uid")
        .bytes(3, "1.0")
        .int(4, 3)
        .message(
            5,
            wire()
                .bytes(1, "shop")
                .bytes(2, "cart")
                .bytes(3, "u")
                .bytes(4, [10, 0, 0, 1]),
        )
        .int(6, 1);
    let expected = agent::NodeReport {
        node: "node-1".to_owned(),
        captured: vec!["uid".to_owned()],
        agent_version: "1.0".to_owned(),
        abi_version: 3,
        pods: vec![agent::CapturedPod {
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            pod_uid: "u".to_owned(),
            addresses: vec![vec![10, 0, 0, 1]],
        }],
        partial: true,
    };
    assert_eq!(agent::NodeReport::decode(&*report.0).unwrap(), expected);
}

#[test]
fn services_have_the_names_that_others_call() {
    use tonic::server::NamedService;

    type Any<T> = std::marker::PhantomData<T>;
    fn name<S: NamedService>(_: Any<S>) -> &'static str {
        S::NAME
    }
    use agent::node_service_server::NodeServiceServer;
    use envoy::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
    use istio::ca::istio_certificate_service_server::IstioCertificateServiceServer;
    let discovery: Any<AggregatedDiscoveryServiceServer<()>> = Any::default();
    let certificates: Any<IstioCertificateServiceServer<()>> = Any::default();
    let nodes: Any<NodeServiceServer<()>> = Any::default();
    assert_eq!(
        [name(discovery), name(certificates), name(nodes)],
        [
            "envoy.service.discovery.v3.AggregatedDiscoveryService",
            "istio.v1.auth.IstioCertificateService",
            "keelson.agent.v1.NodeService"
        ]
    );
}

proptest! {
    /// Whatever comes, a policy comes out of it, or one that denies, or a name that is none.
    #[test]
    fn hostile_bytes_are_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        field in 1_u64..30,
    ) {
        let _address = convert::address(&bytes);
        let nested = wire().bytes(field, &bytes);
        let _workload = convert::address(&wire().bytes(1, &nested.0).0);
        let _service = convert::address(&wire().bytes(2, &nested.0).0);
        for bytes in [&bytes, &nested.0] {
            if let Err(rejected) = convert::authorization("shop/p", bytes) {
                let substitute = rejected.substitute.unwrap();
                prop_assert_eq!(substitute.action, Action::Deny);
            }
        }
    }
}
