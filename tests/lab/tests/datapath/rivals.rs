//! What somebody with NET_ADMIN in a captured pod may change about its routing, and what becomes of it.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Lab, Pod, PodSpec};
use tests_lab::metrics::metric;
use tests_lab::{namespace, turn};

use crate::ports::speak_encrypted;
use crate::support::{
    APPLIES, Failures, addresses, changing_world, echo, expect_echo, fresh_port, link,
};

/// Runs a line of shell in a pod.
fn shell(pod: &Pod, line: &str) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-ec", line]);
    let output = pod.output(command)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{line}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn repaired(lab: &Lab, kind: &str) -> Result<f64> {
    let labels = [("kind", kind)];
    metric(lab, "n1", "keelson_capture_repaired_total", &labels)
}

/// One thing that is done to the routing towards a peer.
struct Rival {
    what: &'static str,
    /// What is run, with an audit in the midst of it or not; `IP` is `ip -4` or `ip -6`, `PEER` the peer and `WAY`
    /// its way without a mesh.
    run: &'static str,
    undo: &'static str,
    /// What the audit counts; nothing if it means nothing from the start.
    kind: Option<&'static str>,
}

const RIVALS: [Rival; 8] = [
    Rival {
        what: "a rule before others",
        run: "IP rule add pref 1 to PEER lookup main",
        undo: "IP rule del pref 1 to PEER",
        kind: None,
    },
    Rival {
        what: "a rule of the lowest preference",
        run: "IP rule add pref 0 to PEER lookup main",
        undo: "IP rule del pref 0 to PEER",
        kind: None,
    },
    Rival {
        what: "a route in the table that usually comes first",
        run: "IP route add unicast PEER WAY table local",
        undo: "IP route del unicast PEER WAY table local",
        kind: None,
    },
    Rival {
        what: "our rule removed and another put first",
        run: "IP rule del pref 0 fwmark 0x4b454c00/0xffffff00; IP rule add pref 0 to PEER lookup main",
        undo: "IP rule del to PEER",
        kind: Some("rule"),
    },
    Rival {
        what: "our rule made another",
        run: "IP rule add pref 0 fwmark 0x4b454c00/0xffffff00 to 192.0.2.1 lookup 15001 2>/dev/null || IP rule add pref 0 fwmark 0x4b454c00/0xffffff00 to 2001:db8::1 lookup 15001; IP rule del pref 0 fwmark 0x4b454c00/0xffffff00 lookup 15001",
        undo: "IP rule del pref 1 fwmark 0x4b454c00/0xffffff00 lookup 15001",
        kind: Some("rule"),
    },
    Rival {
        what: "the backstop removed and another put in its place",
        run: "IP rule del pref 0 fwmark 0x4b454c00/0xffffff00 unreachable; IP rule add pref 0 to PEER lookup main",
        undo: "IP rule del to PEER",
        kind: Some("rule"),
    },
    Rival {
        what: "a narrower route in our table",
        run: "IP route add PEER WAY table 15001",
        undo: "true",
        kind: Some("route"),
    },
    Rival {
        what: "our route removed",
        run: "IP route flush table 15001",
        undo: "true",
        kind: Some("route"),
    },
];

/// Whatever is done to it: before long its connections are the agent's again, and stay so.
#[test]
fn what_a_pod_changes_about_its_routing_means_nothing_or_is_put_right() -> Result<()> {
    let lab = changing_world()?;
    let options = AgentOptions {
        args: vec!["--audit-interval".to_owned(), "300ms".to_owned()],
        ..AgentOptions::default()
    };
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &options)?;
    let (client, server) = (lab.pod("mesh/a")?, lab.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let link = link(&lab)?;
    let mut failures = Failures::default();
    for to in addresses(&server, port) {
        speak_encrypted(&link, &client, to)?;
        let ip = if to.is_ipv4() { "ip -4" } else { "ip -6" };
        let way = shell(&client, &format!("{ip} route show default"))?;
        let way = way.lines().next().context("no way")?;
        let way = way.trim_start_matches("default").trim();
        let way = way.split(" proto ").next().unwrap_or(way);
        let way = way.split(" metric ").next().unwrap_or(way);
        let line = |text: &str| {
            let text = text.replace("IP ", &format!("{ip} "));
            text.replace("PEER", &to.ip().to_string())
                .replace("WAY", way)
        };
        for Rival {
            what,
            run,
            undo,
            kind,
        } in &RIVALS
        {
            let attempt = || -> Result<()> {
                let before = kind.map(|kind| repaired(&lab, kind)).transpose()?;
                shell(&client, &line(run))?;
                if let (Some(kind), Some(before)) = (kind, before) {
                    testkit::eventually("it is put right and counted", APPLIES, || {
                        let now = repaired(&lab, kind)?;
                        ensure!(now > before, "{now}");
                        Ok(())
                    })?;
                }
                speak_encrypted(&link, &client, to)
            };
            failures.note(&format!("{what}, {to}"), attempt());
            failures.note(
                &format!("undoing {what}, {to}"),
                shell(&client, &line(undo)).map(drop),
            );
        }
        failures.note("afterwards", speak_encrypted(&link, &client, to));
    }
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &AgentOptions::default())?;
    failures.judge(&lab)
}

