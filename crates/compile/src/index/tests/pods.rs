use istio::workload::{TunnelProtocol, WorkloadStatus, WorkloadType};

use super::*;

const NODE: &str = "
apiVersion: v1
kind: Node
metadata:
  name: n1
  labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1, topology.istio.io/subzone: rack}
";

/// Namespace labels, pod metadata below `metadata:`, pod spec; whether it is captured, and what the reason names.
fn check_enrolment(namespace: &str, metadata: &str, spec: &str, expected: bool, named: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{namespace}}}}}\n---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: a, namespace: shop, {metadata}}}\nspec: {{nodeName: n1, {spec}}}\n"
    );
    let pod = Mesh::of(&text)
        .node_pod("n1", "shop/a")
        .expect("the node knows the pod");
    assert_eq!(
        pod.capture() == agent::Capture::Capture,
        expected,
        "{text}{}",
        pod.reason
    );
    assert!(pod.reason.contains(named), "{text}{}", pod.reason);
}

#[test]
fn enrolment_follows_the_nearest_label_and_names_it() {
    let on = "keelson.io/mesh: enabled";
    check_enrolment(
        on,
        "",
        "",
        true,
        "namespace shop has label keelson.io/mesh=enabled",
    );
    check_enrolment(
        "istio.io/dataplane-mode: ambient",
        "",
        "",
        true,
        "istio.io/dataplane-mode=ambient",
    );
    check_enrolment("", "", "", false, "neither label");
    check_enrolment("keelson.io/mesh: yess", "", "", false, "neither label");
    check_enrolment(
        on,
        "labels: {keelson.io/mesh: disabled}",
        "",
        false,
        "pod shop/a has label keelson.io/mesh=disabled",
    );
    check_enrolment(
        on,
        "labels: {istio.io/dataplane-mode: none}",
        "",
        false,
        "label istio.io/dataplane-mode=none",
    );
    check_enrolment(
        on,
        "annotations: {keelson.io/mesh: none}",
        "",
        false,
        "annotation keelson.io/mesh=none",
    );
    check_enrolment(
        "",
        "labels: {istio.io/dataplane-mode: ambient}",
        "",
        true,
        "pod shop/a has label",
    );
    check_enrolment(
        "",
        "annotations: {keelson.io/mesh: enabled}",
        "",
        true,
        "pod shop/a has annotation",
    );
    check_enrolment(
        on,
        "labels: {sidecar.istio.io/inject: \"false\"}",
        "",
        false,
        "label sidecar.istio.io/inject=false",
    );
    check_enrolment(
        on,
        "annotations: {sidecar.istio.io/inject: \"false\"}",
        "",
        false,
        "annotation sidecar.istio.io/inject=false",
    );
    check_enrolment(
        on,
        "annotations: {sidecar.istio.io/status: x}",
        "",
        false,
        "sidecar.istio.io/status",
    );
    check_enrolment(
        on,
        "annotations: {ambient.istio.io/redirection: enabled}",
        "",
        false,
        "ambient.istio.io/redirection=enabled",
    );
    check_enrolment(
        on,
        "annotations: {ambient.istio.io/redirection: disabled}",
        "",
        true,
        "keelson.io/mesh=enabled",
    );
    check_enrolment(
        on,
        "labels: {keelson.io/mesh: enabled}",
        "hostNetwork: true",
        false,
        "spec.hostNetwork",
    );
    check_enrolment(
        "keelson.io/mesh: disabled, istio.io/dataplane-mode: ambient",
        "",
        "",
        false,
        "keelson.io/mesh=disabled",
    );
}

/// B13: under Istio's control plane our own mark does not take the pod out of our hands, which would take the mark off again.
#[test]
fn under_istiod_the_mark_of_a_captured_pod_is_our_own() {
    let mut mesh = Mesh {
        index: Index::new(MeshConfig {
            ambient_label: AmbientLabel::UnderIstiod,
            ..MeshConfig::default()
        }),
    };
    mesh.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n---\napiVersion: v1\nkind: Pod\n\
         metadata: {name: a, namespace: shop, annotations: {ambient.istio.io/redirection: enabled}}\nspec: {nodeName: n1}\n",
    );
    let pod = mesh.node_pod("n1", "shop/a").expect("the node knows it");
    assert_eq!(pod.capture(), agent::Capture::Capture, "{}", pod.reason);
}

