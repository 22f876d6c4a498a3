//! AuthorizationPolicies and who gets through under each.

use anyhow::{Context as _, Result};
use tests_lab::turn;

use super::mesh::{Mesh, mesh};
use crate::fixture::at;

/// A policy and how calls of cart, web, teller (namespace `bank`) and stranger (no identity) end.
struct Row {
    what: &'static str,
    /// `(namespace, spec)` of each; named `row` and `row-1` and so on.
    policies: &'static [(&'static str, &'static str)],
    /// To port 8080 of `server`, on the other node.
    far: &'static str,
    /// To its port 8081.
    far_8081: &'static str,
    /// To port 8080 of `near`, on the clients' node.
    near: &'static str,
}

const fn row(
    what: &'static str,
    policies: &'static [(&'static str, &'static str)],
    everywhere: &'static str,
) -> Row {
    Row {
        what,
        policies,
        far: everywhere,
        far_8081: everywhere,
        near: everywhere,
    }
}

fn manifest(policies: &[(&str, &str)]) -> String {
    let documents = policies
        .iter()
        .enumerate()
        .map(|(index, (namespace, spec))| {
            format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: row-{index}, namespace: {namespace}}}\nspec: {spec}\n"
            )
        });
    documents.collect::<Vec<_>>().join("---\n")
}

fn check(mesh: &Mesh, row: &Row) -> Result<()> {
    mesh.clear()?;
    let last = row.policies.len() - 1;
    let (namespace, _) = row.policies[last];
    let text = manifest(row.policies)
        .replace("CART_IP", &mesh.cart.v4()?.to_string())
        .replace("STRANGER_IP", &mesh.stranger.v4()?.to_string())
        .replace("SERVER_IP", &mesh.server.v4()?.to_string());
    mesh.apply(&text, &format!("{namespace}/row-{last}"))?;
    for (to, expected) in [
        (at(mesh.server.v4()?, 8080), row.far),
        (at(mesh.server.v4()?, 8081), row.far_8081),
        (at(mesh.near.v4()?, 8080), row.near),
    ] {
        assert_eq!(
            mesh.verdicts(to)?,
            expected,
            "{}, to {to}, under\n{text}",
            row.what
        );
    }
    Ok(())
}

fn check_all(rows: &[Row]) -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    for row in rows {
        check(&mesh, row).with_context(|| row.what.to_owned())?;
    }
    mesh.clear()
}

/// Without any policy everybody is let in: the control of everything below.
#[test]
fn without_a_policy_everybody_is_let_in() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    for to in [at(mesh.server.v4()?, 8080), at(mesh.near.v4()?, 8080)] {
        assert_eq!(mesh.verdicts(to)?, "AAAA");
    }
    Ok(())
}

/// F81-F84, F86, A43, A44, A46: the L4 part of each.
#[test]
fn sources_are_matched_by_principal_namespace_and_service_account() -> Result<()> {
    check_all(&[
        row(
            "a principal",
            &[(
                "shop",
                "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]}",
            )],
            "ARRR",
        ),
        row(
            "a principal's beginning",
            &[(
                "shop",
                "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/*]}}]}]}",
            )],
            "AARR",
        ),
        row(
            "a principal's end",
            &[(
                "shop",
                "{rules: [{from: [{source: {principals: ['*/sa/teller']}}]}]}",
            )],
            "RRAR",
        ),
        row(
            "any principal",
            &[("shop", "{rules: [{from: [{source: {principals: ['*']}}]}]}")],
            "AAAR",
        ),
        row(
            "not a principal; who has none is not that one",
            &[(
                "shop",
                "{rules: [{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/cart]}}]}]}",
            )],
            "RAAA",
        ),
        row(
            "nobody who has a principal",
            &[(
                "shop",
                "{rules: [{from: [{source: {notPrincipals: ['*']}}]}]}",
            )],
            "RRRA",
        ),
        row(
            "a namespace",
            &[(
                "shop",
                "{rules: [{from: [{source: {namespaces: [bank]}}]}]}",
            )],
            "RRAR",
        ),
        row(
            "a namespace's beginning",
            &[("shop", "{rules: [{from: [{source: {namespaces: [sh*]}}]}]}")],
            "AARR",
        ),
        row(
            "not a namespace",
            &[(
                "shop",
                "{rules: [{from: [{source: {notNamespaces: [bank]}}]}]}",
            )],
            "AARA",
        ),
        row(
            "a service account of a namespace",
            &[(
                "shop",
                "{rules: [{from: [{source: {serviceAccounts: [bank/teller]}}]}]}",
            )],
            "RRAR",
        ),
        row(
            "a service account of the policy's own namespace",
            &[(
                "shop",
                "{rules: [{from: [{source: {serviceAccounts: [cart]}}]}]}",
            )],
            "ARRR",
        ),
        row(
            "not a service account",
            &[(
                "shop",
                "{rules: [{from: [{source: {notServiceAccounts: [shop/cart, bank/teller]}}]}]}",
            )],
            "RARA",
        ),
        row(
            "a name that only looks alike",
            &[(
                "shop",
                "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/car]}}]}]}",
            )],
            "RRRR",
        ),
    ])
}

