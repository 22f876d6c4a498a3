use istio::security::string_match::MatchType;
use istio::security::{Action, Match, Scope};
use manifest::Origin;

use super::*;

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec:{spec}\n"
    )
}

/// One line per rule: clauses joined by `and`, alternatives by `or`, fields by `,`.
fn rules(policy: &istio::security::Authorization) -> Vec<String> {
    let clause = |clause: &istio::security::Clause| {
        clause
            .matches
            .iter()
            .map(text)
            .collect::<Vec<_>>()
            .join(" or ")
    };
    policy
        .rules
        .iter()
        .map(|rule| {
            rule.clauses
                .iter()
                .map(clause)
                .collect::<Vec<_>>()
                .join(" and ")
        })
        .collect()
}

fn text(m: &Match) -> String {
    let string = |s: &istio::security::StringMatch| match s.match_type.as_ref().expect("set") {
        MatchType::Exact(text) => text.clone(),
        MatchType::Prefix(text) => format!("{text}^"),
        MatchType::Suffix(text) => format!("^{text}"),
        MatchType::Presence(()) => "any".to_owned(),
    };
    let address = |a: &istio::security::Address| match a.address.as_slice() {
        [a0, b, c, d] => format!("{a0}.{b}.{c}.{d}/{}", a.length),
        other => format!("v6:{}/{}", other.len(), a.length),
    };
    let account =
        |a: &istio::security::ServiceAccountMatch| format!("{}/{}", a.namespace, a.service_account);
    let port = ToString::to_string;
    let mut words = Vec::new();
    let mut add = |name: &str, values: Vec<String>| {
        if !values.is_empty() {
            words.push(format!("{name}={}", values.join("|")));
        }
    };
    add("ns", m.namespaces.iter().map(string).collect());
    add("!ns", m.not_namespaces.iter().map(string).collect());
    add("id", m.principals.iter().map(string).collect());
    add("!id", m.not_principals.iter().map(string).collect());
    add("from", m.source_ips.iter().map(address).collect());
    add("!from", m.not_source_ips.iter().map(address).collect());
    add("to", m.destination_ips.iter().map(address).collect());
    add("!to", m.not_destination_ips.iter().map(address).collect());
    add("port", m.destination_ports.iter().map(port).collect());
    add("!port", m.not_destination_ports.iter().map(port).collect());
    add("sa", m.service_accounts.iter().map(account).collect());
    add("!sa", m.not_service_accounts.iter().map(account).collect());
    words.join(", ")
}

/// What is said about the policy's parts that no agent can check.
fn unenforceable(policy: &istio::security::Authorization) -> Option<String> {
    let extension = policy
        .extensions
        .iter()
        .find(|e| e.name == crate::index::authorization::UNENFORCEABLE)?;
    let any = extension.config.as_ref().expect("has a value");
    assert_eq!(
        any.type_url,
        "type.googleapis.com/google.protobuf.StringValue"
    );
    Some(String::decode(any.value.as_slice()).expect("a StringValue"))
}

fn check(spec: &str, action: Action, expected: &[&str]) {
    let mesh = Mesh::of(&policy("shop", spec));
    let found = mesh.policy("shop/p");
    assert_eq!(
        (found.action(), rules(&found)),
        (action, expected.iter().map(ToString::to_string).collect()),
        "{spec}"
    );
    assert_eq!(unenforceable(&found), None, "{spec}");
    let model = model::Policy::try_from(found).expect("agents can read it");
    assert_eq!(model.rules.len(), expected.len());
}

