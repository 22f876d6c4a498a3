//! Kubernetes Ingress: what the gateway that its class names decides.

use super::gateways::{EDGE, HTTP_FROM_ALL, decided, gateway, said};
use super::*;

const CLASS: &str = "
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: keelson}
spec:
  controller: keelson.io/ingress-controller
  parameters: {apiGroup: gateway.networking.k8s.io, kind: Gateway, name: gw, namespace: edge, scope: Namespace}
";

/// The services `a` to `d` of `shop`, each with a pod of its own.
fn services() -> String {
    let of = |(last, name): (u8, &str)| {
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{clusterIP: 10.96.1.{last}, selector: {{app: {name}}}, ports: [{{name: web, port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}-1, namespace: shop, labels: {{app: {name}}}, annotations: {{keelson.io/pod-ips: 10.244.2.{last}}}}}
spec: {{nodeName: n1}}
"
        )
    };
    (1..).zip(["a", "b", "c", "d"]).map(of).collect()
}

fn mesh() -> Mesh {
    let mut mesh = Mesh::of(EDGE);
    mesh.apply(&services());
    mesh.apply(&gateway(HTTP_FROM_ALL));
    mesh.apply(CLASS);
    mesh
}

/// An Ingress of `shop`, created in that minute.
fn ingress(name: &str, minute: u8, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: '2026-01-01T00:{minute:02}:00Z'}}\n\
         spec: {{ingressClassName: keelson, {spec}}}\n"
    )
}

/// A rule with these paths: type, path, service.
fn rule(host: &str, paths: &[(&str, &str, &str)]) -> String {
    let paths = paths.iter().map(|(kind, path, service)| {
        format!("{{path: {path}, pathType: {kind}, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}")
    });
    let paths = paths.collect::<Vec<_>>().join(", ");
    format!("{{host: '{host}', http: {{paths: [{paths}]}}}}")
}

/// Which of the services a request of plain HTTP comes to, or the answer.
fn comes(mesh: &Mesh, host: &str, path: &str) -> String {
    by(mesh, 80, false, host, path)
}

fn by(mesh: &Mesh, port: u16, tls: bool, host: &str, path: &str) -> String {
    let address = decided(mesh, port, tls, host, path);
    let last = address
        .strip_prefix("10.244.2.")
        .and_then(|rest| rest.strip_suffix(":8080"));
    match last {
        Some("1") => "a".to_owned(),
        Some("2") => "b".to_owned(),
        Some("3") => "c".to_owned(),
        Some("4") => "d".to_owned(),
        _ => address,
    }
}

/// The table "Examples" of "Path types" in Kubernetes' page on Ingress.
#[test]
fn paths_match_as_the_table_of_kubernetes_says() {
    let default = "defaultBackend: {service: {name: d, port: {name: web}}}";
    for (paths, asked, expected) in [
        (&[("Prefix", "/", "a")][..], "/", "a"),
        (&[("Prefix", "/", "a")], "/any/path", "a"),
        (&[("Exact", "/foo", "a")], "/foo", "a"),
        (&[("Exact", "/foo", "a")], "/bar", "d"),
        (&[("Exact", "/foo", "a")], "/foo/", "d"),
        (&[("Exact", "/foo/", "a")], "/foo", "d"),
        (&[("Prefix", "/foo", "a")], "/foo", "a"),
        (&[("Prefix", "/foo", "a")], "/foo/", "a"),
        (&[("Prefix", "/foo/", "a")], "/foo", "a"),
        (&[("Prefix", "/foo/", "a")], "/foo/", "a"),
        (&[("Prefix", "/aaa/bb", "a")], "/aaa/bbb", "d"),
        (&[("Prefix", "/aaa/bbb", "a")], "/aaa/bbb", "a"),
        (&[("Prefix", "/aaa/bbb/", "a")], "/aaa/bbb", "a"),
        (&[("Prefix", "/aaa/bbb", "a")], "/aaa/bbb/", "a"),
        (&[("Prefix", "/aaa/bbb", "a")], "/aaa/bbb/ccc", "a"),
        (&[("Prefix", "/aaa/bbb", "a")], "/aaa/bbbxyz", "d"),
        (
            &[("Prefix", "/", "a"), ("Prefix", "/aaa", "b")],
            "/aaa/ccc",
            "b",
        ),
        (
            &[
                ("Prefix", "/", "a"),
                ("Prefix", "/aaa", "b"),
                ("Prefix", "/aaa/bbb", "c"),
            ],
            "/aaa/bbb",
            "c",
        ),
        (
            &[
                ("Prefix", "/", "a"),
                ("Prefix", "/aaa", "b"),
                ("Prefix", "/aaa/bbb", "c"),
            ],
            "/ccc",
            "a",
        ),
        (&[("Prefix", "/aaa", "a")], "/ccc", "d"),
        (
            &[("Prefix", "/foo", "a"), ("Exact", "/foo", "b")],
            "/foo",
            "b",
        ),
        (
            &[("Exact", "/foo", "b"), ("Prefix", "/foo", "a")],
            "/foo/x",
            "a",
        ),
        // As Prefix, which is what users of other controllers expect of it.
        (&[("ImplementationSpecific", "/foo", "a")], "/foo/x", "a"),
        (&[("ImplementationSpecific", "/foo", "a")], "/foox", "d"),
        (&[("ImplementationSpecific", "''", "a")], "/x", "a"),
    ] {
        let mut mesh = mesh();
        let rules = rule("shop.example.com", paths);
        let changes = mesh.apply(&ingress("one", 0, &format!("rules: [{rules}], {default}")));
        assert_eq!(said(&changes), "", "{paths:?}");
        let came = comes(&mesh, "shop.example.com", asked);
        assert_eq!(came, expected, "{paths:?} {asked}");
        // The default backend is for every other host too.
        assert_eq!(comes(&mesh, "other.example.com", asked), "d", "{paths:?}");
    }
}