/// F87: addresses are those of the pods, also through a tunnel.
#[test]
fn addresses_and_ports_are_matched() -> Result<()> {
    check_all(&[
        row(
            "an address",
            &[(
                "shop",
                "{rules: [{from: [{source: {ipBlocks: [CART_IP]}}]}]}",
            )],
            "ARRR",
        ),
        row(
            "a range of addresses",
            &[(
                "shop",
                "{rules: [{from: [{source: {ipBlocks: [10.244.1.0/24]}}]}]}",
            )],
            "AAAA",
        ),
        row(
            "another range",
            &[(
                "shop",
                "{rules: [{from: [{source: {ipBlocks: [10.244.9.0/24, 'fd00::/8']}}]}]}",
            )],
            "RRRR",
        ),
        row(
            "not an address",
            &[(
                "shop",
                "{rules: [{from: [{source: {notIpBlocks: [STRANGER_IP/32]}}]}]}",
            )],
            "AAAR",
        ),
        Row {
            far_8081: "RRRR",
            ..row(
                "a port",
                &[("shop", "{rules: [{to: [{operation: {ports: ['8080']}}]}]}")],
                "AAAA",
            )
        },
        Row {
            far_8081: "AAAA",
            ..row(
                "not a port",
                &[(
                    "shop",
                    "{rules: [{to: [{operation: {notPorts: ['8080']}}]}]}",
                )],
                "RRRR",
            )
        },
        Row {
            far_8081: "AARR",
            ..row(
                "who and where, together",
                &[(
                    "shop",
                    "{rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['8081']}}]}]}",
                )],
                "RRRR",
            )
        },
        row(
            "fields of one source are all needed",
            &[(
                "shop",
                "{rules: [{from: [{source: {namespaces: [shop], ipBlocks: [CART_IP]}}]}]}",
            )],
            "ARRR",
        ),
        row(
            "of several sources one is enough",
            &[(
                "shop",
                "{rules: [{from: [{source: {namespaces: [bank]}}, {source: {ipBlocks: [STRANGER_IP]}}]}]}",
            )],
            "RRAA",
        ),
        Row {
            far_8081: "AAAA",
            ..row(
                "of several rules one is enough",
                &[(
                    "shop",
                    "{rules: [{from: [{source: {namespaces: [bank]}}]}, {to: [{operation: {ports: ['8081']}}]}]}",
                )],
                "RRAR",
            )
        },
    ])
}

/// The same of IPv6, where a client's address is another one.
#[test]
fn ipv6_addresses_are_matched_too() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let far = at(mesh.server.v6()?, 8080);
    let near = at(mesh.near.v6()?, 8080);
    for (blocks, expected) in [
        (mesh.cart.v6()?.to_string(), "ARRR"),
        ("fd00:10:244:1::/64".to_owned(), "AAAA"),
        ("fd00:10:244:2::/64".to_owned(), "RRRR"),
        (mesh.cart.v4()?.to_string(), "RRRR"),
    ] {
        mesh.clear()?;
        let spec = format!("{{rules: [{{from: [{{source: {{ipBlocks: ['{blocks}']}}}}]}}]}}");
        mesh.apply(&manifest(&[("shop", &spec)]), "shop/row-0")?;
        assert_eq!(mesh.verdicts(far)?, expected, "{blocks}, far");
        assert_eq!(mesh.verdicts(near)?, expected, "{blocks}, near");
    }
    mesh.clear()
}

