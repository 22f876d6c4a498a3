//! What a VirtualService says happens, from clients on either node.

use anyhow::{Result, ensure};

use crate::fixture::{SHOP, apply, get, version, versions};

#[test]
fn a_header_decides_and_no_rule_that_matches_is_404() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let rules = "- match: [{headers: {device: {exact: android}}}]
  route: [{destination: {host: cart, subset: v2}}]
- match: [{uri: {prefix: /api}}]
  route: [{destination: {host: cart, subset: v1}}]
";
    for from in ["front", "back"] {
        apply(lab, rules, || {
            let answer = get(lab, from, "/other", &[])?;
            ensure!(answer.status == 404, "F24, A18: {answer:?}");
            Ok(())
        })?;
        let android = get(lab, from, "/api", &["--header", "device: android"])?;
        assert_eq!(version(&android), "v2", "F19, A9: {android:?}");
        let other = get(lab, from, "/api/x", &[])?;
        assert_eq!(version(&other), "v1", "F17, F23, A7: {other:?}");
    }
    Ok(())
}

#[test]
fn weights_are_kept_and_a_flip_takes_all() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let only =
        |version: &str| format!("- route: [{{destination: {{host: cart, subset: {version}}}}}]\n");
    for wanted in ["v1", "v2"] {
        apply(lab, &only(wanted), || {
            let seen = versions(lab, "front", "/", &[], 5)?;
            ensure!(seen.get(wanted) == Some(&5), "F28, A13: {seen:?}");
            Ok(())
        })?;
    }
    let half = "- route:
  - {destination: {host: cart, subset: v1}, weight: 50}
  - {destination: {host: cart, subset: v2}, weight: 50}
";
    apply(lab, half, || {
        let seen = versions(lab, "front", "/", &[], 6)?;
        ensure!(seen.len() == 2, "{seen:?}");
        Ok(())
    })?;
    // 100 draws of a half: outside of 25 to 75 once in two million runs.
    let seen = versions(lab, "back", "/", &[], 100)?;
    let first = seen.get("v1").copied().unwrap_or_default();
    assert!((25..=75).contains(&first), "F25, A8: {seen:?}");
    Ok(())
}

#[test]
fn a_subset_without_pods_is_an_error() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    apply(
        lab,
        "- route: [{destination: {host: cart, subset: v3}}]\n",
        || {
            let answer = get(lab, "front", "/", &[])?;
            ensure!(answer.status == 503, "F27, A23: {answer:?}");
            ensure!(
                answer.body.contains("no healthy upstream"),
                "F27, A23: {answer:?}"
            );
            Ok(())
        },
    )
}

#[test]
fn a_fault_delays_and_aborts() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let rules = "- match: [{uri: {prefix: /abort}}]
  fault: {abort: {httpStatus: 500, percentage: {value: 100}}}
  route: [{destination: {host: cart}}]
- fault: {delay: {fixedDelay: 1s, percent: 100}}
  route: [{destination: {host: cart}}]
";
    apply(lab, rules, || {
        let answer = get(lab, "front", "/abort", &[])?;
        ensure!(answer.status == 500, "F63, A24: {answer:?}");
        ensure!(answer.body == "fault filter abort", "F63, A24: {answer:?}");
        Ok(())
    })?;
    for _ in 0..3 {
        let answer = get(lab, "back", "/", &[])?;
        assert!(
            answer.status == 200 && answer.seconds >= 1.0,
            "F62, A26: {answer:?}"
        );
    }
    Ok(())
}

#[test]
fn a_timeout_is_504_and_the_wait_is_over_then() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let rules = "- timeout: 1s
  fault: {delay: {fixedDelay: 20ms, percent: 100}}
  retries: {attempts: 2, perTryTimeout: 500ms}
  route: [{destination: {host: cart, subset: v1}}]
";
    apply(lab, rules, || {
        let answer = get(lab, "front", "/", &[])?;
        ensure!(version(&answer) == "v1", "{answer:?}");
        Ok(())
    })?;
    // The application is stopped, so that it takes the connection and says nothing.
    lab.containers("shop/cart-v1", |all| {
        all.iter_mut()
            .try_for_each(|one| one.signal(nix::sys::signal::Signal::SIGSTOP))
    })?;
    let answer = get(lab, "front", "/", &[]);
    lab.containers("shop/cart-v1", |all| {
        all.iter_mut()
            .try_for_each(|one| one.signal(nix::sys::signal::Signal::SIGCONT))
    })?;
    let answer = answer?;
    assert_eq!(answer.status, 504, "F56, A30: {answer:?}");
    assert!(
        (0.5..5.0).contains(&answer.seconds),
        "F56, A29, A30: {answer:?}"
    );
    Ok(())
}
