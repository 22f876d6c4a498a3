use istio::workload::{NetworkMode, WorkloadStatus};
use model::address::Family;
use model::balance;

use super::*;

fn slice(name: &str, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{endpoints}]\n"
    )
}

const WEB: &str = "---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{name: http, port: 80, targetPort: 1}]}
";

#[test]
fn slices_replace_the_selector_and_say_who_is_ready() {
    let mut mesh = Mesh::of(&format!(
        "{WEB}{}{}",
        pod("a", ""),
        pod("b", "").replace("1.10", "1.11")
    ));
    let key = "shop/web.shop.svc.cluster.local".to_owned();
    assert_eq!(
        mesh.ports("shop/a"),
        [(key.clone(), vec!["80>1".to_owned()])].into()
    );
    let by_name = slice(
        "s",
        "{addresses: [10.244.1.11], targetRef: {kind: Pod, name: b, namespace: shop}, conditions: {ready: false}}",
    );
    mesh.apply(&by_name);
    assert!(
        mesh.ports("shop/a").is_empty(),
        "there is a slice, so the selector does not count"
    );
    assert_eq!(
        mesh.ports("shop/b"),
        [(key.clone(), vec!["80>8080".to_owned()])].into()
    );
    assert_eq!(mesh.workload("shop/b").status(), WorkloadStatus::Unhealthy);
    mesh.apply(&by_name.replace("false", "true"));
    assert_eq!(mesh.workload("shop/b").status(), WorkloadStatus::Healthy);
    mesh.remove(&by_name);
    assert_eq!(
        mesh.ports("shop/a"),
        [(key, vec!["80>1".to_owned()])].into()
    );
    assert!(mesh.ports("shop/b").is_empty());
}

#[test]
fn an_endpoint_without_a_pod_is_a_workload_until_a_pod_has_its_address() {
    let slice = slice(
        "s",
        "{addresses: [10.9.9.9]}, {addresses: [10.9.9.8], conditions: {ready: false}}",
    );
    let mut mesh = Mesh::of(&format!("{WEB}{slice}"));
    let uid = |ip: &str| format!("Kubernetes/discovery.k8s.io/EndpointSlice/shop/s/{ip}");
    let workload = mesh.find_workload(&uid("10.9.9.9")).expect("built");
    assert_eq!(
        (workload.node.as_str(), workload.network_mode()),
        ("", NetworkMode::HostNetwork)
    );
    assert_eq!(
        workload.services["shop/web.shop.svc.cluster.local"].ports[0].target_port,
        8080
    );
    assert_eq!(
        mesh.find_workload(&uid("10.9.9.8"))
            .expect("built")
            .status(),
        WorkloadStatus::Unhealthy
    );
    let owner = pod("a", "").replace("10.244.1.10", "10.9.9.9");
    mesh.apply(&owner);
    assert!(mesh.find_workload(&uid("10.9.9.9")).is_none());
    assert_eq!(mesh.ports("shop/a").len(), 1);
    mesh.remove(&owner);
    assert!(mesh.find_workload(&uid("10.9.9.9")).is_some());
    mesh.remove(&slice);
    assert_eq!(mesh.names(), ["shop/web.shop.svc.cluster.local"]);
}

/// The endpoints that an agent draws from for a connection to a Service, from the resources that it would receive:
/// `address:port`, sorted.
fn drawn(mesh: &Mesh, service: &str, port: u16, family: Family) -> Vec<String> {
    let mut state = model::MeshState::default();
    for resource in mesh.index.snapshot().addresses.values() {
        match proto::convert::address(resource.body()).expect("an agent understands it") {
            proto::convert::Address::Workload(workload) => state.insert_workload(workload),
            proto::convert::Address::Service(service) => state.insert_service(service),
            proto::convert::Address::Tombstone(tombstone) => panic!("{tombstone:?}"),
        }
    }
    let service = state
        .service(&service.parse().expect("a key"))
        .expect("the service");
    let source = model::Workload {
        node: "n1".into(),
        ..model::Workload::default()
    };
    let listed = balance::candidates(&state, service, port, family, &source).unwrap_or_default();
    let mut ends: Vec<_> = listed
        .iter()
        .map(|(end, _)| std::net::SocketAddr::new(end.ip, end.target_port).to_string())
        .collect();
    ends.sort();
    ends
}

/// A pod of app `web` with these addresses.
fn web(name: &str, addresses: &str, node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web}}, annotations: {{keelson.io/pod-ips: \"{addresses}\"}}}}\nspec: {{nodeName: {node}}}\n"
    )
}

