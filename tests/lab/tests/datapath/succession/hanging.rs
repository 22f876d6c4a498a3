//! A successor that stands still in the middle of a succession, and whoever asks the agents for something
//! meanwhile.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{AgentOptions, Process};
use nix::sys::signal::Signal;

use super::{SHORT, Traffic, agent, expect_exit_0, judge_link, judge_load, with_agents};
use crate::load::{Client, Load};
use crate::support::{
    APPLIES, PATIENCE, World, changing_world, echo, evidence, expect_echo, token,
};

/// What the agent in charge says when it has paused, and when it has been succeeded.
const PAUSED: &str = "paused: the successor takes over";
const SUCCEEDED: &str = "cause=Succeeded";
/// Longer than an agent needs to answer, shorter than anybody's patience.
const STANDSTILL: Duration = Duration::from_millis(700);

fn with_patience(patience: &str) -> AgentOptions {
    let mut options = agent();
    options.args = vec!["--takeover-timeout".to_owned(), patience.to_owned()];
    options
}

/// A successor of the agent of n1, stopped after the pause and before it was through. One that was faster
/// than this test is in charge, and gets a successor itself.
fn stopped_in_the_pause(world: &World, options: &AgentOptions) -> Result<Process> {
    let said = |text: &str| world.agent_log("n1").matches(text).count();
    for _ in 0..20 {
        let (paused, succeeded) = (said(PAUSED), said(SUCCEEDED));
        let mut successor = world.spawn_agent("n1", options)?;
        let _slow = Slow::down(successor.pid())?;
        let started = Instant::now();
        while said(PAUSED) == paused {
            ensure!(
                started.elapsed() < 4 * APPLIES,
                "no pause\n{}",
                evidence(world)
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        successor.signal(Signal::SIGSTOP)?;
        // What it had said by then is heard.
        let listens = Instant::now();
        while said(SUCCEEDED) == succeeded && listens.elapsed() < STANDSTILL / 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        if said(SUCCEEDED) == succeeded {
            return Ok(successor);
        }
        successor.signal(Signal::SIGCONT)?;
        world.wait_in_charge("n1", &mut successor)?;
        let before = world.adopt_agent("n1", successor);
        expect_exit_0(&mut before.context("an agent before")?)?;
    }
    bail!("the successor was never caught in the pause")
}

/// As long as it lives, all processors are busy and a process gets little of them, so that a moment of it is
/// long enough to be seen.
struct Slow(Arc<AtomicBool>);

impl Slow {
    fn down(pid: i32) -> Result<Self> {
        let status = std::process::Command::new("renice")
            .args(["-n", "10", "-p", &pid.to_string()])
            .stdout(std::process::Stdio::null())
            .status()?;
        ensure!(status.success(), "renice: {status}");
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism()?.get() {
            let over = Arc::clone(&over);
            std::thread::spawn(move || while !over.load(Ordering::Relaxed) {});
        }
        Ok(Self(over))
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Says again and again, as a container runtime does, that a pod of n1 has its sandbox.
struct Runtime {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Result<String>, Duration)>>,
}

impl Runtime {
    fn start(world: &World, pod: &str) -> Result<Self> {
        let pod = world.pod(pod)?;
        let request = serde_json::json!({"add": {
            "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid(),
            "netns": pod.netns().path(), "ips": pod.ips(),
        }});
        let (socket, request) = (world.agent_socket("n1"), format!("{request}\n"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut answers = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                answers.push((ask(&socket, &request), asked.elapsed()));
            }
            answers
        });
        Ok(Self { stop, thread })
    }

    /// Those that were answered and how many were not, the longest first.
    fn stop(self) -> Result<(Vec<Duration>, Vec<String>)> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut answered, mut failed) = (Vec::new(), Vec::new());
        for (answer, took) in self.thread.join().unwrap() {
            match answer {
                Ok(answer) if answer.contains("\"captured\"") => answered.push(took),
                Ok(other) => failed.push(format!("{other:?} after {took:?}")),
                Err(error) => failed.push(format!("{error:#} after {took:?}")),
            }
        }
        answered.sort_unstable_by(|one, other| other.cmp(one));
        Ok((answered, failed))
    }
}

