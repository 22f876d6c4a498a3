//! Two pods on two nodes, and the link between them under observation.

use std::cell::Cell;

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Capture, CaptureOptions, Netns};
use serde_json::Value;
use tests_cluster::{CLIENT, Namespace, SERVER, eventually, kubectl, nodes, pod, who_at};

use crate::installed::Installed;

/// What becomes of a connection that is open for long.
#[derive(Clone, Copy)]
pub(crate) enum Kept {
    /// It does not end.
    GoesOn,
    /// It ends some time after its agent is replaced, or its pod let go: at the deadline of the drain.
    EndsWithItsAgent,
}

/// A client on one node and a server on another.
pub(crate) struct Pair {
    pub(crate) namespace: Namespace,
    /// A shell command that asks the server.
    pub(crate) ask: String,
    link: Capture,
    /// Whether a connection is kept, whose packets are on the link too.
    keeps: Cell<bool>,
}

impl Pair {
    pub(crate) fn create(mesh: &Installed, about: &str) -> Result<Self> {
        let namespace = Namespace::create(about)?;
        let nodes = nodes()?;
        let [here, there] = nodes.as_slice() else {
            bail!("two nodes are needed, not {nodes:?}");
        };
        // It also sends back all that comes by a connection that is kept.
        let server = format!("nc -ll -p {ECHO} -e cat & {SERVER}");
        namespace.apply(&[
            pod("client", Some(here), CLIENT),
            pod("server", Some(there), &server),
        ])?;
        namespace.wait_ready("client")?;
        namespace.wait_ready("server")?;
        let netns = Netns::of_process(mesh.standing()?.pid(there)?)?;
        let options = CaptureOptions {
            needles: vec![REQUEST.to_vec()],
            ..CaptureOptions::default()
        };
        let link = Capture::start_with(&netns, "eth0", options)?;
        let ask = who_at(namespace.pod_ip("server")?);
        Ok(Self {
            namespace,
            ask,
            link,
            keeps: Cell::new(false),
        })
    }

    pub(crate) fn label(&self, value: &str) -> Result<()> {
        let name = self.namespace.name();
        kubectl(&["label", "namespace", name, "--overwrite", value]).map(drop)
    }

    /// Asks once and says whether the link showed the request, and that by exactly one way.
    pub(crate) fn is_readable(&self) -> Result<bool> {
        let (readable, tunnel) = self.ask_once()?;
        ensure!(
            readable != (tunnel > 0) || readable && self.keeps.get(),
            "readable: {readable}, {tunnel} packets of the tunnel"
        );
        Ok(readable)
    }

    /// Asks once: whether the link showed the request, and how many packets of tunnels it showed.
    fn ask_once(&self) -> Result<(bool, usize)> {
        self.link.clear();
        let answer = self.namespace.exec("client", &self.ask)?;
        let client = self.namespace.pod_ip("client")?;
        ensure!(answer.trim() == format!("server {client}"), "{answer}");
        let counts = self.link.counts();
        ensure!(counts.lost == 0, "the capture lost frames");
        let readable = counts.hits.iter().sum::<u64>() > 0;
        Ok((readable, self.link.count_port(6, TUNNEL)))
    }

    /// Forgets what the link has shown.
    pub(crate) fn watch_from_now(&self) {
        self.link.clear();
    }

    /// How many requests were readable since then.
    pub(crate) fn seen_in_the_clear(&self) -> Result<u64> {
        let counts = self.link.counts();
        ensure!(counts.lost == 0, "the capture lost frames");
        Ok(counts.hits.iter().sum())
    }

    /// Waits until it is so, and sees that it stays so.
    pub(crate) fn until_readable(&self, wanted: bool) -> Result<()> {
        eventually(&format!("the link shows requests: {wanted}"), || {
            let readable = self.is_readable()?;
            ensure!(readable == wanted, "readable: {readable}");
            Ok(())
        })?;
        // And from then on always. Tunnels that are being closed are seen beside requests that are readable.
        for _ in 0..5 {
            let (readable, tunnel) = self.ask_once()?;
            ensure!(
                readable == wanted && (wanted || tunnel > 0),
                "it changed its mind: readable: {readable}, {tunnel} packets of the tunnel"
            );
        }
        Ok(())
    }