/// A slice of a Service: its ports, its endpoints.
fn slice_of(service: &str, name: &str, family: &str, ports: &str, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: {family}\nports: [{ports}]\nendpoints: [{endpoints}]\n"
    )
}

fn end(address: &str, pod: &str, conditions: &str) -> String {
    format!(
        "{{addresses: [\"{address}\"], nodeName: n1, targetRef: {{kind: Pod, name: {pod}, namespace: shop}}, conditions: {{{conditions}}}}}"
    )
}

const KEY: &str = "shop/web.shop.svc.cluster.local";
const TWO_PORTS: &str = "---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, \"fd00:10:96::1\"]
  ipFamilies: [IPv4, IPv6]
  ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 81, targetPort: 9000}]
";

#[test]
fn slices_of_one_service_do_not_overwrite_each_others_ports() {
    let mut mesh = Mesh::of(&format!(
        "{TWO_PORTS}{}{}{}{}",
        web("a", "10.244.1.1", "n1"),
        web("b", "10.244.1.2", "n1"),
        slice_of(
            "web",
            "s1",
            "IPv4",
            "{name: http, port: 8080}",
            &format!(
                "{}, {}",
                end("10.244.1.1", "a", ""),
                end("10.244.1.2", "b", "")
            )
        ),
        slice_of(
            "web",
            "s2",
            "IPv4",
            "{name: grpc, port: 9000}",
            &end("10.244.1.1", "a", "")
        ),
    ));
    let v4 = |mesh: &Mesh, port| drawn(mesh, KEY, port, Family::V4);
    assert_eq!(v4(&mesh, 80), ["10.244.1.1:8080", "10.244.1.2:8080"]);
    assert_eq!(v4(&mesh, 81), ["10.244.1.1:9000"], "b serves no grpc");
    assert_eq!(mesh.ports("shop/a")[KEY], ["80>8080", "81>9000"]);
    assert_eq!(mesh.ports("shop/b")[KEY], ["80>8080"], "for a ztunnel too");
    // The same pod in two slices by two ports is two endpoints.
    mesh.apply(&slice_of(
        "web",
        "s3",
        "IPv4",
        "{name: http, port: 8088}",
        &end("10.244.1.2", "b", ""),
    ));
    assert_eq!(
        v4(&mesh, 80),
        ["10.244.1.1:8080", "10.244.1.2:8080", "10.244.1.2:8088"]
    );
    assert_eq!(
        mesh.ports("shop/b")[KEY],
        ["80>8080"],
        "a ztunnel hears of one of them"
    );
    // What slices do not list is none, although the port is declared by number.
    mesh.remove(&slice_of("web", "s2", "IPv4", "", ""));
    assert!(v4(&mesh, 81).is_empty());
}

#[test]
fn readiness_is_that_of_the_service_the_port_and_the_family() {
    let other = TWO_PORTS
        .replace("name: web", "name: other")
        .replace("10.96.0.1", "10.96.0.2")
        .replace("96::1", "96::2");
    let http = "{name: http, port: 8080}";
    let grpc = "{name: grpc, port: 9000}";
    let mut mesh = Mesh::of(&format!(
        "{TWO_PORTS}{other}{}{}{}{}{}",
        web("a", "10.244.1.1,fd00::1", "n1"),
        slice_of(
            "web",
            "v4",
            "IPv4",
            http,
            &end("10.244.1.1", "a", "ready: true")
        ),
        slice_of(
            "web",
            "v6",
            "IPv6",
            http,
            &end("fd00::1", "a", "ready: false")
        ),
        slice_of(
            "web",
            "grpc",
            "IPv4",
            grpc,
            &end("10.244.1.1", "a", "ready: false")
        ),
        slice_of(
            "other",
            "other",
            "IPv4",
            http,
            &end("10.244.1.1", "a", "ready: false")
        ),
    ));
    let other = KEY.replace("web", "other");
    assert_eq!(drawn(&mesh, KEY, 80, Family::V4), ["10.244.1.1:8080"]);
    assert!(
        drawn(&mesh, KEY, 80, Family::V6).is_empty(),
        "not ready by IPv6"
    );
    assert!(
        drawn(&mesh, KEY, 81, Family::V4).is_empty(),
        "not ready on the other port"
    );
    assert!(
        drawn(&mesh, &other, 80, Family::V4).is_empty(),
        "not ready for the other Service"
    );
    // Who knows only the workload API gets what is ready, and nothing that is not.
    let workload = mesh.workload("shop/a");
    assert_eq!(workload.status(), WorkloadStatus::Healthy);
    assert_eq!(
        mesh.ports("shop/a"),
        [(KEY.to_owned(), vec!["80>8080".to_owned()])].into()
    );
    // Where one readiness says it all, nothing needs the extension.
    for (slice, port) in [("v6", http), ("grpc", grpc)] {
        let family = if slice == "v6" { "IPv6" } else { "IPv4" };
        let address = if slice == "v6" {
            "fd00::1"
        } else {
            "10.244.1.1"
        };
        mesh.apply(&slice_of(
            "web",
            slice,
            family,
            port,
            &end(address, "a", "ready: true"),
        ));
    }
    mesh.apply(&slice_of(
        "web",
        "grpc6",
        "IPv6",
        grpc,
        &end("fd00::1", "a", ""),
    ));
    mesh.remove(&slice_of("other", "other", "IPv4", "", ""));
    assert_eq!(drawn(&mesh, KEY, 80, Family::V6), ["[fd00::1]:8080"]);
    assert!(mesh.workload("shop/a").extensions.is_empty());
}