fn ask(socket: &PathBuf, request: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).context("no agent listens")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

/// Neither agent enrols for a while; then the successor goes on. Every request is answered, those that the
/// first one had with the answer of the second, and no connection fails.
#[test]
fn a_request_that_is_caught_in_the_pause_is_answered_by_the_successor() -> Result<()> {
    let world = changing_world()?;
    let options = with_patience("20s");
    with_agents(&world, &options)?;
    let traffic = Traffic::new(&world)?;
    let link = traffic.watch(&world)?;
    let runtime = Runtime::start(&world, "mesh/a")?;
    let mut successor = stopped_in_the_pause(&world, &options)?;
    std::thread::sleep(STANDSTILL);
    successor.signal(Signal::SIGCONT)?;
    world.wait_in_charge("n1", &mut successor)?;
    let mut before = world.adopt_agent("n1", successor).context("the first")?;
    let (client, to) = (&traffic.clients[0].pod, traffic.clients[0].to);
    expect_echo(client, to)?;
    let (answered, failed) = runtime.stop()?;
    ensure!(failed.is_empty(), "{failed:?}\n{}", evidence(&world));
    ensure!(
        answered
            .first()
            .is_some_and(|longest| *longest >= STANDSTILL),
        "no request was caught in the pause: {:?}",
        answered.first()
    );
    println!(
        "{} requests, all answered, the slowest in {:?}",
        answered.len(),
        answered.first()
    );
    expect_exit_0(&mut before)?;
    judge_link(&link)?;
    Ok(())
}

/// A successor that hangs after the pause is killed after `--takeover-timeout`; the old one takes back what
/// it had lost, answers the requests that it has, and goes on as before.
#[test]
fn a_successor_that_hangs_after_the_pause_is_killed_and_the_old_one_goes_on() -> Result<()> {
    let world = changing_world()?;
    let options = with_patience("2s");
    with_agents(&world, &options)?;
    let traffic = Traffic::new(&world)?;
    let guarded = world.pod("strict/s")?;
    let strict = echo(&guarded, traffic.port)?;
    let stranger = Client {
        pod: world.pod("plain/p")?,
        to: (guarded.v4()?, traffic.port).into(),
        bytes: token(),
        counts: false,
    };
    let link = traffic.watch(&world)?;
    let strangers = Load::start(&[stranger]);
    let (started, runtime) = (Instant::now(), Runtime::start(&world, "mesh/a")?);
    let mut successor = stopped_in_the_pause(&world, &options)?;
    let in_charge = world.agent_pid("n1");
    let ended = successor.wait(APPLIES)?.context("it was not killed")?;
    ensure!(!ended.success(), "{ended}");
    lab::wait_until("the old one says so", APPLIES, || {
        let log = world.agent_log("n1");
        Ok(log.contains("the successor hangs; killing it and going on"))
    })?;
    let (client, to) = (&traffic.clients[0].pod, traffic.clients[0].to);
    testkit::eventually("traffic goes on", APPLIES, || expect_echo(client, to))
        .with_context(|| evidence(&world))?;
    lab::wait_until("the old one is in charge", APPLIES, || {
        let page = world.agent_json("n1", "/config_dump")?;
        let pid = page.get("pid").and_then(serde_json::Value::as_i64);
        Ok(pid == in_charge.map(i64::from))
    })?;
    // All of it: every pair of pods, and none refused any more.
    let again = Instant::now();
    let load = Load::start(&traffic.clients);
    load.wait_for(SHORT / 4)?;
    judge_load(&world, &load.stop(again)?, SHORT / 4)?;
    let (answered, failed) = runtime.stop()?;
    println!(
        "{} requests answered, the slowest in {:?}; {} lost with the successor: {failed:?}",
        answered.len(),
        answered.first(),
        failed.len(),
    );
    // The kubelet asks again when whom it asked is killed; that is one at a time here.
    ensure!(failed.len() <= 1, "{failed:?}\n{}", evidence(&world));
    let refused = strangers.stop(started)?;
    ensure!(
        refused.total() == 0 && strict.accepted() == 0,
        "STRICT was open {} times",
        strict.accepted()
    );
    judge_link(&link)?;
    // And it can be succeeded still.
    let mut before = world.succeed_agent("n1", &agent())?;
    expect_exit_0(&mut before)?;
    expect_echo(client, to)
}

