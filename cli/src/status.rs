//! `keelson status`: is every node in step, and is captured what is to be.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use admin_api::{Certificate, ConfigDump, Health, PodState, StreamStatus, page};
use anyhow::Result;
use serde::Serialize;

use crate::output::Answer;
use crate::reach::Mesh;
use crate::table::Table;

/// Show agents: versions, in step or not, pods wanted and captured with the reason why not, certificates.
///
/// Exit codes: 0, all agents are ready, in step and have captured what is wanted; 1, something is not so; 2, nobody
/// could be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this node.
    node: Option<String>,
}

/// All that is shown.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    /// Why the controller could not be asked, if it could not.
    controller_error: Option<String>,
    nodes: Vec<Node>,
}

/// One node.
#[derive(Debug, Serialize)]
struct Node {
    node: String,
    /// `ready`, or what is awaited, or why nobody answers.
    agent: String,
    version: Option<String>,
    /// `synced`, or what is behind or refused.
    in_step: String,
    pods_wanted: usize,
    pods_captured: usize,
    /// Pods that are not as the controller wants them.
    troubles: Vec<Trouble>,
    certificates: usize,
    certificates_failing: usize,
    /// Seconds until the first certificate ends.
    first_ends_in: Option<u64>,
    #[serde(skip)]
    is_good: bool,
}

/// A pod that is wanted and not captured, or the other way round.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Trouble {
    pub(crate) pod: String,
    pub(crate) wanted: bool,
    /// Where it stands.
    pub(crate) state: String,
    /// Why.
    pub(crate) reason: String,
}

pub(crate) fn answer(args: &Args, mesh: &Mesh) -> Result<Answer> {
    let status = look(mesh, args.node.as_deref())?;
    let is_good = status.is_good();
    Ok(Answer::good(&status, status.text())?.but(is_good))
}

/// Asks everybody.
pub(crate) fn look(mesh: &Mesh, only: Option<&str>) -> Result<Status> {
    let mut nodes = mesh.nodes();
    if let Some(only) = only {
        anyhow::ensure!(
            nodes.iter().any(|node| node == only),
            "there is no node {only}; the nodes are {}",
            nodes.join(", ")
        );
        nodes.retain(|node| node == only);
    }
    let (streams, controller_error) = match mesh.streams() {
        Ok((streams, silent)) => {
            // Who is known to none of those that answer may be known to one that does not.
            let all = silent.is_empty().then_some(streams);
            let error = silent.join("; ");
            (all, (!error.is_empty()).then_some(error))
        }
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let ask = |node: &String| Node::ask(mesh, node, streams.as_ref());
    Ok(Status {
        controller_error,
        nodes: nodes.iter().map(ask).collect(),
    })
}

impl Status {
    pub(crate) fn is_good(&self) -> bool {
        self.controller_error.is_none() && self.nodes.iter().all(|node| node.is_good)
    }

    /// The versions of the agents that answer, by node.
    pub(crate) fn versions(&self) -> impl Iterator<Item = (&str, &str)> {
        let of = |node: &'_ Node| node.version.is_some();
        let known = self.nodes.iter().filter(move |node| of(node));
        known.map(|node| {
            (
                node.node.as_str(),
                node.version.as_deref().unwrap_or_default(),
            )
        })
    }

    /// Everything that is not as it should be, for people.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut said: Vec<String> = self.controller_error.iter().cloned().collect();
        for node in &self.nodes {
            if node.agent != READY {
                said.push(format!("node {}: {}", node.node, node.agent));
            }
            if node.in_step != SYNCED && node.version.is_some() {
                said.push(format!(
                    "node {} is not in step: {}",
                    node.node, node.in_step
                ));
            }
            for trouble in &node.troubles {
                let wanted = if trouble.wanted {
                    "wanted"
                } else {
                    "not wanted"
                };
                let Trouble {
                    pod, state, reason, ..
                } = trouble;
                said.push(format!(
                    "pod {pod} on {} is {wanted} and {state}: {reason}",
                    node.node
                ));
            }
            if node.certificates_failing > 0 {
                said.push(format!(
                    "node {}: {} certificates cannot be had or renewed; see keelson proxy-config certificate --node {}",
                    node.node, node.certificates_failing, node.node
                ));
            }
        }
        said
    }

    fn text(&self) -> String {
        let mut table = Table::new([
            "NODE",
            "AGENT",
            "VERSION",
            "IN STEP",
            "PODS",
            "CERTIFICATES",
            "FIRST ENDS",
        ]);
        for node in &self.nodes {
            let is_up = node.version.is_some();
            let shown = |text: String| if is_up { text } else { String::new() };
            let failing = match node.certificates_failing {
                0 => String::new(),
                failing => format!(", {failing} failing"),
            };
            table.row([
                node.node.clone(),
                if node.agent == READY {
                    READY
                } else {
                    "NOT READY"
                }
                .to_owned(),
                node.version.clone().unwrap_or_default(),
                shown(if node.in_step == SYNCED {
                    SYNCED.into()
                } else {
                    "NO".into()
                }),
                shown(format!("{}/{}", node.pods_captured, node.pods_wanted)),
                shown(format!("{}{failing}", node.certificates)),
                node.first_ends_in.map(duration).unwrap_or_default(),
            ]);
        }
        let mut text = table.to_string();
        let complaints = self.complaints();
        if !complaints.is_empty() {
            text.push('\n');
        }
        for complaint in complaints {
            text.push_str(&format!("! {complaint}\n"));
        }
        text
    }
}

