//! The mesh that the tests of direct connections share: clients on one node, servers on it and on the other.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, Pod};
use serde_json::Value;
use testkit::{Behaviour, Peer};
use tests_lab::{Shared, Turn, turn};

use crate::fixture::{APPLIES, CALL, Ended, call, mesh_namespace, plain_namespace, pod, serve};
use tests_lab::metrics::Metrics;

/// Servers of the Service: name, node, weight.
pub(super) const SERVERS: [(&str, &str, u32); 4] = [
    ("one", "n1", 1),
    ("three", "n1", 3),
    ("two", "n2", 2),
    ("four", "n2", 4),
];

/// The port of every server and of the Services' endpoints.
pub(super) const PORT: u16 = 8080;
/// Port of the Services.
const SERVICE_PORT: u16 = 80;

/// The mesh and the right to use it.
pub(super) struct Mesh {
    lab: &'static Lab,
    /// Captured, node n1.
    pub(super) client: Pod,
    /// Captured, node n1, another identity.
    pub(super) rival: Pod,
    _turn: Turn,
}

impl Deref for Mesh {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.lab
    }
}

/// The mesh without policies; the first who asks makes it.
pub(super) fn mesh() -> Result<Mesh> {
    let turn = turn()?;
    let lab = LAB.lab()?;
    let peers = PEERS.get_or_init(|| greeters(lab).map_err(|error| format!("{error:#}")));
    peers.as_ref().map_err(|error| anyhow!("{error}"))?;
    let mesh = Mesh {
        lab,
        client: lab.pod("green/client")?,
        rival: lab.pod("green/rival")?,
        _turn: turn,
    };
    mesh.clear()?;
    Ok(mesh)
}

impl Mesh {
    /// The address of a server.
    pub(super) fn server(&self, name: &str) -> Result<SocketAddr> {
        Ok((self.pod(&format!("green/{name}"))?.v4()?, PORT).into())
    }

    /// Writes policies; the caller waits for what they do.
    pub(super) fn policies(&self, text: &str) -> Result<()> {
        self.apply(POLICIES, text)
    }

    /// Takes all policies away and waits until the agent of n1 knows none.
    pub(super) fn clear(&self) -> Result<()> {
        if self.manifests_dir().join(POLICIES).exists() {
            self.delete(POLICIES)?;
        }
        lab::wait_until("n1 knows no policy", APPLIES, || {
            let dump = self.agent_json("n1", "/config_dump")?;
            Ok(dump["policies"].as_array().is_some_and(Vec::is_empty))
        })
    }

    /// The direct connections that the agent of n1 lists.
    pub(super) fn live(&self) -> Result<Vec<Value>> {
        let page = self.agent_json("n1", "/connections")?;
        let all = page.as_array().context("no list")?;
        let direct = all.iter().filter(|one| one["direction"] == "direct");
        Ok(direct.cloned().collect())
    }

    /// Waits until no direct connection of an earlier test is still being closed.
    pub(super) fn settle(&self) -> Result<()> {
        let what = "no direct connection is open";
        lab::wait_until(what, APPLIES, || Ok(self.live()?.is_empty()))
    }

    /// A counter of the kernel half of n1.
    pub(super) fn decisions(&self, reason: &str) -> Result<f64> {
        let metrics = Metrics::of_agent(self, "n1")?;
        Ok(metrics.sum("keelson_kernel_decisions_total", &[("reason", reason)]))
    }

    /// Waits until a call from `from` goes directly.
    pub(super) fn wait_direct(&self, from: &Pod, to: SocketAddr) -> Result<()> {
        let what = format!("{} reaches {to} directly", from.key());
        testkit::eventually(&what, APPLIES, || {
            let before = self.decisions("inbound_direct")?;
            let ended = call(from, to)?;
            ensure!(ended == Ended::Answered, "ended {ended}");
            ensure!(
                self.decisions("inbound_direct")? > before,
                "through the agent"
            );
            Ok(())
        })
    }
}

/// The address of the Service for whose endpoints only weights count.
pub(super) fn any_vip(v6: bool) -> SocketAddr {
    vip(40, v6)
}

/// The address of the Service that prefers endpoints of the client's node.
pub(super) fn near_vip(v6: bool) -> SocketAddr {
    vip(41, v6)
}

/// The address of the Service whose clients keep their endpoints.
pub(super) fn kept_vip(v6: bool) -> SocketAddr {
    vip(42, v6)
}

fn vip(host: u8, v6: bool) -> SocketAddr {
    let ip: IpAddr = if v6 {
        std::net::Ipv6Addr::new(
            0xfd00,
            0x10,
            0x96,
            0,
            0,
            0,
            0,
            u16::from(host / 10 * 16 + host % 10),
        )
        .into()
    } else {
        std::net::Ipv4Addr::new(10, 96, 0, host).into()
    };
    SocketAddr::new(ip, SERVICE_PORT)
}