/// B13: where Istio's ambient mesh runs too, each pod has one owner.
#[test]
fn what_istios_label_names_can_be_left_to_istio() {
    let pods = |label: &str, own: &str| {
        let mut mesh = Mesh {
            index: Index::new(MeshConfig {
                ambient_label: AmbientLabel::Istio,
                ..MeshConfig::default()
            }),
        };
        mesh.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{label}}}}}\n---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: a, namespace: shop, labels: {{{own}}}}}\nspec: {{nodeName: n1}}\n"
        ));
        let pod = mesh.node_pod("n1", "shop/a").expect("the node knows it");
        (pod.capture() == agent::Capture::Capture, pod.reason)
    };
    for (label, own, captured, named) in [
        ("istio.io/dataplane-mode: ambient", "", false, "is Istio's"),
        ("", "istio.io/dataplane-mode: ambient", false, "is Istio's"),
        (
            "istio.io/dataplane-mode: ambient, keelson.io/mesh: enabled",
            "",
            true,
            "keelson.io/mesh=enabled",
        ),
        (
            "keelson.io/mesh: enabled",
            "istio.io/dataplane-mode: none",
            false,
            "dataplane-mode=none",
        ),
        ("keelson.io/mesh: enabled", "", true, "keelson.io/mesh"),
    ] {
        let (is_captured, reason) = pods(label, own);
        assert_eq!(is_captured, captured, "{label} {own}: {reason}");
        assert!(reason.contains(named), "{reason}");
    }
}

#[test]
fn a_namespace_label_moves_its_pods_and_a_lost_namespace_releases_them() {
    let namespace = |labels: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}\n")
    };
    let mut mesh = Mesh::of(&pod("a", "spec: {nodeName: n1}\n"));
    let captured = |mesh: &Mesh| {
        mesh.node_pod("n1", "shop/a").expect("known").capture() == agent::Capture::Capture
    };
    assert!(!captured(&mesh));
    mesh.apply(&namespace("keelson.io/mesh: enabled"));
    assert!(captured(&mesh));
    mesh.apply(&namespace(""));
    assert!(!captured(&mesh));
    mesh.apply(&namespace("istio.io/dataplane-mode: ambient"));
    assert!(captured(&mesh));
    mesh.remove(&namespace(""));
    assert!(!captured(&mesh));
}

