//! A mesh of 10,000 pods behind a real API server. Most of them are objects without processes, on nodes that are objects too
//! and whose agents are subscriptions in one process. Only `cargo xtask bench cluster` runs this.

mod agents;
mod objects;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bench::usage;
use lab::Netns;
use serde_json::{Value, json};
use tests_cluster::{get, kubectl};

use self::agents::Agents;
use self::objects::{ACCOUNTS, NODE, NODES, OWN, Objects, PODS, SERVICES};
use crate::figures::print;
use crate::installed::{AGENT, CONTROLLER, Installed, NAMESPACE};

/// The objects; dropping this removes them, for the mesh is uninstalled after it.
struct Crowd(Objects);

impl Drop for Crowd {
    #[expect(clippy::print_stderr, reason = "the cluster goes all the same")]
    fn drop(&mut self) {
        if let Err(error) = self.0.remove(NAMESPACE) {
            eprintln!("objects are left: {error:#}");
        }
    }
}

/// The one pod of the controller.
struct Controller {
    uid: String,
    ip: IpAddr,
}

impl Controller {
    /// The pod that is not `other`, as soon as it has an address.
    fn find(other: &str) -> Result<Self> {
        let label = format!("app.kubernetes.io/name={CONTROLLER}");
        soon("a controller", || {
            let pods = get(&["-n", NAMESPACE, "pods", "-l", &label])?;
            let items = pods["items"].as_array().context("a list")?;
            let mut others = items.iter().filter(|pod| {
                pod["metadata"]["uid"] != other && pod["metadata"]["deletionTimestamp"].is_null()
            });
            let pod = others.next().context("none")?;
            let text = |value: &Value| value.as_str().map(str::to_owned);
            Ok(Self {
                uid: text(&pod["metadata"]["uid"]).context("a uid")?,
                ip: text(&pod["status"]["podIP"])
                    .context("no address")?
                    .parse()?,
            })
        })
    }

    fn pid(&self) -> Result<i32> {
        soon("its process", || process_of(&self.uid, "keelson-control"))
    }

    fn is_ready(&self, network: &Netns) -> Result<bool> {
        let admin = SocketAddr::new(self.ip, ADMIN);
        network.run(|| {
            let Ok(mut stream) = TcpStream::connect_timeout(&admin, Duration::from_secs(1)) else {
                return Ok(false);
            };
            // Its pages are for who names an address, and not a name that leads there.
            stream.write_all(b"GET /healthz/ready HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.contains(" 200 "))
        })?
    }
}

/// Until it works, up to five minutes, without much of a pause.
fn soon<T>(what: &str, attempt: impl FnMut() -> Result<T>) -> Result<T> {
    testkit::eventually_every(
        Duration::from_millis(10),
        what,
        Duration::from_secs(300),
        attempt,
    )
}

/// The process of a pod's container, by its cgroup and by the name that the kernel has of it.
fn process_of(pod: &str, name: &str) -> Result<i32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        let is_its = |file: &str, part: &str| {
            fs::read_to_string(path.join(file)).is_ok_and(|text| text.contains(part))
        };
        if is_its("comm", name) && is_its("cgroup", &format!("pod{pod}")) {
            return Ok(entry.file_name().to_string_lossy().parse()?);
        }
    }
    anyhow::bail!("no process {name} of the pod {pod}")
}

