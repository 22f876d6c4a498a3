//! Pods that end as a kubelet ends them, and others that take their place.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::objects::{self, documents, files, kind, name, namespace, set};
use crate::pod::Pod;
use crate::yaml;

impl Lab {
    /// Ends the pod `namespace/name` as a kubelet does: its object gets a deletion timestamp, its containers get SIGTERM
    /// after `pre_stop` (the sleep of a `preStop` hook), and when they have ended, or after `grace`, the pod is removed.
    ///
    /// # Errors
    /// There is no such pod, or it could not be removed.
    pub fn end_pod(&self, key: &str, pre_stop: Duration, grace: Duration) -> Result<()> {
        let marked = objects::edit(&self.manifests_dir(), |document| {
            let is_meant = is_pod(document, key);
            if is_meant {
                let when = json!("2026-01-01T00:00:00Z");
                set(document, &["metadata", "deletionTimestamp"], when);
            }
            is_meant
        })?;
        if marked == 0 {
            bail!("the live folder holds no Pod {key}");
        }
        self.reconcile()?;
        thread::sleep(pre_stop);
        self.containers(key, |all| {
            all.iter_mut()
                .try_for_each(|one| one.signal(Signal::SIGTERM))
        })?;
        let deadline = Instant::now() + grace;
        loop {
            let ended = self.containers(key, |all| -> Result<bool> {
                let mut ended = true;
                for one in all {
                    ended &= one.exited()?.is_some();
                }
                Ok(ended)
            })?;
            if ended || Instant::now() >= deadline {
                return self.delete_pod(key);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Makes another replica of the pod `namespace/name` beside it, on the same node: words of its command that are the
    /// old name become the new one.
    ///
    /// # Errors
    /// There is no such pod, or the new one does not start.
    pub fn replicate(&self, key: &str, new: &str) -> Result<Pod> {
        let mut found = None;
        for file in files(&self.manifests_dir())? {
            let all = documents(&file).unwrap_or_default();
            found = found.or(all.into_iter().find(|document| is_pod(document, key)));
        }
        let mut copy = found.with_context(|| format!("the live folder holds no Pod {key}"))?;
        let old = name(&copy).to_owned();
        let within = namespace(&copy).to_owned();
        copy["metadata"] = json!({
            "name": new,
            "namespace": within,
            "labels": copy["metadata"]["labels"],
        });
        if let Some(all) = copy.as_object_mut() {
            all.remove("status");
        }
        let containers = copy.pointer_mut("/spec/containers");
        for container in containers
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let words = container.get_mut("command").and_then(Value::as_array_mut);
            for word in words.into_iter().flatten() {
                if *word == json!(old) {
                    *word = json!(new);
                }
            }
        }
        self.apply(
            &format!("replica-{within}-{new}.yaml"),
            &yaml::emit(&[copy]),
        )?;
        self.pod(&format!("{within}/{new}"))
    }
}

fn is_pod(document: &Value, key: &str) -> bool {
    kind(document) == "Pod" && key == format!("{}/{}", namespace(document), name(document))
}