/// The table of "Hostname wildcards" in the same page, and the order of hosts.
#[test]
fn a_wildcard_is_one_label_and_the_most_specific_host_counts() {
    let mut mesh = mesh();
    let rules = [
        rule("*.foo.com", &[("Prefix", "/", "a")]),
        rule("bar.foo.com", &[("Prefix", "/only", "b")]),
        rule("", &[("Prefix", "/deep/path", "c")]),
    ]
    .join(", ");
    mesh.apply(&ingress("one", 0, &format!("rules: [{rules}]")));
    for (host, path, expected) in [
        ("x.foo.com", "/", "a"),
        ("X.Foo.Com", "/", "a"),
        ("x.foo.com", "/deep/path", "a"),
        ("bar.foo.com", "/only", "b"),
        // The host is there; its paths are what it has.
        ("bar.foo.com", "/", "404"),
        ("baz.bar.foo.com", "/deep/path", "c"),
        ("baz.bar.foo.com", "/", "404"),
        ("foo.com", "/deep/path", "c"),
        ("elsewhere.org", "/deep/path", "c"),
        ("foo.com", "/", "404"),
    ] {
        assert_eq!(comes(&mesh, host, path), expected, "{host} {path}");
    }
}

#[test]
fn ingresses_are_merged_and_of_equal_paths_the_older_objects_counts() {
    let mut mesh = mesh();
    let of = |service| format!("rules: [{}]", rule("a.com", &[("Prefix", "/x", service)]));
    mesh.apply(&ingress("younger", 2, &of("b")));
    mesh.apply(&ingress("older", 1, &of("a")));
    let more = rule("a.com", &[("Prefix", "/x/y", "c"), ("Exact", "/z", "d")]);
    mesh.apply(&ingress("third", 3, &format!("rules: [{more}]")));
    for (path, expected) in [("/x", "a"), ("/x/y/z", "c"), ("/z", "d"), ("/", "404")] {
        assert_eq!(comes(&mesh, "a.com", path), expected, "{path}");
    }
    // A default backend yields to every rule, however old it is.
    let default = "defaultBackend: {service: {name: b, port: {number: 80}}}";
    mesh.apply(&ingress("default", 0, default));
    let all = rule("", &[("Prefix", "/", "c")]);
    mesh.apply(&ingress("all", 4, &format!("rules: [{all}]")));
    assert_eq!(comes(&mesh, "elsewhere.org", "/"), "c");
    mesh.remove(&ingress("all", 4, &format!("rules: [{all}]")));
    assert_eq!(comes(&mesh, "elsewhere.org", "/"), "b");
    mesh.remove(&ingress("older", 1, &of("a")));
    assert_eq!(comes(&mesh, "a.com", "/x"), "b");
}

