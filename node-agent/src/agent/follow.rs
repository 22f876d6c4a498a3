//! Tasks of the control thread that pass on what changes.

use std::{cell::RefCell, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use proto::agent::{CapturedPod, NodeReport};
use runtime::admin::Condition;
use tokio::sync::watch;
use xds_client::{Flusher, Handler, NodeClient, RawResource, Rejection, Status};

use crate::{
    carry::thread::WorkerHandle,
    direct::DirectHandle,
    enrol::{Command, EnrolHandle, Holding},
    mesh::{Resource, Writer},
    pod::Sandbox,
};

/// Policy changes that come together are applied to live connections together.
const REAUTHORIZE_AFTER: Duration = Duration::from_millis(5);
/// The controller is told again this often, should it have lost what it was told.
const REPORT_EVERY: Duration = Duration::from_secs(30);
const REPORT_RETRY: Duration = Duration::from_millis(500);
/// A successor that does not hear of the controller for this long works with the last good configuration.
const CONTROLLER_WAIT: Duration = Duration::from_secs(5);

/// What all streams say goes into one mesh.
#[derive(Clone)]
pub(super) struct ToMesh(pub(super) Rc<RefCell<Writer>>);

impl Handler for ToMesh {
    fn apply(
        &mut self,
        type_url: &str,
        updated: Vec<RawResource>,
        removed: Vec<String>,
    ) -> Vec<Rejection> {
        let resources = updated.iter().map(|resource| Resource {
            name: &resource.name,
            bytes: &resource.bytes,
        });
        let rejected = self.0.borrow_mut().apply(type_url, resources, &removed);
        rejected
            .into_iter()
            .map(|(name, reason)| Rejection { name, reason })
            .collect()
    }
}

pub(super) async fn until(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means stop as well.
    drop(stopped.wait_for(|stop| *stop).await);
}

/// A pod is captured only after the configuration that says so is on disk: an agent that ends without
/// warning has a successor that knows every captured pod. Where nothing can be kept, the client says so.
///
/// Where `elsewhere` workloads and policies come by another stream, nothing is captured before that has answered, or has
/// something from disk: to a pod of which nothing is known everything would be refused.
pub(super) async fn follow_wanted(
    mut wanted: watch::Receiver<Arc<crate::mesh::WantedPods>>,
    elsewhere: Option<watch::Receiver<Status>>,
    kept: Flusher,
    enrol: EnrolHandle,
) {
    if let Some(mut elsewhere) = elsewhere
        && elsewhere.wait_for(Status::has_configuration).await.is_err()
    {
        return;
    }
    while wanted.changed().await.is_ok() {
        let pods = Arc::clone(&wanted.borrow_and_update());
        kept.flush().await;
        enrol.send(Command::Wanted(pods));
    }
}

pub(super) async fn follow_policy(
    mut changes: watch::Receiver<u64>,
    workers: Vec<WorkerHandle>,
    direct: DirectHandle,
) {
    while changes.changed().await.is_ok() {
        let told = *changes.borrow_and_update();
        direct.mesh_changed();
        tokio::time::sleep(REAUTHORIZE_AFTER).await;
        if *changes.borrow_and_update() != told {
            direct.mesh_changed();
        }
        workers.iter().for_each(WorkerHandle::reauthorize);
    }
}

pub(super) async fn report_captured(
    mut client: NodeClient,
    node: String,
    abi_version: u32,
    mut captured: watch::Receiver<Option<Arc<Holding>>>,
    mut reporting: watch::Receiver<bool>,
    mut status: watch::Receiver<Status>,
    namespaces: watch::Sender<Option<Vec<String>>>,
) {
    loop {
        if reporting.wait_for(|reporting| *reporting).await.is_err() {
            return;
        }
        let streams = status.borrow_and_update().streams;
        let known = captured.borrow_and_update().clone();
        let Some(known) = known else {
            if captured.changed().await.is_err() {
                return;
            }
            continue;
        };
        let report = NodeReport {
            node: node.clone(),
            captured: known.workloads.iter().cloned().collect(),
            pods: known.pods.iter().map(captured_pod).collect(),
            partial: known.partial,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            abi_version,
        };
        let result = tokio::select! {
            result = client.report(report) => result,
            // A successor speaks for the node.
            _ = reporting.wait_for(|reporting| !*reporting) => continue,
        };
        let wait = match result {
            Ok(told) => {
                namespaces.send_if_modified(|known| {
                    let new = told.is_some() && *known != told;
                    if new {
                        *known = told;
                    }
                    new
                });
                REPORT_EVERY
            }
            Err(error) => {
                tracing::debug!(
                    error = crate::host::describe(&error),
                    "cannot tell the controller which pods are captured"
                );
                REPORT_RETRY
            }
        };
        tokio::select! {
            changed = captured.changed() => if changed.is_err() { return },
            // A controller that has started again may have lost what it was told.
            opened = status.wait_for(|status| status.streams != streams) => if opened.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn captured_pod(sandbox: &Sandbox) -> CapturedPod {
    let octets = |ip: &IpAddr| match ip.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    CapturedPod {
        namespace: sandbox.pod.namespace.clone(),
        name: sandbox.pod.name.clone(),
        pod_uid: sandbox.uid.clone(),
        addresses: sandbox.ips.iter().map(octets).collect(),
    }
}

/// Tells when there is a configuration to carry connections by: the controller's, or the last good one
/// if the controller is not heard of.
pub(super) async fn follow_configuration(
    mut status: watch::Receiver<Status>,
    configured: watch::Sender<bool>,
) {
    let all = |status: &Status, which: fn(&xds_client::TypeStatus) -> bool| {
        !status.types.is_empty() && status.types.values().all(which)
    };
    let synced = status.wait_for(|status| all(status, |t| t.synced));
    if !matches!(
        tokio::time::timeout(CONTROLLER_WAIT, synced).await,
        Ok(Ok(_))
    ) && status
        .wait_for(|status| all(status, |t| t.synced || t.restored))
        .await
        .is_err()
    {
        return;
    }
    configured.send_replace(true);
}

pub(super) async fn follow_readiness(
    mut status: watch::Receiver<Status>,
    configuration: Condition,
) {
    loop {
        let synced = status
            .borrow_and_update()
            .types
            .values()
            .all(|t| t.synced || t.restored);
        configuration.set(synced);
        if status.changed().await.is_err() {
            return;
        }
    }
}
