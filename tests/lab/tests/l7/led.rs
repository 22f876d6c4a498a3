//! Connections that the kernel leads to the waypoint of the client's node, past the agent.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::Lab;

use crate::fixture::{APPLIES, CART, SHOP, apply, gateway, get, gets, with};

const TO_ALL: &str = "- route: [{destination: {host: cart}}]\n";

/// Where the kernel led the last connection of a client on `n1` that has ended.
fn led_to(lab: &Lab, client: &str) -> Option<SocketAddr> {
    led_by(lab, client, IpAddr::is_ipv4)
}

/// The same for one of the families.
fn led_by(lab: &Lab, client: &str, family: fn(&IpAddr) -> bool) -> Option<SocketAddr> {
    let waypoint = lab.pod("shop/waypoint-n1").ok()?;
    let mut addresses = waypoint.ips().iter().copied();
    let waypoint = addresses.find(family)?;
    let log = lab.agent_log("n1");
    let told = log.lines().rev().find_map(|line| {
        let is_meant = line.contains("direction=\"direct\"") || line.contains("direction=direct");
        let (_, rest) = line.split_once("dst.addr=")?;
        let to = rest.split_whitespace().next()?.trim_matches('"');
        let to: SocketAddr = to.parse().ok()?;
        (is_meant && line.contains(client) && to.ip().to_canonical() == waypoint).then_some(to)
    })?;
    (told.port() >= 61_440).then_some(told)
}

/// Asks until the kernel has led a request to the waypoint of `n1`; gives where.
fn led(lab: &Lab) -> Result<SocketAddr> {
    apply(lab, TO_ALL, || {
        ensure!(get(lab, "front", "/", &[])?.status == 200);
        Ok(())
    })?;
    testkit::eventually("the kernel leads to the waypoint", APPLIES, || {
        let answer = get(lab, "front", "/", &[])?;
        ensure!(answer.status == 200, "{answer:?}");
        led_to(lab, "shop/front").context("no direct connection to the waypoint is told of")
    })
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: led, namespace: shop}}\nspec: {spec}\n"
    )
}

#[test]
fn who_is_led_is_known_by_its_identity() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    led(lab)?;
    let service = format!("http://{CART}/");
    let only_front = "{selector: {matchLabels: {app: cart}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}], to: [{operation: {methods: [GET]}}]}]}";
    with(lab, "led.yaml", &policy(only_front), || {
        gets(lab, "bank/teller", &service, &[], 403)?;
        gets(lab, "front", &service, &[], 200)?;
        gets(lab, "front", &service, &["--request", "POST"], 403)
    })?;
    testkit::eventually("both were led", APPLIES, || {
        gets(lab, "bank/teller", &service, &[], 200)?;
        ensure!(led_to(lab, "bank/teller").is_some());
        Ok(())
    })?;
    ensure!(led_to(lab, "shop/front").is_some());
    Ok(())
}

#[test]
fn by_ipv6_a_client_is_led_to_the_waypoint_too() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    led(lab)?;
    let service = "apiVersion: v1
kind: Service
metadata: {name: cart6, namespace: shop}
spec:
  clusterIP: 'fd00:10:96::51'
  clusterIPs: ['fd00:10:96::51']
  ipFamilies: [IPv6]
  selector: {app: cart}
  ports:
  - {name: http, port: 80, targetPort: 8080}
";
    with(lab, "cart6.yaml", service, || {
        let url = "http://[fd00:10:96::51]/";
        testkit::eventually("the kernel leads to the waypoint by IPv6", APPLIES, || {
            gets(lab, "front", url, &[], 200)?;
            led_by(lab, "shop/front", IpAddr::is_ipv6).context("no such connection is told of")
        })?;
        // Who is led is known here too.
        let deny = "{action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]}]}";
        with(lab, "led.yaml", &policy(deny), || {
            gets(lab, "front", url, &[], 403)
        })
    })
}

