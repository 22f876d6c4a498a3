//! What requires a waypoint is reached through it only, and only its agent says who calls.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use proto::proxy_protocol::Header;

use crate::fixture::{APPLIES, SHOP, apply, curl, get};

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
    let gateway = std::fs::read_to_string(lab.manifests_dir().join("gateway.yaml"))
        .context("the gateway's manifest")?;
    lab.delete("gateway.yaml")?;
    let refused = testkit::eventually("it is refused", APPLIES, || {
        let answer = get(lab, "front", "/", &[])?;
        ensure!(answer.status == 0, "{answer:?}");
        Ok(())
    });
    let reasons = lab.agent_log("n1");
    lab.apply("gateway.yaml", &gateway)?;
    refused?;
    assert!(reasons.contains("waypoint_unreachable"), "{reasons}");
    testkit::eventually("the waypoint is back", APPLIES, || {
        let answer = get(lab, "front", "/", &[])?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
}