/// Connects from the calling thread's namespace and reads which server answers.
pub(super) fn who_answers(to: SocketAddr) -> Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&to, CALL).with_context(|| format!("connecting to {to}"))?;
    stream.set_read_timeout(Some(CALL))?;
    let mut name = [0; NAME];
    stream
        .read_exact(&mut name)
        .with_context(|| format!("the name of {to}"))?;
    Ok(String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// How often something that is measured is repeated: `KEELSON_REPETITIONS`, or enough for a test.
pub(super) fn repetitions(usual: usize) -> usize {
    let asked = std::env::var("KEELSON_REPETITIONS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// One line of quantiles, for people: tests set no limit to times.
pub(super) fn report(what: &str, times: impl IntoIterator<Item = Duration>) {
    let mut latencies = testkit::Latencies::default();
    latencies.extend(times);
    say(&format!(
        "{what}: n={} p50={:?} p99={:?} max={:?}",
        latencies.count(),
        latencies.quantile(0.5),
        latencies.quantile(0.99),
        latencies.quantile(1.0)
    ));
}

/// Tells what was measured; seen with `--nocapture`.
#[expect(clippy::print_stdout, reason = "a figure is for whoever runs the test")]
pub(super) fn say(what: &str) {
    println!("measured: {what}");
}

fn greeters(lab: &Lab) -> Result<Vec<Peer>> {
    let greet = |(name, _, _): &(&str, &str, u32)| {
        let greeting = format!("{name:<NAME$}").into_bytes();
        serve(
            &lab.pod(&format!("green/{name}"))?,
            PORT,
            Behaviour::GreetThenEcho(greeting),
        )
    };
    let mut peers: Vec<Peer> = SERVERS.iter().map(greet).collect::<Result<_>>()?;
    // What is called with `call` must not greet.
    for name in ["echo", "far-echo", "plain-echo"] {
        let key = if name == "plain-echo" {
            "out/plain-echo".to_owned()
        } else {
            format!("green/{name}")
        };
        peers.push(serve(&lab.pod(&key)?, PORT, Behaviour::Echo)?);
    }
    Ok(peers)
}

fn make() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    let service = |name: &str, host: u8, more: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: green}}\nspec:\n  \
             clusterIP: 10.96.0.{host}\n  clusterIPs: [10.96.0.{host}, 'fd00:10:96::{host}']\n  \
             ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack\n  selector: {{role: server}}\n{more}  \
             ports:\n  - {{name: tcp, port: {SERVICE_PORT}, targetPort: {PORT}}}\n  \
             - {{name: udp, protocol: UDP, port: 53, targetPort: 5353}}\n"
        )
    };
    let mut text = mesh_namespace("green");
    text += "---\n";
    text += &plain_namespace("out");
    text += &service("any", 40, "");
    text += &service("near", 41, "  trafficDistribution: PreferSameNode\n");
    text += &service("kept", 42, "  sessionAffinity: ClientIP\n");
    lab.apply("mesh.yaml", &text)?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in ["n1", "n2"] {
        let options = AgentOptions {
            args: agent_args(),
            ..AgentOptions::default()
        };
        lab.start_agent(node, &options)?;
    }
    for (name, node) in [
        ("client", "n1"),
        ("rival", "n1"),
        ("echo", "n1"),
        ("far-echo", "n2"),
    ] {
        lab.create(&pod("green", name, node))?;
    }
    lab.create(&pod("out", "plain-echo", "n1"))?;
    for (name, node, weight) in SERVERS {
        let server = pod("green", name, node)
            .label("role", "server")
            .annotation("keelson.io/weight", &weight.to_string());
        lab.create(&server)?;
    }
    Ok(lab)
}

const NAME: usize = 8;
const POLICIES: &str = "policies.yaml";
static LAB: Shared = Shared::new(make);
static PEERS: OnceLock<Result<Vec<Peer>, String>> = OnceLock::new();

/// Agents tell how long their steps took.
pub(super) fn agent_args() -> Vec<String> {
    ["--log", "info,node_agent::direct=debug"]
        .map(str::to_owned)
        .into()
}

/// The times (`after_us`) of those log lines that hold `text`.
pub(super) fn times<'a>(lines: impl Iterator<Item = &'a str>, text: &str) -> Vec<Duration> {
    let of_line = |line: &str| {
        let (_, rest) = line.split_once("after_us=")?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some(Duration::from_micros(digits.parse().ok()?))
    };
    lines
        .filter(|line| line.contains(text))
        .filter_map(of_line)
        .collect()
}
