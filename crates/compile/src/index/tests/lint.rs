//! What is said of traffic objects of a cluster beside each other.

use manifest::{Claim, read_object};
use serde_json::{Value, json};

use super::*;

fn apply(index: &mut Index, kind: Kind, namespace: &str, name: &str, spec: Value) {
    let object = json!({
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-of-{name}"), "generation": 3},
        "spec": spec,
    });
    let mut read = read_object(kind, object, "istio-system");
    match read.claims.pop() {
        Some(Claim::Good(upsert)) => index.apply(&upsert),
        other => panic!("{other:?} {:?}", read.findings),
    }
    index.flush();
}

fn shop() -> Index {
    let mut index = Index::new(MeshConfig::default());
    let service =
        json!({"clusterIP": "10.96.0.1", "selector": {"app": "cart"}, "ports": [{"port": 80}]});
    apply(&mut index, Kind::Service, "shop", "cart", service);
    let gateway = json!({"selector": {"istio": "edge"}, "servers": [
        {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["shop/*.example.com"]},
    ]});
    apply(&mut index, Kind::IstioGateway, "shop", "edge", gateway);
    index
}

/// `namespace/name field: sentence` of all that is said.
fn said(index: &Index) -> Vec<String> {
    let said = index.lint().into_iter();
    said.map(|one| {
        assert_eq!(one.severity, manifest::Severity::Warning);
        assert!(matches!(
            &one.origin,
            manifest::Origin::Object { generation: 3, .. }
        ));
        format!(
            "{}/{} {}: {}",
            one.namespace, one.name, one.field, one.message
        )
    })
    .collect()
}

fn owner(gateways: &[&str], host: &str) -> Value {
    let to = json!({"destination": {"host": "cart.shop.svc.cluster.local"}});
    json!({"hosts": [host], "gateways": gateways, "http": [{"route": [to]}]})
}

/// P18: both hear of each other, with what comes of it.
#[test]
fn two_owners_of_one_host_hear_of_each_other() {
    for (one, other, expected) in [
        (
            ("shop", &["mesh"][..]),
            ("shop", &["mesh"][..]),
            Some("only one of them takes effect"),
        ),
        (
            ("shop", &["mesh"]),
            ("bank", &["mesh"]),
            Some("clients of namespace bank get its routes"),
        ),
        (
            ("shop", &["mesh", "edge"]),
            ("shop", &["edge"]),
            Some("their routes are taken together"),
        ),
        (("shop", &["mesh"]), ("shop", &["edge"]), None),
    ] {
        let mut index = shop();
        let host = "cart.shop.svc.cluster.local";
        apply(
            &mut index,
            Kind::VirtualService,
            one.0,
            "one",
            owner(one.1, host),
        );
        let before: Vec<String> = said(&index);
        assert!(before.iter().all(|one| !one.contains("too;")), "{before:?}");
        apply(
            &mut index,
            Kind::VirtualService,
            other.0,
            "other",
            owner(other.1, host),
        );
        let all = said(&index);
        let shared: Vec<&String> = all.iter().filter(|one| one.contains(" too; ")).collect();
        assert_eq!(
            shared.len(),
            if expected.is_some() { 2 } else { 0 },
            "{all:?}"
        );
        if let Some(expected) = expected {
            let of_one = shared
                .iter()
                .find(|text| text.starts_with("shop/one spec.hosts[0]: "));
            assert!(
                of_one.is_some_and(|text| text.contains(expected)),
                "{all:?}"
            );
        }
        index.remove(&ObjectKey::new(Kind::VirtualService, other.0, "other"));
        index.flush();
        assert_eq!(said(&index), before, "what is gone is in nobody's way");
    }
}

/// P19, P20, P21, P22.
#[test]
fn what_leads_nowhere_in_the_cluster_is_named() {
    let route = |match_: Value| json!({"match": match_, "route": [{"destination": {"host": "cart.shop.svc.cluster.local"}}]});
    for (spec, expected) in [
        (
            json!({"hosts": ["cart"], "http": [route(json!([]))]}),
            vec![],
        ),
        (
            json!({"hosts": ["a.example.com"], "gateways": ["edge"], "http": [route(json!([]))]}),
            vec![],
        ),
        (
            json!({"hosts": ["a.example.org"], "gateways": ["edge"], "http": [route(json!([]))]}),
            vec!["spec.gateways[0]: not bound: Gateway shop/edge serves shop/*.example.com"],
        ),
        (
            json!({"hosts": ["a.example.com"], "gateways": ["none"], "http": [route(json!([]))]}),
            vec!["spec.gateways[0]: not bound: there is no Gateway shop/none"],
        ),
        (
            json!({"hosts": ["cart"], "gateways": ["edge"], "http": [route(json!([]))]}),
            vec![
                "spec.gateways: the routes apply at these gateways only",
                "spec.gateways[0]: not bound",
            ],
        ),
        (
            json!({"hosts": ["cart"], "http": [route(json!([{"uri": {"prefix": "/a"}}]))]}),
            vec!["spec.http: no route takes"],
        ),
        (
            json!({"hosts": ["cart"], "http": [{"route": [{"destination": {"host": "basket"}}]}]}),
            vec!["spec.http[0].route[0].destination.host: there is no Service shop/basket"],
        ),
    ] {
        let mut index = shop();
        let key = ObjectKey::new(Kind::VirtualService, "shop", "x");
        let before = index.lint_of(&key, &json!({"spec": spec}));
        apply(&mut index, Kind::VirtualService, "shop", "x", spec.clone());
        let all = said(&index);
        assert_eq!(all.len(), expected.len(), "{spec}: {all:?}");
        for words in &expected {
            assert!(
                all.iter().any(|one| one.contains(words)),
                "{words}: {all:?}"
            );
        }
        assert_eq!(before.len(), expected.len(), "who writes it hears the same");
    }
}

/// P23: who writes a rule hears of a subset without pods. What is written is not warned of, for pods come and go.
#[test]
fn a_subset_without_pods_is_named_to_who_writes_it() {
    let mut index = shop();
    let pod = json!({
        "metadata": {"name": "cart-1", "namespace": "shop", "uid": "1", "labels": {"app": "cart", "version": "v1"}},
        "spec": {"nodeName": "n1", "containers": []}, "status": {"podIP": "10.244.1.1"},
    });
    let mut read = read_object(Kind::Pod, pod, "istio-system");
    let Some(Claim::Good(upsert)) = read.claims.pop() else {
        panic!("{read:?}");
    };
    index.apply(&upsert);
    index.flush();
    let key = ObjectKey::new(Kind::DestinationRule, "shop", "cart");
    let of = |version: &str| json!({"host": "cart", "subsets": [{"name": "s", "labels": {"version": version}}]});
    assert_eq!(index.lint_of(&key, &json!({"spec": of("v1")})), []);
    let found = index.lint_of(&key, &json!({"spec": of("v2")}));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].field, "spec.subsets[0].labels");
    apply(&mut index, Kind::DestinationRule, "shop", "cart", of("v2"));
    assert_eq!(said(&index), [""; 0]);
    apply(
        &mut index,
        Kind::DestinationRule,
        "shop",
        "basket",
        json!({"host": "basket"}),
    );
    let all = said(&index);
    assert!(
        all.len() == 1 && all[0].contains("there is no Service shop/basket"),
        "{all:?}"
    );
}
