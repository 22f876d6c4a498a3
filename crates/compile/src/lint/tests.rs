use super::*;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v1, namespace: shop}
spec: {template: {metadata: {labels: {app: reviews, version: v1}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {servers: [{hosts: ['*.example.com']}]}
---
";

/// The findings about an object of `shop` beside those services: field and sentence.
fn about(kind: &str, spec: &str) -> Vec<String> {
    let text = format!(
        "{SERVICES}apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\nspec: {spec}\n"
    );
    let objects = manifest::written(&"f.yaml".into(), &text);
    assert_eq!(objects.len(), 4, "{text}");
    let found = check(&objects).into_iter();
    found
        .map(|found| format!("{}: {}", found.field, found.message))
        .collect()
}

fn check_about(kind: &str, spec: &str, expected: &[(&str, &str)]) {
    let found = about(kind, spec);
    assert_eq!(found.len(), expected.len(), "{spec}: {found:?}");
    for (field, words) in expected {
        assert!(
            found
                .iter()
                .any(|one| one.starts_with(&format!("{field}: ")) && one.contains(words)),
            "{spec}: {field} {words:?} in {found:?}"
        );
    }
}

#[test]
fn routes_that_nothing_reaches_and_requests_that_no_route_takes_are_named() {
    let to = "route: [{destination: {host: reviews}}]";
    let all = format!("{{{to}}}");
    let some = format!("{{match: [{{uri: {{prefix: /a}}}}], {to}}}");
    let root = format!("{{match: [{{uri: {{prefix: /}}}}], {to}}}");
    for (routes, expected) in [
        (format!("[{some}, {all}]"), vec![]),
        (format!("[{some}, {root}]"), vec![]),
        (format!("[{some}]"), vec![("spec.http", "404")]),
        (
            format!("[{all}, {some}]"),
            vec![("spec.http[1]", "spec.http[0] takes every request")],
        ),
        (
            format!("[{root}, {some}, {all}]"),
            vec![
                ("spec.http[1]", "takes every"),
                ("spec.http[2]", "takes every"),
            ],
        ),
    ] {
        let spec = format!("{{hosts: [reviews], http: {routes}}}");
        check_about("VirtualService", &spec, &expected);
    }
}

#[test]
fn gateways_that_do_not_serve_a_host_or_take_it_out_of_the_mesh_are_named() {
    for (spec, expected) in [
        ("{hosts: [a.example.com], gateways: [edge]}", vec![]),
        ("{hosts: ['*'], gateways: [shop/edge]}", vec![]),
        ("{hosts: [a.example.org], gateways: [elsewhere]}", vec![]),
        (
            "{hosts: [a.example.org], gateways: [edge]}",
            vec![(
                "spec.gateways[0]",
                "not bound: Gateway shop/edge (f.yaml:12) serves *.example.com",
            )],
        ),
        (
            "{hosts: [reviews, a.example.com], gateways: [edge, mesh]}",
            vec![],
        ),
        (
            "{hosts: [reviews, a.example.com], gateways: [edge]}",
            vec![(
                "spec.gateways",
                "pods that call Service shop/reviews do not get them",
            )],
        ),
    ] {
        check_about("VirtualService", spec, &expected);
    }
}

#[test]
fn hosts_and_subsets_that_are_nowhere_are_named_where_the_files_can_tell() {
    for (spec, expected) in [
        (
            "{host: reviews, subsets: [{name: v1, labels: {version: v1}}]}",
            vec![],
        ),
        ("{host: reviews.shop.svc.cluster.local}", vec![]),
        ("{host: other.elsewhere.svc.cluster.local}", vec![]),
        ("{host: '*.shop.svc.cluster.local'}", vec![]),
        ("{host: example.com}", vec![]),
        (
            "{host: review}",
            vec![("spec.host", "no Service shop/review is in these files")],
        ),
        (
            "{host: reviews, subsets: [{name: v2, labels: {version: v2}}]}",
            vec![("spec.subsets[0].labels", "has the labels of subset \"v2\"")],
        ),
    ] {
        check_about("DestinationRule", spec, &expected);
    }
}

#[test]
fn two_owners_of_one_host_hear_of_each_other() {
    let owner = |name: &str, host: &str, gateways: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{hosts: [{host}], gateways: [{gateways}]}}\n---\n"
        )
    };
    let said = |text: &str| {
        let found = check(&manifest::written(&"f.yaml".into(), text)).into_iter();
        found.map(|one| one.name).collect::<Vec<_>>()
    };
    let both =
        owner("a", "reviews", "mesh") + &owner("b", "reviews.shop.svc.cluster.local", "mesh");
    assert_eq!(said(&both), ["a", "b"]);
    let apart = owner("a", "reviews", "mesh") + &owner("b", "reviews", "edge");
    assert_eq!(said(&apart), [""; 0]);
}

#[test]
fn a_mesh_policy_by_another_name_is_an_error() {
    let text = |name: &str| {
        format!(
            "apiVersion: authentication.istio.io/v1alpha1\nkind: MeshPolicy\nmetadata:\n  name: {name}\n"
        )
    };
    let said = |name: &str| check(&manifest::written(&"f.yaml".into(), &text(name)));
    assert_eq!(said("default"), []);
    let found = said("strict");
    assert_eq!(found.len(), 1);
    let sentence = found[0].to_string();
    assert!(
        sentence.starts_with("f.yaml:4: error: MeshPolicy default/strict: metadata.name: "),
        "{sentence}"
    );
}
