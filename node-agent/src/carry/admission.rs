//! Room for one more connection of a pod, or the refusal that says that there is none.

use std::{net::SocketAddr, sync::Arc};

use model::{MeshState, Security};
use telemetry::{Asked, Party, PartyLabels, Reporter, Text};

use super::worker::Worker;
use crate::{
    pod::{
        Pod,
        budget::{Full, Permit},
    },
    telemetry::record::{ConnectionEnd, Description, Direction, Recorder, Refusal},
};

impl Worker {
    /// Room for one more connection of the pod, from `client` to `target`. Where there is none, that is
    /// told, and the caller resets the connection.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn admit(
        &self,
        pod: &Arc<Pod>,
        direction: Direction,
        ends: (SocketAddr, SocketAddr),
    ) -> Result<Permit, Full> {
        let admitted = self.shared.budget.admit(pod, direction);
        admitted.inspect_err(|full| self.refuse_full(pod, direction, ends, *full))
    }

    /// Tells of a connection for which there was no room.
    pub(crate) fn refuse_full(
        &self,
        pod: &Pod,
        direction: Direction,
        ends: (SocketAddr, SocketAddr),
        full: Full,
    ) {
        let (shared, state) = (&self.shared, self.shared.mesh.state());
        refused(&shared.recorder, &state, pod, direction, ends, full);
    }
}

/// Tells of a connection that was refused for want of room.
fn refused(
    recorder: &Recorder,
    state: &MeshState,
    pod: &Pod,
    direction: Direction,
    (client, target): (SocketAddr, SocketAddr),
    full: Full,
) {
    let own = state.workload(pod.workload.as_ref());
    let of_pod = ConnectionEnd {
        addr: None,
        workload: own.map(|workload| Arc::clone(&workload.name)),
        namespace: own.map(|workload| Arc::clone(&workload.namespace)),
        identity: Some(pod.identity.to_string()),
    };
    let principal = Text::principal(Some(&pod.identity));
    let us = Party::new(own.map(|workload| &**workload), principal);
    let inbound = direction == Direction::Inbound;
    let (reporter, from, to) = if inbound {
        (Reporter::Destination, Party::default(), us)
    } else {
        (Reporter::Source, us, Party::default())
    };
    let labels = PartyLabels::new(reporter, from, to, Asked::default(), Security::Unknown);
    let (mut source, mut destination) = (ConnectionEnd::default(), ConnectionEnd::default());
    *(if inbound {
        &mut destination
    } else {
        &mut source
    }) = of_pod;
    source.addr = Some(client);
    destination.addr = Some(target);
    let description = Description {
        direction,
        pod: pod.name.to_string(),
        source,
        destination,
        service: None,
        security: Security::Unknown,
        tunnel: None,
    };
    let refusal = Refusal {
        reason: full.reason(),
        text: full.to_string(),
    };
    recorder.refuse(&description, &labels.into(), refusal);
}