#[test]
fn every_field_that_a_connection_shows_is_compiled() {
    check(" {}", Action::Allow, &[]);
    check("", Action::Allow, &[]);
    check(" {rules: [{}]}", Action::Allow, &[""]);
    check(" {action: DENY, rules: [{}]}", Action::Deny, &[""]);
    let from = |source: &str| format!("\n  rules: [{{from: [{{source: {{{source}}}}}]}}]");
    check(
        &from("principals: [a/ns/b/sa/c, \"*\", \"x*\", \"*y\"]"),
        Action::Allow,
        &["id=a/ns/b/sa/c|any|x^|^y"],
    );
    check(&from("notPrincipals: [a]"), Action::Allow, &["!id=a"]);
    check(
        &from("namespaces: [a, \"b-*\"], notNamespaces: [\"*-c\"]"),
        Action::Allow,
        &["ns=a|b-^, !ns=^-c"],
    );
    check(
        &from("serviceAccounts: [cart, other/web], notServiceAccounts: [x/y]"),
        Action::Allow,
        &["sa=shop/cart|other/web, !sa=x/y"],
    );
    check(
        &from("ipBlocks: [10.0.0.0/8, 1.2.3.4, \"fd00::/64\"], notIpBlocks: [10.1.0.0/16]"),
        Action::Allow,
        &["from=10.0.0.0/8|1.2.3.4/32|v6:16/64, !from=10.1.0.0/16"],
    );
    let to = |operation: &str| format!("\n  rules: [{{to: [{{operation: {{{operation}}}}}]}}]");
    check(
        &to("ports: [\"80\", \"443\"], notPorts: [\"22\"]"),
        Action::Allow,
        &["port=80|443, !port=22"],
    );
    let when = |key: &str| {
        format!("\n  rules: [{{when: [{{key: {key}, values: [\"10\"], notValues: [\"20\"]}}]}}]")
    };
    check(&when("source.namespace"), Action::Allow, &["ns=10, !ns=20"]);
    check(&when("source.principal"), Action::Allow, &["id=10, !id=20"]);
    check(
        &when("source.serviceAccount"),
        Action::Allow,
        &["sa=shop/10, !sa=shop/20"],
    );
    check(
        &when("destination.port"),
        Action::Allow,
        &["port=10, !port=20"],
    );
    let when = |key: &str| {
        format!(
            "\n  rules: [{{when: [{{key: {key}, values: [10.0.0.0/8], notValues: [1.1.1.1]}}]}}]"
        )
    };
    check(
        &when("source.ip"),
        Action::Allow,
        &["from=10.0.0.0/8, !from=1.1.1.1/32"],
    );
    check(
        &when("destination.ip"),
        Action::Allow,
        &["to=10.0.0.0/8, !to=1.1.1.1/32"],
    );
    check(
        "
  action: DENY
  rules:
  - from: [{source: {namespaces: [a]}}, {source: {principals: [b]}}]
    to: [{operation: {ports: [\"1\"]}}, {operation: {ports: [\"2\"]}}]
    when: [{key: source.ip, values: [1.1.1.1]}, {key: destination.port, notValues: [\"3\"]}]
  - from: [{source: {namespaces: [z]}}]",
        Action::Deny,
        &[
            "port=1 or port=2 and ns=a or id=b and from=1.1.1.1/32 and !port=3",
            "ns=z",
        ],
    );
}

/// Compiles a policy with parts that no agent can check; notes as `line: severity field`.
fn check_l7(spec: &str, action: Action, expected: &[&str], reason: &str, notes: &[&str]) {
    let mut mesh = Mesh {
        index: Index::new(MeshConfig::default()),
    };
    let changes = mesh.apply(&policy("shop", spec));
    let found = mesh.policy("shop/p");
    assert_eq!(
        (found.action(), rules(&found)),
        (action, expected.iter().map(ToString::to_string).collect()),
        "{spec}"
    );
    assert_eq!(unenforceable(&found).as_deref(), Some(reason), "{spec}");
    let diagnostics = changes.diagnostics.iter().flat_map(|(_, found)| found);
    let found: Vec<_> = diagnostics
        .map(|d| {
            let Origin::File { line, .. } = &d.origin else {
                panic!("it was read from a file: {d:?}");
            };
            format!("{line}: {} {}", d.severity.as_str(), d.field)
        })
        .collect();
    assert_eq!(found, notes, "{spec}");
}

#[test]
fn an_allow_rule_that_needs_a_waypoint_allows_nothing() {
    check_l7(
        "
  rules:
  - to: [{operation: {methods: [GET], ports: [\"80\"]}}]
  - from: [{source: {namespaces: [a]}}]",
        Action::Allow,
        &["ns=a"],
        "spec.rules[0].to[0].operation.methods needs a waypoint",
        &["7: error spec.rules[0].to[0].operation.methods"],
    );
    for (field, of) in [
        ("hosts: [a]", "to"),
        ("notHosts: [a]", "to"),
        ("notMethods: [GET]", "to"),
        ("paths: [/]", "to"),
        ("notPaths: [/]", "to"),
        ("requestPrincipals: [a]", "from"),
        ("notRequestPrincipals: [a]", "from"),
        ("remoteIpBlocks: [1.1.1.1]", "from"),
        ("notRemoteIpBlocks: [1.1.1.1]", "from"),
        ("trustDomains: [td]", "from"),
    ] {
        let inner = if of == "to" { "operation" } else { "source" };
        let spec = format!("\n  rules:\n  - {of}: [{{{inner}: {{{field}}}}}]");
        let name = field.split(':').next().expect("has a name");
        let at = format!("spec.rules[0].{of}[0].{inner}.{name}");
        check_l7(
            &spec,
            Action::Allow,
            &[],
            &format!("{at} needs a waypoint"),
            &[&format!("7: error {at}")],
        );
    }
    for key in [
        "request.headers[x]",
        "request.auth.claims[sub]",
        "connection.sni",
        "remote.ip",
        "source.trustDomain",
    ] {
        let value = if key == "remote.ip" { "1.1.1.1" } else { "x" };
        let spec = format!("\n  rules:\n  - when: [{{key: \"{key}\", values: [{value}]}}]");
        let at = format!("spec.rules[0].when[0].key {key}");
        check_l7(
            &spec,
            Action::Allow,
            &[],
            &format!("{at} needs a waypoint"),
            &[&format!("7: error {at}")],
        );
    }
}

#[test]
fn a_deny_rule_loses_what_needs_a_waypoint_and_denies_more() {
    check_l7(
        "
  action: DENY
  rules:
  - from: [{source: {namespaces: [a]}}]
    to: [{operation: {methods: [GET], ports: [\"80\"]}}]",
        Action::Deny,
        &["port=80 and ns=a"],
        "spec.rules[0].to[0].operation.methods needs a waypoint",
        &["9: error spec.rules[0].to[0].operation.methods"],
    );
    // One alternative that matches everything makes all alternatives match everything.
    check_l7(
        "
  action: DENY
  rules:
  - from: [{source: {namespaces: [a]}}]
    to: [{operation: {methods: [GET]}}, {operation: {ports: [\"80\"]}}]",
        Action::Deny,
        &["ns=a"],
        "spec.rules[0].to[0].operation.methods needs a waypoint",
        &["9: error spec.rules[0].to[0].operation.methods"],
    );
    check_l7(
        "\n  action: DENY\n  rules:\n  - to: [{operation: {paths: [/admin]}}]",
        Action::Deny,
        &[""],
        "spec.rules[0].to[0].operation.paths needs a waypoint",
        &["8: error spec.rules[0].to[0].operation.paths"],
    );
}

#[test]
fn custom_denies_what_it_selects_and_audit_is_left_out() {
    check_l7(
        "\n  action: CUSTOM\n  provider: {name: opa}\n  rules:\n  - to: [{operation: {ports: [\"80\"]}}]",
        Action::Deny,
        &["port=80"],
        "spec.action CUSTOM needs a waypoint",
        &["6: error spec.action"],
    );
    let mut mesh = Mesh::of("");
    let changes = mesh.apply(&policy("shop", "\n  action: AUDIT\n  rules: [{}]"));
    assert!(mesh.find_policy("shop/p").is_none());
    assert_eq!(changes.diagnostics[0].1[0].field, "spec.action");
}

#[test]
fn the_scope_follows_selector_and_namespace() {
    let selecting = " {selector: {matchLabels: {app: a}}, action: DENY, rules: [{}]}";
    for (namespace, spec, scope, names) in [
        (
            "shop",
            " {action: DENY, rules: [{}]}",
            Scope::Namespace,
            &[][..],
        ),
        (
            "istio-system",
            " {action: DENY, rules: [{}]}",
            Scope::Global,
            &[],
        ),
        (
            "shop",
            " {selector: {}, action: DENY, rules: [{}]}",
            Scope::Namespace,
            &[],
        ),
        ("shop", selecting, Scope::WorkloadSelector, &["shop/p"]),
        (
            "istio-system",
            selecting,
            Scope::WorkloadSelector,
            &["istio-system/p"],
        ),
        ("elsewhere", selecting, Scope::WorkloadSelector, &[]),
    ] {
        let mut mesh = Mesh::of(&format!("{}{}", pod("a", ""), pod("b", "")));
        mesh.apply(&policy(namespace, spec));
        assert_eq!(
            mesh.policy(&format!("{namespace}/p")).scope(),
            scope,
            "{namespace}{spec}"
        );
        assert_eq!(
            mesh.workload("shop/a").authorization_policies,
            names,
            "{namespace}{spec}"
        );
        assert!(mesh.workload("shop/b").authorization_policies.is_empty());
        mesh.remove(&policy(namespace, spec));
        assert!(mesh.workload("shop/a").authorization_policies.is_empty());
    }
    let dry = policy("shop", " {action: DENY, rules: [{}]}").replace(
        "namespace: shop",
        "namespace: shop, annotations: {istio.io/dry-run: \"true\"}",
    );
    assert!(Mesh::of(&dry).policy("shop/p").dry_run);
}

#[test]
fn a_policy_on_a_service_applies_to_the_workloads_behind_it_until_there_is_a_waypoint() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: a}, ports: [{port: 80}]}\n";
    let attached = policy(
        "shop",
        "\n  targetRefs: [{kind: Service, group: \"\", name: web}]\n  rules: [{from: [{source: {namespaces: [x]}}]}]",
    );
    let mut mesh = Mesh::of(&format!(
        "{}{}{attached}{service}",
        pod("a", ""),
        pod("b", "")
    ));
    assert_eq!(mesh.workload("shop/a").authorization_policies, ["shop/p"]);
    assert!(mesh.workload("shop/b").authorization_policies.is_empty());
    let found = mesh.policy("shop/p");
    assert_eq!(found.scope(), Scope::WorkloadSelector);
    assert!(
        unenforceable(&found)
            .expect("says so")
            .contains("targetRefs Service web")
    );
    mesh.remove(&attached);
    assert!(mesh.workload("shop/a").authorization_policies.is_empty());
    mesh.apply(&policy("shop", "\n  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: web}]\n  rules: [{}]"));
    assert!(mesh.find_policy("shop/p").is_none());
}

#[test]
fn ports_of_a_policy_on_a_service_are_the_services_and_no_agent_judges_by_them() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: a}, ports: [{port: 80, targetPort: 8080}]}\n";
    let target = "targetRefs: [{kind: Service, group: \"\", name: web}]";
    for (spec, expected) in [
        (
            format!(
                "{{{target}, action: DENY, rules: [{{to: [{{operation: {{ports: ['80'], methods: [POST]}}}}]}}]}}"
            ),
            vec![String::new()],
        ),
        (
            format!("{{{target}, rules: [{{when: [{{key: destination.port, values: ['80']}}]}}]}}"),
            vec![],
        ),
    ] {
        let mesh = Mesh::of(&format!(
            "{}{}{service}",
            pod("a", ""),
            policy("shop", &format!(" {spec}"))
        ));
        let found = mesh.policy("shop/p");
        assert_eq!(rules(&found), expected, "{spec}");
        let why = unenforceable(&found).expect("says so");
        assert!(why.contains("port"), "{why}");
    }
}

#[test]
fn a_policy_that_cannot_be_read_denies_everything_on_its_scope() {
    let mesh = Mesh::of(&format!(
        "{}{}",
        pod("a", ""),
        policy("shop", " {selector: {matchLabels: {app: a}}, rulez: []}")
    ));
    let found = mesh.policy("shop/p");
    assert_eq!(
        (found.action(), rules(&found), found.scope()),
        (Action::Deny, vec![String::new()], Scope::WorkloadSelector)
    );
    assert!(
        unenforceable(&found)
            .expect("says so")
            .contains("did you mean spec.rules")
    );
    assert_eq!(mesh.workload("shop/a").authorization_policies, ["shop/p"]);
    let mesh = Mesh::of(&policy("istio-system", " {rulez: []}"));
    assert_eq!(mesh.policy("istio-system/p").scope(), Scope::Global);
}

#[test]
fn a_deny_that_names_cluster_local_holds_whatever_the_trust_domain_is_called() {
    let mesh_config = MeshConfig {
        trust_domain: "corp".into(),
        trust_domain_aliases: vec!["old.corp".into()],
        ..MeshConfig::default()
    };
    let mut index = Index::new(mesh_config);
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  action: DENY\n  rules:\n\
        \x20 - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]\n\
        \x20 - when: [{key: source.principal, notValues: [cluster.local/ns/shop/*, cluster.local/ns/bank/*]}]\n";
    objects(text).iter().for_each(|upsert| index.apply(upsert));
    index.flush();
    let mesh = Mesh { index };
    let policy = model::policy::Policy::try_from(mesh.policy("shop/p")).expect("converts");
    for (identity, denied) in [
        ("spiffe://corp/ns/shop/sa/web", true),
        ("spiffe://old.corp/ns/shop/sa/web", true),
        ("spiffe://corp/ns/shop/sa/cart", false),
        ("spiffe://old.corp/ns/bank/sa/teller", false),
        ("spiffe://corp/ns/elsewhere/sa/web", true),
        // The pointer means ours, not a stranger of that very name.
        ("spiffe://cluster.local/ns/shop/sa/cart", true),
    ] {
        let identity: model::Identity = identity.parse().expect("an identity");
        let ip = "10.0.0.1".parse().expect("an address");
        let connection = model::policy::Connection {
            source: Some(&identity),
            source_ip: ip,
            destination_ip: ip,
            destination_port: 80,
        };
        let verdict = model::policy::decide(std::iter::once(&policy), &connection);
        assert_eq!(!verdict.is_allow(), denied, "{identity}: {verdict}");
    }
}
