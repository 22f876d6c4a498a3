//! Ends direct connections that policy has come to refuse.
//!
//! The kernel is asked which connections the server's namespace has (sock_diag), policy is asked
//! about each of them, and those it refuses are destroyed: both applications see an error. Nothing
//! that we had to remember could be out of step.

use std::sync::Arc;

use model::{
    MeshState,
    policy::{Connection, Verdict},
};

use crate::{pod::Pod, sock_diag};

/// Ends what policy refuses now among the connections of local pods to the pod numbered `destination`.
pub(super) fn refused(state: &MeshState, pods: &[Arc<Pod>], destination: u32) {
    let Some(server) = pods.iter().find(|pod| pod.id == destination) else {
        return;
    };
    let Some(workload) = state.workload(server.workload.as_ref()) else {
        return;
    };
    let is_refused = |found: &sock_diag::Found| {
        let client = pods.iter().find(|pod| pod.has_address(found.remote.ip()))?;
        if client.id == destination {
            return None;
        }
        let connection = Connection {
            source: Some(&client.identity),
            source_ip: found.remote.ip(),
            destination_ip: found.local.ip(),
            destination_port: found.local.port(),
        };
        match state.authorize(workload, &connection) {
            Verdict::Deny(reason) => Some((client.name.to_string(), reason)),
            Verdict::Allow(_) => None,
        }
    };
    let destroyed = server.netns.run(|| {
        let mut destroyed = Vec::new();
        for found in sock_diag::connected()? {
            if let Some((client, reason)) = is_refused(&found) {
                sock_diag::destroy(&found)?;
                destroyed.push((client, found, reason));
            }
        }
        std::io::Result::Ok(destroyed)
    });
    match destroyed {
        Ok(Ok(destroyed)) => {
            for (client, found, reason) in destroyed {
                tracing::info!(target: "access", direction = "direct", pod = %server.name, src.addr = %found.remote, src.workload = client,
                    dst.addr = %found.local, error = %reason, "connection ended: policy changed");
            }
        }
        Ok(Err(error)) | Err(error) => {
            tracing::error!(pod = %server.name, %error, "cannot end connections that policy refuses now");
        }
    }
}