#[test]
fn a_class_of_another_controller_is_left_alone_and_the_default_one_takes_who_names_none() {
    let mut mesh = mesh();
    let foreign = "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: nginx}\nspec: {controller: k8s.io/ingress-nginx}\n";
    mesh.apply(foreign);
    let of = |class: &str, host: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: one, namespace: shop{class}}}\nspec: {{rules: [{}]}}\n",
            rule(host, &[("Prefix", "/", "a")])
        )
    };
    mesh.apply(&of(
        ", annotations: {kubernetes.io/ingress.class: nginx}",
        "a.com",
    ));
    assert_eq!(comes(&mesh, "a.com", "/"), "404");
    mesh.apply(&of(
        ", annotations: {kubernetes.io/ingress.class: keelson}",
        "a.com",
    ));
    assert_eq!(comes(&mesh, "a.com", "/"), "a");
    mesh.apply(&of("", "a.com"));
    assert_eq!(
        comes(&mesh, "a.com", "/"),
        "404",
        "no class is the default one"
    );
    let default = CLASS.replace(
        "{name: keelson}",
        "{name: keelson, annotations: {ingressclass.kubernetes.io/is-default-class: 'true'}}",
    );
    mesh.apply(&default);
    assert_eq!(comes(&mesh, "a.com", "/"), "a");
    // Another controller's newer default class has it.
    let newer = foreign.replace(
        "{name: nginx}",
        "{name: nginx, creationTimestamp: '2026-02-01T00:00:00Z', annotations: {ingressclass.kubernetes.io/is-default-class: 'true'}}",
    );
    mesh.apply(&newer);
    assert_eq!(comes(&mesh, "a.com", "/"), "404");
}

#[test]
fn what_its_author_must_know_is_said_on_the_field_and_the_rest_applies() {
    let mut mesh = mesh();
    let text = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: one
  namespace: shop
  annotations: {nginx.ingress.kubernetes.io/rewrite-target: /$1}
spec:
  ingressClassName: keelson
  tls: [{hosts: [a.com], secretName: cert}]
  rules:
  - host: a.com
    http:
      paths:
      - {path: /good, pathType: Prefix, backend: {service: {name: a, port: {name: web}}}}
      - {path: /gone, pathType: Prefix, backend: {service: {name: nobody, port: {number: 80}}}}
      - {path: /port, pathType: Prefix, backend: {service: {name: a, port: {name: admin}}}}
      - {path: /bucket, pathType: Prefix, backend: {resource: {apiGroup: x.io, kind: Bucket, name: b}}}
      - {path: bad, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}
      - {path: /type, pathType: Regex, backend: {service: {name: a, port: {number: 80}}}}
  - host: '*.*.com'
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}]}
";
    let all = said(&mesh.apply(text));
    for part in [
        "metadata.annotations.nginx.ingress.kubernetes.io/rewrite-target",
        "spec.tls[0].secretName",
        "there is no Secret shop/cert",
        "spec.rules[0].http.paths[1].backend.service",
        "there is no Service shop/nobody",
        "Service shop/a has no port called",
        "spec.rules[0].http.paths[3].backend.resource",
        "spec.rules[0].http.paths[4].path",
        "spec.rules[0].http.paths[5].pathType",
        "spec.rules[1].host",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    assert_eq!(comes(&mesh, "a.com", "/good"), "a");
    assert_eq!(comes(&mesh, "a.com", "/gone"), "503");
    assert_eq!(comes(&mesh, "a.com", "/port"), "503");
    assert_eq!(comes(&mesh, "a.com", "/bucket"), "404");
    // It appears.
    mesh.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: nobody, namespace: shop}\nspec: {clusterIP: 10.96.1.9, selector: {app: b}, ports: [{port: 80, targetPort: 8080}]}\n",
    );
    assert_eq!(comes(&mesh, "a.com", "/gone"), "b");
}