#[test]
fn an_annotation_gives_a_pod_its_weight() {
    for (weight, capacity) in [("3", Some(3)), ("0", Some(0)), ("1", None)] {
        let text = format!(
            "{NODE}---
apiVersion: v1
kind: Pod
metadata:
  name: cart
  namespace: shop
  annotations: {{keelson.io/pod-ips: 10.244.1.10, keelson.io/weight: \"{weight}\"}}
spec: {{nodeName: n1}}
"
        );
        let workload = Mesh::of(&text).workload("shop/cart");
        assert_eq!(workload.capacity, capacity, "{weight}");
    }
}

#[test]
fn a_workload_says_what_the_pod_is_and_where() {
    let text = format!(
        "{NODE}---
apiVersion: v1
kind: Pod
metadata:
  name: cart-7d9f-x1
  namespace: shop
  labels: {{app: cart, version: v2, pod-template-hash: 7d9f}}
  annotations: {{keelson.io/pod-ips: \"10.244.1.10, fd00:10:244:1::10\"}}
  ownerReferences:
  - {{apiVersion: apps/v1, kind: ReplicaSet, name: cart-7d9f, uid: u, controller: true}}
spec: {{nodeName: n1, serviceAccountName: cart}}
"
    );
    let workload = Mesh::of(&text).workload("shop/cart-7d9f-x1");
    assert_eq!(
        workload.addresses,
        [
            vec![10, 244, 1, 10],
            vec![0xfd, 0, 0, 0x10, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x10]
        ]
    );
    assert_eq!(
        (workload.node.as_str(), workload.service_account.as_str()),
        ("n1", "cart")
    );
    assert_eq!(
        (
            workload.canonical_name.as_str(),
            workload.canonical_revision.as_str()
        ),
        ("cart", "v2")
    );
    assert_eq!(
        (workload.workload_type(), workload.workload_name.as_str()),
        (WorkloadType::Deployment, "cart")
    );
    assert_eq!(workload.tunnel_protocol(), TunnelProtocol::None);
    assert_eq!(workload.status(), WorkloadStatus::Healthy);
    assert_eq!(workload.capacity, None);
    let locality = workload.locality.expect("the node has one");
    assert_eq!(
        [locality.region, locality.zone, locality.subzone],
        ["eu", "eu-1", "rack"]
    );
    let mut other = MeshConfig {
        cluster_id: "east".into(),
        trust_domain: "corp".into(),
        ..MeshConfig::default()
    };
    other.cluster_domain = "corp.local".into();
    let mut index = Index::new(other);
    objects(&text).iter().for_each(|upsert| index.apply(upsert));
    index.flush();
    let mesh = Mesh { index };
    let workload = mesh
        .find_workload("east//Pod/shop/cart-7d9f-x1")
        .expect("named after its cluster");
    assert_eq!(
        (workload.cluster_id.as_str(), workload.trust_domain.as_str()),
        ("east", "corp")
    );
}

#[test]
fn owners_are_those_that_people_know() {
    let check = |owner: &str, labels: &str, expected: (WorkloadType, &str)| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: shop, labels: {{{labels}}}, annotations: {{keelson.io/pod-ips: 10.0.0.1}}{owner}}}\n"
        );
        let workload = Mesh::of(&text).workload("shop/p");
        assert_eq!(
            (workload.workload_type(), workload.workload_name.as_str()),
            expected,
            "{text}"
        );
    };
    let owner = |kind: &str, name: &str| {
        format!(
            ", ownerReferences: [{{apiVersion: v1, kind: {kind}, name: {name}, uid: u, controller: true}}]"
        )
    };
    check("", "", (WorkloadType::Pod, "p"));
    check(
        &owner("ReplicaSet", "web-5c4d8"),
        "",
        (WorkloadType::Deployment, "web"),
    );
    check(
        &owner("ReplicaSet", "web-5c4d8"),
        "pod-template-hash: 5c4d8",
        (WorkloadType::Deployment, "web"),
    );
    check(
        &owner("ReplicaSet", "by-hand"),
        "pod-template-hash: zzz",
        (WorkloadType::Pod, "by-hand"),
    );
    check(&owner("StatefulSet", "db"), "", (WorkloadType::Pod, "db"));
    check(
        &owner("DaemonSet", "log-agent"),
        "",
        (WorkloadType::Pod, "log-agent"),
    );
    check(&owner("Job", "report"), "", (WorkloadType::Job, "report"));
    check(
        &owner("Job", "report-28394820"),
        "",
        (WorkloadType::Cronjob, "report"),
    );
}

#[test]
fn pods_that_are_over_or_without_address_are_no_workloads() {
    let mesh = Mesh::of(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {nodeName: n1}\n",
    );
    assert!(mesh.names().is_empty());
    assert!(
        mesh.node_pod("n1", "shop/a").is_some(),
        "its node captures it before it has an address"
    );
    let mut index = Index::new(MeshConfig::default());
    let mut upserts = objects(&pod("a", "spec: {nodeName: n1}\n"));
    if let Object::Pod(pod) = &mut upserts[0].object {
        Arc::make_mut(pod).finished = true;
    }
    upserts.iter().for_each(|upsert| index.apply(upsert));
    index.flush();
    assert!(index.snapshot().addresses.is_empty() && index.snapshot().nodes.is_empty());
    assert!(!index.snapshot().node_has_identity("n1", "shop", "default"));
}

