//! What `ServiceEntry` objects become for agents, waypoints and gateways.

use l7::backend::{Roots, TlsMode};
use l7::route::{Action, Backend};
use l7::{ClusterKey, Config};
use model::ServiceKey;
use proto::istio::workload::load_balancing::Mode;
use proto::istio::workload::service::Visibility;

use super::waypoints::config_of;
use super::*;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {keelson.io/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}, annotations: {keelson.io/pod-ips: 10.244.1.9}}
spec: {nodeName: n1, serviceAccountName: wp}
---
apiVersion: v1
kind: Service
metadata: {name: egress, namespace: shop}
spec: {clusterIP: 10.96.0.44, selector: {app: egress}, ports: [{name: tls, port: 443}]}
";

/// An entry `e` of a namespace, with a waypoint unless it says otherwise.
fn entry(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: ServiceEntry\nmetadata: {{name: e, namespace: {namespace}, labels: {{istio.io/use-waypoint: wp}}}}\nspec: {spec}\n"
    )
}

const HTTP: &str = "ports: [{number: 80, name: http, protocol: http}]";

fn said(changes: &Changes) -> Vec<String> {
    let all = changes.diagnostics.iter().flat_map(|(_, said)| said);
    all.map(ToString::to_string).collect()
}

fn addresses(service: &istio::workload::Service) -> Vec<IpAddr> {
    let of = |address: &istio::workload::NetworkAddress| match address.address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(&*address.address).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(&*address.address).unwrap()),
    };
    service.addresses.iter().map(of).collect()
}

fn cluster<'c>(config: &'c Config, namespace: &str, host: &str, port: u16) -> &'c l7::Cluster {
    let key = ClusterKey {
        service: ServiceKey::new(namespace, host),
        port,
        subset: None,
    };
    let found = config.cluster(&key, port);
    found.unwrap_or_else(|| {
        panic!(
            "no {key:?}: {:?}",
            config.clusters().map(|c| &c.key).collect::<Vec<_>>()
        )
    })
}

/// F39, F41, Y23: endpoints with addresses are workloads for agents and endpoints for waypoints, with what is said of each; the
/// service gets an address of its own, the same whoever computes it.
#[test]
fn f39_f41_endpoints_with_addresses_are_known_to_agents_and_waypoints() {
    let spec = format!(
        "{{hosts: [some.domain.com], {HTTP}, resolution: STATIC, endpoints: [{{address: 2.2.2.2, ports: {{http: 8080}}, labels: {{version: v1}}, locality: eu/a/1, weight: 3}}, {{address: 2.2.2.3}}]}}"
    );
    let mesh = Mesh::of(&(SHOP.to_owned() + &entry("shop", &spec)));
    let service = mesh.service("shop/some.domain.com");
    assert_eq!(service.hostname, "some.domain.com");
    let own = addresses(&service);
    assert!(own[0].to_string().starts_with("240.240."), "{own:?}");
    assert!(own[1].to_string().starts_with("2001:2::"), "{own:?}");
    let again = Mesh::of(&(entry("shop", &spec) + "---" + SHOP));
    assert_eq!(addresses(&again.service("shop/some.domain.com")), own);
    let uid = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/serviceentry:e:some.domain.com:";
    let of = |number: usize, ip: &str| mesh.find_workload(&format!("{uid}{number}/{ip}"));
    let first = of(0, "2.2.2.3")
        .or_else(|| of(1, "2.2.2.3"))
        .expect("a workload");
    assert_eq!(
        first.services["shop/some.domain.com"].ports[0].target_port,
        80
    );
    let config = config_of(&mesh, "shop/wp");
    let cluster = cluster(&config, "shop", "some.domain.com", 80);
    let members: Vec<_> = cluster.members.iter().collect();
    assert_eq!(members.len(), 2);
    let told = members
        .iter()
        .find(|one| one.address.port() == 8080)
        .unwrap();
    assert_eq!(&*told.endpoint.labels["version"], "v1");
    assert_eq!(
        (&*told.endpoint.locality.region, told.endpoint.weight),
        ("eu", 3)
    );
}