impl Node {
    fn ask(mesh: &Mesh, name: &str, streams: Option<&BTreeMap<String, StreamStatus>>) -> Self {
        let mut node = Self {
            node: name.to_owned(),
            agent: String::new(),
            version: None,
            in_step: "unknown".to_owned(),
            pods_wanted: 0,
            pods_captured: 0,
            troubles: Vec::new(),
            certificates: 0,
            certificates_failing: 0,
            first_ends_in: None,
            is_good: false,
        };
        if let Err(error) = node.fill(mesh, streams) {
            node.agent = format!("{error:#}");
        }
        node
    }

    fn fill(
        &mut self,
        mesh: &Mesh,
        streams: Option<&BTreeMap<String, StreamStatus>>,
    ) -> Result<()> {
        let health = mesh.agent(&self.node, page::HEALTH)?;
        let health = Health::read(health.status, &health.body);
        if let Some(why) = health.cannot {
            self.agent = format!("wanted, cannot: {why}");
            return Ok(());
        }
        self.agent = if health.ready {
            READY.to_owned()
        } else {
            format!("not ready, awaits {}", health.awaited.join(", "))
        };
        let dump = mesh.dump(&self.node)?;
        let certificates: Vec<Certificate> = mesh
            .agent(&self.node, page::CERTIFICATES)?
            .json(&self.node)?;
        self.in_step = in_step(&dump, streams.map(|streams| streams.get(&self.node)));
        self.pods_wanted = dump.wanted.iter().filter(|pod| pod.capture).count();
        let captured = dump.pods.iter();
        self.pods_captured = captured
            .filter(|pod| pod.state == PodState::Captured)
            .count();
        self.troubles = troubles(&dump);
        self.certificates = certificates.len();
        let failing = |one: &&Certificate| one.failures > 0 || one.not_after.is_none();
        self.certificates_failing = certificates.iter().filter(failing).count();
        let first = certificates.iter().filter_map(|one| one.not_after).min();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        self.first_ends_in = first.map(|end| end.saturating_sub(now));
        self.version = Some(dump.version);
        self.is_good = health.ready
            && self.in_step == SYNCED
            && self.troubles.is_empty()
            && self.certificates_failing == 0;
        Ok(())
    }
}

/// Pods that are not as the controller wants them.
pub(crate) fn troubles(dump: &ConfigDump) -> Vec<Trouble> {
    let mut found = Vec::new();
    for wish in &dump.wanted {
        let name = format!("{}/{}", wish.namespace, wish.name);
        let is_meant =
            |pod: &&admin_api::Pod| pod.namespace == wish.namespace && pod.name == wish.name;
        let trouble = |state: String, reason: String| Trouble {
            pod: name.clone(),
            wanted: wish.capture,
            state,
            reason,
        };
        match dump.pods.iter().find(is_meant) {
            Some(pod) => {
                let is_there = pod.state == PodState::Captured;
                let is_out = pod.state == PodState::Exempt;
                if (wish.capture && !is_there) || (!wish.capture && !is_out) {
                    found.push(trouble(pod.state.to_string(), pod.reason.clone()));
                }
            }
            None if wish.capture => found.push(trouble(
                "not found".to_owned(),
                "the agent has found no process of it and the CNI has not named it; does it run?"
                    .to_owned(),
            )),
            None => {}
        }
    }
    found.sort();
    found
}

