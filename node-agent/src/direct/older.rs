//! Connections that are older than their pod's capture: listed, counted as plain, and asked about.
//!
//! Nobody asked policy when they were opened. What a pod serves is asked about as a peer without identity,
//! at capture and whenever policy changes, and ended where policy does not allow that. What a pod has
//! opened is the server's node's to decide.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Instant};

use abi::Flow;
use model::{
    Ending, MeshState, Security, Workload,
    policy::{Connection, DenyReason, Verdict},
};
use telemetry::{Asked, Party, PartyLabels, Reporter, TcpLabels, Text};

use super::events::payload;
use crate::{
    host::sock_diag::{self, Ender, Found},
    pod::{
        Pod,
        older::{self, Older},
    },
    telemetry::record::{
        Closed, ConnectionEnd, Description, Direction, LiveView, Recorder, milliseconds,
    },
};

/// The older connections that are open.
#[derive(Default)]
pub(super) struct Elders(HashMap<(u32, Flow), Elder>);

struct Elder {
    pod: Arc<Pod>,
    older: Older,
    description: Description,
    counts: telemetry::Flow,
    since: Instant,
    /// Bytes from the client and from the server that are in the metrics already.
    counted: (u64, u64),
}

impl Elders {
    /// Lists connections of a pod that was captured just now, or whose agent was succeeded.
    pub(super) fn add(
        &mut self,
        pod: &Arc<Pod>,
        connections: Vec<Older>,
        state: &MeshState,
        recorder: &Recorder,
    ) {
        for older in connections {
            let key = (pod.id, older.flow());
            self.0.entry(key).or_insert_with(|| {
                let (description, labels) = describe(pod, &older, state);
                Elder {
                    pod: Arc::clone(pod),
                    older,
                    description,
                    counts: recorder.metrics.open(&labels),
                    since: Instant::now(),
                    counted: (0, 0),
                }
            });
        }
    }

    /// Forgets connections of pods that are not captured any more. Gives them, so that nobody else lets
    /// them pass.
    pub(super) fn retain(&mut self, pods: &[Arc<Pod>]) -> Vec<Flow> {
        let is_gone = |key: &(u32, Flow), _: &mut Elder| !pods.iter().any(|pod| pod.id == key.0);
        let gone = self.0.extract_if(is_gone);
        gone.map(|((_, flow), elder)| {
            elder.counts.close();
            flow
        })
        .collect()
    }

    /// Ends those that policy does not allow to a peer without identity.
    pub(super) fn judge(&self, state: &MeshState, recorder: &Recorder) {
        let mut refused: HashMap<u32, Vec<(&Elder, DenyReason)>> = HashMap::new();
        for ((pod, _), elder) in &self.0 {
            if let Some(reason) = elder.is_refused(state) {
                refused.entry(*pod).or_default().push((elder, reason));
            }
        }
        for of_pod in refused.values() {
            end(of_pod, recorder);
        }
    }

    /// Brings bytes up to date with the kernel. Gives the connections that the kernel does not have any more.
    pub(super) fn sample(&mut self, recorder: &Recorder) -> Vec<Flow> {
        let pods: HashMap<u32, Arc<Pod>> = self
            .0
            .iter()
            .map(|((id, _), elder)| (*id, Arc::clone(&elder.pod)))
            .collect();
        let mut ended = Vec::new();
        for (id, pod) in pods {
            let sockets = match pod
                .netns
                .with(sock_diag::connecting_and_connected_with_bytes)
            {
                Ok(Ok(sockets)) => sockets,
                Ok(Err(error)) | Err(error) => {
                    tracing::debug!(pod = %pod.name, %error, "cannot read the bytes of older connections");
                    continue;
                }
            };
            let there: HashMap<Flow, &Found> = sockets
                .iter()
                .map(|found| (older::flow(found), found))
                .collect();
            for ((_, flow), elder) in self.0.iter_mut().filter(|((of, _), _)| *of == id) {
                if let Some(moved) = there.get(flow).and_then(|found| found.moved) {
                    elder.count(payload(moved));
                }
            }
            let is_over =
                |key: &(u32, Flow), _: &mut Elder| key.0 == id && !there.contains_key(&key.1);
            for ((_, flow), elder) in self.0.extract_if(is_over) {
                elder.close(recorder);
                ended.push(flow);
            }
        }
        ended
    }

