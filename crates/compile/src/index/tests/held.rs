//! What becomes of a captured pod's address when its object changes, goes or comes late.

use istio::workload::{TunnelProtocol, Workload, WorkloadStatus};
use manifest::NamespacedName;

use super::*;

const SHOP: &str =
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {keelson.io/mesh: enabled}}\n";
const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";
const CART: &str = "Kubernetes//Pod/shop/cart";

fn cart(metadata: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: cart, namespace: shop, labels: {{app: cart}}, {metadata}}}\n\
         spec: {{nodeName: n1, serviceAccountName: cart}}\n"
    )
}

fn with_ip(uid: &str) -> String {
    format!("uid: {uid}, annotations: {{keelson.io/pod-ips: 10.244.1.10}}")
}

fn sandbox(uid: &str, addresses: &[&str]) -> Sandbox {
    Sandbox {
        uid: uid.into(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        ..Sandbox::named(NamespacedName::new("shop", "cart"))
    }
}

fn word(pods: &[Sandbox]) -> Word {
    Word {
        pods: pods.to_vec(),
        partial: false,
    }
}

/// A mesh with a pod that its node holds captured.
fn captured() -> Mesh {
    let mut mesh = Mesh::of(&format!("{SHOP}---\n{NODE}---\n{}", cart(&with_ip("u1"))));
    mesh.index
        .report("n1", word(&[sandbox("u1", &["10.244.1.10"])]));
    mesh.index.flush();
    mesh
}

/// Every resource that has the address, by name, with the way to it.
fn at(mesh: &Mesh, address: [u8; 4]) -> Vec<(String, TunnelProtocol)> {
    let workloads = mesh.names().into_iter().filter_map(|name| {
        let workload: Workload = mesh.find_workload(&name)?;
        let has = workload.addresses.contains(&address.to_vec());
        has.then(|| (name, workload.tunnel_protocol()))
    });
    workloads.collect()
}

fn check(mesh: &Mesh, expected: &[&str]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|name| ((*name).to_owned(), TunnelProtocol::Hbone))
        .collect();
    assert_eq!(at(mesh, [10, 244, 1, 10]), expected);
}

const ORPHAN: &str = "Kubernetes/keelson.io/Sandbox/shop/cart/10.244.1.10";
const TOMBSTONE: &str = "Kubernetes/keelson.io/Tombstone/shop/cart/10.244.1.10";

#[test]
fn a_terminating_pod_is_a_member_until_its_sandbox_is_gone() {
    let mut mesh = captured();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{port: 80}]}\n";
    mesh.apply(service);
    assert_eq!(mesh.workload("shop/cart").status(), WorkloadStatus::Healthy);
    mesh.apply(&cart(&format!(
        "deletionTimestamp: \"2026-01-01T00:00:00Z\", {}",
        with_ip("u1")
    )));
    check(&mesh, &[CART]);
    let workload = mesh.workload("shop/cart");
    assert_eq!(
        workload.status(),
        WorkloadStatus::Healthy,
        "the Service has no other, and it still serves"
    );
    let node_pod = mesh
        .node_pod("n1", "shop/cart")
        .expect("its node still serves it");
    assert_eq!(node_pod.capture(), agent::Capture::Capture);
    // The object may go before the sandbox does.
    mesh.remove(&cart(""));
    check(&mesh, &[CART]);
    assert_eq!(
        mesh.workload("shop/cart").status(),
        WorkloadStatus::Unhealthy,
        "a Service leads there no more"
    );
    let node_pod = mesh
        .node_pod("n1", "shop/cart")
        .expect("its node still serves it");
    assert_eq!(node_pod.capture(), agent::Capture::Capture);
    assert!(
        mesh.index
            .snapshot()
            .node_has_identity("n1", "shop", "cart")
    );
    mesh.remove(SHOP);
    let node_pod = mesh
        .node_pod("n1", "shop/cart")
        .expect("its node still serves it");
    assert_eq!(
        node_pod.capture(),
        agent::Capture::Capture,
        "{}",
        node_pod.reason
    );
    mesh.index.report("n1", word(&[]));
    mesh.index.flush();
    check(&mesh, &[]);
    assert!(mesh.node_pod("n1", "shop/cart").is_none());
    assert!(mesh.find_workload(CART).is_none());
}

#[test]
fn a_pod_whose_sandbox_goes_first_leaves_nothing() {
    let mut mesh = captured();
    mesh.index.report("n1", word(&[]));
    mesh.remove(&cart(""));
    check(&mesh, &[]);
}