/// F39, Y25, Y28: endpoints with names are for who looks them up; a host without endpoints is its own, and a Service of
/// the cluster has an address already.
#[test]
fn f39_names_are_left_to_waypoints_and_those_of_services_are_known() {
    let tcp = "ports: [{number: 975, name: tcp, protocol: TCP}]";
    let spec = format!(
        "{{hosts: [my-tcp-service.internal], addresses: [1.2.3.4], {tcp}, resolution: DNS, endpoints: [{{address: foo.com}}]}}"
    );
    let mut mesh = Mesh::of(&(SHOP.to_owned() + &entry("shop", &spec)));
    assert_eq!(
        addresses(&mesh.service("shop/my-tcp-service.internal")),
        ["1.2.3.4".parse::<IpAddr>().unwrap()]
    );
    let named = |mesh: &Mesh| {
        let config = &mesh.index.snapshot().waypoints["shop/wp"];
        let read = config.endpoints.values().map(|one| {
            let one = proto::l7::Endpoint::decode(one.body()).unwrap();
            (
                one.hostname,
                one.addresses,
                one.ports.first().map(|port| port.target),
            )
        });
        let read: Vec<_> = read.filter(|(_, _, port)| port.is_some()).collect();
        read
    };
    assert_eq!(named(&mesh), [("foo.com".to_owned(), vec![], Some(975))]);
    mesh.apply(&entry(
        "shop",
        &format!("{{hosts: [api.openweathermap.org], {HTTP}, resolution: DNS}}"),
    ));
    assert_eq!(
        named(&mesh),
        [("api.openweathermap.org".to_owned(), vec![], Some(80))]
    );
    // Y61: by a key that no port has, which is said.
    let y61 = entry(
        "shop",
        "{hosts: [wikipedia.org], ports: [{number: 443, name: https, protocol: HTTPS}], location: MESH_EXTERNAL, resolution: DNS, endpoints: [{address: egress.shop.svc.cluster.local, ports: {http: 443}}]}",
    );
    let notes = said(&mesh.apply(&y61));
    assert!(
        notes
            .iter()
            .any(|one| one.contains("spec.endpoints[0].ports.http")),
        "{notes:?}"
    );
    let ip = vec![10, 96, 0, 44];
    assert_eq!(named(&mesh), [(String::new(), vec![ip], Some(443))]);
    // And follows the Service.
    mesh.remove("apiVersion: v1\nkind: Service\nmetadata: {name: egress, namespace: shop}\nspec: {ports: [{port: 443}]}\n");
    assert_eq!(
        named(&mesh),
        [(
            "egress.shop.svc.cluster.local".to_owned(),
            vec![],
            Some(443)
        )]
    );
}

/// F39: with resolution NONE connections go on as they are, also by ranges; a waypoint would not know where to.
#[test]
fn f39_without_resolution_connections_pass_to_the_address_that_was_dialled() {
    let spec = format!(
        "{{hosts: ['*.example.com'], addresses: [192.0.2.0/24, 198.51.100.7], {HTTP}, exportTo: ['.']}}"
    );
    let entry = entry("shop", &spec).replace("labels: {istio.io/use-waypoint: wp}", "labels: {}");
    let mesh = Mesh::of(&(SHOP.to_owned() + &entry));
    let service = mesh.service("shop/*.example.com");
    assert_eq!(
        service.load_balancing.as_ref().unwrap().mode(),
        Mode::Passthrough
    );
    assert_eq!(service.visibility(), Visibility::Namespace);
    assert_eq!(service.waypoint, None);
    let mut lengths: Vec<_> = service.addresses.iter().map(|one| one.length).collect();
    lengths.sort_unstable();
    assert_eq!(lengths, [None, Some(24)]);
}