#[test]
fn a_setting_that_a_pod_changes_is_put_right() -> Result<()> {
    let lab = changing_world()?;
    let options = AgentOptions {
        args: vec!["--audit-interval".to_owned(), "300ms".to_owned()],
        ..AgentOptions::default()
    };
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &options)?;
    let pod = lab.pod("mesh/a")?;
    let others =
        || -> Result<(f64, f64)> { Ok((repaired(&lab, "rule")?, repaired(&lab, "route")?)) };
    let before = others()?;
    let mut failures = Failures::default();
    for setting in [
        "net.ipv4.tcp_fwmark_accept",
        "net.ipv4.fwmark_reflect",
        "net.ipv6.fwmark_reflect",
    ] {
        let before = repaired(&lab, "setting")?;
        pod.netns().sysctl(setting, "0")?;
        let back = testkit::eventually("it is put right and counted", APPLIES, || {
            let now = (
                pod.netns().read_sysctl(setting)?,
                repaired(&lab, "setting")?,
            );
            ensure!(now.0 == "1" && now.1 > before, "{now:?}");
            Ok(())
        });
        failures.note(setting, back);
    }
    // Each of them took an audit, which found nothing else.
    let after = others()?;
    let same = (after == before).then_some(());
    let same = same.with_context(|| format!("{before:?} before, {after:?} after"));
    failures.note("rules and routes that nobody changed", same);
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &AgentOptions::default())?;
    failures.judge(&lab)
}

/// A pod that leaves the mesh has the rules that it came with, in their order.
#[test]
fn a_released_pod_has_its_own_rules_again() -> Result<()> {
    let lab = changing_world()?;
    lab.apply("rules.yaml", &namespace("rules", &[]))?;
    let pod = lab.create(&PodSpec::new("rules", "pod", "n1"))?;
    let rules = || -> Result<String> {
        shell(
            &pod,
            "ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all",
        )
    };
    let before = rules()?;
    lab.label_namespace("rules", "keelson.io/mesh", Some("enabled"))?;
    testkit::eventually("it is captured", APPLIES, || {
        let now = rules()?;
        let mut lines = now.lines();
        let (first, second) = (lines.next(), lines.next());
        // The routes come first, and each rule by itself.
        let ours = first.is_some_and(|line| line.contains("lookup 15001"));
        let backstop = second.is_some_and(|line| line.contains("unreachable"));
        ensure!(ours && backstop, "not the first: {now}");
        Ok(())
    })?;
    let port = fresh_port();
    let own = echo(&pod, port)?;
    expect_echo(&pod, (IpAddr::from(pod.v4()?), port).into()).context("to itself")?;
    drop(own);
    lab.label_namespace("rules", "keelson.io/mesh", None)?;
    let back = testkit::eventually("it is as it was", APPLIES, || {
        let now = rules()?;
        ensure!(now == before, "{now}\ninstead of\n{before}");
        Ok(())
    });
    lab.delete_pod("rules/pod")?;
    back
}

/// Pods are known by their processes only, and those have made namespaces of their own: beside the pod's in one
/// of them, and nothing else in the other, of which nobody can say which namespace is its own.
#[test]
fn a_pod_is_found_in_its_own_namespace_whatever_its_processes_make() -> Result<()> {
    let _turn = turn()?;
    let lab = Lab::builder(lab::unique_id()).build()?;
    lab.apply(
        "found.yaml",
        &namespace("found", &[("keelson.io/mesh", "enabled")]),
    )?;
    lab.start_controller(&lab::ControllerOptions::default())?;
    let sleep = ["keelson-lab-app", "sleep"];
    let spec = |name: &str, node: &str| PodSpec::new("found", name, node).service_account(name);
    // Of the two processes the first is found first.
    let client = spec("client", "n1")
        .container("rival", &["unshare", "-Urn", "sleep", "1000"])
        .container("app", &sleep);
    let torn = spec("torn", "n1")
        .container("one", &["unshare", "-Urn", "sleep", "1000"])
        .container("other", &["unshare", "-Urn", "sleep", "1000"]);
    lab.create(&torn)?;
    let (client, server) = (
        lab.create(&client)?,
        lab.create(&spec("server", "n2").container("app", &sleep))?,
    );
    testkit::eventually("the rival is in a namespace of its own", APPLIES, || {
        let pid = lab.containers("found/client", |containers| containers[0].pid());
        let own = std::fs::read_link(format!("/proc/{pid}/ns/net"))?;
        let pod = std::fs::metadata(client.netns().path())?;
        let pod = std::os::unix::fs::MetadataExt::ino(&pod);
        ensure!(
            own.display().to_string() != format!("net:[{pod}]"),
            "not yet"
        );
        Ok(())
    })?;
    // Nobody announces them.
    let mut agents = Vec::new();
    for node in ["n1", "n2"] {
        agents.push(lab.spawn_agent(node, &AgentOptions::default())?);
    }
    let found = crate::support::wait_encrypted(&lab, &client, &server).and_then(|()| {
        testkit::eventually("the other is refused and counted", APPLIES, || {
            let labels = [("reason", "namespaces_disagree")];
            let refused = metric(&lab, "n1", "keelson_capture_refused_total", &labels)?;
            ensure!(refused == 1.0, "{refused}");
            Ok(())
        })
    });
    let said: Vec<String> = agents.iter().map(lab::Process::log).collect();
    found.with_context(|| said.join("\n"))
}
