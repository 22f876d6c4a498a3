//! What the kernel tells of direct connections, turned into metrics, log lines and a list.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use abi::{Event, EventKind, Flow};
use model::{
    MeshState,
    policy::{Connection, Verdict},
};

use crate::{
    metrics::{self, Party, TcpLabels},
    pod::Pod,
    record::{Description, Direction, End1, LiveView, Recorder, Refusal},
};

/// Direct connections that are listed. Beyond it they are counted and logged all the same.
const LISTED: usize = 65_536;

/// The direct connections that are open, as far as events tell.
#[derive(Default)]
pub(super) struct Ledger(HashMap<(u32, Flow), Open>);

struct Open {
    description: Description,
    flows: [metrics::Flow; 2],
    since: Instant,
}

impl Ledger {
    /// Takes one event.
    pub(super) fn take(
        &mut self,
        event: &Event,
        state: &MeshState,
        pods: &[Arc<Pod>],
        recorder: &Recorder,
    ) {
        let key = (event.source, event.flow);
        match event.kind {
            kind if kind == EventKind::Opened as u32 => {
                if let Some(open) = open(event, state, pods, recorder)
                    && self.0.len() < LISTED
                {
                    self.0.insert(key, open);
                }
            }
            kind if kind == EventKind::Closed as u32 => {
                // One whose opening was lost, or that never was established.
                let Some(open) = self.0.remove(&key) else {
                    return;
                };
                for flow in &open.flows {
                    flow.moved(event.sent, event.received);
                    flow.close();
                }
                recorder.closed_direct(
                    &open.description,
                    event.sent,
                    event.received,
                    Duration::from_nanos(event.duration),
                );
            }
            kind if kind == EventKind::Denied as u32 => denied(event, state, pods, recorder),
            _ => {}
        }
    }

    /// The connections that are open. Bytes of a direct connection are known at its end.
    pub(super) fn views(&self) -> Vec<LiveView> {
        let view = |open: &Open| LiveView {
            connection: open.description.clone(),
            request_bytes: 0,
            response_bytes: 0,
            age_ms: open.since.elapsed().as_millis(),
        };
        self.0.values().map(view).collect()
    }
}

fn open(event: &Event, state: &MeshState, pods: &[Arc<Pod>], recorder: &Recorder) -> Option<Open> {
    let (description, labels) = describe(event, state, pods)?;
    let flows = labels.map(|labels| recorder.metrics.open(&labels));
    Some(Open {
        description,
        flows,
        since: Instant::now(),
    })
}

fn denied(event: &Event, state: &MeshState, pods: &[Arc<Pod>], recorder: &Recorder) {
    let Some((description, [labels, _])) = describe(event, state, pods) else {
        return;
    };
    let (Some(client), Some(server)) = (find(pods, event.source), find(pods, event.destination))
    else {
        return;
    };
    let destination = SocketAddr::new(event.flow.destination.into(), event.flow.destination_port);
    let same_family = |ip: &&std::net::IpAddr| ip.is_ipv4() == destination.is_ipv4();
    let source_ip = client
        .addresses
        .iter()
        .find(same_family)
        .copied()
        .unwrap_or(destination.ip());
    let connection = Connection {
        source: Some(&client.identity),
        source_ip,
        destination_ip: destination.ip(),
        destination_port: destination.port(),
    };
    let verdict = state
        .workload(server.workload.as_ref())
        .map(|workload| state.authorize(workload, &connection));
    let (reason, text) = match verdict {
        Some(Verdict::Deny(reason)) => (reason.code(), reason.to_string()),
        // Policy has changed since the kernel refused.
        _ => (
            "policy_changed",
            "refused by policy, which has changed since".to_owned(),
        ),
    };
    recorder.refuse(
        &description,
        &labels,
        Refusal {
            flags: "DENY",
            reason,
            text,
        },
    );
}

fn find(pods: &[Arc<Pod>], id: u32) -> Option<&Arc<Pod>> {
    pods.iter().find(|pod| pod.id == id)
}

/// The connection, and its labels as source and as destination.
fn describe(
    event: &Event,
    state: &MeshState,
    pods: &[Arc<Pod>],
) -> Option<(Description, [TcpLabels; 2])> {
    let (client, server) = (find(pods, event.source)?, find(pods, event.destination)?);
    let from = state.workload(client.workload.as_ref());
    let to = state.workload(server.workload.as_ref());
    let dialled = SocketAddr::new(event.dialled.addr.into(), event.dialled.port);
    let service = to.and_then(|to| state.service_by_exact_vip(&to.network, dialled.ip(), None));
    let end = |pod: &Pod, addr: SocketAddr, workload: Option<&Arc<model::Workload>>| End1 {
        addr: (addr.port() != 0).then_some(addr),
        workload: workload.map(|w| Arc::clone(&w.name)),
        namespace: workload.map(|w| Arc::clone(&w.namespace)),
        identity: Some(pod.identity.to_string()),
    };
    let source = SocketAddr::new(event.flow.source.into(), event.flow.source_port);
    let destination = SocketAddr::new(event.flow.destination.into(), event.flow.destination_port);
    let description = Description {
        direction: Direction::Direct,
        pod: client.name.to_string(),
        source: end(client, source, from),
        destination: end(server, destination, to),
        service: service.map(|service| service.hostname.to_string()),
        security: "same_node",
        tunnel: None,
    };
    let labels = ["source", "destination"].map(|reporter| {
        TcpLabels::new(
            reporter,
            Party {
                workload: from.map(|w| &**w),
                principal: Some(&client.identity),
            },
            Party {
                workload: to.map(|w| &**w),
                principal: Some(&server.identity),
            },
            service.map(|service| &**service),
            "same_node",
        )
    });
    Some((description, labels))
}