    /// The connections that are open, with their bytes as of the last sample.
    pub(super) fn views(&self) -> impl Iterator<Item = LiveView> {
        self.0.values().map(|elder| LiveView {
            connection: elder.description.clone(),
            older_than_capture: true,
            request_bytes: elder.counted.0,
            response_bytes: elder.counted.1,
            age_ms: milliseconds(elder.since.elapsed()),
        })
    }
}

impl Elder {
    fn is_refused(&self, state: &MeshState) -> Option<DenyReason> {
        if self.older.direction != Direction::Inbound {
            return None;
        }
        // Before it is known what policies there are nothing is allowed to anybody new; what is open waits.
        let workload = state.workload(self.pod.workload.as_ref())?;
        let connection = Connection {
            source: None,
            source_ip: self.older.found.remote.ip(),
            destination_ip: self.older.found.local.ip(),
            destination_port: self.older.found.local.port(),
        };
        match state.authorize(workload, &connection) {
            Verdict::Deny(reason) => Some(reason),
            Verdict::Allow(_) => None,
        }
    }

    /// The socket's own counts: what it sent and what it received.
    fn count(&mut self, (sent, received): (u64, u64)) {
        let (request, response) = match self.older.direction {
            Direction::Inbound => (received, sent),
            Direction::Outbound | Direction::Direct | Direction::Waypoint => (sent, received),
        };
        let before = self.counted;
        // A count never goes back.
        self.counted = (request.max(before.0), response.max(before.1));
        self.counts.moved(
            request.saturating_sub(before.0),
            response.saturating_sub(before.1),
        );
    }

    fn close(self, recorder: &Recorder) {
        self.counts.close();
        let (request, response) = self.counted;
        let closed = Closed {
            request,
            response,
            age: self.since.elapsed(),
            ..Closed::default()
        };
        recorder.closed(&self.description, closed);
    }
}

/// Ends refused connections of one pod.
fn end(refused: &[(&Elder, DenyReason)], recorder: &Recorder) {
    let Some(pod) = refused.first().map(|(elder, _)| &elder.pod) else {
        return;
    };
    // Nothing here waits for anybody but the kernel.
    let ended = pod.netns.with(|| {
        let mut ender = Ender::new()?;
        let mut ended = Vec::new();
        for (elder, reason) in refused {
            let found = &elder.older.found;
            if older::end(&mut ender, found)? {
                ended.push((found.remote, found.local, reason));
            }
        }
        std::io::Result::Ok(ended)
    });
    match ended {
        Ok(Ok(ended)) => {
            recorder.metrics.cut(Ending::Older, ended.len() as u64);
            for (client, server, reason) in ended {
                tracing::info!(target: "access", direction = "inbound", pod = %pod.name, src.addr = %client, dst.addr = %server,
                    end = Ending::Older.as_str(), error = %reason, "connection ended: it is older than the pod's capture, and policy asks for more");
            }
        }
        Ok(Err(error)) | Err(error) => {
            tracing::error!(pod = %pod.name, %error, "cannot end older connections that policy refuses");
        }
    }
}

fn describe(pod: &Pod, older: &Older, state: &MeshState) -> (Description, TcpLabels) {
    let own = state.workload(pod.workload.as_ref());
    let (local, remote) = (older.found.local, older.found.remote);
    let peer = own.and_then(|own| state.workload_by_ip(&own.network, remote.ip()));
    let end = |addr: SocketAddr, workload: Option<&Arc<Workload>>, identity: Option<String>| {
        ConnectionEnd {
            addr: Some(addr),
            workload: workload.map(|w| Arc::clone(&w.name)),
            namespace: workload.map(|w| Arc::clone(&w.namespace)),
            identity,
        }
    };
    let inside = (
        end(local, own, Some(pod.identity.to_string())),
        Party::new(own.map(|w| &**w), Text::unknown()),
    );
    let outside = (
        end(remote, peer, None),
        Party::new(peer.map(|w| &**w), Text::unknown()),
    );
    let (source, destination, reporter, security) = match older.direction {
        Direction::Inbound => (outside, inside, Reporter::Destination, Security::None),
        // Only the destination knows (F101).
        Direction::Outbound | Direction::Direct | Direction::Waypoint => {
            (inside, outside, Reporter::Source, Security::Unknown)
        }
    };
    let asked = Asked::default();
    let labels = PartyLabels::new(reporter, source.1, destination.1, asked, security);
    let description = Description {
        direction: older.direction,
        pod: pod.name.to_string(),
        source: source.0,
        destination: destination.0,
        service: None,
        security: Security::None,
        tunnel: None,
    };
    (description, labels.into())
}
