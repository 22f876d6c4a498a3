//! The mesh that most themes share, and what every test does in it: serve, dial, look at the wire.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{AgentOptions, Capture, ControllerOptions, Lab, Pod, PodSpec};
pub(crate) use tests_lab::evidence;
use tests_lab::talk;
pub(crate) use tests_lab::talk::{Ended, echo, listen, listen_on, serve};
use tests_lab::{Shared, Turn, headless, mtls, namespace, service, turn};

/// A pod of the shared mesh: its name is unique, and so is the last part of its Service's VIPs.
type Place = (&'static str, &'static str, &'static str, u8);

/// Namespace, name, node, VIP. `mesh` is captured and permissive, `strict` captured and STRICT.
const PLACES: [Place; 8] = [
    ("mesh", "a", "n1", 11),
    ("mesh", "b", "n1", 12),
    ("mesh", "c", "n2", 13),
    ("strict", "s", "n1", 21),
    ("strict", "t", "n2", 22),
    ("plain", "p", "n1", 31),
    ("plain", "q", "n1", 32),
    ("plain", "r", "n2", 33),
];

/// The port behind port 80 of every pod's Service and behind its headless Service.
pub(crate) const DECLARED: u16 = 8080;
/// The ports on which every pod declares a probe; only the first is a Service's.
pub(crate) const PROBED: [u16; 3] = [DECLARED, 8086, 10_254];
/// The port behind UDP port 53 of every pod's Service.
pub(crate) const DNS: u16 = 5353;
/// A Service that has no endpoints.
pub(crate) const NOBODY: u8 = 99;
/// How long one step of a conversation may take before it counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Within which a connection that cannot be must have ended.
pub(crate) const REFUSED_WITHIN: Duration = Duration::from_secs(1);
/// How long a change of configuration may take to show.
pub(crate) const APPLIES: Duration = Duration::from_secs(15);

/// The shared mesh and the right to use it.
pub(crate) struct World {
    lab: &'static Lab,
    _turn: Turn,
}

impl Deref for World {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.lab
    }
}

/// The shared mesh, made by the first test that asks. Its configuration stays as it is.
pub(crate) fn world() -> Result<World> {
    static WORLD: Shared = Shared::new(build);
    let turn = turn()?;
    let lab = WORLD.lab().context("making the shared mesh")?;
    Ok(World { lab, _turn: turn })
}

/// A second mesh like the first, for tests that kill agents, label namespaces and make pods. All
/// agents run when a test gets it, whatever the test before did.
pub(crate) fn changing_world() -> Result<World> {
    static WORLD: Shared = Shared::new(build);
    let turn = turn()?;
    let lab = WORLD.lab().context("making the changing mesh")?;
    for node in ["n1", "n2"] {
        if lab.agent_pid(node).is_none() {
            lab.start_agent(node, &AgentOptions::default())?;
        }
    }
    Ok(World { lab, _turn: turn })
}

fn build() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    let mut text = namespace("mesh", &[("keelson.io/mesh", "enabled")]);
    text += &namespace("strict", &[("keelson.io/mesh", "enabled")]);
    text += &namespace("plain", &[]);
    text += &mtls("strict", "STRICT");
    text += &service("mesh", "nobody", NOBODY, &[("TCP", 80, DECLARED)]);
    for (space, name, _, host) in PLACES {
        text += &service(
            space,
            name,
            host,
            &[("TCP", 80, DECLARED), ("UDP", 53, DNS)],
        );
        let ports = [("TCP", DECLARED, DECLARED)];
        text += &headless(space, &format!("{name}-headless"), name, &ports);
    }
    lab.apply("mesh.yaml", &text)?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in ["n1", "n2"] {
        lab.start_agent(node, &AgentOptions::default())?;
    }
    for (space, name, node, _) in PLACES {
        let spec = PodSpec::new(space, name, node).service_account(name);
        lab.create(&spec.probed(&PROBED))?;
    }
    for (client, server) in [
        ("mesh/a", "mesh/c"),
        ("mesh/c", "mesh/a"),
        ("mesh/a", "strict/t"),
    ] {
        wait_encrypted(&lab, &lab.pod(client)?, &lab.pod(server)?)?;
    }
    Ok(lab)
}

/// Waits until connections of two pods on two nodes are no longer readable on the link.
pub(crate) fn wait_encrypted(lab: &Lab, client: &Pod, server: &Pod) -> Result<()> {
    wait_wire(lab, client, server, false)
}

/// Waits until connections of two pods on two nodes are readable on the link.
pub(crate) fn wait_readable(lab: &Lab, client: &Pod, server: &Pod) -> Result<()> {
    wait_wire(lab, client, server, true)
}

fn wait_wire(lab: &Lab, client: &Pod, server: &Pod, readable: bool) -> Result<()> {
    let (from, to) = (client.key(), server.key());
    let port = fresh_port();
    let echo = echo(server, port)?;
    let address = SocketAddr::new(server.v4()?.into(), port);
    let link = link(lab)?;
    let what = format!("{from} to {to} is readable on the link: {readable}");
    let waited = testkit::eventually(&what, APPLIES, || {
        link.clear();
        let token = token();
        let stream = dial(client, address)?;
        round_trip(&stream, &token)?;
        let is = link.contains(&token)?;
        ensure!(is == readable, "{is}");
        Ok(())
    });
    drop(echo);
    waited.with_context(|| evidence(lab))
}