#[test]
fn a_pod_applied_again_with_another_uid_or_none_stays_behind_its_tunnel() {
    for metadata in [
        with_ip("u2"),
        "annotations: {keelson.io/pod-ips: 10.244.1.10}".to_owned(),
    ] {
        let mut mesh = captured();
        mesh.apply(&cart(&metadata));
        check(&mesh, &[CART]);
        mesh.index
            .report("n1", word(&[sandbox("u1", &["10.244.1.10"])]));
        mesh.index.flush();
        check(&mesh, &[CART]);
    }
    // Another pod of the same name, with an address of its own.
    let mut mesh = captured();
    mesh.apply(&cart(
        "uid: u2, annotations: {keelson.io/pod-ips: 10.244.1.11}",
    ));
    check(&mesh, &[ORPHAN]);
    assert_eq!(
        at(&mesh, [10, 244, 1, 11]),
        [(CART.to_owned(), TunnelProtocol::None)],
        "the node has not said that it captured this one"
    );
    assert_eq!(
        mesh.find_workload(ORPHAN).expect("built").service_account,
        "cart"
    );
    mesh.index.report(
        "n1",
        word(&[
            sandbox("u1", &["10.244.1.10"]),
            sandbox("u2", &["10.244.1.11"]),
        ]),
    );
    mesh.index.flush();
    check(&mesh, &[ORPHAN]);
    assert_eq!(
        at(&mesh, [10, 244, 1, 11]),
        [(CART.to_owned(), TunnelProtocol::Hbone)]
    );
    mesh.index
        .report("n1", word(&[sandbox("u2", &["10.244.1.11"])]));
    mesh.index.flush();
    check(&mesh, &[]);
}

#[test]
fn a_word_that_comes_before_the_pod_counts() {
    let mut mesh = Mesh::of(SHOP);
    let strange = mesh
        .index
        .report("n1", word(&[sandbox("u1", &["10.244.1.10"])]));
    assert_eq!(strange, [CART]);
    mesh.index.flush();
    check(&mesh, &[TOMBSTONE]);
    // The kubelet has not said the address yet.
    mesh.apply(&cart("uid: u1"));
    check(&mesh, &[CART]);
    mesh.apply(&cart(&with_ip("u1")));
    check(&mesh, &[CART]);
}

#[test]
fn an_address_is_a_tombstone_while_nobody_says_that_it_is_free() {
    let lost = || {
        let mut mesh = captured();
        let partial = Word {
            pods: vec![],
            partial: true,
        };
        mesh.index.report("n1", partial);
        mesh.index.flush();
        check(&mesh, &[CART]);
        mesh.remove(&cart(""));
        check(&mesh, &[TOMBSTONE]);
        mesh
    };
    // Its node says so.
    let mut mesh = lost();
    mesh.index.report("n1", word(&[]));
    mesh.index.flush();
    check(&mesh, &[]);
    // Its node is no more.
    let mut mesh = lost();
    mesh.remove(NODE);
    check(&mesh, &[]);
    // Another pod has the address, and then nobody.
    let mut mesh = lost();
    let heir = "apiVersion: v1\nkind: Pod\nmetadata: {name: heir, namespace: shop, annotations: {keelson.io/pod-ips: 10.244.1.10}}\nspec: {nodeName: n2}\n";
    mesh.apply(heir);
    assert_eq!(
        at(&mesh, [10, 244, 1, 10]),
        [("Kubernetes//Pod/shop/heir".to_owned(), TunnelProtocol::None)]
    );
    mesh.remove(heir);
    check(&mesh, &[]);
    // An endpoint that somebody writes by hand is nobody's.
    let mut mesh = lost();
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\n\
        apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: web}}\n\
        addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.244.1.10]}]\n");
    check(&mesh, &[TOMBSTONE]);
}