#[test]
fn deny_comes_before_allow_and_allow_before_the_default() -> Result<()> {
    const ALLOW_ALL: &str = "{rules: [{}]}";
    const DENY_CART: &str = "{action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]}";
    check_all(&[
        row(
            "DENY alone: the others are let in",
            &[("shop", DENY_CART)],
            "RAAA",
        ),
        row(
            "DENY and ALLOW",
            &[("shop", DENY_CART), ("shop", ALLOW_ALL)],
            "RAAA",
        ),
        row(
            "in the other order",
            &[("shop", ALLOW_ALL), ("shop", DENY_CART)],
            "RAAA",
        ),
        row(
            "ALLOW nobody, as Istio writes it",
            &[("shop", "{}")],
            "RRRR",
        ),
        row(
            "DENY everybody",
            &[("shop", "{action: DENY, rules: [{}]}")],
            "RRRR",
        ),
        row(
            "DENY without a rule matches nothing",
            &[("shop", "{action: DENY}")],
            "AAAA",
        ),
        row(
            "of several ALLOW policies one is enough",
            &[
                (
                    "shop",
                    "{rules: [{from: [{source: {serviceAccounts: [cart]}}]}]}",
                ),
                (
                    "shop",
                    "{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}",
                ),
            ],
            "AARR",
        ),
        row(
            "DENY who has no identity",
            &[(
                "shop",
                "{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}",
            )],
            "AAAR",
        ),
    ])
}

/// A45's L4 part, F82.
#[test]
fn policies_apply_in_their_scope_and_nowhere_else() -> Result<()> {
    const NOT_BANK: &str = "{action: DENY, rules: [{from: [{source: {namespaces: [bank]}}]}]}";
    check_all(&[
        row("the whole mesh", &[("istio-system", NOT_BANK)], "AARA"),
        row("another namespace", &[("bank", NOT_BANK)], "AAAA"),
        row("a namespace without pods", &[("out", "{}")], "AAAA"),
        Row {
            near: "AAAA",
            ..row(
                "one workload",
                &[(
                    "shop",
                    "{selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: {namespaces: [bank]}}]}]}",
                )],
                "AARA",
            )
        },
        Row {
            near: "ARRR",
            ..row(
                "each workload its own",
                &[
                    (
                        "shop",
                        "{selector: {matchLabels: {app: server}}, rules: [{from: [{source: {serviceAccounts: [web]}}]}]}",
                    ),
                    (
                        "shop",
                        "{selector: {matchLabels: {app: near}}, rules: [{from: [{source: {serviceAccounts: [cart]}}]}]}",
                    ),
                ],
                "RARR",
            )
        },
        row(
            "a selector that nobody has",
            &[(
                "shop",
                "{selector: {matchLabels: {app: server, tier: none}}}",
            )],
            "AAAA",
        ),
        row(
            "mesh, namespace and workload together",
            &[
                ("istio-system", NOT_BANK),
                ("shop", "{rules: [{from: [{source: {principals: ['*']}}]}]}"),
                (
                    "shop",
                    "{action: DENY, rules: [{from: [{source: {serviceAccounts: [web]}}]}]}",
                ),
            ],
            "ARRR",
        ),
    ])
}

/// The old version of the API is the same API.
#[test]
fn the_beta_version_of_the_api_is_read_too() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let text = manifest(&[(
        "shop",
        "{rules: [{from: [{source: {namespaces: [bank]}}]}]}",
    )]);
    mesh.apply(&text.replace("io/v1", "io/v1beta1"), "shop/row-0")?;
    assert_eq!(mesh.verdicts(mesh.far()?)?, "RRAR");
    mesh.clear()
}