/// What cannot be carried out is named with its field, and nothing of the object is done.
#[test]
fn what_is_not_supported_is_refused_by_its_field() {
    for (spec, field) in [
        ("{hosts: [a.com]}", "spec.ports"),
        ("{ports: [{number: 80, name: http}]}", "spec.hosts"),
        (
            "{hosts: ['*.a.com'], PORTS, resolution: DNS}",
            "spec.hosts[0]",
        ),
        (
            "{hosts: [x.other.svc.cluster.local], PORTS, resolution: DNS}",
            "spec.hosts[0]",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: DYNAMIC_DNS}",
            "spec.resolution",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: STATIC}",
            "spec.endpoints",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: STATIC, endpoints: [{address: b.com}]}",
            "spec.endpoints[0].address",
        ),
        // Who dials it reaches itself.
        (
            "{hosts: [a.com], PORTS, resolution: STATIC, endpoints: [{address: 127.0.0.1}]}",
            "spec.endpoints[0].address",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: STATIC, endpoints: [{address: '::ffff:127.0.0.1'}]}",
            "spec.endpoints[0].address",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: DNS, addresses: [127.0.0.2]}",
            "spec.addresses[0]",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: STATIC, endpoints: [{address: 'unix:///x'}]}",
            "spec.endpoints[0].address",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: STATIC, endpoints: [{address: 1.1.1.1, network: n2}]}",
            "spec.endpoints[0].network",
        ),
        (
            "{hosts: [a.com], PORTS, endpoints: [{address: 1.1.1.1}]}",
            "spec.endpoints",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: DNS, addresses: [10.0.0.0/8]}",
            "spec.addresses[0]",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: DNS, subjectAltNames: [x]}",
            "spec.subjectAltNames",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: DNS, exportTo: [bank]}",
            "spec.exportTo[0]",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: DNS, location: MARS}",
            "spec.location",
        ),
        (
            "{hosts: [a.com], ports: [{number: 53, name: dns, protocol: UDP}], resolution: DNS}",
            "spec.ports[0].protocol",
        ),
        (
            "{hosts: [a.com], PORTS, addresses: [1.1.1.1]}",
            "metadata.labels[\"istio.io/use-waypoint\"]",
        ),
        (
            "{hosts: [a.com], PORTS, resolution: DNS, workloadSelector: {labels: {a: b}}}",
            "spec.workloadSelector",
        ),
    ] {
        let mut mesh = Mesh::of(SHOP);
        let text = entry("shop", &spec.replace("PORTS", HTTP));
        let said = said(&mesh.apply(&text));
        let named = said
            .iter()
            .any(|one| one.contains(": error:") && one.contains(&format!("{field}: ")));
        assert!(named, "{spec}: {said:?}");
        assert!(
            !mesh.names().iter().any(|name| name.contains("a.com")),
            "{spec}"
        );
        // And taken back with it.
        let after = mesh.remove(&text);
        assert!(
            after.diagnostics.iter().all(|(_, said)| said.is_empty()),
            "{spec}"
        );
    }
}

/// F40: a Service is known by its own names, whatever an entry says of them; of two entries the oldest counts, and each
/// namespace has its own.
#[test]
fn f40_a_service_goes_before_entries_and_the_oldest_of_these_counts() {
    let y27 = "{hosts: [egress, egress.shop, egress.shop.svc.cluster.local], PORTS, resolution: STATIC, endpoints: [{address: 1.2.3.4}]}";
    let mut mesh = Mesh::of(&(SHOP.to_owned() + &entry("shop", &y27.replace("PORTS", HTTP))));
    let service = mesh.service("shop/egress.shop.svc.cluster.local");
    assert_eq!(
        addresses(&service),
        ["10.96.0.44".parse::<IpAddr>().unwrap()]
    );
    // The name in between is nobody's otherwise.
    mesh.service("shop/egress.shop");
    mesh.remove("apiVersion: v1\nkind: Service\nmetadata: {name: egress, namespace: shop}\nspec: {ports: [{port: 443}]}\n");
    let service = mesh.service("shop/egress.shop.svc.cluster.local");
    assert!(addresses(&service)[0].to_string().starts_with("240.240."));
    let younger = entry(
        "shop",
        &format!("{{hosts: [egress.shop], {HTTP}, resolution: DNS}}"),
    )
    .replace("name: e,", "name: f,");
    let notes = said(&mesh.apply(&younger));
    assert!(
        notes
            .iter()
            .any(|one| one.contains("declared by shop/e too")),
        "{notes:?}"
    );
    mesh.apply(&entry(
        "bank",
        &format!("{{hosts: [egress.shop], {HTTP}, resolution: DNS}}"),
    ));
    mesh.service("bank/egress.shop");
}