#[test]
fn an_address_that_is_not_the_pods_own_is_no_endpoint() {
    let mesh = Mesh::of(&format!(
        "{TWO_PORTS}{}{}",
        web("a", "10.244.1.1", "n1"),
        slice_of(
            "web",
            "s",
            "IPv4",
            "{name: http, port: 8080}",
            &end("10.244.9.9", "a", "")
        ),
    ));
    assert!(drawn(&mesh, KEY, 80, Family::V4).is_empty());
}

#[test]
fn those_that_are_ending_and_still_serve_count_where_no_other_is_ready() {
    const DRAINING: &str = "ready: false, serving: true, terminating: true";
    let slices = |a: &str, b: &str| {
        let ends = format!(
            "{}, {}",
            end("10.244.1.1", "a", a),
            end("10.244.1.2", "b", b)
        );
        slice_of("web", "s", "IPv4", "{name: http, port: 8080}", &ends)
    };
    let mut mesh = Mesh::of(&format!(
        "{TWO_PORTS}{}{}",
        web("a", "10.244.1.1", "n1"),
        web("b", "10.244.1.2", "n1")
    ));
    let both: &[&str] = &["10.244.1.1:8080", "10.244.1.2:8080"];
    for (a, b, expected) in [
        ("", "", both),
        (DRAINING, "", &both[1..]),
        (DRAINING, DRAINING, both),
        (DRAINING, "ready: false", &both[..1]),
        (
            DRAINING,
            "ready: false, serving: false, terminating: true",
            &both[..1],
        ),
        ("ready: false", "ready: false, serving: true", &[]),
        // As publishNotReadyAddresses has it.
        (
            "ready: true, serving: false, terminating: true",
            DRAINING,
            &both[..1],
        ),
    ] {
        mesh.apply(&slices(a, b));
        assert_eq!(drawn(&mesh, KEY, 80, Family::V4), expected, "{a} | {b}");
    }
    // By port: the other slice's ready endpoint serves something else.
    let ready = end("10.244.1.2", "b", "");
    mesh.apply(&slices(DRAINING, "ready: false"));
    mesh.apply(&slice_of(
        "web",
        "s2",
        "IPv4",
        "{name: grpc, port: 9000}",
        &ready,
    ));
    assert_eq!(drawn(&mesh, KEY, 80, Family::V4), both[..1]);
    // By node, where only those of the client's node count.
    let local = TWO_PORTS.replace("spec:", "spec:\n  internalTrafficPolicy: Local");
    let elsewhere = slices(DRAINING, "").replace("1.2\"], nodeName: n1", "1.2\"], nodeName: n2");
    mesh.apply(&format!(
        "{local}{elsewhere}{}",
        web("b", "10.244.1.2", "n2")
    ));
    assert_eq!(drawn(&mesh, KEY, 80, Family::V4), both[..1]);
}

#[test]
fn a_selected_pod_that_is_ending_counts_while_no_other_is_ready() {
    let service = TWO_PORTS.replace("spec:", "spec:\n  selector: {app: web}");
    let mut mesh = Mesh::of(&format!(
        "{service}{}{}",
        web("a", "10.244.1.1", "n1"),
        web("b", "10.244.1.2", "n1")
    ));
    let change = |mesh: &mut Mesh, name: &str, change: &dyn Fn(&mut PodFacts)| {
        let mut pod = mesh.index.pods[format!("Kubernetes//Pod/shop/{name}").as_str()]
            .as_ref()
            .clone();
        change(&mut pod);
        let key = pod.key.clone();
        mesh.index.set_pod(&key, Some(Arc::new(pod)));
        mesh.index.flush();
    };
    change(&mut mesh, "a", &|pod| pod.terminating = true);
    assert_eq!(drawn(&mesh, KEY, 80, Family::V4), ["10.244.1.2:8080"]);
    change(&mut mesh, "b", &|pod| pod.ready = Some(false));
    assert_eq!(drawn(&mesh, KEY, 80, Family::V4), ["10.244.1.1:8080"]);
    change(&mut mesh, "b", &|pod| pod.ready = Some(true));
    assert_eq!(drawn(&mesh, KEY, 80, Family::V4), ["10.244.1.2:8080"]);
    mesh.remove(&web("b", "10.244.1.2", "n1"));
    assert_eq!(drawn(&mesh, KEY, 80, Family::V4), ["10.244.1.1:8080"]);
}