/// A capture of the link between the nodes.
pub(crate) fn link(lab: &Lab) -> Result<Capture> {
    lab.node("n1")?.capture_uplink()
}

/// The addresses of a pod's Service, IPv4 first.
pub(crate) fn vips(pod: &Pod) -> Result<[IpAddr; 2]> {
    let place = PLACES.iter().find(|place| place.1 == pod.name());
    let (_, _, _, host) = place.context("a pod without a Service")?;
    vip(*host)
}

/// The addresses of the Service with this number, IPv4 first.
pub(crate) fn vip(host: u8) -> Result<[IpAddr; 2]> {
    Ok([
        Ipv4Addr::new(10, 96, 0, host).into(),
        format!("fd00:10:96::{host}").parse()?,
    ])
}

/// Bytes that occur nowhere else; short, so that they stay in one segment.
pub(crate) fn token() -> Vec<u8> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("<token {}-{number}>", std::process::id()).into_bytes()
}

/// A port that no other test uses, below those that kernels and proxies choose by themselves.
pub(crate) fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(2000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Connects from a pod; reads and writes of the connection end after [`PATIENCE`].
pub(crate) fn dial(from: &Pod, to: SocketAddr) -> Result<TcpStream> {
    talk::dial(from, to, PATIENCE)
}

/// Makes what hangs fail.
pub(crate) fn patient(stream: &TcpStream) -> Result<()> {
    talk::make_patient(stream, PATIENCE)
}

/// Sends bytes to an echo and gets them back.
pub(crate) fn round_trip(mut stream: &TcpStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).context("writing to an echo")?;
    let mut back = vec![0; bytes.len()];
    stream
        .read_exact(&mut back)
        .context("reading from an echo")?;
    ensure!(back == bytes, "other bytes came back: {back:?}");
    Ok(())
}

/// Both ends of one new connection between two pods.
pub(crate) fn both_ends(from: &Pod, to: &Pod) -> Result<(TcpStream, TcpStream)> {
    let port = fresh_port();
    let listener = listen(to, port)?;
    let client = dial(from, SocketAddr::new(to.v4()?.into(), port))?;
    listener.set_nonblocking(true)?;
    let (server, _) =
        testkit::eventually("the server accepts", PATIENCE, || Ok(listener.accept()?))?;
    server.set_nonblocking(false)?;
    patient(&server)?;
    Ok((client, server))
}

/// Tries to talk to an echo from the calling thread; how it ended and how long that took.
pub(crate) fn attempt_here(to: SocketAddr, bytes: &[u8]) -> (Ended, Duration) {
    let start = Instant::now();
    let ended = talk::call_here(to, bytes, PATIENCE);
    (ended, start.elapsed())
}

/// As [`attempt_here`], from a pod.
pub(crate) fn attempt(from: &Pod, to: SocketAddr) -> Result<(Ended, Duration)> {
    let bytes = token();
    from.run(|| attempt_here(to, &bytes))
}

/// The addresses of a pod with this port, IPv4 first.
pub(crate) fn addresses(pod: &Pod, port: u16) -> Vec<SocketAddr> {
    let ips = pod.ips().iter();
    ips.map(|ip| SocketAddr::new(*ip, port)).collect()
}

/// Requires that an attempt is refused within [`REFUSED_WITHIN`].
pub(crate) fn expect_refused(from: &Pod, to: SocketAddr) -> Result<()> {
    let (ended, took) = attempt(from, to)?;
    judge_refusal(ended, took).with_context(|| format!("{} to {to}", from.key()))
}

/// Requires a refusal within [`REFUSED_WITHIN`].
pub(crate) fn judge_refusal(ended: Ended, took: Duration) -> Result<()> {
    ensure!(ended.is_refusal(), "not refused but {ended:?} in {took:?}");
    ensure!(took < REFUSED_WITHIN, "{ended:?} only after {took:?}");
    Ok(())
}

/// Requires that an attempt is answered.
pub(crate) fn expect_echo(from: &Pod, to: SocketAddr) -> Result<()> {
    let (ended, took) = attempt(from, to)?;
    ensure!(
        ended == Ended::Answered,
        "{} to {to}: {ended:?} in {took:?}",
        from.key()
    );
    Ok(())
}

/// Attempts to talk to an echo, one after another, from a thread of a pod until it is asked to end.
pub(crate) struct Hammer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<(Ended, Duration)>>>,
}

impl Hammer {
    /// Starts to send these bytes again and again.
    pub(crate) fn start(from: &Pod, to: SocketAddr, bytes: Vec<u8>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (pod, stopped) = (from.clone(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            pod.enter()?;
            let mut outcomes = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                outcomes.push(attempt_here(to, &bytes));
            }
            Ok(outcomes)
        });
        Self { stop, thread }
    }

    /// Ends it; how its attempts ended, in order.
    pub(crate) fn stop(self) -> Result<Vec<(Ended, Duration)>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// What went wrong in the cells of a table; all of them are tried.
#[derive(Default)]
pub(crate) struct Failures(Vec<String>);

impl Failures {
    /// Notes how one cell went.
    pub(crate) fn note(&mut self, cell: &str, result: Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{cell}: {error:#}"));
        }
    }

    /// Whether all went well so far.
    pub(crate) fn none(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails if any cell did, with what the agents say about it.
    pub(crate) fn judge(self, lab: &Lab) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        bail!("{}\n{}", self.0.join("\n"), evidence(lab));
    }
}