/// Whether an agent has taken what the controller has sent. `stream` is what the controller says, if it could be
/// asked: nothing inside where it knows no such agent.
fn in_step(dump: &ConfigDump, stream: Option<Option<&StreamStatus>>) -> String {
    if !dump.configuration.connected {
        let why = dump.configuration.last_error.as_deref();
        let why = why.unwrap_or("no error is known");
        return format!("the agent has no stream from the controller: {why}");
    }
    let Some(stream) = stream else {
        return "unknown".to_owned();
    };
    let Some(stream) = stream else {
        return "the controller knows no stream of this node".to_owned();
    };
    let mut behind = Vec::new();
    for (url, state) in &stream.types {
        let name = url.rsplit('.').next().unwrap_or(url);
        if let Some(nack) = &state.nack {
            behind.push(format!("{name} refused: {nack}"));
        } else if state.acked < state.sent {
            behind.push(format!("{name} at {} of {}", state.acked, state.sent));
        }
    }
    for (url, state) in &dump.configuration.types {
        if !state.synced {
            let name = url.rsplit('.').next().unwrap_or(url);
            behind.push(format!("{name} not sent"));
        }
    }
    match behind.as_slice() {
        [] => SYNCED.to_owned(),
        behind => behind.join("; "),
    }
}

/// A duration in its two largest units.
pub(crate) fn duration(seconds: u64) -> String {
    let all = [(86400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let mut rest = Duration::from_secs(seconds).as_secs();
    let mut parts = Vec::new();
    for (unit, name) in all {
        if rest >= unit && parts.len() < 2 {
            parts.push(format!("{}{name}", rest / unit));
            rest %= unit;
        }
    }
    if parts.is_empty() {
        return "now".to_owned();
    }
    parts.concat()
}

const READY: &str = "ready";
const SYNCED: &str = "synced";

#[cfg(test)]
mod tests {
    use admin_api::{Pod, TypeState, TypeStatus, WantedPod};

    use super::*;

    fn dump() -> ConfigDump {
        let mut dump = ConfigDump::default();
        dump.configuration.connected = true;
        let state = TypeState {
            synced: true,
            ..TypeState::default()
        };
        dump.configuration.types.insert("t/a.B".into(), state);
        dump
    }

    fn stream(sent: u64, acked: u64, nack: Option<&str>) -> StreamStatus {
        let state = TypeStatus {
            sent,
            acked,
            nack: nack.map(str::to_owned),
        };
        StreamStatus {
            node: "n1".into(),
            client: String::new(),
            knows: 0,
            types: BTreeMap::from([("t/a.B".to_owned(), state)]),
        }
    }

    #[test]
    fn an_agent_is_in_step_only_if_it_has_taken_what_was_sent() {
        let mut lost = dump();
        lost.configuration.connected = false;
        let mut new = dump();
        new.configuration
            .types
            .insert("t/a.C".into(), TypeState::default());
        for (dump, stream, expected) in [
            (dump(), Some(Some(stream(3, 3, None))), "synced"),
            (dump(), Some(Some(stream(4, 3, None))), "B at 3 of 4"),
            (
                dump(),
                Some(Some(stream(4, 3, Some("no name")))),
                "B refused: no name",
            ),
            (
                dump(),
                Some(None),
                "the controller knows no stream of this node",
            ),
            (dump(), None, "unknown"),
            (new, Some(Some(stream(3, 3, None))), "C not sent"),
            (
                lost,
                Some(Some(stream(3, 3, None))),
                "the agent has no stream from the controller: no error is known",
            ),
        ] {
            let said = in_step(&dump, stream.as_ref().map(Option::as_ref));
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn pods_that_are_not_as_wanted_are_named_with_the_reason() {
        let wanted = |name: &str, capture| WantedPod {
            namespace: "shop".into(),
            name: name.into(),
            uid: String::new(),
            identity: String::new(),
            capture,
            reason: String::new(),
        };
        let pod = |name: &str, state| Pod {
            namespace: "shop".into(),
            name: name.into(),
            uid: String::new(),
            pod_id: 1,
            netns_cookie: 1,
            state,
            reason: format!("{name} is so"),
            connections: 0,
        };
        let dump = ConfigDump {
            wanted: vec![
                wanted("a", true),
                wanted("b", true),
                wanted("c", false),
                wanted("d", true),
                wanted("e", false),
            ],
            pods: vec![
                pod("a", PodState::Captured),
                pod("b", PodState::Failed),
                pod("c", PodState::Exempt),
            ],
            ..dump()
        };
        let found: Vec<_> = troubles(&dump)
            .into_iter()
            .map(|one| (one.pod, one.state))
            .collect();
        let expected = [("shop/b", "failed"), ("shop/d", "not found")];
        assert_eq!(
            found,
            expected.map(|(pod, state)| (pod.to_owned(), state.to_owned()))
        );
    }

    #[test]
    fn durations_have_two_units_at_most() {
        let all = [
            (0, "now"),
            (59, "59s"),
            (3600, "1h"),
            (90061, "1d1h"),
            (3725, "1h2m"),
        ];
        for (seconds, expected) in all {
            assert_eq!(duration(seconds), expected);
        }
    }
}