#[test]
fn the_tunnel_opens_when_the_node_says_so_and_only_for_its_own_enrolled_pods() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {keelson.io/mesh: enabled}}\n";
    let mut mesh = Mesh::of(&format!(
        "{namespace}{}{}",
        pod("a", "spec: {nodeName: n1}\n"),
        pod("b", "spec: {nodeName: n2}\n")
    ));
    let tunnel = |mesh: &Mesh, pod: &str| mesh.workload(pod).tunnel_protocol();
    let uid = |pod: &str| format!("Kubernetes//Pod/shop/{pod}");
    assert_eq!(tunnel(&mesh, "shop/a"), TunnelProtocol::None);
    assert_eq!(
        mesh.report("n1", &[uid("a"), uid("b"), uid("gone")]),
        [uid("b"), uid("gone")]
    );
    mesh.index.flush();
    assert_eq!(tunnel(&mesh, "shop/a"), TunnelProtocol::Hbone);
    assert_eq!(tunnel(&mesh, "shop/b"), TunnelProtocol::None);
    mesh.remove(namespace);
    assert_eq!(
        tunnel(&mesh, "shop/a"),
        TunnelProtocol::Hbone,
        "not wanted any more, and still held"
    );
    mesh.apply(namespace);
    mesh.apply(&pod("a", "spec: {nodeName: n3}\n"));
    assert_eq!(
        tunnel(&mesh, "shop/a"),
        TunnelProtocol::None,
        "another pod of the same name"
    );
    assert!(mesh.node_pod("n1", "shop/a").is_none() && mesh.node_pod("n3", "shop/a").is_some());
    mesh.apply(&pod("a", "spec: {nodeName: n1}\n"));
    assert_eq!(
        tunnel(&mesh, "shop/a"),
        TunnelProtocol::Hbone,
        "the node has not said that it let go of the address"
    );
    mesh.report("n1", &[]);
    mesh.index.flush();
    assert_eq!(tunnel(&mesh, "shop/a"), TunnelProtocol::None);
}

#[test]
fn ports_are_resolved_for_each_pod() {
    let service = "---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, \"fd00:10:96::1\"]
  ipFamilies: [IPv4, IPv6]
  selector: {tier: web}
  ports:
  - {name: http, port: 80, targetPort: app}
  - {name: grpc-x, port: 81, targetPort: 9000}
  - {name: same, port: 82, appProtocol: https}
  - {name: dns, port: 53, protocol: UDP}
";
    let with = |name: &str, port: u16| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{tier: web}}, annotations: {{keelson.io/pod-ips: 10.0.0.{port}}}}}\n\
             spec: {{containers: [{{name: c, ports: [{{name: app, containerPort: {port}}}]}}]}}\n"
        )
    };
    let mut mesh = Mesh::of(&format!(
        "{service}{}{}{}",
        with("a", 8),
        with("b", 9),
        pod("other", "")
    ));
    let key = "shop/web.shop.svc.cluster.local";
    assert_eq!(
        mesh.ports("shop/a"),
        [(
            key.to_owned(),
            ["80>8", "81>9000", "82>82"].map(str::to_owned).to_vec()
        )]
        .into()
    );
    assert_eq!(mesh.ports("shop/b")[key][0], "80>9");
    assert!(mesh.ports("shop/other").is_empty());
    let found = mesh.service(key);
    assert_eq!(
        found
            .addresses
            .iter()
            .map(|a| a.address.len())
            .collect::<Vec<_>>(),
        [4, 16]
    );
    let ports: Vec<_> = found
        .ports
        .iter()
        .map(|p| {
            (
                p.service_port,
                p.target_port,
                p.app_protocol().as_str_name(),
            )
        })
        .collect();
    assert_eq!(
        ports,
        [(80, 0, "HTTP11"), (81, 0, "GRPC"), (82, 0, "TLS")],
        "endpoints say where they serve it"
    );
    mesh.apply(&service.replace("tier: web", "tier: other"));
    assert!(mesh.ports("shop/a").is_empty());
    mesh.apply(service);
    mesh.remove(service);
    assert!(mesh.ports("shop/a").is_empty());
}