#[test]
fn nobody_reaches_a_door_who_is_not_led_there() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let door = led(lab)?;
    for from in ["shop/front", "shop/back", "bank/teller", "outside/plain"] {
        let said = lab.pod(from)?.run(|| -> std::io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect_timeout(&door, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET / HTTP/1.0\r\nhost: cart\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        })?;
        ensure!(
            said.as_ref().map_or(true, Vec::is_empty),
            "{from} was answered at {door}: {said:?}"
        );
    }
    // The kernel half's events are looked at from time to time.
    testkit::eventually("the reason is told", APPLIES, || {
        let log = lab.agent_log("n1");
        ensure!(log.contains("waypoint_port"), "not in {log}");
        Ok(())
    })
}

#[test]
fn a_new_agent_leads_to_the_waypoint_as_the_one_before() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    led(lab)?;
    let over = AtomicBool::new(false);
    let (asked, failed) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut asked, mut failed) = (0, Vec::new());
            while !over.load(Ordering::Relaxed) {
                match get(lab, "front", "/", &[]) {
                    Ok(answer) if answer.status == 200 => {}
                    other => failed.push(format!("{other:?}")),
                }
                asked += 1;
            }
            (asked, failed)
        });
        let old = lab.succeed_agent("n1", &lab::AgentOptions::default());
        std::thread::sleep(Duration::from_secs(1));
        over.store(true, Ordering::Relaxed);
        drop(old?);
        let asked = asking.join();
        asked.map_err(|_panic| anyhow::anyhow!("who asked has panicked"))
    })?;
    ensure!(failed.is_empty(), "of {asked} requests failed: {failed:?}");
    ensure!(asked > 10, "{asked} requests are too few to tell");
    // The new one's log says where it leads.
    testkit::eventually("the kernel leads to the waypoint again", APPLIES, || {
        let answer = get(lab, "front", "/", &[])?;
        ensure!(answer.status == 200, "{answer:?}");
        led_to(lab, "shop/front").context("no direct connection to the waypoint is told of")
    })?;
    Ok(())
}

#[test]
fn who_waits_for_a_waypoint_that_vanishes_hears_of_it() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let checked = led(lab).and_then(|_| waits_for_one_that_vanishes(lab));
    // New pods, also where the test has not come so far.
    let _deleted = lab.delete("gateway.yaml").is_ok();
    lab.apply("gateway.yaml", &gateway("shop", "all"))?;
    gets(lab, "front", &format!("http://{CART}/"), &[], 200)?;
    checked
}

fn waits_for_one_that_vanishes(lab: &Lab) -> Result<()> {
    let service: SocketAddr = format!("{CART}:80").parse()?;
    let mut client = lab
        .pod("shop/front")?
        .run(|| TcpStream::connect(service))??;
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    client.write_all(b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n")?;
    let mut answer = [0; 4096];
    let count = client.read(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..count]);
    ensure!(text.contains(" 200 "), "{text}");
    testkit::eventually("the connection is listed as led", APPLIES, || {
        let own = client.local_addr()?.port();
        let all = lab.agent_get("n1", "/connections")?;
        ensure!(all.contains(&format!(":{own}\"")), "{all}");
        Ok(())
    })?;
    let waypoint = lab.pod("shop/waypoint-n1")?;
    // Nothing of its end gets out of the pod.
    waypoint.run(|| {
        Command::new("ip")
            .args(["link", "set", "eth0", "down"])
            .status()
    })??;
    // It answers SIGTERM within its own time, and then is gone.
    lab.delete("gateway.yaml")?;
    let gone = Instant::now();
    let end = client.read(&mut answer);
    let waited = gone.elapsed();
    ensure!(waited < Duration::from_secs(1), "after {waited:?}: {end:?}");
    ensure!(
        end.as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionAborted),
        "after {waited:?}: {end:?}"
    );
    Ok(())
}
