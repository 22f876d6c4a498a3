//! A tenant that writes as much as it may.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests_cluster::{CLIENT, Namespace, eventually, kubectl, pod};

use crate::command_line::good;
use crate::installed::Installed;
use crate::pair::{Kept, Pair};

/// Section C of issue 11: hundreds of objects, and one as large as the API server takes, stop nobody's mesh: what goes on goes on,
/// and a label of another namespace is acted by in time.
#[test]
#[ignore = "nightly"]
fn a_tenant_that_writes_hundreds_of_objects_and_a_huge_one_does_not_stop_the_mesh() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "goeson")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    let tenant = Namespace::create("writes")?;
    kubectl(&[
        "label",
        "namespace",
        tenant.name(),
        "keelson.io/mesh=enabled",
    ])?;
    eventually("a controller answers", || tenant.apply(&two(0)))?;
    // Not `apply`, which would keep a copy in an annotation, where the huge one does not fit.
    let create = ["-n", tenant.name(), "create", "-f", "-"];
    pair.keep_asking()?;
    let began = Instant::now();
    for part in 0..PARTS {
        let some: Vec<Value> = (0..EACH)
            .flat_map(|number| two(1 + part * EACH + number))
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": some});
        tests_cluster::kubectl_with(&create, &list.to_string())?;
    }
    let written = began.elapsed();
    let principals: Vec<String> = (0..HUGE)
        .map(|number| format!("cluster.local/ns/nowhere/sa/account-{number}"))
        .collect();
    let huge = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "huge"},
        "spec": {"rules": [{"from": [{"source": {"principals": principals}}]}]},
    });
    let size = huge.to_string().len();
    tests_cluster::kubectl_with(&create, &huge.to_string())?;
    let began = Instant::now();
    let other = Namespace::create("label")?;
    kubectl(&[
        "label",
        "namespace",
        other.name(),
        "keelson.io/mesh=enabled",
    ])?;
    other.apply(&[pod("new", None, CLIENT)])?;
    other.wait_ready("new")?;
    eventually("the new pod is served", || other.exec("new", &pair.ask))?;
    let rules = other.exec("new", "ip rule list")?;
    ensure!(rules.contains("fwmark"), "{rules}");
    let captured = began.elapsed();
    println!(
        "{} objects written in {written:.0?}, one policy of {size} bytes; a new pod of another namespace is in the mesh after {captured:.1?}",
        PARTS * EACH * 2
    );
    ensure!(captured < LIMIT, "{captured:?}");
    eventually("every node is in step", || good(&["status"], ""))?;
    pair.stop_asking("a tenant wrote hundreds of objects", Kept::GoesOn)?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    Ok(())
}

/// A Service and a policy.
fn two(number: usize) -> [Value; 2] {
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{number}")},
               "spec": {"clusterIP": "None", "selector": {"app": format!("a{number}")}, "ports": [{"port": 80}]}}),
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": format!("p{number}")},
            "spec": {"selector": {"matchLabels": {"app": format!("a{number}")}}, "rules": [{}]},
        }),
    ]
}

const PARTS: usize = 5;
const EACH: usize = 100;
/// About 1 MiB.
const HUGE: usize = 20_000;
const LIMIT: Duration = Duration::from_secs(30);
