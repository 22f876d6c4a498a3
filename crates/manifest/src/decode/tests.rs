use std::collections::BTreeMap;

use super::*;

fn decode(text: &str) -> Decoded {
    read_file(&"f.yaml".into(), text, "istio-system")
}

/// The findings, one a line, as a person reads them.
fn check(text: &str, expected: &[&str]) -> Decoded {
    let decoded = decode(text);
    let found: Vec<_> = decoded.findings.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected, "{text}");
    decoded
}

fn good(decoded: &Decoded) -> Vec<String> {
    let claims = decoded.claims.iter();
    claims
        .filter_map(|claim| match claim {
            Claim::Good(upsert) => Some(upsert.object.key().to_string()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_capital_name_is_named_with_its_line_and_the_right_spelling() {
    // As printed in the book: `metadata: {Name: ...}`, and the default route one level too high.
    let y37b = "\
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  Name: foo-bars-svc
spec:
  hosts:
  - bar.foo.svc.cluster.local
  http:
  - match:
    - uri:
        prefix: /bars/newMethod
    route:
    - destination:
        host: bar.foo.svc.cluster.local
        subset: v2
  route:
  - destination:
      host: bar.foo.svc.cluster.local
      subset: v1
";
    let y46 = "\
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  Name: foo-bars-svc
spec:
  hosts: [bar.foo.svc.cluster.local]
  http:
  - match:
    - uri:
        regex: \"/foo/\\\\d+:myCustomMethod\"
    route:
    - destination: {host: bar.foo.svc.cluster.local, subset: v3}
";
    check(
        &format!("{y37b}{y46}"),
        &[
            "f.yaml:4: error: VirtualService: metadata.Name: unknown field metadata.Name, did you mean metadata.name",
            "f.yaml:16: error: VirtualService: spec.route: unknown field spec.route",
            "f.yaml:24: error: VirtualService: metadata.Name: unknown field metadata.Name, did you mean metadata.name",
        ],
    );
    for kind in ["Namespace", "Pod", "Service", "Node"] {
        let text = format!("apiVersion: v1\nkind: {kind}\nmetadata:\n  Name: x\nspec: {{}}\n");
        let expected = format!(
            "f.yaml:4: error: {kind}: metadata.Name: unknown field metadata.Name, did you mean metadata.name"
        );
        let decoded = decode(&text);
        assert_eq!(
            decoded
                .findings
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            [expected]
        );
        assert!(good(&decoded).is_empty(), "{kind} without a name");
    }
}

#[test]
fn an_unquoted_wildcard_stops_neither_its_neighbours_nor_the_file() {
    // Y43: three documents in one file, the first with `- *.foo.com`.
    let text = "\
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata:
  name: foo-com-gateway
spec:
  selector:
    app: gateway-workloads
  servers:
  - hosts:
    - *.foo.com
    port:
      number: 80
      name: http
      protocol: HTTP
---
apiVersion: v1
kind: Namespace
metadata: {name: foo}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: bar, namespace: foo}
";
    let decoded = check(
        text,
        &[
            "f.yaml:10: error: Gateway default/foo-com-gateway: not valid YAML: while parsing node, found unknown anchor; \
           a value that starts with `*` must be quoted, as in \"*.example.com\"",
        ],
    );
    assert_eq!(good(&decoded), ["Namespace foo", "ServiceAccount foo/bar"]);
}

#[test]
fn a_wrong_value_names_its_line_its_field_and_what_would_be_right() {
    let policy = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: n}}\nspec:\n{spec}"
        )
    };
    let peer = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: n}}\nspec:\n{spec}"
        )
    };
    let pod = |rest: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: n}}\n{rest}")
    };
    let table: &[(String, &str)] = &[
        (policy("  action: ALOW\n"), "f.yaml:5: error: AuthorizationPolicy n/p: spec.action: invalid value: string \"ALOW\", expected one of ALLOW, DENY, AUDIT, CUSTOM"),
        (policy("  rules:\n  - to:\n    - operation:\n        ports: [8080]\n"), "f.yaml:8: error: AuthorizationPolicy n/p: spec.rules[0].to[0].operation.ports[0]: invalid type: integer `8080`, expected a string; put the value in quotes"),
        (policy("  rules:\n  - to:\n    - operation:\n        ports: [\"http\"]\n"), "f.yaml:8: error: AuthorizationPolicy n/p: spec.rules[0].to[0].operation.ports[0]: \"http\" is not a port (1-65535)"),
        (policy("  rules:\n  - from:\n    - source:\n        ipBlock: [\"10.0.0.0/8\"]\n"), "f.yaml:8: error: AuthorizationPolicy n/p: spec.rules[0].from[0].source.ipBlock: unknown field spec.rules[0].from[0].source.ipBlock, did you mean spec.rules[0].from[0].source.ipBlocks"),
        (policy("  rules:\n  - from:\n    - source:\n        ipBlocks: [\"10.0.0.0/33\"]\n"), "f.yaml:8: error: AuthorizationPolicy n/p: spec.rules[0].from[0].source.ipBlocks[0]: \"10.0.0.0/33\" is not an address or CIDR such as 10.1.0.0/16"),
        (policy("  rules:\n  - from:\n    - source:\n        principals: [\"spiffe://td/ns/n/sa/a\"]\n"), "f.yaml:8: error: AuthorizationPolicy n/p: spec.rules[0].from[0].source.principals[0]: principals are written without the scheme; write \"td/ns/n/sa/a\""),
        (policy("  rules:\n  - from:\n    - {}\n"), "f.yaml:7: error: AuthorizationPolicy n/p: spec.rules[0].from[0].source: source is missing; leave out `from` to match every source"),
        (policy("  rules:\n  - when:\n    - key: source.ipp\n      values: [x]\n"), "f.yaml:7: error: AuthorizationPolicy n/p: spec.rules[0].when[0].key: unknown attribute source.ipp; known are source.ip, remote.ip, source.namespace, source.principal, source.serviceAccount, source.trustDomain, destination.ip, destination.port, connection.sni, request.auth.principal, request.auth.audiences, request.auth.presenter and request.headers[name]"),
        (policy("  rules: {}\n"), "f.yaml:5: error: AuthorizationPolicy n/p: spec.rules: invalid type: a mapping, expected a list"),
        (policy("  action: CUSTOM\n"), "f.yaml:4: error: AuthorizationPolicy n/p: spec.provider.name: action CUSTOM needs the name of an extension provider"),
        (peer("  mtls: {mode: STRICT}\n  portLevelMtls:\n    http: {mode: DISABLE}\n"), "f.yaml:7: error: PeerAuthentication n/p: spec.portLevelMtls.http: the key \"http\" is not a port number (1-65535)"),
        (peer("  portLevelMtls:\n    8080: {mode: DISABLE}\n"), "f.yaml:5: error: PeerAuthentication n/p: spec.portLevelMtls: portLevelMtls needs spec.selector.matchLabels: ports belong to workloads, not to a namespace"),
        (peer("  mtls: STRICT\n"), "f.yaml:5: error: PeerAuthentication n/p: spec.mtls: invalid type: string \"STRICT\", expected a mapping"),
        (pod("spec:\n  containers: nginx\n"), "f.yaml:5: error: Pod n/p: spec.containers: invalid type: string \"nginx\", expected a list"),
        (pod("spec:\n  hostNetwork: \"yes\"\n"), "f.yaml:5: error: Pod n/p: spec.hostNetwork: invalid type: string \"yes\", expected a boolean"),
        ("apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    keelson.io/pod-ips: 10.244\n".into(), "f.yaml:6: error: Pod default/p: metadata.annotations[\"keelson.io/pod-ips\"]: invalid type: floating point `10.244`, expected a string; put the value in quotes"),
        ("apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    keelson.io/pod-ips: 10.244.1.x\n".into(), "f.yaml:6: error: Pod default/p: metadata.annotations[\"keelson.io/pod-ips\"]: \"10.244.1.x\" is not an IP address; write for example 10.244.1.10,fd00::10"),
        ("apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    keelson.io/weight: many\n".into(), "f.yaml:6: error: Pod default/p: metadata.annotations[\"keelson.io/weight\"]: \"many\" is not a whole number; write for example \"3\""),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: Cart_1}\n".into(), "f.yaml:3: error: Pod default/Cart_1: metadata.name: \"Cart_1\" must be at most 253 lower-case letters, digits, `-` and `.`, starting and ending with a letter or digit"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {generateName: x-}\n".into(), "f.yaml:3: error: Pod: metadata.name: metadata.name is missing; generateName works only through the Kubernetes API"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  clusterIP: None\n  ports:\n  - port: 70000\n".into(), "f.yaml:7: error: Service default/s: spec.ports[0].port: 70000 is not a port (1-65535)"),
        ("apiVersion: security.istio.io/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: p}\n".into(), "f.yaml:1: error: PeerAuthentication default/p: apiVersion: security.istio.io/v1alpha1 is not served; write security.istio.io/v1"),
        ("ApiVersion: v1\nkind: Pod\nmetadata: {name: p}\n".into(), "f.yaml:1: error: apiVersion: unknown field ApiVersion, did you mean apiVersion"),
        ("kind: Pod\nmetadata: {name: p}\n".into(), "f.yaml:1: error: apiVersion: apiVersion is missing; every object needs apiVersion, kind and metadata.name"),
        ("apiVersion: v1\nkind: Pod\nmetadata:\n\tname: p\n".into(), "f.yaml:4: error: Pod default/p: not valid YAML: tabs disallowed within this context (block indentation); indent with spaces, a tab is not allowed here"),
        ("apiVersion: v1\nkind: [Pod]\n".into(), "f.yaml:2: error: kind: must be a string, is a list"),
    ];
    for (text, expected) in table {
        let decoded = decode(text);
        let found: Vec<_> = decoded.findings.iter().map(ToString::to_string).collect();
        assert_eq!(found, [*expected], "{text}");
        assert!(good(&decoded).is_empty(), "{text}");
    }
}

