use istio::security::{Action, Scope};

use super::*;

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// The policies that `shop/a` names.
fn named(mesh: &Mesh) -> Vec<String> {
    mesh.workload("shop/a").authorization_policies
}

const STRICT: &str = "mtls: {mode: STRICT}";
const PERMISSIVE: &str = "mtls: {mode: PERMISSIVE}";
const STATIC: &str = "istio-system/istio_converted_static_strict";
const CONVERTED: &str = "shop/converted_peer_authentication_own";

#[test]
fn workload_goes_before_namespace_before_mesh() {
    let a = pod("a", "");
    let check = |policies: &[(&str, &str)], expected: &[&str]| {
        let text: String = policies
            .iter()
            .map(|(at, spec)| peer(at, if at == &"istio-system" { "mesh" } else { "x" }, spec))
            .collect();
        assert_eq!(
            named(&Mesh::of(&format!("{a}{text}"))),
            expected,
            "{policies:?}"
        );
    };
    check(&[], &[]);
    check(&[("istio-system", STRICT)], &[STATIC]);
    check(&[("istio-system", STRICT), ("shop", PERMISSIVE)], &[]);
    check(
        &[("istio-system", STRICT), ("shop", "mtls: {mode: DISABLE}")],
        &[],
    );
    check(&[("istio-system", STRICT), ("shop", "")], &[STATIC]);
    check(&[("istio-system", PERMISSIVE), ("shop", STRICT)], &[STATIC]);
    check(&[("elsewhere", STRICT)], &[]);
    let own = |spec: &str| format!("selector: {{matchLabels: {{app: a}}}}, {spec}");
    let other = "selector: {matchLabels: {app: b}}, mtls: {mode: STRICT}";
    check(&[("istio-system", STRICT), ("shop", &own(PERMISSIVE))], &[]);
    check(
        &[("istio-system", PERMISSIVE), ("shop", &own(STRICT))],
        &[STATIC],
    );
    check(
        &[
            ("istio-system", STRICT),
            ("shop", &own("mtls: {mode: UNSET}")),
        ],
        &[STATIC],
    );
    check(&[("shop", other)], &[]);
    // Only the workload's own namespace has a say about particular workloads.
    check(&[("istio-system", &own(STRICT))], &[]);
}

#[test]
fn the_oldest_of_a_level_wins_and_names_decide_without_times() {
    let at = |name: &str, time: &str, spec: &str| {
        let time = if time.is_empty() {
            String::new()
        } else {
            format!(", creationTimestamp: \"{time}\"")
        };
        peer("shop", &format!("{name}{time}"), spec)
    };
    let check = |policies: [String; 2], strict: bool| {
        let [first, second] = policies;
        for text in [format!("{first}{second}"), format!("{second}{first}")] {
            let mesh = Mesh::of(&format!("{}{text}", pod("a", "")));
            assert_eq!(!named(&mesh).is_empty(), strict, "{text}");
        }
    };
    check(
        [
            at("x", "2024-01-01T00:00:00Z", STRICT),
            at("a", "2024-01-02T00:00:00Z", PERMISSIVE),
        ],
        true,
    );
    check(
        [
            at("x", "2024-01-03T00:00:00Z", STRICT),
            at("a", "2024-01-02T00:00:00Z", PERMISSIVE),
        ],
        false,
    );
    check(
        [
            at("x", "2024-01-03T00:00:00Z", STRICT),
            at("a", "", PERMISSIVE),
        ],
        true,
    );
    check([at("x", "", STRICT), at("a", "", PERMISSIVE)], false);
}

