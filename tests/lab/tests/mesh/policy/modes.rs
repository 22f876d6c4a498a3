//! PeerAuthentication: who may speak plain text, on which scope, and that nobody of the mesh notices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests_lab::turn;

use super::mesh::{Mesh, mesh};
use crate::fixture::{APPLIES, Ended, at, call, call_here, connect, exchange, joined};

/// One PeerAuthentication: namespace, name and spec.
type Object = (&'static str, &'static str, &'static str);

/// Objects, and whether the stranger's plain text is taken on 8080 and 8081 of `server` and 8080 of `near`.
struct Row {
    what: &'static str,
    objects: &'static [Object],
    plain: [bool; 3],
}

fn manifest(objects: &[Object], version: &str) -> String {
    let documents = objects.iter().map(|(namespace, name, spec)| {
        format!(
            "apiVersion: security.istio.io/{version}\nkind: PeerAuthentication\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    });
    documents.collect::<Vec<_>>().join("---\n")
}

const MESH_STRICT: Object = ("istio-system", "default", "{mtls: {mode: STRICT}}");
const SHOP_STRICT: Object = ("shop", "default", "{mtls: {mode: STRICT}}");

/// Waits until the stranger's calls end as they should, and looks whether members are always served.
fn wait_plain(mesh: &Mesh, plain: [bool; 3]) -> Result<()> {
    let places = [
        at(mesh.server.v4()?, 8080),
        at(mesh.server.v4()?, 8081),
        at(mesh.near.v4()?, 8080),
    ];
    testkit::eventually(&format!("plain text is taken {plain:?}"), APPLIES, || {
        for (to, plain) in places.iter().zip(plain) {
            let expected = if plain {
                Ended::Answered
            } else {
                Ended::Refused
            };
            let ended = call(&mesh.stranger, *to)?;
            ensure!(ended == expected, "{to}: {ended}");
        }
        Ok(())
    })?;
    for to in places {
        for member in [&mesh.cart, &mesh.teller] {
            let ended = call(member, to)?;
            ensure!(
                ended == Ended::Answered,
                "{} to {to}: {ended}",
                member.key()
            );
        }
    }
    Ok(())
}

/// Starts from the opposite, so that the row itself must make the difference.
fn check(mesh: &Mesh, row: &Row, version: &str) -> Result<()> {
    let opposite = if row.plain[0] {
        &[MESH_STRICT][..]
    } else {
        &[]
    };
    mesh.lab.apply("policies.yaml", &manifest(opposite, "v1"))?;
    wait_plain(mesh, [!row.plain[0]; 3]).context("the opposite, before")?;
    mesh.lab
        .apply("policies.yaml", &manifest(row.objects, version))?;
    wait_plain(mesh, row.plain).with_context(|| manifest(row.objects, version))
}

/// A35, A37, A38's port part, F70-F73. Mesh clients are served under each of these.
#[test]
fn modes_apply_by_mesh_namespace_workload_and_port() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let rows = [
        Row {
            what: "the whole mesh",
            objects: &[MESH_STRICT],
            plain: [false; 3],
        },
        Row {
            what: "a namespace",
            objects: &[SHOP_STRICT],
            plain: [false; 3],
        },
        Row {
            what: "another namespace",
            objects: &[
                MESH_STRICT,
                ("shop", "default", "{mtls: {mode: PERMISSIVE}}"),
                ("bank", "default", "{mtls: {mode: STRICT}}"),
            ],
            plain: [true; 3],
        },
        Row {
            what: "a namespace above the mesh",
            objects: &[
                MESH_STRICT,
                ("shop", "default", "{mtls: {mode: PERMISSIVE}}"),
            ],
            plain: [true; 3],
        },
        Row {
            what: "DISABLE of a namespace",
            objects: &[MESH_STRICT, ("shop", "default", "{mtls: {mode: DISABLE}}")],
            plain: [true; 3],
        },
        Row {
            what: "a namespace that says UNSET inherits",
            objects: &[MESH_STRICT, ("shop", "default", "{mtls: {mode: UNSET}}")],
            plain: [false; 3],
        },
        Row {
            what: "a namespace that says nothing inherits",
            objects: &[MESH_STRICT, ("shop", "default", "{}")],
            plain: [false; 3],
        },
        Row {
            what: "one workload",
            objects: &[(
                "shop",
                "server",
                "{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}}",
            )],
            plain: [false, false, true],
        },
        Row {
            what: "one workload is let off",
            objects: &[
                SHOP_STRICT,
                (
                    "shop",
                    "server",
                    "{selector: {matchLabels: {app: server}}, mtls: {mode: PERMISSIVE}}",
                ),
            ],
            plain: [true, true, false],
        },
        Row {
            what: "DISABLE of one workload",
            objects: &[
                MESH_STRICT,
                (
                    "shop",
                    "server",
                    "{selector: {matchLabels: {app: server}}, mtls: {mode: DISABLE}}",
                ),
            ],
            plain: [true, true, false],
        },
        Row {
            what: "a workload that says UNSET inherits",
            objects: &[
                SHOP_STRICT,
                (
                    "shop",
                    "server",
                    "{selector: {matchLabels: {app: server}}, mtls: {mode: UNSET}}",
                ),
            ],
            plain: [false; 3],
        },
        Row {
            what: "a permissive port of a strict workload",
            objects: &[(
                "shop",
                "server",
                "{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}, portLevelMtls: {8081: {mode: PERMISSIVE}}}",
            )],
            plain: [false, true, true],
        },
        Row {
            what: "a disabled port of a workload that inherits",
            objects: &[
                MESH_STRICT,
                (
                    "shop",
                    "server",
                    "{selector: {matchLabels: {app: server}}, portLevelMtls: {8081: {mode: DISABLE}}}",
                ),
            ],
            plain: [false, true, false],
        },
        Row {
            what: "a strict port of a permissive workload",
            objects: &[(
                "shop",
                "server",
                "{selector: {matchLabels: {app: server}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {8080: {mode: STRICT}}}",
            )],
            plain: [false, true, true],
        },
        Row {
            what: "a strict port of a workload that inherits PERMISSIVE",
            objects: &[(
                "shop",
                "server",
                "{selector: {matchLabels: {app: server}}, portLevelMtls: {8080: {mode: STRICT}}}",
            )],
            plain: [false, true, true],
        },
        Row {
            what: "a port that says UNSET is as its workload",
            objects: &[(
                "shop",
                "server",
                "{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}, portLevelMtls: {8081: {mode: UNSET}}}",
            )],
            plain: [false, false, true],
        },
    ];
    for row in &rows {
        check(&mesh, row, "v1").with_context(|| row.what.to_owned())?;
    }
    check(&mesh, &rows[1], "v1beta1").context("v1beta1")?;
    check(&mesh, &rows[11], "v1beta1").context("v1beta1 with ports")?;
    mesh.clear()
}

/// A35, F73: what a plain-text client sees is a reset, and the agent says why.
#[test]
fn under_strict_a_client_outside_the_mesh_is_reset_and_the_reason_is_told() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    mesh.lab
        .apply("policies.yaml", &manifest(&[MESH_STRICT], "v1"))?;
    wait_plain(&mesh, [false; 3])?;
    let list = crate::fixture::refusals(mesh.lab, "n2")?;
    let ip = mesh.stranger.v4()?.to_string();
    let mut of_stranger = list.iter().rev().map(ToString::to_string);
    let newest = of_stranger
        .find(|refusal| refusal.contains(&ip))
        .context("no refusal")?;
    let says_why = newest.contains("strict") || newest.contains("STRICT");
    assert!(says_why, "{newest}");
    mesh.clear()
}

/// What clients see who call again and again, over new connections and over one that stays.
fn calls_while(mesh: &Mesh, change: impl FnOnce() -> Result<()>) -> Result<(u32, Vec<String>)> {
    let stop = AtomicBool::new(false);
    let to = mesh.far()?;
    let open = connect(&mesh.cart, to)?;
    ensure!(
        exchange(&open, b"first") == Ended::Answered,
        "before anything changes"
    );
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let stop = &stop;
            mesh.cart.run(|| {
                let (mut calls, mut failed) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    for ended in [call_here(to, b"new"), exchange(&open, b"kept")] {
                        calls += 1;
                        if ended != Ended::Answered {
                            failed.push(format!("call {calls}: {ended}"));
                        }
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                (calls, failed)
            })
        });
        let changed = change();
        // A little longer, for whatever the change sets off.
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        let load = joined(load)?;
        changed?;
        load
    })
}