#[test]
fn unknown_fields_are_warnings_in_kubernetes_kinds_and_errors_in_policies() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  clusterIP: None\n  selecter: {app: x}\n  sesionAffinity: None\n";
    let decoded = check(
        service,
        &[
            "f.yaml:6: warning: Service default/s: spec.selecter: unknown field spec.selecter, did you mean spec.selector",
            "f.yaml:7: warning: Service default/s: spec.sesionAffinity: unknown field spec.sesionAffinity, did you mean spec.sessionAffinity",
        ],
    );
    assert_eq!(good(&decoded), ["Service default/s"]);
    let policy = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {mTLS: {mode: STRICT}}\n";
    let decoded = check(
        policy,
        &[
            "f.yaml:4: error: PeerAuthentication default/p: spec.mTLS: unknown field spec.mTLS, did you mean spec.mtls",
        ],
    );
    assert!(good(&decoded).is_empty());
    let twice = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec:\n  mtls: {mode: STRICT}\n  mtls: {mode: PERMISSIVE}\n";
    check(
        twice,
        &[
            "f.yaml:5: error: PeerAuthentication default/p: spec.mtls: spec.mtls is written twice; the last one counts",
        ],
    );
}

#[test]
fn what_kubectl_takes_is_taken() {
    let text = "\
# a comment first
---
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: a, creationTimestamp: null}
- apiVersion: v1
  kind: Pod
  metadata: {name: p, namespace: a, labels: &labels {app: p}}
  spec: {containers: []}
  status: {phase: 17, nonsense: true}
