//! What else a VirtualService and a DestinationRule say happens: one small test for each.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use lab::Lab;

use crate::fixture::{APPLIES, SHOP, apply, get, version, versions, with};

/// A path, further arguments of curl, and the version or status that answers.
type Case<'c> = (&'c str, &'c [&'c str], &'c str);

/// Asks once what each of these arguments leads to.
fn leads(lab: &Lab, cases: &[Case<'_>]) -> Result<()> {
    for (path, args, expected) in cases {
        let answer = get(lab, "front", path, args)?;
        ensure!(
            version(&answer) == *expected,
            "{path} {args:?}: {expected}, not {answer:?}"
        );
    }
    Ok(())
}

const SECOND: &str = "route: [{destination: {host: cart, subset: v2}}]";
const FIRST: &str = "- route: [{destination: {host: cart, subset: v1}}]";

/// F20, Y47, Y52: a cookie by its name and value, in whatever place of the header.
#[test]
fn f20_a_cookie_decides() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let rules = format!(
        "- match: [{{headers: {{cookie: {{environment: dev}}}}}}]\n  {SECOND}\n- match: [{{headers: {{cookie: {{regex: '^(.*?;)?(user=jason)(;.*)?$'}}}}}}]\n  {SECOND}\n{FIRST}\n"
    );
    apply(lab, &rules, || {
        leads(
            lab,
            &[
                ("/", &["--cookie", "environment=dev"], "v2"),
                ("/", &["--cookie", "a=b; environment=dev; c=d"], "v2"),
                ("/", &["--cookie", "environment=developer"], "v1"),
                ("/", &["--cookie", "a=environment=dev"], "v1"),
                ("/", &["--cookie", "user=jason"], "v2"),
                ("/", &[], "v1"),
            ],
        )
    })
}

/// F21: method, authority, scheme, query, the client's namespace, and conditions that must not hold.
#[test]
fn f21_other_parts_of_a_request_decide() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let post: &[&str] = &["--request", "PUT"];
    let all: [(&str, [Case<'_>; 2]); 6] = [
        (
            "{method: {exact: PUT}}",
            [("/", post, "v2"), ("/", &[], "v1")],
        ),
        (
            "{authority: {prefix: api.}}",
            [
                ("/", &["--header", "Host: api.cart"], "v2"),
                ("/", &[], "v1"),
            ],
        ),
        (
            "{queryParams: {user: {exact: jason}}}",
            [
                ("/?a=b&user=jason", &[], "v2"),
                ("/?user=jasonx", &[], "v1"),
            ],
        ),
        (
            "{withoutHeaders: {device: {exact: android}}}",
            [
                ("/", &[], "v2"),
                ("/", &["--header", "device: android"], "v1"),
            ],
        ),
        (
            "{uri: {exact: /A}, ignoreUriCase: true}",
            [("/a", &[], "v2"), ("/ab", &[], "v1")],
        ),
        (
            "{scheme: {exact: http}}",
            [("/", &[], "v2"), ("/x", &[], "v2")],
        ),
    ];
    for (condition, cases) in all {
        let rules = format!("- match: [{condition}]\n  {SECOND}\n{FIRST}\n");
        apply(lab, &rules, || leads(lab, &cases))?;
    }
    // Of the real client, as its node knows it.
    let rules = format!(
        "- match: [{{sourceNamespace: bank}}]\n  {SECOND}\n- match: [{{sourceLabels: {{app: front}}}}]\n  {SECOND}\n{FIRST}\n"
    );
    apply(lab, &rules, || {
        for (from, expected) in [("bank/teller", "v2"), ("front", "v2"), ("back", "v1")] {
            let url = format!("http://{}/", crate::fixture::CART);
            let answer = crate::fixture::curl(lab, from, &url, &[])?;
            ensure!(version(&answer) == expected, "{from}: {answer:?}");
        }
        Ok(())
    })
}

/// How many requests for a path a version of the cart has got.
fn seen_by(lab: &Lab, version: &str, path: &str) -> usize {
    let pod = format!("shop/cart-{version}");
    let log = lab.containers(&pod, |all| {
        all.iter().map(lab::Process::log).collect::<String>()
    });
    let line = format!(" {path} from");
    log.lines().filter(|one| one.contains(&line)).count()
}

/// F30, A16: v1 answers every request, v2 gets a copy of each, and nobody notices.
#[test]
fn a16_f30_a_mirror_gets_copies_and_answers_nobody() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let rules =
        "- route: [{destination: {host: cart, subset: v1}}]\n  mirror: {host: cart, subset: v2}\n";
    apply(lab, rules, || {
        let answer = get(lab, "front", "/warm-up", &[])?;
        ensure!(version(&answer) == "v1", "{answer:?}");
        ensure!(seen_by(lab, "v2", "/warm-up") > 0, "no copy yet");
        Ok(())
    })?;
    let seen = versions(lab, "front", "/mirrored", &[], 20)?;
    assert_eq!(seen, BTreeMap::from([("v1".to_owned(), 20)]));
    testkit::eventually("v2 has a copy of each", APPLIES, || {
        let copies = seen_by(lab, "v2", "/mirrored");
        ensure!(copies == 20, "{copies}");
        Ok(())
    })?;
    assert_eq!(seen_by(lab, "v1", "/mirrored"), 20);
    Ok(())
}