/// F44, Y61 to Y64: a rule names a host that an entry of its namespace declares, else one that another lets it see.
#[test]
fn f44_rules_lead_to_hosts_that_entries_declare() {
    let rule = |host: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\nspec: {{hosts: [some.domain.com], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}\n"
        )
    };
    let leads = |mesh: &Mesh| {
        let entry = &mesh.index.snapshot().waypoints["shop/wp"];
        let (name, route) = entry.routes.iter().next().expect("a rule");
        let read = proto::convert::l7::resource(type_url(), name, route.body());
        let Some(Ok(l7::Resource::Route(_, rule))) = read else {
            panic!("{name}");
        };
        let Action::Forward(forward) = &rule.rule.action else {
            panic!("{rule:?}");
        };
        match &forward.backends[0].backend {
            Backend::Cluster(key) => key.service.to_string(),
            Backend::Invalid { status, reason } => format!("{status} {reason}"),
        }
    };
    let own = format!("{{hosts: [some.domain.com], {HTTP}, resolution: DNS}}");
    let mut mesh = Mesh::of(&(SHOP.to_owned() + &entry("shop", &own) + &rule("other.com")));
    assert_eq!(
        leads(&mesh),
        "503 Service Unavailable no Service or ServiceEntry has the host other.com"
    );
    let other = |export: &str| {
        format!("{{hosts: [other.com], {HTTP}, resolution: DNS, exportTo: ['{export}']}}")
    };
    mesh.apply(&entry("bank", &other(".")));
    assert!(leads(&mesh).starts_with("503"), "not for other namespaces");
    mesh.apply(&entry("bank", &other("*")));
    assert_eq!(leads(&mesh), "bank/other.com");
    mesh.apply(&entry(
        "shop",
        &own.replace("[some.domain.com]", "[some.domain.com, other.com]"),
    ));
    assert_eq!(leads(&mesh), "shop/other.com");
    // Y64's host has no dot, and is one of its namespace.
    mesh.apply(&entry(
        "shop",
        &own.replace(
            "[some.domain.com]",
            "[some.domain.com, egress-wikipedia-org]",
        ),
    ));
    mesh.apply(&rule("egress-wikipedia-org"));
    assert_eq!(
        leads(&mesh),
        "shop/egress-wikipedia-org.shop.svc.cluster.local"
    );
}

fn type_url() -> &'static str {
    proto::type_url::L7_ROUTE
}

/// F45: the roots that a rule names are those of the waypoint's namespace, and without them nobody is believed.
#[test]
fn f45_roots_come_from_a_secret_and_without_it_nobody_is_believed() {
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r, namespace: shop}\nspec: {host: some.domain.com, trafficPolicy: {tls: {mode: SIMPLE, credentialName: roots}}}\n";
    let own = format!("{{hosts: [some.domain.com], {HTTP}, resolution: DNS}}");
    let mut mesh = Mesh::of(&(SHOP.to_owned() + &entry("shop", &own) + rule));
    let roots = |mesh: &Mesh| {
        let config = config_of(mesh, "shop/wp");
        match cluster(&config, "shop", "some.domain.com", 80)
            .policy
            .tls
            .clone()
        {
            Some(TlsMode::Simple {
                roots: Roots::Given(pem),
                ..
            }) => String::from_utf8(pem.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(roots(&mesh), "");
    let named = mesh.index.named_secrets().iter().map(ToString::to_string);
    assert_eq!(named.collect::<Vec<_>>(), ["shop/roots"]);
    mesh.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: roots, namespace: shop}\nstringData: {ca.crt: '-----BEGIN CERTIFICATE-----'}\n");
    assert_eq!(roots(&mesh), "-----BEGIN CERTIFICATE-----");
    // What is asked for and cannot be done is not done in plain.
    mesh.apply(&rule.replace("mode: SIMPLE, credentialName: roots", "mode: MUTUAL"));
    assert_eq!(roots(&mesh), "");
}