#[test]
fn what_nodes_hold_is_known_again_after_a_restart() {
    let kept = |mesh: &Mesh| -> Captured {
        let text = serde_json::to_string(&mesh.index.captured()).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let restarted = |text: &str, captured: Captured| {
        let mut mesh = Mesh::of(text);
        mesh.index.restore(captured);
        mesh.index.flush();
        mesh
    };
    // The pod's object went before the restart: the pod goes on as it was.
    let mut mesh = captured();
    mesh.remove(&cart(""));
    let mesh = restarted(SHOP, kept(&mesh));
    check(&mesh, &[CART]);
    // It went while nobody looked: its address is known, and no more.
    let mesh = restarted(SHOP, kept(&captured()));
    check(&mesh, &[ORPHAN]);
    // It is there, with a uid or without.
    for metadata in [with_ip("u1"), with_ip("u2")] {
        let text = format!("{SHOP}---\n{}", cart(&metadata));
        check(&restarted(&text, kept(&captured())), &[CART]);
    }
    // What an earlier version kept.
    let names: Captured = serde_json::from_str(&format!("{{\"n1\": [{CART:?}]}}")).unwrap();
    let text = format!("{SHOP}---\n{}", cart(&with_ip("u1")));
    check(&restarted(&text, names), &[CART]);
}

#[test]
fn another_meshs_mark_counts_where_no_agent_speaks() {
    let mark = |value: &str| {
        cart(&format!(
            "uid: u1, annotations: {{keelson.io/pod-ips: 10.244.1.10, ambient.istio.io/redirection: {value}}}"
        ))
    };
    let mut mesh = Mesh::of(&format!("{SHOP}---\n{}", mark("enabled")));
    check(&mesh, &[CART]);
    assert!(mesh.index.snapshot().unreported.is_empty());
    mesh.index.report("n1", word(&[]));
    mesh.index.flush();
    assert_eq!(
        mesh.workload("shop/cart").tunnel_protocol(),
        TunnelProtocol::None
    );
    for value in ["pending", "disabled", "\"\""] {
        let mesh = Mesh::of(&format!("{SHOP}---\n{}", mark(value)));
        let workload = mesh.workload("shop/cart");
        assert_eq!(workload.tunnel_protocol(), TunnelProtocol::None, "{value}");
    }
}

#[test]
fn pods_that_nobody_reports_are_shown_with_their_nodes() {
    let shown = |mesh: &Mesh| -> Vec<String> {
        let nodes = mesh.index.snapshot().unreported.iter();
        nodes
            .flat_map(|(node, pods)| pods.iter().map(move |pod| format!("{node} {pod}")))
            .collect()
    };
    let mut mesh = Mesh::of(&format!("{SHOP}---\n{}", cart(&with_ip("u1"))));
    assert_eq!(shown(&mesh), [format!("n1 {CART}")]);
    mesh.index
        .report("n1", word(&[sandbox("u1", &["10.244.1.10"])]));
    assert!(mesh.index.flush().resources);
    assert!(shown(&mesh).is_empty());
    mesh.index.report("n1", word(&[]));
    mesh.index.flush();
    assert_eq!(shown(&mesh), [format!("n1 {CART}")]);
    mesh.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    assert!(shown(&mesh).is_empty());
}

/// Istio's control plane counts a pod as captured by its annotation.
#[test]
fn a_pods_object_is_to_say_what_its_node_says_and_nothing_before_that_has_spoken() {
    let marks = |mesh: &Mesh| -> Vec<(String, bool)> {
        let marks = mesh.index.snapshot().marks.values();
        marks
            .map(|mark| (mark.uid.clone(), mark.captured))
            .collect()
    };
    let marked = |uid: &str| {
        cart(&format!(
            "uid: {uid}, annotations: {{keelson.io/pod-ips: 10.244.1.10, ambient.istio.io/redirection: enabled}}"
        ))
    };
    let held = || word(&[sandbox("u1", &["10.244.1.10"])]);
    // Another mesh's agent may have written it.
    let mut mesh = Mesh::of(&format!("{SHOP}---\n{}", marked("u1")));
    assert!(marks(&mesh).is_empty());
    mesh.index.report("n1", word(&[]));
    assert!(mesh.index.flush().resources);
    assert_eq!(marks(&mesh), [("u1".to_owned(), false)]);
    mesh.apply(&cart(&with_ip("u1")));
    assert!(marks(&mesh).is_empty());
    mesh.index.report("n1", held());
    assert!(mesh.index.flush().resources);
    assert_eq!(marks(&mesh), [("u1".to_owned(), true)]);
    mesh.apply(&marked("u1"));
    assert!(marks(&mesh).is_empty());
    // Another pod of that name is not the one that is held.
    mesh.apply(&cart("uid: u2"));
    assert!(marks(&mesh).is_empty());
    // A word that may leave something out takes nothing back.
    mesh.apply(&marked("u1"));
    let partial = Word {
        partial: true,
        ..word(&[])
    };
    mesh.index.report("n1", partial);
    mesh.index.flush();
    assert!(marks(&mesh).is_empty());
    mesh.index.report("n1", word(&[]));
    mesh.index.flush();
    assert_eq!(marks(&mesh), [("u1".to_owned(), false)]);
    mesh.remove(&cart(""));
    assert!(marks(&mesh).is_empty());
}
