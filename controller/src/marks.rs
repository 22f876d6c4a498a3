//! Writes on captured pods what Istio's control plane asks for before it tells others to reach them by tunnel: the annotation
//! `ambient.istio.io/redirection: enabled`. It is taken away when their node has let them go. It is written by way of the pods'
//! statuses, as Istio's own agent does: who may do that cannot change what a pod is to run.
//!
//! The replica that holds the Lease does it. What is to be written is what the objects do not say yet, so whatever somebody
//! else writes there is put right, and a replica that takes over has nothing to remember.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compile::snapshot::Mark;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use manifest::REDIRECTION;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::pipeline::Published;

/// Does so for ever, while `leading` says that this replica does.
pub(crate) async fn keep(
    client: Client,
    mut published: watch::Receiver<Arc<Published>>,
    mut leading: watch::Receiver<bool>,
) {
    let mut written = Written::default();
    loop {
        let snapshot = published.borrow_and_update().snapshot.clone();
        if *leading.borrow_and_update() {
            let due = written.due(snapshot.marks.iter(), Instant::now());
            let done = stream::iter(due).map(|(name, mark)| {
                let client = client.clone();
                async move { (name, write(client, &mark).await) }
            });
            let done: Vec<_> = done.buffer_unordered(AT_ONCE).collect().await;
            for (name, is_done) in done {
                written.tried(&name, is_done, Instant::now());
            }
        } else {
            written = Written::default();
        }
        tokio::select! {
            changed = published.changed() => if changed.is_err() { return },
            changed = leading.changed() => if changed.is_err() { return },
            // What could not be written, or did not come back, is tried again.
            () = tokio::time::sleep(AGAIN), if written.is_waiting() => {}
        }
    }
}

/// Whether there is nothing left to do about it.
async fn write(client: Client, mark: &Mark) -> bool {
    let Mark { pod, captured, .. } = mark;
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let patched = pods
        .patch_status(
            &pod.name,
            &PatchParams::default(),
            &Patch::Merge(patch(mark)),
        )
        .await;
    match patched {
        Ok(_) => {
            info!(%pod, captured, "the pod's object says whether it is captured");
            true
        }
        // It is gone, or another pod has its name (422: another uid): that one has a mark of its own.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {
            debug!(%pod, captured, "the pod that was to be marked is gone");
            true
        }
        Err(error) => {
            warn!(%pod, captured, %error, "cannot write on the pod whether it is captured; trying again");
            false
        }
    }
}

/// With the uid the server refuses it for another pod of that name.
fn patch(mark: &Mark) -> Value {
    let says = mark.captured.then_some("enabled");
    json!({"metadata": {"uid": mark.uid, "annotations": {REDIRECTION: says}}})
}

/// What was written and not read back yet, or could not be written.
#[derive(Debug, Default)]
struct Written(HashMap<Arc<str>, (Mark, Try)>);

#[derive(Debug)]
enum Try {
    Done(Instant),
    Failed(Instant),
}

impl Written {
    /// What is to be written now. Forgets what is not to be written any more.
    fn due<'m>(
        &mut self,
        marks: impl Iterator<Item = (&'m Arc<str>, &'m Mark)>,
        now: Instant,
    ) -> Vec<(Arc<str>, Mark)> {
        let mut before = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for (name, mark) in marks {
            let tried = before.remove(name).filter(|(known, _)| known == mark);
            let is_due = match &tried {
                None => true,
                Some((_, Try::Done(at))) => now.duration_since(*at) >= READ_BACK,
                Some((_, Try::Failed(at))) => now.duration_since(*at) >= AGAIN,
            };
            if is_due {
                due.push((Arc::clone(name), mark.clone()));
                self.0
                    .insert(Arc::clone(name), (mark.clone(), Try::Failed(now)));
            } else if let Some(tried) = tried {
                self.0.insert(Arc::clone(name), tried);
            }
        }
        due
    }

    fn tried(&mut self, name: &str, is_done: bool, at: Instant) {
        if let Some((_, tried)) = self.0.get_mut(name) {
            *tried = match is_done {
                true => Try::Done(at),
                false => Try::Failed(at),
            };
        }
    }

    fn is_waiting(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Pods written at the same time: a namespace that joins the mesh has many.
const AT_ONCE: usize = 16;
/// How long until what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// What was written comes back as an event of the pod. What does not was overwritten meanwhile.
const READ_BACK: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use manifest::NamespacedName;

    use super::*;

    fn mark(captured: bool) -> (Arc<str>, Mark) {
        let mark = Mark {
            pod: NamespacedName::new("shop", "cart"),
            uid: "u1".to_owned(),
            captured,
        };
        ("Kubernetes//Pod/shop/cart".into(), mark)
    }

    #[test]
    fn a_pod_that_is_let_go_loses_the_annotation_and_only_that_very_pod_is_written() {
        assert_eq!(
            patch(&mark(true).1),
            json!({"metadata": {"uid": "u1", "annotations": {"ambient.istio.io/redirection": "enabled"}}})
        );
        assert_eq!(
            patch(&mark(false).1),
            json!({"metadata": {"uid": "u1", "annotations": {"ambient.istio.io/redirection": null}}})
        );
    }

    #[test]
    fn what_was_written_is_not_written_again_until_it_has_had_time_to_be_read_back() {
        let (name, one) = mark(true);
        let start = Instant::now();
        let mut written = Written::default();
        let mut due = |mark: Option<&Mark>, at: Duration, done: bool| {
            let due = written.due(mark.map(|mark| (&name, mark)).into_iter(), start + at);
            for (name, _) in &due {
                written.tried(name, done, start + at);
            }
            due.len()
        };
        assert_eq!(due(Some(&one), Duration::ZERO, false), 1);
        assert_eq!(due(Some(&one), AGAIN / 2, true), 0, "it waits");
        assert_eq!(due(Some(&one), AGAIN, true), 1, "it failed");
        assert_eq!(due(Some(&one), AGAIN * 3, true), 0, "it is on its way back");
        let other = mark(false).1;
        assert_eq!(due(Some(&other), AGAIN * 3, true), 1, "something else");
        assert_eq!(due(None, AGAIN * 3, true), 0, "it came back");
        assert_eq!(
            due(Some(&other), AGAIN * 3, true),
            1,
            "and is another's now"
        );
        assert_eq!(due(Some(&other), AGAIN * 3 + READ_BACK, true), 1);
    }
}