/// The workload's own object, what it inherits, and the converted policy: per rule its clauses as `ports`, `!ports`
/// or `anonymous`.
fn check_ports(mesh_mode: &str, own: &str, expected_names: &[&str], expected: Option<&[&[&str]]>) {
    let mesh = Mesh::of(&format!(
        "{}{}{}",
        pod("a", ""),
        peer("istio-system", "mesh", mesh_mode),
        peer(
            "shop",
            "own",
            &format!("selector: {{matchLabels: {{app: a}}}}, {own}")
        )
    ));
    assert_eq!(named(&mesh), expected_names, "{mesh_mode} {own}");
    let found = mesh.find_policy(CONVERTED).map(|policy| {
        assert_eq!(
            (policy.action(), policy.scope()),
            (Action::Deny, Scope::WorkloadSelector)
        );
        let clause = |m: &istio::security::Match| {
            let mut words = Vec::new();
            words.extend(m.not_principals.iter().map(|_| "anonymous".to_owned()));
            words.extend(m.destination_ports.iter().map(ToString::to_string));
            words.extend(
                m.not_destination_ports
                    .iter()
                    .map(|port| format!("!{port}")),
            );
            words.join("&")
        };
        let rule = |rule: &istio::security::Rule| {
            rule.clauses
                .iter()
                .map(|c| clause(&c.matches[0]))
                .collect::<Vec<_>>()
        };
        policy.rules.iter().map(rule).collect::<Vec<_>>()
    });
    let expected = expected.map(|rules| {
        rules
            .iter()
            .map(|rule| rule.iter().map(ToString::to_string).collect())
            .collect::<Vec<Vec<String>>>()
    });
    assert_eq!(found, expected, "{mesh_mode} {own}");
}

#[test]
fn ports_that_differ_make_a_converted_policy() {
    let ports =
        |mode: &str, ports: &str| format!("mtls: {{mode: {mode}}}, portLevelMtls: {{{ports}}}");
    let (open, close) = ("8080: {mode: PERMISSIVE}", "8080: {mode: STRICT}");
    check_ports(
        PERMISSIVE,
        &ports("STRICT", open),
        &[CONVERTED],
        Some(&[&["anonymous", "!8080"]]),
    );
    check_ports(
        PERMISSIVE,
        &ports("STRICT", "8080: {mode: DISABLE}, 9090: {mode: PERMISSIVE}"),
        &[CONVERTED],
        Some(&[&["anonymous", "!8080", "!9090"]]),
    );
    check_ports(PERMISSIVE, &ports("STRICT", close), &[STATIC], None);
    check_ports(
        PERMISSIVE,
        &ports("PERMISSIVE", close),
        &[CONVERTED],
        Some(&[&["anonymous&8080"]]),
    );
    check_ports(
        STRICT,
        &ports("DISABLE", "1: {mode: STRICT}, 2: {mode: STRICT}"),
        &[CONVERTED],
        Some(&[&["anonymous&1"], &["anonymous&2"]]),
    );
    check_ports(STRICT, &ports("PERMISSIVE", open), &[], None);
    check_ports(
        STRICT,
        &ports("UNSET", open),
        &[CONVERTED],
        Some(&[&["anonymous", "!8080"]]),
    );
    check_ports(STRICT, &ports("UNSET", close), &[STATIC], None);
    check_ports(
        PERMISSIVE,
        &ports("UNSET", close),
        &[CONVERTED],
        Some(&[&["anonymous&8080"]]),
    );
    check_ports(PERMISSIVE, &ports("UNSET", open), &[], None);
    check_ports(STRICT, &ports("STRICT", "8080: {}"), &[STATIC], None);
}

#[test]
fn a_change_of_the_mesh_reaches_converted_policies_and_workloads() {
    let own = peer(
        "shop",
        "own",
        "selector: {matchLabels: {app: a}}, portLevelMtls: {8080: {mode: PERMISSIVE}}",
    );
    let mut mesh = Mesh::of(&format!("{}{own}", pod("a", "")));
    assert_eq!((named(&mesh), mesh.find_policy(CONVERTED)), (vec![], None));
    let strict = peer("istio-system", "mesh", STRICT);
    mesh.apply(&strict);
    assert_eq!(named(&mesh), [CONVERTED]);
    assert!(mesh.find_policy(CONVERTED).is_some());
    mesh.remove(&strict);
    assert_eq!((named(&mesh), mesh.find_policy(CONVERTED)), (vec![], None));
    assert!(
        mesh.find_policy(STATIC).is_some(),
        "there while any PeerAuthentication is"
    );
    mesh.remove(&own);
    assert!(mesh.find_policy(STATIC).is_none());
}