#[test]
fn a_native_sidecars_port_has_a_name_too() {
    let service = TWO_PORTS
        .replace("spec:", "spec:\n  selector: {app: web}")
        .replace("targetPort: 8080", "targetPort: side");
    let pod = |policy: &str| {
        web("a", "10.244.1.1", "n1").replace(
            "nodeName: n1",
            &format!("nodeName: n1, initContainers: [{{name: i, {policy} ports: [{{name: side, containerPort: 7000}}]}}], containers: [{{name: c}}]"),
        )
    };
    let mut mesh = Mesh::of(&format!("{service}{}", pod("restartPolicy: Always,")));
    assert_eq!(drawn(&mesh, KEY, 80, Family::V4), ["10.244.1.1:7000"]);
    mesh.apply(&pod(""));
    assert!(
        drawn(&mesh, KEY, 80, Family::V4).is_empty(),
        "it has ended before the containers start"
    );
}

#[test]
fn session_affinity_is_told_with_its_time() {
    for (spec, expected) in [
        ("", None),
        ("sessionAffinity: None", None),
        ("sessionAffinity: ClientIP", Some(10_800)),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 30}}",
            Some(30),
        ),
    ] {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{clusterIP: 10.96.0.1, {spec}}}\n"
        );
        let mesh = Mesh::of(&service);
        let body = mesh.index.snapshot().addresses[KEY].body().to_vec();
        let proto::convert::Address::Service(service) =
            proto::convert::address(&body).expect("an agent understands it")
        else {
            panic!("no service")
        };
        assert_eq!(
            service.session_timeout.map(|time| time.as_secs()),
            expected,
            "{spec}"
        );
    }
}

/// kubernetes#103675: a slice that is written by hand names any pod. Where connections to the slice's own Service go is for
/// the slice to say; nothing else of the pod is.
#[test]
fn a_slice_of_another_namespace_that_names_a_pod_changes_nothing_that_applies_to_the_pod() {
    let policy = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: mine, namespace: tenant}\n\
        spec: {targetRefs: [{kind: Service, group: \"\", name: trap}], rules: [{}]}\n";
    let trap = "---\napiVersion: v1\nkind: Service\nmetadata: {name: trap, namespace: tenant, labels: {istio.io/use-waypoint: gate}}\n\
        spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80}]}\n";
    let by_hand = |endpoint: &str| {
        slice_of(
            "trap",
            "by-hand",
            "IPv4",
            "{name: http, port: 8080}",
            endpoint,
        )
        .replace(
            "name: by-hand, namespace: shop",
            "name: by-hand, namespace: tenant",
        )
    };
    let own = slice_of(
        "web",
        "s",
        "IPv4",
        "{name: http, port: 8080}",
        &end("10.244.1.1", "a", "ready: false"),
    );
    for of_shop in [String::new(), format!("{TWO_PORTS}{own}")] {
        for endpoint in [
            end("10.244.1.1", "a", "ready: true"),
            end("10.244.1.1", "a", "ready: false"),
            "{addresses: [10.244.1.1], conditions: {ready: true}}".to_owned(),
        ] {
            let mut mesh = Mesh::of(&format!(
                "{}{of_shop}{trap}{policy}",
                web("a", "10.244.1.1", "n1")
            ));
            let before = mesh.workload("shop/a");
            mesh.apply(&by_hand(&endpoint));
            let mut after = mesh.workload("shop/a");
            let trap = "tenant/trap.tenant.svc.cluster.local";
            assert!(mesh.service(trap).waypoint.is_some());
            let leads_to: &[&str] = match endpoint.contains("ready: true") {
                true => &["10.244.1.1:8080"],
                false => &[],
            };
            assert_eq!(drawn(&mesh, trap, 80, Family::V4), leads_to, "{endpoint}");
            // That it leads there is what the slice says.
            after.services.remove(trap);
            after.extensions.clear();
            assert_eq!(after, before, "{endpoint}");
        }
    }
}
