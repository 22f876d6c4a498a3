use std::fs;
use std::os::unix::fs::PermissionsExt;

use controller::app::Prepared;
use proto::type_url::{ADDRESS, AUTHORIZATION};

use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_broken_manifests_serves_the_last_good_version_with_the_same_root() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    controller
        .until(
            "saved",
            |_| home.path().join("state/last-good.jsonl").exists(),
            "/healthz/ready",
        )
        .await;
    let root = fs::read_to_string(home.path().join("root.pem")).expect("written");
    let key = fs::metadata(home.path().join("state/root-key.pem")).expect("kept");
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    controller.stop().await;

    home.write(
        "mesh.yaml",
        &MESH
            .replace("rules: [{}]", "rules: [*.x]")
            .replace("nodeName: n2", "nodeName: [n2]"),
    );
    let controller = home.start(&[]).await;
    assert_eq!(
        fs::read_to_string(home.path().join("root.pem")).expect("written"),
        root
    );
    let mut node = controller.discovery("token-1").await;
    node.subscribe(AUTHORIZATION).await;
    node.subscribe(ADDRESS).await;
    let policies = node.receive().await;
    assert_eq!(line(&policies), "Authorization +shop/guard");
    node.ack(&policies).await;
    assert_eq!(node.take().await, format!("Address +{A} +{B}"));
    let page = controller.page("/debug/diagnostics").await;
    assert!(
        page.contains("the last good version stays in effect")
            && page.contains("\"file\": \"mesh.yaml\""),
        "{page}"
    );
    assert!(
        page.contains("\"field\": \"spec.nodeName\"") && page.contains("must be quoted"),
        "{page}"
    );
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_manifest_never_stops_the_others() {
    let home = Home::new();
    let controller = home.start(&[]).await;
    home.write(
        "broken.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  Name: x\n---\n{{ not yaml\n",
    );
    home.write("mesh.yaml", MESH);
    let mut node = controller.discovery("token-1").await;
    node.subscribe(ADDRESS).await;
    let first = node.take().await;
    if first == "Address" {
        node.take_until(&format!("Address +{A} +{B}")).await;
    } else {
        assert_eq!(first, format!("Address +{A} +{B}"));
    }
    controller
        .until(
            "said",
            |page| page.contains("did you mean metadata.name"),
            "/debug/diagnostics",
        )
        .await;
    assert!(
        controller
            .page("/stats/prometheus")
            .await
            .contains("diagnostics{severity=\"error\"} 2")
    );
    controller.stop().await;
}

#[test]
fn what_is_wrong_with_the_options_is_said_before_a_port_opens() {
    let home = Home::new();
    let check = |change: &dyn Fn(&mut controller::options::Options), expected: &[&str]| {
        let mut options = home.options(&[]);
        change(&mut options);
        let error = format!("{:#}", Prepared::new(options).err().expect("refused"));
        for word in expected {
            assert!(error.contains(word), "{word}: {error}");
        }
    };
    let missing = home.path().join("missing");
    check(
        &|o| o.manifests = Some(missing.clone()),
        &["--manifests", "missing"],
    );
    check(
        &|o| o.node_tokens = Some(missing.clone()),
        &["--node-tokens", "missing", "<token> <node>"],
    );
    check(
        &|o| o.cacerts = Some(missing.clone()),
        &["--cacerts", "missing"],
    );
    check(
        &|o| o.root_cert_out = Some(missing.join("x")),
        &["--root-cert-out", "missing"],
    );
    check(&|o| o.trust_domain = "a b".into(), &["--trust-domain"]);
    check(
        &|o| o.server_name = vec!["a b".into()],
        &["--server-name", "a b"],
    );
    fs::write(home.path().join("tokens"), "only-a-token\n").expect("writes");
    check(&|_| {}, &["tokens:1", "<token> <node>"]);
    fs::write(home.path().join("tokens"), "same n1\nsame n2\n").expect("writes");
    check(&|_| {}, &["tokens:2", "also on line 1"]);
    fs::write(home.path().join("tokens"), "t n1\n").expect("writes");
    fs::create_dir_all(home.path().join("state")).expect("a folder");
    fs::write(home.path().join("state/root-key.pem"), "garbage").expect("writes");
    fs::write(home.path().join("state/root-cert.pem"), "garbage").expect("writes");
    check(&|_| {}, &["--state-dir", "remove both root-*.pem"]);
}
