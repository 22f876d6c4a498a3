//! What requires a waypoint is reached through it only, and only its agent says who calls.

mod udp;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use proto::proxy_protocol::Header;

use lab::Lab;
use nix::sys::signal::Signal;

use crate::fixture::{APPLIES, CART, SHOP, apply, curl, gateway, get, gets, with};

const TO_ALL: &str = "- route: [{destination: {host: cart}}]\n";

#[test]
fn a_pods_own_address_leads_through_the_waypoint_too() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    apply(lab, TO_ALL, || {
        ensure!(get(lab, "front", "/", &[])?.status == 200);
        Ok(())
    })?;
    for pod in ["cart-v1", "cart-v2"] {
        let address = lab.pod(&format!("shop/{pod}"))?.v4()?;
        let answer = curl(lab, "front", &format!("http://{address}:8080/"), &[])?;
        assert_eq!(answer.status, 200, "{pod}: {answer:?}");
    }
    let log = |node: &str| {
        let pod = format!("shop/waypoint-{node}");
        lab.containers(&pod, |all| {
            all.iter().map(lab::Process::log).collect::<String>()
        })
    };
    let address = lab.pod("shop/cart-v2")?.v4()?.to_string();
    testkit::eventually("the waypoint's log tells of it", APPLIES, || {
        let told = format!("dst.addr={address}:8080");
        ensure!(
            log("n1").contains(&told) || log("n2").contains(&told),
            "{}",
            log("n1")
        );
        Ok(())
    })
}

