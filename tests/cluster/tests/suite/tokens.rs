//! Tokens that look like an agent's: that have ended, that somebody else has signed, and of one account on two nodes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tests_cluster::{Namespace, nodes, pod};
use tonic::Code;

use crate::controller::Controller;

/// Section C of issue 11: what a token says of itself is nothing without the API server's signature and its time, each refusal
/// is counted, and an account that runs on two nodes speaks on each for that node alone.
#[test]
fn a_token_that_has_ended_or_is_of_another_key_is_refused_and_one_account_is_held_to_each_node()
-> Result<()> {
    let namespace = Namespace::create("forged")?;
    let name = namespace.name();
    for account in ["agent", "cart", "web"] {
        namespace.kubectl(&["create", "serviceaccount", account])?;
    }
    let nodes = nodes()?;
    let [here, there] = [nodes.first(), nodes.last()].map(|node| node.map(String::as_str));
    let on = |pod_name: &str, account: &str, node: Option<&str>| {
        let mut pod = pod(pod_name, node, "sleep 1000");
        pod["spec"]["serviceAccountName"] = json!(account);
        pod
    };
    let pods = [
        on("agent-a", "agent", here),
        on("agent-b", "agent", there),
        on("cart-a", "cart", here),
        on("cart-b", "cart", there),
        on("web-b", "web", there),
    ];
    namespace.apply(&pods)?;
    for pod in ["agent-a", "agent-b", "cart-a", "cart-b", "web-b"] {
        namespace.wait_ready(pod)?;
    }
    let controller = Controller::start(&format!("{name}/agent"))?;
    let token = |account: &str, pod: &str| {
        let words = ["create", "token", account, "--audience", "keelson"];
        let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod];
        let token = namespace.kubectl(&[&words[..], &bound].concat())?;
        Ok::<_, anyhow::Error>(token.trim().to_owned())
    };
    let code = |token: &str, account: &str| {
        let identity = format!("spiffe://cluster.local/ns/{name}/sa/{account}");
        let asked = controller.certify(token, &identity)?;
        anyhow::Ok(asked.err().map(|status| status.code()))
    };

    let (of_a, of_b) = (token("agent", "agent-a")?, token("agent", "agent-b")?);
    ensure!(code(&of_a, "cart")?.is_none(), "it runs on the one node");
    ensure!(code(&of_b, "cart")?.is_none(), "and on the other");
    ensure!(code(&of_b, "web")?.is_none(), "it runs there");
    let before = refused(&controller, "not_on_node")?;
    if here != there {
        ensure!(
            code(&of_a, "web")? == Some(Code::PermissionDenied),
            "a pod of another node than the token's"
        );
        ensure!(refused(&controller, "not_on_node")? == before + 1);
    }

    let folder = tempfile::tempdir()?;
    let foreign = folder.path().join("key");
    openssl(
        &[
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
            &text(&foreign)?,
        ],
        b"",
    )?;
    let before = refused(&controller, "unauthenticated")?;
    let mut count = 0;
    let mut is_refused = |what: &str, token: &str| -> Result<()> {
        let code = code(token, "cart")?;
        ensure!(code == Some(Code::Unauthenticated), "{what}: {code:?}");
        count += 1;
        ensure!(
            refused(&controller, "unauthenticated")? == before + count,
            "{what} is not counted"
        );
        Ok(())
    };
    let forged = signed(&of_a, &foreign, |_| {})?;
    is_refused("of another key", &forged)?;
    let (head, _) = of_a.rsplit_once('.').context("a token")?;
    is_refused("without a signature", &format!("{head}."))?;
    let claims = claims(&of_b)?.to_string();
    let parts: Vec<&str> = of_a.split('.').collect();
    let swapped = format!(
        "{}.{}.{}",
        parts[0],
        URL_SAFE_NO_PAD.encode(claims),
        parts[2]
    );
    is_refused("with another's claims", &swapped)?;
    // Only here is the key of the API server at hand.
    if let Some(own) = key() {
        let again = signed(&of_a, &own, |claims| claims["jti"] = json!("again"))?;
        ensure!(
            code(&again, "cart")?.is_none(),
            "signed by the API server's own key"
        );
        let ended = signed(&of_a, &own, |claims| {
            let at = claims["iat"].as_i64().unwrap_or_default();
            for (claim, before) in [("iat", 7200), ("nbf", 7200), ("exp", 60)] {
                claims[claim] = json!(at - before);
            }
        })?;
        is_refused("that has ended", &ended)?;
    }
    Ok(())
}

/// The number of certificates that the controller has refused for a reason.
fn refused(controller: &Controller, reason: &str) -> Result<u64> {
    let page = controller.page("/stats/prometheus")?;
    let name = format!("keelson_controller_certificates_refused_total{{reason=\"{reason}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    // What never happened has no line.
    line.map_or(Ok(0), |count| Ok(count.trim().parse()?))
}

/// The key that tokens of a cluster of `cargo xtask cluster` are signed with.
fn key() -> Option<PathBuf> {
    let base = PathBuf::from(std::env::var_os("KEELSON_CLUSTER_BASE")?);
    let id = std::env::var("KEELSON_CLUSTER").ok()?;
    let key = base.join("run").join(id).join("control/config/sa.key");
    key.exists().then_some(key)
}

fn claims(token: &str) -> Result<Value> {
    let part = token.split('.').nth(1).context("a token has claims")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?)
}

/// The token with other claims, signed anew.
fn signed(token: &str, key: &Path, change: impl FnOnce(&mut Value)) -> Result<String> {
    let mut claims = claims(token)?;
    change(&mut claims);
    let head = token.split('.').next().context("a token has a head")?;
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let der = openssl(
        &["dgst", "-sha256", "-sign", &text(key)?],
        signed.as_bytes(),
    )?;
    let signature = URL_SAFE_NO_PAD.encode(raw(&der)?);
    Ok(format!("{signed}.{signature}"))
}

/// The two numbers of a signature of P-256, 32 bytes each, from their DER (`SEQUENCE { INTEGER, INTEGER }`).
fn raw(der: &[u8]) -> Result<Vec<u8>> {
    let mut rest = der.get(2..).context("a sequence")?;
    let mut raw = Vec::new();
    for _ in 0..2 {
        let [2, length, tail @ ..] = rest else {
            bail!("no number in {der:?}");
        };
        let (number, tail) = tail
            .split_at_checked((*length).into())
            .context("a number")?;
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        let missing = 32_usize.checked_sub(number.len()).context("32 bytes")?;
        raw.extend(std::iter::repeat_n(0, missing));
        raw.extend(number);
        rest = tail;
    }
    Ok(raw)
}

fn openssl(words: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("openssl")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("openssl")?;
    child
        .stdin
        .take()
        .context("it is piped")?
        .write_all(input)?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "openssl {words:?}: {said}");
    Ok(output.stdout)
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("UTF-8")?.to_owned())
}