#[test]
fn services_say_how_to_choose_among_their_endpoints() {
    let check = |spec: &str, annotation: &str, expected: Option<(&[&str], &str, &str)>| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: shop, annotations: {{{annotation}}}}}\nspec: {{clusterIP: None, {spec}}}\n"
        );
        let service = Mesh::of(&text).service("shop/s.shop.svc.cluster.local");
        assert!(service.addresses.is_empty(), "headless");
        let found = service.load_balancing.map(|lb| {
            let scopes: Vec<_> = lb
                .routing_preference()
                .map(|scope| scope.as_str_name())
                .collect();
            (
                scopes,
                lb.mode().as_str_name(),
                lb.health_policy().as_str_name(),
            )
        });
        let expected = expected.map(|(scopes, mode, health)| (scopes.to_vec(), mode, health));
        assert_eq!(found, expected, "{text}");
    };
    let close: &[&str] = &["NETWORK", "REGION", "ZONE", "SUBZONE"];
    check("", "", None);
    check(
        "trafficDistribution: PreferClose",
        "",
        Some((close, "FAILOVER", "ONLY_HEALTHY")),
    );
    check(
        "trafficDistribution: PreferSameZone",
        "",
        Some((close, "FAILOVER", "ONLY_HEALTHY")),
    );
    check(
        "trafficDistribution: PreferSameNode",
        "",
        Some((
            &["NETWORK", "REGION", "ZONE", "SUBZONE", "NODE"],
            "FAILOVER",
            "ONLY_HEALTHY",
        )),
    );
    check(
        "",
        "networking.istio.io/traffic-distribution: PreferClose",
        Some((close, "FAILOVER", "ONLY_HEALTHY")),
    );
    check(
        "internalTrafficPolicy: Local",
        "",
        Some((&["NODE"], "STRICT", "ONLY_HEALTHY")),
    );
    check(
        "publishNotReadyAddresses: true",
        "",
        Some((&[], "UNSPECIFIED_MODE", "ALLOW_ALL")),
    );
    let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {type: ExternalName, externalName: x.org}\n";
    assert!(Mesh::of(alias).names().is_empty());
}

const WEB: &str = "---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{name: http, port: 80, targetPort: 1}]}
";

#[test]
fn what_requires_a_waypoint_says_so() {
    use istio::workload::gateway_address::Destination;

    let check = |namespace: &str, own: &str, expected: Option<(&str, &str)>| {
        let mesh = Mesh::of(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{namespace}}}}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop, labels: {{{own}}}, annotations: {{keelson.io/pod-ips: 10.0.0.1}}}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: shop, labels: {{{own}}}}}\nspec: {{clusterIP: 10.96.0.1}}\n"
        ));
        let of_pod = mesh.workload("shop/a").waypoint;
        let of_service = mesh.service("shop/s.shop.svc.cluster.local").waypoint;
        for found in [of_pod, of_service] {
            let found = found.map(|gateway| {
                assert_eq!(gateway.hbone_mtls_port, 15008);
                match gateway.destination {
                    Some(Destination::Hostname(name)) => (name.namespace, name.hostname),
                    other => panic!("{other:?}"),
                }
            });
            let found = found.as_ref().map(|(a, b)| (a.as_str(), b.as_str()));
            assert_eq!(found, expected, "{namespace} {own}");
        }
    };
    let w = Some(("shop", "w.shop.svc.cluster.local"));
    check("", "", None);
    check("istio.io/use-waypoint: w", "", w);
    check("", "istio.io/use-waypoint: w", w);
    check("istio.io/use-waypoint: v", "istio.io/use-waypoint: w", w);
    check(
        "istio.io/use-waypoint: v",
        "istio.io/use-waypoint: none",
        None,
    );
    check("istio.io/use-waypoint: none", "", None);
    check(
        "istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: gates",
        "",
        Some(("gates", "w.gates.svc.cluster.local")),
    );
    check(
        "istio.io/use-waypoint: w",
        "gateway.networking.k8s.io/gateway-name: w",
        None,
    );
    // A label that comes later reaches what is there.
    let mut mesh = Mesh::of(&format!("{WEB}{}", pod("a", "")));
    mesh.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: w}}\n");
    assert!(mesh.workload("shop/a").waypoint.is_some());
    assert!(
        mesh.service("shop/web.shop.svc.cluster.local")
            .waypoint
            .is_some()
    );
}