/// Two containers that are always restarted: the one that was succeeded stands by when it comes again, and
/// is in charge only when the other has ended.
#[test]
fn a_succeeded_instance_that_is_started_again_stands_by() -> Result<()> {
    let world = changing_world()?;
    let instance = |name: &str| {
        let mut options = agent();
        options.args = vec!["--instance".to_owned(), name.to_owned()];
        options
    };
    with_agents(&world, &instance("one"))?;
    let traffic = Traffic::new(&world)?;
    let (client, to) = (&traffic.clients[0].pod, traffic.clients[0].to);
    let link = traffic.watch(&world)?;
    let mut before = world.succeed_agent("n1", &instance("two"))?;
    expect_exit_0(&mut before)?;
    let in_charge = world.agent_pid("n1");

    let mut again = world.spawn_agent("n1", &instance("one"))?;
    let stands_by = || {
        let log = world.agent_log("n1");
        Ok(log.contains("this instance has been succeeded; standing by"))
    };
    lab::wait_until("it stands by", APPLIES, stands_by)?;
    let (started, load) = (Instant::now(), Load::start(&traffic.clients));
    load.wait_for(SHORT / 4)?;
    judge_load(&world, &load.stop(started)?, SHORT / 4)?;
    ensure!(again.exited()?.is_none(), "it has ended");
    let page = world.agent_json("n1", "/config_dump")?;
    let pid = page.get("pid").and_then(serde_json::Value::as_i64);
    ensure!(pid == in_charge.map(i64::from), "another is in charge");
    // A third that was never succeeded need not wait for the one that stands by.
    let mut second = world.succeed_agent("n1", &instance("three"))?;
    expect_exit_0(&mut second)?;
    ensure!(again.exited()?.is_none(), "it has ended");

    world.kill_agent("n1")?;
    world.wait_in_charge("n1", &mut again)?;
    drop(world.adopt_agent("n1", again));
    testkit::eventually("traffic returns", APPLIES, || expect_echo(client, to))
        .with_context(|| evidence(&world))?;
    judge_link(&link)?;
    Ok(())
}

/// As many agents' cgroups as there is room for, all gone: the next agent's own connections are known all
/// the same, or it could carry nothing.
#[test]
fn cgroups_of_gone_agents_make_room_for_the_next_agent() -> Result<()> {
    let world = changing_world()?;
    with_agents(&world, &agent())?;
    let traffic = Traffic::new(&world)?;
    let link = traffic.watch(&world)?;
    let map = world
        .bpf_dir("n1")
        .join(format!("v{}", abi_version(&world)?))
        .join("AGENTS");
    // No cgroup has such an id.
    let gone = (1_u64 << 48)..;
    let filled = crate::maps::fill(&map, gone.map(u64::to_ne_bytes), &1_u32.to_ne_bytes())?;
    ensure!(filled > 32, "only {filled} went in");
    let mut options = agent();
    options.cgroup = "agent-elsewhere".to_owned();
    let started = Instant::now();
    let load = Load::start(&traffic.clients);
    load.wait_for(SHORT / 8)?;
    let mut before = world.succeed_agent("n1", &options)?;
    load.wait_for(SHORT / 2)?;
    judge_load(&world, &load.stop(started)?, SHORT / 2)?;
    expect_exit_0(&mut before)?;
    judge_link(&link)?;
    let left = crate::maps::entries(&map)?;
    let left = left.first().map(|(_, entries)| *entries);
    ensure!(
        left.is_some_and(|left| left < filled && left >= 2),
        "{left:?} of {filled} are left"
    );
    Ok(())
}

/// The version of the kernel contract that the agent of n1 goes by.
fn abi_version(world: &World) -> Result<u64> {
    let page = world.agent_json("n1", "/config_dump")?;
    let version = page.get("abi").and_then(serde_json::Value::as_u64);
    version.context("the page names no version")
}
