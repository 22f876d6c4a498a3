//! How long a policy that kubectl applies takes until connections that are open and that it refuses are closed.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tests_cluster::{CLIENT, Namespace, SERVER, eventually, kubectl, nodes, pod, who_at};

use crate::figures;
use crate::installed::Installed;

/// A request whose answer never ends.
struct Held(Child);

impl Held {
    fn open(namespace: &Namespace, to: &str) -> Result<Self> {
        let ask = who_at(namespace.pod_ip(to)?);
        let ask = ask.replace("timeout 5 ", "").replace("/who", "/hold");
        let mut child = Command::new("kubectl")
            .args(["-n", namespace.name(), "exec", "client", "--", "sh", "-c"])
            .arg(&ask)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().context("it is piped")?;
        BufReader::new(output).read_line(&mut line)?;
        let held = Self(child);
        ensure!(line.trim() == "held", "{to}: {line:?}");
        Ok(held)
    }

    fn ended(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// D: the figure is printed; the bound is for a machine that does much else.
#[test]
#[ignore = "nightly"]
fn a_policy_that_is_applied_ends_the_live_connections_that_it_refuses_on_both_nodes() -> Result<()>
{
    let _mesh = Installed::install()?;
    let namespace = Namespace::create("live")?;
    let all = nodes()?;
    let [here, there] = all.as_slice() else {
        bail!("two nodes are needed, not {all:?}");
    };
    let hold = "printf '#!/bin/sh\\nprintf \"Content-Type: text/plain\\\\r\\\\n\\\\r\\\\nheld\\\\n\"; exec sleep 600\\n' > cgi-bin/hold && chmod +x cgi-bin/hold && exec httpd";
    let server = SERVER.replace("exec httpd", hold);
    let label = [
        "label",
        "namespace",
        namespace.name(),
        "keelson.io/mesh=enabled",
    ];
    kubectl(&label)?;
    namespace.apply(&[
        pod("client", Some(here), CLIENT),
        pod("near", Some(here), &server),
        pod("far", Some(there), &server),
    ])?;
    for name in ["client", "near", "far"] {
        namespace.wait_ready(name)?;
    }
    let deny = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny"}, "spec": {"action": "DENY", "rules": [{}]},
    });
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let open = |to: &str| eventually("it is held", || Held::open(&namespace, to));
        let mut held = [open("near")?, open("far")?];
        std::thread::sleep(Duration::from_millis(100));
        for one in &mut held {
            ensure!(!one.ended()?, "it ended before the policy came");
        }
        let began = Instant::now();
        namespace.apply(std::slice::from_ref(&deny))?;
        let stored = Instant::now();
        while !(held[0].ended()? && held[1].ended()?) {
            ensure!(stored.elapsed() < Duration::from_secs(10), "they go on");
            std::thread::sleep(Duration::from_millis(1));
        }
        times.push((stored.elapsed(), began.elapsed()));
        namespace.kubectl(&["delete", "authorizationpolicy", "deny"])?;
    }
    times.sort();
    let (after, from) = times[ROUNDS / 2];
    let (worst, _) = times[ROUNDS - 1];
    println!(
        "policy by kubectl -> live connections closed on both nodes: median {after:?} after kubectl returned \
         ({from:?} after it was started), worst of {ROUNDS} {worst:?}"
    );
    figures::print(
        "policy by kubectl -> live connections closed on both nodes",
        ("p99 500 ms", "p99 150 ms"),
        &format!("p50 {after:.0?}, worst of {ROUNDS} {worst:.0?} after kubectl has returned"),
    );
    Ok(())
}

const ROUNDS: usize = 15;
