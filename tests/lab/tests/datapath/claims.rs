//! Whose an address is: the cluster says it, not who has it on an interface.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Lab, Pod};
use serde_json::{Value, json};
use tests_lab::metrics::metric;

use crate::ports::speak_encrypted;
use crate::support::{
    APPLIES, Failures, addresses, changing_world, echo, evidence, expect_echo, expect_refused,
    fresh_port, link,
};

/// Runs `ip` in a pod, as somebody with NET_ADMIN there.
fn ip(pod: &Pod, arguments: &str) -> Result<()> {
    let words = arguments.split(' ');
    let output = pod.output({
        let mut command = Command::new("ip");
        command.args(words);
        command
    })?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "ip {arguments}: {said}");
    Ok(())
}

/// Addresses that a pod has on its interface until this is dropped.
struct Taken<'a>(&'a Pod, &'a [IpAddr]);

impl<'a> Taken<'a> {
    fn take(pod: &'a Pod, ips: &'a [IpAddr]) -> Result<Self> {
        let taken = Self(pod, ips);
        for address in ips {
            let nodad = if address.is_ipv4() { "" } else { " nodad" };
            ip(pod, &format!("addr add {address} dev eth0{nodad}"))?;
        }
        Ok(taken)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for address in self.1 {
            let _gone = ip(self.0, &format!("addr del {address} dev eth0")).is_err();
        }
    }
}

/// An agent that looks at its pods all the time.
fn watchful() -> AgentOptions {
    AgentOptions {
        args: vec!["--audit-interval".to_owned(), "200ms".to_owned()],
        ..AgentOptions::default()
    }
}

fn restart(lab: &Lab, options: &AgentOptions) -> Result<()> {
    lab.kill_agent("n1")?;
    lab.start_agent("n1", options)
}

/// `mesh/b` takes the addresses of `mesh/c`, which is on the other node. Its neighbour's connections go there all
/// the same, encrypted, whenever the agent looks at the thief's interface.
#[test]
fn a_pod_that_takes_anothers_address_gets_nothing_of_it() -> Result<()> {
    let lab = changing_world()?;
    let (client, thief, owner) = (lab.pod("mesh/a")?, lab.pod("mesh/b")?, lab.pod("mesh/c")?);
    let port = fresh_port();
    let (stolen, _echo) = (echo(&thief, port)?, echo(&owner, port)?);
    let link = link(&lab)?;
    let mut failures = Failures::default();
    let mut check = |when: &str| {
        for to in addresses(&owner, port) {
            let went = speak_encrypted(&link, &client, to);
            failures.note(&format!("{when}, {to}"), went);
        }
    };
    check("before");
    let taken = Taken::take(&thief, owner.ips())?;
    check("taken");
    restart(&lab, &AgentOptions::default())?;
    check("an agent finds it at its start");
    restart(&lab, &watchful())?;
    testkit::eventually("the audit has looked", APPLIES, || {
        check("an agent looks again");
        let page = lab.agent_get("n1", "/stats/prometheus")?;
        ensure!(page.contains("keelson_capture_repaired_total"), "{page}");
        Ok(())
    })?;
    ensure!(stolen.accepted() == 0, "the thief was served");
    drop(taken);
    restart(&lab, &AgentOptions::default())?;
    failures.judge(&lab)
}

/// As a container runtime in a pod makes it: each has the address for itself, and nobody else's connection
/// ends there.
#[test]
fn a_pod_talks_to_itself_at_an_address_that_another_pod_repeats() -> Result<()> {
    let lab = changing_world()?;
    let pods = [lab.pod("mesh/a")?, lab.pod("mesh/b")?];
    let bridge: [IpAddr; 2] = ["172.17.0.1".parse()?, "fd00:172:17::1".parse()?];
    let taken = [
        Taken::take(&pods[0], &bridge)?,
        Taken::take(&pods[1], &bridge)?,
    ];
    let port = fresh_port();
    let echoes = [echo(&pods[0], port)?, echo(&pods[1], port)?];
    let mut failures = Failures::default();
    restart(&lab, &watchful())?;
    for (pod, own) in pods.iter().zip(&echoes) {
        for address in bridge {
            let before = own.accepted();
            let to = SocketAddr::new(address, port);
            let went = testkit::eventually("it talks to itself", APPLIES, || expect_echo(pod, to));
            failures.note(&format!("{} to {to}", pod.key()), went);
            let served = own.accepted() > before;
            let served = served.then_some(()).context("another served it");
            failures.note(&pod.key(), served);
        }
    }
    drop(taken);
    restart(&lab, &AgentOptions::default())?;
    failures.judge(&lab)
}

/// Tells the agent of n1 as its CNI would that a pod has these addresses.
fn name(lab: &Lab, pod: &Pod, ips: &[IpAddr]) -> Result<Value> {
    let request = json!({"add": {
        "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid(),
        "netns": pod.netns().path(), "ips": ips,
    }});
    let mut stream = UnixStream::connect(lab.agent_socket("n1"))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn disputed(lab: &Lab) -> Result<f64> {
    metric(lab, "n1", "keelson_addresses_disputed", &[])
}

/// A mistake of the cluster's: nothing leaves with such an address, and nobody is led there directly.
#[test]
fn an_address_that_two_pods_were_given_is_neithers() -> Result<()> {
    let lab = changing_world()?;
    let (pod, other) = (lab.pod("mesh/a")?, lab.pod("plain/p")?);
    let (near, far) = (lab.pod("mesh/b")?, lab.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = [&pod, &near, &far].map(|pod| echo(pod, port).unwrap());
    let both: Vec<IpAddr> = other.ips().iter().chain(pod.ips()).copied().collect();
    let cells = [(&pod, &near), (&pod, &far), (&near, &pod), (&far, &pod)];
    let to = |pod: &Pod| -> Result<SocketAddr> { Ok((pod.v4()?, port).into()) };
    for (from, server) in cells {
        expect_echo(from, to(server)?)?;
    }
    let answer = name(&lab, &other, &both)?;
    ensure!(answer["ok"]["capture"] == "exempt", "{answer}");
    let mut failures = Failures::default();
    let count = testkit::eventually("the dispute is counted", APPLIES, || {
        let disputed = disputed(&lab)?;
        ensure!(disputed == 2.0, "{disputed}");
        Ok(())
    });
    failures.note("count", count);
    for (from, server) in cells {
        let cell = format!("{} to {}", from.key(), server.key());
        let to = to(server)?;
        let ended = testkit::eventually("it gets nowhere", APPLIES, || {
            ensure!(expect_echo(from, to).is_err(), "it is served");
            Ok(())
        });
        failures.note(&cell, ended);
    }
    failures.note("log", {
        let log = lab.agent_log("n1");
        let said = log.contains("the cluster gave one address to two pods");
        said.then_some(()).context("it says nothing")
    });
    name(&lab, &other, other.ips())?;
    for (from, server) in cells {
        let to = to(server)?;
        let back = testkit::eventually("it is served again", APPLIES, || expect_echo(from, to));
        failures.note(&format!("{} to {} again", from.key(), server.key()), back);
    }
    let strict = lab.pod("strict/s")?;
    let _strict = echo(&strict, port)?;
    failures.note("STRICT", expect_refused(&other, to(&strict)?));
    failures.judge(&lab).with_context(|| evidence(&lab))
}
