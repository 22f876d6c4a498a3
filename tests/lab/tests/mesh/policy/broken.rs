//! Policies that cannot be enforced here, or not be read at all: they refuse, and say so.

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests_lab::turn;

use super::mesh::{Mesh, mesh};
use crate::fixture::{APPLIES, Ended, at, call, wait_refusal_of};

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

/// Waits for a finding about this field of a policy and returns it.
fn wait_diagnostic(mesh: &Mesh, name: &str, field: &str) -> Result<Value> {
    let what = format!("a finding about {field} of {name}");
    testkit::eventually(&what, APPLIES, || {
        let page: Value = serde_json::from_str(&mesh.lab.controller_get("/debug/diagnostics")?)?;
        let list = page.as_array().context("no list")?;
        let found = list.iter().find(|finding| {
            let given = finding["field"].as_str().unwrap_or_default();
            finding["name"] == name && given.contains(field)
        });
        found.cloned().with_context(|| format!("{page:#}"))
    })
}

/// Without a waypoint nobody can look at requests: such a policy must not shrink to what is left of it.
#[test]
fn a_policy_with_l7_parts_refuses_where_there_is_no_waypoint_and_names_the_field() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let rows = [
        ("ALLOW", "to: [{operation: {methods: [GET]}}]", "methods"),
        ("DENY", "to: [{operation: {methods: [POST]}}]", "methods"),
        (
            "DENY",
            "to: [{operation: {paths: [/admin], ports: ['8080']}}]",
            "paths",
        ),
        (
            "ALLOW",
            "to: [{operation: {hosts: [server.shop]}}]",
            "hosts",
        ),
        (
            "ALLOW",
            "from: [{source: {requestPrincipals: ['*']}}]",
            "requestPrincipals",
        ),
        (
            "DENY",
            "when: [{key: 'request.headers[x-a]', values: [b]}]",
            "when",
        ),
    ];
    for (index, (action, part, field)) in rows.into_iter().enumerate() {
        let name = format!("l7-{index}");
        let spec = format!(
            "{{selector: {{matchLabels: {{app: server}}}}, action: {action}, rules: [{{{part}}}]}}"
        );
        mesh.clear()?;
        mesh.apply(&policy(&name, &spec), &format!("shop/{name}"))?;
        assert_eq!(mesh.verdicts(mesh.far()?)?, "RRRR", "{action} {part}");
        let near = at(mesh.near.v4()?, 8080);
        assert_eq!(
            mesh.verdicts(near)?,
            "AAAA",
            "{action} {part}: not in its scope"
        );
        for node in ["n1", "n2"] {
            let again = || mesh.verdicts(mesh.far()?).map(drop);
            wait_refusal_of(mesh.lab, node, &[&format!("shop/{name}"), field], again)?;
        }
        wait_diagnostic(&mesh, &name, field)?;
    }
    mesh.clear()
}

/// P27, and "unknown or broken refuses": on its scope, and only there.
#[test]
fn a_broken_policy_refuses_on_its_scope_until_it_is_repaired() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let rows = [
        (
            "{selector: {matchLabels: {app: server}}, action: ALLOWW, rules: [{}]}",
            "action",
        ),
        (
            "{selector: {matchLabels: {app: server}}, rules: [{form: [{source: {namespaces: [shop]}}]}]}",
            "form",
        ),
        (
            "{selector: {matchLabels: {app: server}}, rules: [{from: [{source: {ipBlocks: [10.0.0.300]}}]}]}",
            "ipBlocks",
        ),
        (
            "{selector: {matchLabels: {app: server}}, action: DENY, rules: [{to: [{operation: {ports: ['http']}}]}]}",
            "ports",
        ),
        (
            "{selector: {matchLabels: {app: server}}, rules: {}}",
            "rules",
        ),
    ];
    for (index, (spec, field)) in rows.into_iter().enumerate() {
        let name = format!("broken-{index}");
        mesh.clear()?;
        mesh.lab.apply("policies.yaml", &policy(&name, spec))?;
        let finding = wait_diagnostic(&mesh, &name, field)?;
        assert_eq!(finding["line"], 4, "{finding:#}");
        mesh.wait_verdicts(mesh.far()?, "RRRR")
            .with_context(|| spec.to_owned())?;
        let near = at(mesh.near.v4()?, 8080);
        assert_eq!(mesh.verdicts(near)?, "AAAA", "{spec}: not in its scope");
        let again = || mesh.verdicts(mesh.far()?).map(drop);
        wait_refusal_of(mesh.lab, "n2", &[&format!("shop/{name}")], again)?;
        // Repaired, it is as if nothing had been.
        let good = "{selector: {matchLabels: {app: server}}, rules: [{}]}";
        mesh.lab.apply("policies.yaml", &policy(&name, good))?;
        mesh.wait_verdicts(mesh.far()?, "AAAA")
            .context("repaired")?;
    }
    mesh.clear()
}

/// A policy that had a good version keeps it while the new one is broken.
#[test]
fn a_policy_that_breaks_keeps_its_last_good_version() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let good = "{rules: [{from: [{source: {serviceAccounts: [cart]}}]}]}";
    let other = "{action: DENY, rules: [{from: [{source: {namespaces: [bank]}}]}]}";
    let both =
        |spec: &str, other: &str| [policy("keeps", spec), policy("beside", other)].join("---\n");
    mesh.apply(&both(good, other), "shop/keeps")?;
    mesh.wait_verdicts(mesh.far()?, "ARRR")?;
    for (broken, field) in [
        ("{action: ALLOWW, rules: [{}]}", "action"),
        ("{rules: [{form: []}]}", "form"),
    ] {
        // What stands beside it changes in the same file, and is followed.
        let web = "{action: ALLOW, rules: [{from: [{source: {serviceAccounts: [web]}}]}]}";
        mesh.lab.apply("policies.yaml", &both(broken, web))?;
        let finding = wait_diagnostic(&mesh, "keeps", field)?;
        assert!(
            finding["file"]
                .as_str()
                .is_some_and(|file| file.contains("policies.yaml")),
            "{finding:#}"
        );
        mesh.wait_verdicts(mesh.far()?, "AARR")
            .with_context(|| broken.to_owned())?;
        mesh.lab.apply("policies.yaml", &both(good, other))?;
        mesh.wait_verdicts(mesh.far()?, "ARRR")?;
    }
    mesh.clear()
}

/// Also a document that is no YAML at all between two policies: the others apply.
#[test]
fn a_document_that_is_no_yaml_does_not_take_the_policies_around_it_along() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let text = [
        policy(
            "before",
            "{action: DENY, rules: [{from: [{source: {serviceAccounts: [cart]}}]}]}",
        ),
        "kind: [unclosed\n".to_owned(),
        policy(
            "after",
            "{action: DENY, rules: [{from: [{source: {namespaces: [bank]}}]}]}",
        ),
    ];
    mesh.apply(&text.join("---\n"), "shop/after")?;
    mesh.wait_verdicts(mesh.far()?, "RARA")?;
    assert_eq!(call(&mesh.web, mesh.far()?)?, Ended::Answered);
    mesh.clear()
}
