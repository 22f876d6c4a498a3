//! Regular expressions of one waypoint have a bound together.

use std::sync::OnceLock;

use l7::text::{REGEX_LIMIT, REGEX_TOTAL, Regex};
use manifest::{Claim, read_object};
use serde_json::{Value, json};

use super::*;

fn apply(index: &mut Index, kind: Kind, name: &str, rest: Value) {
    let mut object = rest;
    object["metadata"]["name"] = json!(name);
    object["metadata"]["namespace"] = json!("shop");
    object["metadata"]["uid"] = json!(format!("uid-of-{name}"));
    object["metadata"]["generation"] = json!(1);
    let mut read = read_object(kind, object, "istio-system");
    match read.claims.pop() {
        Some(Claim::Good(upsert)) => index.apply(&upsert),
        other => panic!("{other:?} {:?}", read.findings),
    }
}

fn service(index: &mut Index, name: &str) {
    let rest = json!({
        "metadata": {"labels": {"istio.io/use-waypoint": "wp"}},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
    });
    apply(index, Kind::Service, name, rest);
}

/// A pattern that counts as a whole place of the bound.
fn large(n: usize) -> String {
    static LETTERS: OnceLock<usize> = OnceLock::new();
    let is_large = |letters: &usize| {
        let size = Regex::new(&format!("/[a-z]{{{letters}}}")).map(|regex| regex.size());
        size == Ok(REGEX_LIMIT)
    };
    let letters = LETTERS.get_or_init(|| (1000..).step_by(500).find(is_large).unwrap());
    format!("/{n}/[a-z]{{{letters}}}")
}

/// So many rules, each with a large pattern.
fn old(index: &mut Index, rules: usize) {
    let rules: Vec<Value> = (0..rules)
        .map(|n| {
            json!({
                "match": [{"uri": {"regex": large(n)}}],
                "route": [{"destination": {"host": "cart"}}],
            })
        })
        .collect();
    let spec = json!({"hosts": ["cart"], "http": rules});
    apply(
        index,
        Kind::VirtualService,
        "a-old",
        json!({"metadata": {}, "spec": spec}),
    );
}

/// Two rules with patterns, and one with none.
fn new(index: &mut Index) {
    let rule = |kind: &str, value: &str| {
        json!({
            "matches": [{"path": {"type": kind, "value": value}}],
            "backendRefs": [{"name": "web", "port": 80}],
        })
    };
    let spec = json!({
        "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "rules": [
            rule("RegularExpression", &large(1)),
            rule("RegularExpression", "/small/[0-9]+"),
            rule("PathPrefix", "/prefix"),
        ],
    });
    apply(
        index,
        Kind::HttpRoute,
        "b-new",
        json!({"metadata": {}, "spec": spec}),
    );
}

/// The rules that the waypoint is told of the newer object.
fn told(index: &Index) -> Vec<String> {
    let routes = &index.snapshot().waypoints["shop/wp"].routes;
    let names = routes.keys().map(|name| name.to_string());
    names.filter(|name| name.starts_with("HTTPRoute")).collect()
}

fn said(changes: &Changes, kind: Kind, name: &str) -> Option<Vec<String>> {
    let key = ObjectKey::new(kind, "shop", name);
    let (_, said) = changes
        .diagnostics
        .iter()
        .find(|(about, _)| *about == key)?;
    Some(said.iter().map(|one| one.field.to_string()).collect())
}

fn partly(index: &Index) -> Option<String> {
    let key = (Kind::HttpRoute, NamespacedName::new("shop", "b-new"));
    index.view().routes[&key].parents[0].partly.clone()
}

#[test]
fn the_rules_of_older_objects_have_their_patterns_and_what_is_over_says_so() {
    let places = REGEX_TOTAL / REGEX_LIMIT;
    assert_eq!(Regex::new(&large(7)).unwrap().size(), REGEX_LIMIT);
    let mut index = Index::new(MeshConfig::default());
    for name in ["cart", "web"] {
        service(&mut index, name);
    }
    // There is room for one large pattern, and then for none.
    old(&mut index, places - 1);
    new(&mut index);
    let changes = index.flush();
    let rules = &index.snapshot().waypoints["shop/wp"].routes;
    assert_eq!(rules.len(), places - 1 + 2);
    assert_eq!(
        told(&index),
        ["HTTPRoute/shop/b-new/0", "HTTPRoute/shop/b-new/2"]
    );
    let fields = said(&changes, Kind::HttpRoute, "b-new");
    assert_eq!(fields, Some(vec!["spec.rules[1]".to_owned()]));
    assert_eq!(
        said(&changes, Kind::VirtualService, "a-old"),
        Some(Vec::new())
    );
    let why = partly(&index).unwrap();
    assert!(
        why.contains("spec.rules[1]") && why.contains("waypoint shop/wp"),
        "{why}"
    );
    // None is left.
    old(&mut index, places);
    let changes = index.flush();
    assert_eq!(told(&index), ["HTTPRoute/shop/b-new/2"]);
    let fields = said(&changes, Kind::HttpRoute, "b-new");
    let both = vec!["spec.rules[0]".to_owned(), "spec.rules[1]".to_owned()];
    assert_eq!(fields, Some(both));
    // When there is room again nothing is said any more.
    old(&mut index, 1);
    let changes = index.flush();
    assert_eq!(told(&index).len(), 3);
    assert_eq!(said(&changes, Kind::HttpRoute, "b-new"), Some(Vec::new()));
    assert_eq!(partly(&index), None);
}
