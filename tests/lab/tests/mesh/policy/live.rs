//! Connections that are open when the policy changes, and who can read why one was closed.

use std::net::TcpStream;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lab::Pod;
use tests_lab::turn;

use super::mesh::{Mesh, mesh};
use crate::fixture::{
    APPLIES, Busy, Ended, at, call, connect, exchange, refused_call, wait_configured,
    wait_refusal_of,
};

fn open(from: &Pod, to: &Pod) -> Result<TcpStream> {
    let stream = connect(from, at(to.v4()?, 8080))?;
    ensure!(
        exchange(&stream, b"hello") == Ended::Answered,
        "{} at first",
        from.key()
    );
    Ok(stream)
}

/// Waits until the connection is cut, by exchanging messages over it.
fn wait_cut(stream: &TcpStream) -> Result<Ended> {
    let deadline = Instant::now() + APPLIES;
    loop {
        match exchange(stream, b"still there?") {
            Ended::Answered if Instant::now() > deadline => return Ok(Ended::Answered),
            Ended::Answered => std::thread::sleep(std::time::Duration::from_millis(20)),
            ended => return Ok(ended),
        }
    }
}

const DENY_BANK: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-the-bank, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [bank]}}]}]}
";

fn log_line(log: &str, texts: &[&str]) -> Option<String> {
    let mut lines = log.lines();
    let line = lines.find(|line| texts.iter().all(|text| line.contains(text)))?;
    Some(line.to_owned())
}

fn wait_log(mesh: &Mesh, node: &str, texts: &[&str]) -> Result<String> {
    testkit::eventually(
        &format!("the log of {node} tells {texts:?}"),
        APPLIES,
        || {
            let log = mesh.lab.agent_log(node);
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            log_line(&log, texts).with_context(|| last.join("\n"))
        },
    )
}

/// Those that are now refused are cut, with the reason on both nodes; the others do not notice.
#[test]
fn a_policy_change_cuts_the_connections_that_it_refuses_and_no_others() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let kept = [
        open(&mesh.cart, &mesh.server)?,
        open(&mesh.stranger, &mesh.server)?,
        open(&mesh.web, &mesh.near)?,
    ];
    let cut = [
        open(&mesh.teller, &mesh.server)?,
        open(&mesh.teller, &mesh.near)?,
    ];
    mesh.apply(DENY_BANK, "shop/not-the-bank")?;
    for stream in &cut {
        assert_eq!(wait_cut(stream)?, Ended::Refused);
    }
    for stream in &kept {
        assert_eq!(exchange(stream, b"and still"), Ended::Answered);
    }
    for node in ["n1", "n2"] {
        wait_log(&mesh, node, &["shop/not-the-bank", "ns/bank/sa/teller"])?;
    }
    mesh.clear()?;
    for stream in &kept {
        assert_eq!(exchange(stream, b"to the end"), Ended::Answered);
    }
    Ok(())
}

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

/// An open plain-text connection does not outlive PERMISSIVE.
#[test]
fn strict_cuts_open_plain_text_connections_and_no_tunnelled_ones() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let tunnelled = open(&mesh.cart, &mesh.server)?;
    let plain = [
        open(&mesh.stranger, &mesh.server)?,
        open(&mesh.stranger, &mesh.near)?,
    ];
    mesh.lab.apply("policies.yaml", STRICT)?;
    for stream in &plain {
        assert_eq!(wait_cut(stream)?, Ended::Refused);
    }
    for node in ["n1", "n2"] {
        wait_log(&mesh, node, &["PeerAuthentication shop/default is STRICT"])?;
    }
    assert_eq!(exchange(&tunnelled, b"and still"), Ended::Answered);
    mesh.clear()
}

/// A connection that is being made while the policy changes is one of those that the change is about.
#[test]
fn a_connection_that_is_allowed_but_not_made_yet_is_asked_about_again() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    for (client, policy, marker) in [
        (&mesh.teller, DENY_BANK, "shop/not-the-bank"),
        (&mesh.stranger, STRICT, "istio_converted_static_strict"),
    ] {
        let busy = Busy::new(&mesh.server, 8085)?;
        let waiting = {
            let (client, to) = (client.clone(), at(mesh.server.v4()?, 8085));
            std::thread::spawn(move || call(&client, to))
        };
        // Admitted: the agent's own connection to the application is under way.
        busy.wait_dialled(&mesh.server, 0)?;
        mesh.lab.apply("policies.yaml", policy)?;
        wait_configured(mesh.lab, "n2", marker, true)?;
        let peer = busy.serve()?;
        let ended = waiting.join().unwrap()?;
        assert_eq!(ended, Ended::Refused, "{}", client.key());
        drop(peer);
        mesh.clear()?;
    }
    Ok(())
}

/// A selector that begins to match is a change too, and so is one that ends to.
#[test]
fn a_label_that_brings_a_pod_into_a_policys_scope_cuts_and_refuses() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let scoped = DENY_BANK.replace("spec: {", "spec: {selector: {matchLabels: {zone: inner}}, ");
    mesh.apply(&scoped, "shop/not-the-bank")?;
    let open = open(&mesh.teller, &mesh.server)?;
    mesh.lab.label_pod("shop/server", "zone", Some("inner"))?;
    let cut = wait_cut(&open);
    let refused = call(&mesh.teller, mesh.far()?);
    mesh.lab.label_pod("shop/server", "zone", None)?;
    assert_eq!(cut?, Ended::Refused);
    assert_eq!(refused?, Ended::Refused);
    mesh.wait_verdicts(mesh.far()?, "AAAA")?;
    mesh.clear()
}

/// A refused client finds the reason where it runs: the policy's name, not only "reset".
#[test]
fn the_refused_clients_own_node_tells_which_policy_refused_it() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    mesh.apply(DENY_BANK, "shop/not-the-bank")?;
    let again = || refused_call(&mesh.teller, mesh.far()?).map(drop);
    let told = wait_refusal_of(mesh.lab, "n1", &["shop/not-the-bank", "bank/teller"], again)?;
    assert_eq!(told["pod"], "bank/teller", "{told:#}");
    let from = told["source"]["addr"].as_str().context("its port")?;
    wait_log(&mesh, "n1", &["shop/not-the-bank", from])?;
    let texts = ["shop/not-the-bank", "ns/bank/sa/teller"];
    wait_refusal_of(mesh.lab, "n2", &texts, again)?;
    mesh.clear()
}

/// Where nothing allows, the policies that could have are named.
#[test]
fn who_matches_no_allow_policy_is_told_which_there_are() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let allow = DENY_BANK
        .replace("DENY", "ALLOW")
        .replace("not-the-bank", "only-the-bank");
    mesh.apply(&allow, "shop/only-the-bank")?;
    assert_eq!(call(&mesh.cart, mesh.far()?)?, Ended::Refused);
    let again = || call(&mesh.cart, mesh.far()?).map(drop);
    wait_refusal_of(mesh.lab, "n1", &["shop/only-the-bank", "shop/cart"], again)?;
    let texts = ["shop/only-the-bank", "ns/shop/sa/cart"];
    wait_refusal_of(mesh.lab, "n2", &texts, again)?;
    mesh.clear()
}