#[test]
fn nobody_but_the_agent_reaches_the_waypoints_own_port() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let waypoint: SocketAddr = (lab.pod("shop/waypoint-n1")?.v4()?, 15088).into();
    let forged = Header {
        client: "10.244.1.99:40000".parse()?,
        dialled: "10.96.0.50:80".parse()?,
        identity: Some("spiffe://cluster.local/ns/shop/sa/admin".parse()?),
        service: None,
    };
    for from in ["front", "back"] {
        let pod = lab.pod(&format!("shop/{from}"))?;
        let said = pod.run(|| -> std::io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect_timeout(&waypoint, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(&forged.to_bytes())?;
            stream.write_all(b"GET / HTTP/1.0\r\nhost: cart\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        })?;
        assert!(
            said.as_ref().map_or(true, Vec::is_empty),
            "{from} was answered: {said:?}"
        );
    }
    Ok(())
}

#[test]
fn without_a_waypoint_that_is_ready_it_is_refused_and_not_passed_by() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    apply(lab, TO_ALL, || {
        ensure!(get(lab, "front", "/", &[])?.status == 200);
        Ok(())
    })?;
    lab.delete("gateway.yaml")?;
    let refused = testkit::eventually("it is refused", APPLIES, || {
        let answer = get(lab, "front", "/", &[])?;
        ensure!(answer.status == 0, "{answer:?}");
        Ok(())
    });
    let reasons = lab.agent_log("n1");
    lab.apply("gateway.yaml", &gateway("shop", "all"))?;
    refused?;
    assert!(reasons.contains("waypoint_unreachable"), "{reasons}");
    testkit::eventually("the waypoint is back", APPLIES, || {
        let answer = get(lab, "front", "/", &[])?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
}

#[test]
fn a_waypoint_whose_port_refuses_is_passed_over_for_another_and_never_passed_by() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    apply(lab, TO_ALL, || {
        ensure!(get(lab, "front", "/", &[])?.status == 200);
        Ok(())
    })?;
    let checked = with_waypoints_down(lab);
    // New pods.
    lab.delete("gateway.yaml")?;
    lab.apply("gateway.yaml", &gateway("shop", "all"))?;
    gets(lab, "front", &format!("http://{CART}/"), &[], 200)?;
    checked
}

fn with_waypoints_down(lab: &Lab) -> Result<()> {
    let kill = |node: &str| {
        lab.containers(&format!("shop/waypoint-{node}"), |all| {
            all.iter_mut()
                .try_for_each(|one| one.signal(Signal::SIGKILL))
        })
    };
    let service = format!("http://{CART}/");
    kill("n1")?;
    // What it had taken before it died is lost.
    gets(lab, "front", &service, &[], 200)?;
    for _ in 0..3 {
        let answer = get(lab, "front", "/", &[])?;
        ensure!(
            answer.status == 200,
            "the other node's takes over: {answer:?}"
        );
    }
    kill("n2")?;
    let pod = lab.pod("shop/cart-v1")?.v4()?;
    for url in [format!("http://{CART}/"), format!("http://{pod}:8080/")] {
        gets(lab, "front", &url, &[], 0)?;
    }
    let log = lab.agent_log("n1");
    let told = log
        .lines()
        .filter(|line| line.contains("waypoint_unreachable") && line.contains("does not take"));
    ensure!(told.count() >= 2, "{log}");
    Ok(())
}

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: http-part, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

const ONLY_FRONT_GETS: &str = "{selector: {matchLabels: {app: cart}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}], to: [{operation: {methods: [GET]}}]}]}";
const POST: &[&str] = &["--request", "POST"];

#[test]
fn nobody_gets_round_a_policy_with_http_parts_that_selects_a_pod() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    apply(lab, TO_ALL, || {
        ensure!(get(lab, "front", "/", &[])?.status == 200);
        Ok(())
    })?;
    let service = format!("http://{CART}/");
    let pods: Vec<String> = ["cart-v1", "cart-v2"]
        .iter()
        .map(|pod| {
            Ok(format!(
                "http://{}:8080/",
                lab.pod(&format!("shop/{pod}"))?.v4()?
            ))
        })
        .collect::<Result<_>>()?;
    // A foreign waypoint that tries to call past the one that counts.
    lab.apply("bank-gateway.yaml", &gateway("bank", "all"))?;
    let checked = with(lab, "policy.yaml", &policy("shop", ONLY_FRONT_GETS), || {
        gets(lab, "back", &service, &[], 403)?;
        for url in pods.iter().chain([&service]) {
            gets(lab, "front", url, &[], 200)?;
            gets(lab, "front", url, POST, 403)?;
            gets(lab, "back", url, &[], 403)?;
            gets(lab, "bank/teller", url, &[], 403)?;
            gets(lab, "bank/waypoint-n1", url, &[], 403)?;
            gets(lab, "outside/plain", url, &[], 0)?;
        }
        // Where the waypoint is for services alone, a pod's own address leads past it, and the pod's agent refuses what
        // it cannot judge.
        lab.apply("gateway.yaml", &gateway("shop", "service"))?;
        gets(lab, "front", &pods[0], &[], 0)?;
        gets(lab, "front", &service, &[], 200)?;
        gets(lab, "front", &service, POST, 403)?;
        for url in &pods {
            for from in ["front", "bank/waypoint-n1", "outside/plain"] {
                gets(lab, from, url, &[], 0)?;
            }
        }
        gets(lab, "outside/plain", &service, &[], 0)
    });
    lab.apply("gateway.yaml", &gateway("shop", "all"))?;
    lab.delete("bank-gateway.yaml")?;
    checked?;
    for node in ["n1", "n2"] {
        let log = lab.agent_log(node);
        for told in [
            "policy_no_allow",
            "shop/http-part (cannot be enforced in full: ",
        ] {
            assert!(log.contains(told), "{node}, {told}: {log}");
        }
    }
    Ok(())
}

#[test]
fn a_policy_with_http_parts_on_a_pod_without_a_waypoint_refuses_and_is_named() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let server = lab::find_program("keelson-lab-app")?;
    let server = server.to_string_lossy();
    let spec = lab::PodSpec::new("bank", "vault", "n2")
        .container("server", &[&*server, "http-server", "--text", "vault"]);
    let url = format!("http://{}:8080/", lab.create(&spec)?.v4()?);
    gets(lab, "front", &url, &[], 200)?;
    gets(lab, "outside/plain", &url, &[], 200)?;
    let allow =
        "{selector: {matchLabels: {app: vault}}, rules: [{to: [{operation: {methods: [GET]}}]}]}";
    let deny = "{selector: {matchLabels: {app: vault}}, action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}";
    for (spec, reason) in [(allow, "policy_no_allow"), (deny, "policy_unenforceable")] {
        with(lab, "policy.yaml", &policy("bank", spec), || {
            gets(lab, "front", &url, &[], 0)?;
            gets(lab, "outside/plain", &url, &[], 0)
        })?;
        gets(lab, "front", &url, &[], 200)?;
        let log = lab.agent_log("n2");
        let told = log
            .lines()
            .any(|line| line.contains(reason) && line.contains("bank/http-part"));
        assert!(told, "{reason}: {log}");
    }
    lab.delete_pod("bank/vault")
}