/// A42, F77, P25.
#[test]
fn from_permissive_to_strict_and_back_no_request_of_a_mesh_client_fails() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let modes = ["PERMISSIVE", "STRICT", "PERMISSIVE", "STRICT"];
    let (calls, failed) = calls_while(&mesh, || {
        for mode in modes {
            let text = manifest(&[MESH_STRICT], "v1").replace("STRICT", mode);
            mesh.lab.apply("policies.yaml", &text)?;
            wait_plain(&mesh, [mode == "PERMISSIVE"; 3])?;
        }
        Ok(())
    })?;
    assert_eq!(failed, Vec::<String>::new(), "of {calls} calls");
    assert!(calls > 50, "only {calls} calls");
    mesh.clear()
}

/// A36, F74, P24: there is no client setting that could disagree.
#[test]
fn disabling_mtls_on_one_service_breaks_nobody() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    mesh.lab
        .apply("policies.yaml", &manifest(&[MESH_STRICT], "v1"))?;
    wait_plain(&mesh, [false; 3])?;
    let (calls, failed) = calls_while(&mesh, || {
        let disabled = (
            "shop",
            "server",
            "{selector: {matchLabels: {app: server}}, mtls: {mode: DISABLE}}",
        );
        let text = manifest(&[MESH_STRICT, disabled], "v1");
        mesh.lab.apply("policies.yaml", &text)?;
        wait_plain(&mesh, [true, true, false])
    })?;
    assert_eq!(failed, Vec::<String>::new(), "of {calls} calls");
    assert!(calls > 20, "only {calls} calls");
    mesh.clear()
}