#[test]
fn an_unreadable_object_counts_as_strict_and_before_all_others() {
    let mesh = Mesh::of(&format!(
        "{}{}{}",
        pod("a", ""),
        peer("shop", "a", PERMISSIVE),
        peer("shop", "z", "mtls: {mode: STRIKT}")
    ));
    assert_eq!(named(&mesh), [STATIC]);
}

#[test]
fn an_object_with_a_selector_in_the_root_namespace_is_for_the_pods_that_match_there() {
    let root = |name: &str, ip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: istio-system, labels: {{app: {name}}}, annotations: {{keelson.io/pod-ips: {ip}}}}}\n"
        )
    };
    let own = |spec: &str| {
        let spec = format!("selector: {{matchLabels: {{app: a}}}}, {spec}");
        peer("istio-system", "own", &spec)
    };
    let mut mesh = Mesh::of(&format!(
        "{}{}{}{}",
        pod("a", ""),
        root("a", "10.244.1.20"),
        root("b", "10.244.1.21"),
        own(STRICT)
    ));
    let named = |mesh: &Mesh, pod: &str| mesh.workload(pod).authorization_policies;
    assert_eq!(named(&mesh, "istio-system/a"), [STATIC]);
    for other in ["istio-system/b", "shop/a"] {
        assert!(named(&mesh, other).is_empty(), "{other}");
    }
    mesh.apply(&own("portLevelMtls: {8080: {mode: STRICT}}"));
    let converted = "istio-system/converted_peer_authentication_own";
    assert_eq!(named(&mesh, "istio-system/a"), [converted]);
    assert!(mesh.find_policy(converted).is_some());
    mesh.remove(&own(""));
    assert!(named(&mesh, "istio-system/a").is_empty());
}

/// Who is refused is told of the object that somebody wrote, and which one that is follows every change.
#[test]
fn a_strict_workload_says_which_object_makes_it_so() {
    let by = |mesh: &Mesh| {
        let workload =
            model::Workload::try_from(mesh.workload("shop/a")).expect("agents can read it");
        workload
            .strict_by
            .map(|key| key.object().expect("an object").to_string())
    };
    let mut mesh = Mesh::of(&pod("a", ""));
    assert_eq!(by(&mesh), None);
    mesh.apply(&peer("istio-system", "mesh", STRICT));
    assert_eq!(
        by(&mesh).as_deref(),
        Some("PeerAuthentication istio-system/mesh")
    );
    mesh.apply(&peer("shop", "default", STRICT));
    assert_eq!(
        by(&mesh).as_deref(),
        Some("PeerAuthentication shop/default")
    );
    let own = |spec: &str| {
        peer(
            "shop",
            "own",
            &format!("selector: {{matchLabels: {{app: a}}}}, {spec}"),
        )
    };
    mesh.apply(&own("mtls: {mode: UNSET}"));
    assert_eq!(
        by(&mesh).as_deref(),
        Some("PeerAuthentication shop/default")
    );
    mesh.apply(&own(STRICT));
    assert_eq!(by(&mesh).as_deref(), Some("PeerAuthentication shop/own"));
    mesh.apply(&own(
        "mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}",
    ));
    assert_eq!(
        (by(&mesh), named(&mesh)),
        (None, vec![CONVERTED.to_owned()])
    );
    mesh.remove(&own(""));
    mesh.remove(&peer("shop", "default", ""));
    assert_eq!(
        by(&mesh).as_deref(),
        Some("PeerAuthentication istio-system/mesh")
    );
    mesh.apply(&peer("istio-system", "mesh", PERMISSIVE));
    assert_eq!(by(&mesh), None);
}
