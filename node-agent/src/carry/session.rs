//! Which endpoint a client keeps, where it dials a service with session affinity.
//!
//! The kernel's map is the only memory of it: connections that are led directly and those that are
//! carried here come to the same endpoint, also after another agent has taken over.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use abi::{Addr, Endpoint, SessionKey};
use model::{
    MeshState, Workload,
    outbound::{self, Route, RouteKind},
};
use nix::time::{ClockId, clock_gettime};

use crate::{bpf::Kernel, direct::session_seconds};

/// A client's session with a service port.
pub(crate) struct Session<'a> {
    kernel: &'a Kernel,
    key: SessionKey,
    seconds: u32,
}

impl<'a> Session<'a> {
    /// The session of the pod numbered `pod` with what it dials, if that has session affinity.
    pub(crate) fn of(
        kernel: &'a Kernel,
        state: &MeshState,
        source: &Workload,
        pod: u32,
        dialled: SocketAddr,
    ) -> Option<Self> {
        let timeout = outbound::session_timeout(state, source, dialled)?;
        Some(Self {
            kernel,
            key: SessionKey {
                pod,
                dialled: endpoint(dialled),
            },
            seconds: session_seconds(timeout),
        })
    }

    /// The endpoint that the client keeps.
    pub(crate) fn kept(&self) -> Option<SocketAddr> {
        let session = self.kernel.session(self.key)?;
        session
            .is_kept(now()?, self.seconds)
            .then(|| SocketAddr::new(IpAddr::from(session.endpoint.addr), session.endpoint.port))
    }

    /// The client goes where `route` leads, and keeps that.
    pub(crate) fn keep(&self, route: &Route) {
        let target = match &route.kind {
            RouteKind::Hbone { authority, .. } => *authority,
            RouteKind::Plain { dial } | RouteKind::ToSelf { dial } => *dial,
        };
        if let Some(now) = now() {
            self.kernel.keep_session(self.key, endpoint(target), now);
        }
    }
}

pub(crate) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(Addr::from(address.ip().to_canonical()), address.port())
}

/// The clock of `bpf_ktime_get_ns`, in ns. It cannot fail on a kernel that has eBPF.
pub(crate) fn now() -> Option<u64> {
    let time = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?);
    u64::try_from(time.as_nanos()).ok()
}