- apiVersion: v1
  kind: Service
  metadata: {name: s, namespace: a}
  spec:
    clusterIP: None
    selector:
      <<: *labels
    ports: [{port: 80, targetPort: \"8080\"}, {port: 81, targetPort: 8081, name: b}]
---
{\"apiVersion\": \"v1\", \"kind\": \"ServiceAccount\", \"metadata\": {\"name\": \"json\"}}
---
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: p, namespace: a}
spec:
  selector: {matchLabels: {app: p}}
  mtls: null
  portLevelMtls: {8080: {mode: DISABLE}, '9090': {mode: 3}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nothing, namespace: a}
spec:
";
    let decoded = check(text, &[]);
    assert_eq!(
        good(&decoded),
        [
            "Namespace a",
            "Pod a/p",
            "Service a/s",
            "ServiceAccount default/json",
            "PeerAuthentication a/p",
            "AuthorizationPolicy a/nothing"
        ]
    );
    let selectors = decoded.claims.iter().find_map(|claim| match claim {
        Claim::Good(upsert) => match &upsert.object {
            Object::Service(service) => service.spec.clone()?.selector,
            _ => None,
        },
        _ => None,
    });
    assert_eq!(
        selectors
            .expect("merge keys are followed")
            .get("app")
            .map(String::as_str),
        Some("p")
    );
    check(
        "- a\n- b\n",
        &[
            "f.yaml:1: warning: a document must be an object with apiVersion, kind and metadata; this one is a list and is ignored",
        ],
    );
    check(
        "just words\n",
        &[
            "f.yaml:1: warning: a document must be an object with apiVersion, kind and metadata; this one is a string and is ignored",
        ],
    );
    check(
        "apiVersion: x/v1\nkind: Y\nmetadata: {name: z}\n",
        &["f.yaml:1: info: Y default/z: kind Y (x/v1) is not supported yet; ignored"],
    );
}

#[test]
fn a_broken_policy_refuses_on_its_selector_and_without_one_on_its_namespace() {
    let fallback = |text: &str| match decode(text).claims.as_slice() {
        [
            Claim::Broken {
                fallback: Some(fallback),
                ..
            },
        ] => match &fallback.object {
            Object::Broken(broken) => (fallback.object.key().to_string(), broken.selector.clone()),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  namespace: n\nspec:\n";
    let key = "AuthorizationPolicy n/p".to_owned();
    let labels = BTreeMap::from([("app".to_owned(), "x".to_owned())]);
    assert_eq!(
        fallback(&format!(
            "{head}  selector: {{matchLabels: {{app: x}}}}\n  rulez: []\n"
        )),
        (key.clone(), Some(labels))
    );
    assert_eq!(
        fallback(&format!("{head}  selector: {{matchLabels: {{app: 1}}}}\n")),
        (key.clone(), None)
    );
    assert_eq!(fallback(&format!("{head}  rules: [*.x]\n")), (key, None));
}

#[test]
fn a_bomb_of_aliases_and_a_well_of_brackets_are_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let previous = level - 1;
        bomb.push_str(&format!(
            "a{level}: &a{level} [{}]\n",
            vec![format!("*a{previous}"); 10].join(", ")
        ));
    }
    assert!(
        decode(&bomb).findings[0].message.contains("aliases expand"),
        "{:?}",
        decode(&bomb).findings
    );
    for (open, close) in [
        ("[", "]"),
        ("{a: ", "}"),
        ("- ", "\n"),
        ("? ", "\n"),
        ("!!x ", ""),
        ("&a ", ""),
    ] {
        let well = format!("a:\n  {}x{}", open.repeat(100_000), close.repeat(100_000));
        assert!(!decode(&well).findings.is_empty(), "{open}");
    }
}

const EVERYTHING: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: n, labels: &l {a: b}}
spec:
  selector: {matchLabels: *l}
  rules:
  - from: [{source: {principals: [\"*\"]}}]
    when:
    - key: source.ip
      values: [10.0.0.0/8]
---
apiVersion: v1
kind: Pod
metadata:
  name: p
  annotations: {keelson.io/pod-ips: '10.0.0.1, fd00::1'}
spec:
  containers:
  - name: c
    command: [sh, -c, |
      x
      y]
    ports: [{name: http, containerPort: 0x50}]
";

proptest::proptest! {
    #[test]
    fn damaged_text_is_reported_and_never_a_panic(cuts in proptest::collection::vec((0..EVERYTHING.len(), 0..6_usize, ".{0,3}"), 1..8)) {
        let mut text = EVERYTHING.to_owned();
        for (at, length, put) in cuts {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            if text.is_char_boundary(at) && text.is_char_boundary(end) {
                text.replace_range(at..end, &put);
            }
        }
        for piece in split(&text) {
            proptest::prop_assert!(tree::parse(piece.text, piece.line).is_ok_and(|_| true) || !decode(&text).findings.is_empty());
        }
    }
}

#[test]
fn a_misspelt_policy_is_an_error_and_refuses() {
    let text = |api_version: &str, kind: &str| {
        format!(
            "apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: cart}}}}}}\n"
        )
    };
    for (api_version, kind, meant, said) in [
        (
            "security.istio.io/v1",
            "AuthorisationPolicy",
            "AuthorizationPolicy",
            "f.yaml:2: error: AuthorizationPolicy shop/p: kind: unknown kind AuthorisationPolicy (security.istio.io/v1), did you mean AuthorizationPolicy (security.istio.io/v1)",
        ),
        (
            "security.istio.io/v1beta1",
            "authorizationpolicy",
            "AuthorizationPolicy",
            "f.yaml:2: error: AuthorizationPolicy shop/p: kind: unknown kind authorizationpolicy (security.istio.io/v1beta1), did you mean AuthorizationPolicy (security.istio.io/v1)",
        ),
        (
            "securty.istio.io/v1",
            "PeerAuthentication",
            "PeerAuthentication",
            "f.yaml:1: error: PeerAuthentication shop/p: apiVersion: securty.istio.io/v1 has no PeerAuthentication, did you mean security.istio.io/v1",
        ),
        (
            "networking.istio.io/v1",
            "AuthorizationPolicy",
            "AuthorizationPolicy",
            "f.yaml:1: error: AuthorizationPolicy shop/p: apiVersion: networking.istio.io/v1 has no AuthorizationPolicy, did you mean security.istio.io/v1",
        ),
        (
            "v1",
            "AuthorizationPolicy",
            "AuthorizationPolicy",
            "f.yaml:1: error: AuthorizationPolicy shop/p: apiVersion: v1 has no AuthorizationPolicy, did you mean security.istio.io/v1",
        ),
    ] {
        let decoded = check(&text(api_version, kind), &[said]);
        let [
            Claim::Broken {
                fallback: Some(fallback),
                ..
            },
        ] = &decoded.claims[..]
        else {
            panic!("{api_version} {kind}: {:?}", decoded.claims);
        };
        let Object::Broken(broken) = &fallback.object else {
            panic!("{fallback:?}");
        };
        assert_eq!(broken.kind.kind().as_str(), meant);
        assert!(broken.selector.is_some(), "its selector can be read");
    }
    // Other projects have policies too.
    for (api_version, kind) in [
        ("policy.linkerd.io/v1alpha1", "AuthorizationPolicy"),
        ("security.istio.io/v1", "RequestAuthentication"),
        ("crd.projectcalico.org/v1", "NetworkPolicy"),
        ("networking.istio.io/v1alpha3", "EnvoyFilter"),
    ] {
        let decoded = decode(&text(api_version, kind));
        assert!(
            matches!(decoded.claims[..], [Claim::Foreign { .. }]),
            "{api_version} {kind}: {decoded:?}"
        );
    }
}
