//! What `keelson explain` says of a request is what the request then gets.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::Lab;
use serde_json::{Value, json};

use crate::fixture::{APPLIES, SHOP, apply, get, version, with};

/// What is said of a request of a pod to `cart`, with further arguments, and the exit code.
fn said(lab: &Lab, from: &str, args: &[&str]) -> Result<(i32, Value)> {
    let at = format!("--lab={}", lab.id());
    let output = Command::new(lab::find_program("keelson")?)
        .args(["explain", from, "shop/cart", "-o", "json", &at])
        .args(args)
        .output()?;
    let code = output.status.code().context("it was killed")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let said = serde_json::from_slice(&output.stdout);
    Ok((code, said.with_context(|| format!("{args:?}: {text}"))?))
}

/// One request: how curl and how `keelson explain` are told of it, who answers, and what is said.
struct Case<'c> {
    curl: (&'c str, &'c [&'c str]),
    explain: &'c [&'c str],
    /// The version that answers, or the status.
    answered: &'c str,
    verdict: &'c str,
    /// The rule and the policy, by their objects.
    rule: Value,
    policy: Value,
}

impl Case<'_> {
    fn check(&self, lab: &Lab, from: &str) -> Result<()> {
        let (path, args) = self.curl;
        let (user, what) = (from.trim_start_matches("shop/"), self.explain);
        let answer = get(lab, user, path, args)?;
        ensure!(version(&answer) == self.answered, "{path}: {answer:?}");
        let (code, said) = said(lab, from, what)?;
        ensure!(said["verdict"] == self.verdict, "{what:?}: {said:#}");
        ensure!(
            code == i32::from(self.verdict != "allowed"),
            "{what:?}: {code}"
        );
        let ways = said["ways"].as_array().context("ways")?;
        ensure!(!ways.is_empty(), "{what:?}: {said:#}");
        for way in ways {
            ensure!(way["waypoint"]["rule"] == self.rule, "{what:?}: {said:#}");
            ensure!(way["object"] == self.policy, "{what:?}: {said:#}");
            if let Some(version) = self.answered.strip_prefix('v') {
                let pod = lab.pod(&format!("shop/cart-v{version}"))?;
                let address = format!("{}:8080", pod.v4()?);
                ensure!(way["endpoint"]["address"] == address, "{what:?}: {said:#}");
                ensure!(way["endpoint"]["pod"] == pod.key(), "{what:?}: {said:#}");
            } else if self.verdict == "refused" && self.policy.is_null() {
                let status = way["waypoint"]["status"].to_string();
                ensure!(status == self.answered, "{what:?}: {said:#}");
            }
        }
        Ok(())
    }
}

const RULES: &str = "\
- match: [{uri: {prefix: /second}, method: {exact: PUT}}]
  route: [{destination: {host: cart, subset: v2}}]
- match: [{headers: {user: {exact: jason}}}]
  route: [{destination: {host: cart, subset: v2}}]
- match: [{uri: {exact: /gone}}]
  redirect: {uri: /there, redirectCode: 307}
- match: [{uri: {exact: /nobody}}]
  route: [{destination: {host: cart, subset: v3}}]
- match: [{uri: {prefix: /served}}]
  route: [{destination: {host: cart, subset: v1}}]
";

const GUARD: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guard, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/nobody]}}]
  - from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]
    to: [{operation: {paths: [/served/secret*]}}]
";

/// F118: the rule and its object, where it leads, and the policy and its rule, for requests that differ by path,
/// method, header and client.
#[test]
fn what_is_explained_of_a_request_is_what_it_gets() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let rule = |index: u32| json!(format!("VirtualService shop/cart rule {index}"));
    let case = |curl, explain, answered, verdict, rule: Value, policy: Value| Case {
        curl,
        explain,
        answered,
        verdict,
        rule,
        policy,
    };
    let front = [
        case(
            ("/second", &["--request", "PUT"][..]),
            &["--path", "/second", "--method", "PUT"][..],
            "v2",
            "allowed",
            rule(0),
            Value::Null,
        ),
        case(
            ("/second", &[]),
            &["--path", "/second"],
            "404",
            "refused",
            Value::Null,
            Value::Null,
        ),
        case(
            ("/x", &["--header", "user: jason"]),
            &["--path", "/x", "-H", "user: jason"],
            "v2",
            "allowed",
            rule(1),
            Value::Null,
        ),
        case(
            ("/gone", &[]),
            &["--path", "/gone"],
            "307",
            "allowed",
            rule(2),
            Value::Null,
        ),
        case(
            ("/nobody", &[]),
            &["--path", "/nobody"],
            "503",
            "refused",
            rule(3),
            Value::Null,
        ),
        case(
            ("/served/one", &[]),
            &["--path", "/served/one"],
            "v1",
            "allowed",
            rule(4),
            Value::Null,
        ),
        case(
            ("/served/secret", &[]),
            &["--path", "/served/secret"],
            "403",
            "refused",
            rule(4),
            json!("AuthorizationPolicy shop/guard"),
        ),
        // Another spelling of the same path.
        case(
            ("/served/%73ecret", &[]),
            &["--path", "/served/%73ecret"],
            "403",
            "refused",
            rule(4),
            json!("AuthorizationPolicy shop/guard"),
        ),
    ];
    let back = case(
        ("/served/secret", &[][..]),
        &["--path", "/served/secret"][..],
        "v1",
        "allowed",
        rule(4),
        Value::Null,
    );
    with(lab, "guard.yaml", GUARD, || {
        apply(lab, RULES, || {
            let answer = get(lab, "front", "/served/secret", &[])?;
            ensure!(answer.status == 403, "{answer:?}");
            Ok(())
        })?;
        let check = || {
            for one in &front {
                one.check(lab, "shop/front")?;
            }
            back.check(lab, "shop/back")
        };
        testkit::eventually("what is said is what happens", APPLIES, check)?;
        let (_, said) = said(lab, "shop/front", &["--path", "/served/secret"])?;
        let way = &said["ways"][0];
        ensure!(way["rule"] == 1, "{said:#}");
        ensure!(way["reason"] == "policy_deny", "{said:#}");
        ensure!(way["remedy"].is_string(), "{said:#}");
        Ok(())
    })
}

/// Wrong input is an error with its field, not an answer.
#[test]
fn a_request_that_cannot_be_is_an_error() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    for (args, expected) in [
        (["--method", "G T"], "\"G T\""),
        (["-H", "no-colon"], "\"no-colon\" is not a header"),
        (["--path", "nothing"], "a path begins with a slash"),
    ] {
        let at = format!("--lab={}", lab.id());
        let output = Command::new(lab::find_program("keelson")?)
            .args(["explain", "shop/front", "shop/cart", &at])
            .args(args)
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{args:?}: {text}");
        ensure!(text.contains(expected), "{args:?}: {text}");
    }
    Ok(())
}