#[test]
fn an_ingress_that_nothing_serves_says_why() {
    let spec = format!("rules: [{}]", rule("a.com", &[("Prefix", "/", "a")]));
    let mut mesh = Mesh::of(EDGE);
    mesh.apply(&services());
    assert_eq!(
        said(&mesh.apply(&ingress("one", 0, &spec))),
        "",
        "another's class"
    );
    let no_gateway = CLASS.split("  parameters").next().unwrap_or_default();
    let all = said(&mesh.apply(no_gateway));
    assert!(all.contains("has no spec.parameters"), "{all}");
    let changes = mesh.apply(CLASS);
    let all = said(&changes);
    assert!(all.contains("there is no Gateway edge/gw"), "{all}");
    let found = changes.diagnostics.iter().flat_map(|(_, found)| found);
    let mut about = found.filter(|one| one.field == "spec.ingressClassName");
    assert!(
        about.all(|one| one.severity == manifest::Severity::Warning),
        "the Gateway may be in no file that is checked"
    );
    let own_only = "[{name: http, port: 80, protocol: HTTP}]";
    let all = said(&mesh.apply(&gateway(own_only)));
    assert!(all.contains("takes HTTP of namespace shop"), "{all}");
    assert_eq!(comes(&mesh, "a.com", "/"), "404");
    let changes = mesh.apply(&gateway(HTTP_FROM_ALL));
    assert_eq!(said(&changes), "");
    assert_eq!(comes(&mesh, "a.com", "/"), "a");
}

#[test]
fn tls_ends_with_the_secret_of_the_ingresses_namespace() {
    let mut mesh = mesh();
    let secret = |namespace: &str, name: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\nstringData: {{tls.crt: '-----BEGIN CERTIFICATE-----', tls.key: '-----BEGIN PRIVATE KEY-----'}}\n"
        )
    };
    // Of the gateway's namespace: not the one that is meant.
    mesh.apply(&secret("edge", "cert"));
    let rules = [
        rule("a.com", &[("Prefix", "/", "a")]),
        rule("plain.com", &[("Prefix", "/", "b")]),
    ]
    .join(", ");
    let tls = "tls: [{hosts: [a.com, '*.b.com'], secretName: cert}]";
    mesh.apply(&ingress("one", 0, &format!("rules: [{rules}], {tls}")));
    let named: Vec<String> = mesh
        .index
        .named_secrets()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(named, ["shop/cert"], "no other Secret is read");
    assert_eq!(by(&mesh, 443, true, "a.com", "/"), "no listener");
    mesh.apply(&secret("shop", "cert"));
    assert_eq!(by(&mesh, 443, true, "a.com", "/"), "a");
    assert_eq!(by(&mesh, 443, true, "plain.com", "/"), "no listener");
    assert_eq!(by(&mesh, 443, true, "x.y.b.com", "/"), "no listener");
    // Rules of another object for the host are served with it too.
    let more = rule("x.b.com", &[("Prefix", "/", "c")]);
    mesh.apply(&ingress("two", 1, &format!("rules: [{more}]")));
    assert_eq!(by(&mesh, 443, true, "x.b.com", "/"), "c");
    // The Gateway's own listener for the host goes before.
    mesh.apply(&secret("edge", "own"));
    let all = said(&mesh.apply(&gateway(
        "[{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}},
          {name: https, port: 443, protocol: HTTPS, hostname: a.com, tls: {certificateRefs: [{name: own}]}, allowedRoutes: {namespaces: {from: All}}}]",
    )));
    assert!(all.contains("listener https of Gateway edge/gw"), "{all}");
    assert_eq!(by(&mesh, 443, true, "a.com", "/"), "a");
    assert_eq!(by(&mesh, 443, true, "x.b.com", "/"), "c");
}

/// Nobody takes by an Ingress what a Gateway keeps for others: hosts that its listeners do not have.
#[test]
fn an_ingress_has_no_hosts_beyond_the_listeners() {
    let mut mesh = mesh();
    mesh.apply(&gateway(
        "[{name: http, port: 80, protocol: HTTP, hostname: '*.shop.com', allowedRoutes: {namespaces: {from: All}}}]",
    ));
    let rules = [
        rule("a.shop.com", &[("Prefix", "/", "a")]),
        rule("bank.com", &[("Prefix", "/", "b")]),
    ]
    .join(", ");
    let tls = "tls: [{hosts: [bank.com], secretName: cert}]";
    let all = said(&mesh.apply(&ingress("one", 0, &format!("rules: [{rules}], {tls}"))));
    assert!(all.contains("spec.rules[1].http.paths[0]"), "{all}");
    assert_eq!(comes(&mesh, "a.shop.com", "/"), "a");
    assert_eq!(comes(&mesh, "bank.com", "/"), "no listener");
    assert!(mesh.index.named_secrets().is_empty());
}
