//! Ends direct connections that policy has come to refuse.
//!
//! Those that are listed are ended first, each by its addresses. Then the kernel is asked which
//! connections the server's namespace has (sock_diag), since a list may miss some: those whose
//! opening was not told, or that were being opened while policy changed. Asking is slow, because the
//! kernel walks its whole table of connections for each namespace. Policy is asked about each, and
//! both applications of a refused one see an error.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use model::{
    MeshState,
    policy::{Connection, DenyReason, Verdict},
};

use super::microseconds;
use crate::{
    pod::Pod,
    sock_diag::{self, Ender, Found},
};

/// What was decided, and since when that policy was known.
#[derive(Clone)]
pub(super) struct Policy {
    pub(super) state: Arc<MeshState>,
    pub(super) since: Instant,
}

impl Policy {
    /// Ends what is refused of these connections to the pod numbered `server`: (client, server).
    pub(super) fn end_listed(
        &self,
        pods: &[Arc<Pod>],
        server: u32,
        listed: &[(SocketAddr, SocketAddr)],
    ) {
        let named = listed
            .iter()
            .map(|(client, server)| Found::named(*server, *client));
        self.end(pods, server, || Ok(named.collect()), Ender::destroy_named);
    }

    /// Ends what is refused of all connections to the pod numbered `server`.
    pub(super) fn end_all(&self, pods: &[Arc<Pod>], server: u32) {
        self.end(pods, server, sock_diag::connected, Ender::destroy);
    }

    /// Ends those of the `candidates`, found from inside the server's namespace, that are refused.
    fn end(
        &self,
        pods: &[Arc<Pod>],
        server: u32,
        candidates: impl FnOnce() -> io::Result<Vec<Found>>,
        destroy: impl Fn(&mut Ender, &Found) -> io::Result<bool>,
    ) {
        let Some(server) = pods.iter().find(|pod| pod.id == server) else {
            return;
        };
        // Nothing here waits for anybody but the kernel.
        let ended = server.netns.with(|| {
            let mut ended = Vec::new();
            let mut ender = Ender::new()?;
            for found in candidates()? {
                if let Some((client, reason)) = self.refuses(pods, server, &found)
                    && destroy(&mut ender, &found)?
                {
                    ended.push((client, found, reason, microseconds(self.since)));
                }
            }
            io::Result::Ok(ended)
        });
        match ended {
            Ok(Ok(ended)) => {
                for (client, found, reason, after_us) in ended {
                    tracing::info!(target: "access", direction = "direct", pod = %server.name, src.addr = %found.remote, src.workload = client,
                        dst.addr = %found.local, after_us, error = %reason, "connection ended: policy changed");
                }
            }
            Ok(Err(error)) | Err(error) => {
                tracing::error!(pod = %server.name, %error, "cannot end connections that policy refuses now");
            }
        }
    }

    /// The client and why, if policy refuses the connection.
    fn refuses(
        &self,
        pods: &[Arc<Pod>],
        server: &Pod,
        found: &Found,
    ) -> Option<(String, DenyReason)> {
        let workload = self.state.workload(server.workload.as_ref())?;
        let client = pods.iter().find(|pod| pod.has_address(found.remote.ip()))?;
        if client.id == server.id {
            return None;
        }
        let connection = Connection {
            source: Some(&client.identity),
            source_ip: found.remote.ip(),
            destination_ip: found.local.ip(),
            destination_port: found.local.port(),
        };
        match self.state.authorize(workload, &connection) {
            Verdict::Deny(reason) => Some((client.name.to_string(), reason)),
            Verdict::Allow(_) => None,
        }
    }
}