    /// Has the client ask all the time, one request after the other, and talk by a connection that is kept, which is opened again
    /// when it ends, until [`Pair::stop_asking`].
    pub(crate) fn keep_asking(&self) -> Result<()> {
        // What was counted before is another's.
        self.namespace.exec(
            "client",
            "rm -f /tmp/stop /tmp/asked /tmp/kept /tmp/sent /tmp/back",
        )?;
        let ask = &self.ask;
        let ask_on = format!(
            "while [ ! -e /tmp/stop ]; do if {ask} > /dev/null; then echo good; else echo bad; fi; done > /tmp/asked 2>&1 & true"
        );
        self.namespace.exec("client", &ask_on)?;
        let to = self.namespace.pod_ip("server")?;
        let talk_on = format!(
            "talk() {{ i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1)); echo $i || break; echo $i > /tmp/sent; sleep 0.1; done; }}
            {{ while [ ! -e /tmp/stop ]; do
                echo 0 > /tmp/sent; talk | nc {to} {ECHO} > /tmp/back
                echo \"$(cat /tmp/sent) $(tail -n 1 /tmp/back)\" >> /tmp/kept; sleep 0.1
            done; }} > /dev/null 2>&1 & true"
        );
        self.namespace.exec("client", &talk_on)?;
        self.keeps.set(true);
        eventually("a connection is kept", || {
            let back = self.namespace.exec("client", "tail -n 1 /tmp/back")?;
            ensure!(!back.trim().is_empty(), "nothing comes back");
            Ok(())
        })
    }

    /// How many of these requests were answered so far, and how many were not.
    pub(crate) fn asked(&self) -> Result<(u64, u64)> {
        let count = |word: &str| -> Result<u64> {
            let count = format!("grep -c {word} /tmp/asked || true");
            Ok(self.namespace.exec("client", &count)?.trim().parse()?)
        };
        Ok((count("good")?, count("bad")?))
    }

    /// Ends the asking: more than 50 requests were answered, none was not, and the connection that was kept has gone on, but where
    /// agents were replaced that carried it.
    #[expect(clippy::print_stdout, reason = "the figure of a test")]
    pub(crate) fn stop_asking(&self, during: &str, kept: Kept) -> Result<()> {
        self.namespace.exec("client", "touch /tmp/stop")?;
        self.keeps.set(false);
        let (good, bad) = self.asked()?;
        // The last of them has had all back and ends now, or it is silent.
        let ended = eventually("the connection that is kept ends", || {
            let lines = self.namespace.exec("client", "cat /tmp/kept")?;
            let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
            let whole = |line: &String| {
                line.split_once(' ')
                    .is_some_and(|(sent, back)| sent == back)
            };
            ensure!(
                lines.last().is_some_and(whole),
                "sent and had back: {lines:?}"
            );
            Ok(lines)
        })?;
        // Those that were open; an attempt to open one again is a request that failed.
        let opened: Vec<&String> = ended.iter().filter(|line| !line.ends_with(' ')).collect();
        let unopened = ended.len() - opened.len();
        let broken = opened.len().saturating_sub(1);
        println!(
            "while {during}: {good} requests and {} kept connections, failed: {bad} requests, {broken} kept, {unopened} that \
             were to be kept; sent and had back: {ended:?}",
            opened.len()
        );
        ensure!(
            good > 50 && bad == 0 && unopened == 0,
            "while {during}: {good} good, {bad} bad, {ended:?}"
        );
        match kept {
            Kept::GoesOn => ensure!(
                broken == 0,
                "while {during} the kept connection ended: {ended:?}"
            ),
            Kept::EndsWithItsAgent => {}
        }
        Ok(())
    }

    /// How often containers were started again.
    pub(crate) fn restarts(&self) -> Result<u64> {
        let pods = self.namespace.get(&["pods"])?;
        let items = pods["items"].as_array().context("a list of pods")?;
        let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        Ok(items.iter().filter_map(restarts).sum())
    }
}

const REQUEST: &[u8] = b"GET /cgi-bin/who";
const TUNNEL: u16 = 15008;
/// Where the server sends back what it gets.
const ECHO: u16 = 9090;