/// F32: each balancer, by what it does to twenty requests of one client.
#[test]
fn f32_balancers_choose_as_they_are_called() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    apply(lab, "- route: [{destination: {host: cart}}]\n", || Ok(()))?;
    let rule = |balancer: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: cart, namespace: shop}}
spec:
  host: cart
  trafficPolicy: {{loadBalancer: {balancer}}}
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
  - {{name: v3, labels: {{version: v3}}}}
"
        )
    };
    let header = ["--header", "user: jason"];
    let cookie = ["--cookie", "user=jason"];
    let all: [(&str, &[&str], &str, bool); 7] = [
        ("{simple: ROUND_ROBIN}", &[], "/", true),
        ("{simple: LEAST_CONN}", &[], "/", true),
        ("{simple: RANDOM}", &[], "/", true),
        ("{consistentHash: {useSourceIp: true}}", &[], "/", false),
        (
            "{consistentHash: {httpHeaderName: user}}",
            &header,
            "/",
            false,
        ),
        (
            "{consistentHash: {httpCookie: {name: user}}}",
            &cookie,
            "/",
            false,
        ),
        (
            "{consistentHash: {httpQueryParameterName: u}}",
            &[],
            "/?u=1",
            false,
        ),
    ];
    for (balancer, args, path, both) in all {
        lab.apply("rule.yaml", &rule(balancer))?;
        testkit::eventually(balancer, APPLIES, || {
            let seen = versions(lab, "front", path, args, 20)?;
            let named = ["v1", "v2"].iter().filter_map(|name| seen.get(*name));
            ensure!(named.sum::<usize>() == 20, "{balancer}: {seen:?}");
            ensure!((seen.len() == 2) == both, "{balancer}: {seen:?}");
            Ok(())
        })?;
        if balancer.contains("ROUND_ROBIN") {
            // In turn, to the request: the waypoint of the client's node has one worker.
            let seen = versions(lab, "front", path, args, 20)?;
            assert_eq!(seen.get("v1"), Some(&10), "F31: {seen:?}");
        }
    }
    // As it was: the other tests' subsets.
    lab.apply("rule.yaml", &rule("{simple: ROUND_ROBIN}"))
}

/// F35: a rule may leave its requests to another object, whose conditions are added.
#[test]
fn f35_a_delegate_decides_what_it_is_given() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let delegate = format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: api, namespace: shop}}
spec:
  http:
  - match: [{{headers: {{device: {{exact: android}}}}}}]
    {SECOND}
  {FIRST}
"
    );
    let rules = "- match: [{uri: {prefix: /api}}]\n  delegate: {name: api}\n";
    with(lab, "delegate.yaml", &delegate, || {
        apply(lab, rules, || {
            leads(
                lab,
                &[
                    ("/api", &["--header", "device: android"], "v2"),
                    ("/api", &[], "v1"),
                    ("/", &["--header", "device: android"], "404"),
                ],
            )
        })
    })?;
    apply(lab, rules, || leads(lab, &[("/api", &[], "500")]))
}
