//! The agents' admin pages.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use lab::AGENT_ADMIN;
use serde_json::Value;
use tests_lab::turn;

use super::mesh::{CATALOGUE, Mesh, mesh};
use crate::fixture::{APPLIES, Ended, connect, exchange};
use tests_lab::metrics::Metrics;

#[test]
fn the_configuration_dump_shows_workloads_services_policies_and_pods() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let dump = mesh.lab.agent_json("n1", "/config_dump")?;
    let holds = |list: &str, what: &str| -> Result<bool> {
        let list = dump[list].as_array().with_context(|| list.to_owned())?;
        Ok(list.iter().any(|entry| entry.to_string().contains(what)))
    };
    for (list, what) in [
        ("workloads", "Kubernetes//Pod/sock-shop/catalogue"),
        ("workloads", "Kubernetes//Pod/out/stranger"),
        ("services", "catalogue.sock-shop.svc.cluster.local"),
        ("policies", "sock-shop/no-thieves"),
        ("pods", "front-end"),
        ("pods", "keelson.io/mesh=enabled"),
    ] {
        assert!(holds(list, what)?, "{list} lacks {what}: {dump:#}");
    }
    let text = dump.to_string();
    assert!(!text.contains("PRIVATE KEY"), "keys stay where they are");
    Ok(())
}

/// F66, A39.
#[test]
fn the_certificates_page_shows_validity_and_names_and_no_key() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let text = mesh.lab.agent_get("n2", "/certs")?;
    assert!(!text.contains("PRIVATE KEY"));
    let page: Value = serde_json::from_str(&text)?;
    let certs = page.as_array().context("no list")?;
    let own = "spiffe://cluster.local/ns/sock-shop/sa/catalogue";
    let cert = certs.iter().find(|cert| cert["identity"] == own);
    let cert = cert.context("no certificate of the catalogue")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let time = |field: &str| {
        cert[field]
            .as_u64()
            .with_context(|| format!("{field} of {cert:#}"))
    };
    assert!(
        time("not_before")? <= now && now < time("not_after")?,
        "{cert:#}"
    );
    assert!(
        (now..time("not_after")?).contains(&time("renewal")?),
        "{cert:#}"
    );
    assert_eq!(cert["sans"], serde_json::json!([own]));
    assert!(
        cert["serial"]
            .as_str()
            .is_some_and(|serial| serial.len() >= 16),
        "{cert:#}"
    );
    Ok(())
}

#[test]
fn ready_says_so_and_the_pages_are_only_on_the_nodes_loopback() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let node = mesh.lab.node("n1")?;
    assert_eq!(node.http_get(AGENT_ADMIN, "/healthz/ready")?.status, 200);
    let outside = SocketAddr::new(node.v4().into(), AGENT_ADMIN.port());
    assert!(
        node.http_get(outside, "/healthz/ready").is_err(),
        "reachable on the link"
    );
    assert_eq!(node.http_get(AGENT_ADMIN, "/no-such-page")?.status, 404);
    Ok(())
}

/// Whether a new connection of the client is written into the access log of n1.
fn is_logged(mesh: &Mesh) -> Result<bool> {
    let stream = connect(&mesh.client, CATALOGUE.parse()?)?;
    let source = stream.local_addr()?;
    anyhow::ensure!(
        exchange(&stream, b"logged?") == Ended::Answered,
        "the call failed"
    );
    drop(stream);
    lab::wait_until("the connection has ended", APPLIES, || {
        let page = mesh.lab.agent_get("n1", "/connections")?;
        Ok(!page.contains(&source.to_string()))
    })?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    Ok(!mesh.access_lines("n1", source)?.is_empty())
}

/// A63.
#[test]
fn the_log_level_changes_without_a_restart_for_one_scope_alone() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let pid = mesh.lab.agent_pid("n1");
    let before = mesh.lab.agent_get("n1", "/logging")?;
    assert!(is_logged(&mesh)?);
    let node = mesh.lab.node("n1")?;
    let set = |filter: &str| node.http_post(AGENT_ADMIN, &format!("/logging?level={filter}"));
    let quiet = set("info,access=off")?;
    let silent = is_logged(&mesh);
    let asked = mesh.lab.agent_get("n1", "/logging")?;
    let restored = set(before.trim());
    assert!(!silent?, "the access log is off: {quiet:?}");
    assert!(asked.contains("access=off"), "{asked}");
    assert_eq!(restored?.status, 200);
    assert!(is_logged(&mesh)?, "and on again");
    let wrong = set("chatty=loud")?;
    assert_eq!(wrong.status, 400, "{wrong:?}");
    let read = node.http_get(AGENT_ADMIN, "/logging?level=debug")?;
    assert_eq!(read.status, 405, "a GET changes nothing: {read:?}");
    assert_eq!(
        mesh.lab.agent_get("n1", "/logging")?,
        before,
        "neither changed anything"
    );
    assert_eq!(mesh.lab.agent_pid("n1"), pid);
    Ok(())
}

#[test]
fn an_open_connection_is_listed_with_who_and_whom_until_it_ends() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let stream = connect(&mesh.client, CATALOGUE.parse()?)?;
    assert_eq!(exchange(&stream, b"look at me"), Ended::Answered);
    let source = stream.local_addr()?.to_string();
    for node in ["n1", "n2"] {
        let page = mesh.lab.agent_json(node, "/connections")?;
        let list = page.as_array().context("no list")?;
        let mut of_it = list
            .iter()
            .map(Value::to_string)
            .filter(|text| text.contains(&source));
        let it = of_it.next().with_context(|| format!("{node}: {page:#}"))?;
        assert!(it.contains("front-end") && it.contains("catalogue"), "{it}");
    }
    drop(stream);
    for node in ["n1", "n2"] {
        lab::wait_until(&format!("{node} forgets it"), APPLIES, || {
            Ok(!mesh.lab.agent_get(node, "/connections")?.contains(&source))
        })?;
    }
    Ok(())
}

const GHOST: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: ghost
  namespace: sock-shop
  uid: 00000000-1111-2222-3333-444444444444
  annotations: {keelson.io/pod-ips: '10.244.1.99,fd00:10:244:1::99'}
spec: {nodeName: n1, serviceAccountName: ghost, containers: [{name: main, image: none}]}
";

/// A pod that should be captured and is not must not go unnoticed.
#[test]
fn a_pod_that_is_wanted_captured_and_is_not_is_counted() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let count = |node| -> Result<f64> {
        let metrics = Metrics::of_agent(mesh.lab, node)?;
        let samples = metrics.samples("keelson_pods_wanted_not_captured", &[]);
        Ok(samples.first().context("no such metric")?.value)
    };
    for node in ["n1", "n2"] {
        assert!(
            count(node)?.abs() < 0.5,
            "{node}: all is well, and it counts {}",
            count(node)?
        );
    }
    // Past the lab, which would make the sandbox: this one exists on paper only.
    let folder = mesh.lab.manifests_dir();
    let unfinished = folder.join(".ghost.new");
    std::fs::write(&unfinished, GHOST)?;
    std::fs::rename(&unfinished, folder.join("ghost.yaml"))?;
    let counted = lab::wait_until("n1 counts the ghost", APPLIES, || Ok(count("n1")? > 0.5));
    let elsewhere = count("n2");
    std::fs::remove_file(folder.join("ghost.yaml"))?;
    counted?;
    assert!(elsewhere?.abs() < 0.5, "n2 counts what is not its own");
    lab::wait_until("n1 forgets the ghost", APPLIES, || Ok(count("n1")? < 0.5))
}