/// How long ago a process was started, to 10 ms: field 22 of `/proc/PID/stat`, in ticks of 10 ms since the machine's start.
fn age(pid: i32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("a name")?;
    let began: f64 = rest.split_whitespace().nth(19).context("a time")?.parse()?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let now: f64 = uptime
        .split_whitespace()
        .next()
        .context("a time")?
        .parse()?;
    Ok(Duration::from_secs_f64((now - began / 100.0).max(0.0)))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Restarts the controller and returns how long after the start of its process it was ready: it has read and compiled
/// everything.
fn restart(network: &Netns, before: &Controller) -> Result<(Controller, Duration)> {
    let label = format!("app.kubernetes.io/name={CONTROLLER}");
    let words = [
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        "--wait=false",
        "-l",
        &label,
    ];
    kubectl(&words)?;
    let controller = Controller::find(&before.uid)?;
    let pid = controller.pid()?;
    let took = soon("the controller is ready", || {
        ensure!(controller.is_ready(network)?, "not yet");
        age(pid)
    })?;
    Ok((controller, took))
}

/// What was promised of a mesh of 10,000 pods.
#[test]
#[ignore = "figures: only by cargo xtask bench cluster"]
fn ten_thousand_pods_of_a_real_api_server() -> Result<()> {
    let mesh = Installed::install_with(json!({"controller": {"replicas": 1}}))?;
    let network = Netns::of_process(mesh.standing()?.pid("node1")?)?;
    let crowd = Crowd(Objects::connect()?);
    let Crowd(objects) = &crowd;
    objects.make_nodes()?;
    let captured = objects.make_pods()?;
    soon("the pods with processes run", || {
        let ready = objects.own_ready()?;
        ensure!(ready == OWN, "{ready} of {OWN}");
        Ok(())
    })?;
    let tokens = soon("every node has a pod of its agent", || {
        let tokens = objects.tokens(NAMESPACE, AGENT)?;
        ensure!(tokens.len() == NODES, "{} of {NODES}", tokens.len());
        Ok(tokens)
    })?;
    let of = format!("{PODS} pods, {SERVICES} services, {ACCOUNTS} accounts");

    let mut controller = Controller::find("")?;
    let mut times = Vec::new();
    for _ in 0..RESTARTS {
        let (next, took) = restart(&network, &controller)?;
        controller = next;
        times.push(format!("{:.2}", took.as_secs_f64()));
    }
    let pid = controller.pid()?;
    sleep(SETTLE);
    print(
        &format!("controller with {of}: from the start of its process until it serves"),
        ("10 s", ""),
        &format!("{} s", times.join(", ")),
    );
    let alone = usage::processes(&[pid]).rss;

    let address = controller.ip.to_string();
    let (agents, report) = Agents::start(&network, &address, &tokens, &captured)?;
    // What agents hold is told to all others, and written down, one node after the other: that is no rest.
    soon("what every node holds is written down", || {
        sleep(Duration::from_secs(1));
        let maps = ["get", "configmap", "-l", "keelson.io/kept=captured-pods"];
        let maps = kubectl(&[&["-n", NAMESPACE][..], &maps, &["-o", "name"]].concat())?;
        let ours = maps.lines().filter(|map| map.contains(NODE)).count();
        ensure!(ours == NODES, "{ours} of {NODES}");
        Ok(())
    })?;
    sleep(SETTLE);
    let idle = usage::processes(&[pid]);
    sleep(SETTLE);
    let rests = usage::processes(&[pid]).cpu() - idle.cpu();
    let before = usage::processes(&[pid]);
    let began = Instant::now();
    let (changes, during) = objects.change(RATE, CHANGING)?;
    sleep(Duration::from_secs(1));
    let after = usage::processes(&[pid]);
    let window = began.elapsed().as_secs_f64();
    let pushed = agents.end()?;
    let expected = u64::try_from(changes * NODES)?;
    ensure!(
        pushed.addresses >= expected,
        "{changes} changes and {NODES} subscribers: {pushed:?}"
    );
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let rate = changes as f64 / during.as_secs_f64();
    print(
        &format!("controller with {of} and 100 agents, {NODES} of them simulated: resident memory"),
        ("200 MiB", ""),
        &format!(
            "{} after {changes} changes, {} before, {} without agents, peak {}",
            mib(after.rss),
            mib(before.rss),
            mib(alone),
            mib(usage::peak(pid))
        ),
    );
    print(
        &format!("the same: processors at {RATE} changed pods a second"),
        ("0.6", ""),
        &format!(
            "{:.2} at {rate:.0} a second for {window:.0} s, {:.3} without changes; {} responses to {NODES} agents; first \
             snapshot {:.2} s, those of all {:.2} s",
            (after.cpu() - before.cpu()) / window,
            rests / SETTLE.as_secs_f64(),
            pushed.responses,
            report.first_snapshot_seconds,
            report.all_snapshots_seconds
        ),
    );

    let agent = process_of(&agents::agent_pod("node1")?, "keelson-node-ag")?;
    let memory = usage::processes(&[agent]);
    print(
        &format!("agent in that mesh with {OWN} captured pods of its own: resident memory"),
        ("40 MiB", ""),
        &format!(
            "{}, of which {} of its own and not of files, peak {}",
            mib(memory.rss),
            mib(memory.anonymous),
            mib(usage::peak(agent))
        ),
    );
    Ok(())
}

const RESTARTS: usize = 3;
const RATE: u32 = 100;
const CHANGING: Duration = Duration::from_secs(30);
/// How long programs rest before their memory is read.
const SETTLE: Duration = Duration::from_secs(5);
/// The port on which the controller says whether it is ready.
const ADMIN: u16 = 15014;
