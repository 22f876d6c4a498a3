//! Events of pods: what their owners must notice (`kubectl describe pod`). Made by a thread of its own; nothing waits for it, and
//! nothing depends on it.

use std::{
    sync::mpsc::{self, Receiver, SyncSender},
    time::SystemTime,
};

use serde_json::{Value, json};

use crate::pod::Sandbox;

/// Where events go. Outside of a cluster they go nowhere: the log has told of it.
#[derive(Clone, Debug, Default)]
pub struct Notices(Option<SyncSender<Notice>>);

#[derive(Debug, PartialEq, Eq)]
struct Notice {
    namespace: String,
    pod: String,
    uid: String,
    reason: &'static str,
    message: String,
}

impl Notices {
    /// Events by this node's agent, made by `make`, which is told the namespace and waits for the answer.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn of_node(
        node: String,
        make: impl Fn(&str, &Value) -> Result<(), String> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (sender, notices) = mpsc::sync_channel(WAITING);
        std::thread::Builder::new()
            .name("notices".to_owned())
            .spawn(move || send_all(&notices, &node, make))?;
        Ok(Self(Some(sender)))
    }

    /// Warns of something about a pod. One too many is dropped.
    pub fn warn(&self, sandbox: &Sandbox, reason: &'static str, message: String) {
        let Some(sender) = &self.0 else { return };
        let notice = Notice {
            namespace: sandbox.pod.namespace.clone(),
            pod: sandbox.pod.name.clone(),
            uid: sandbox.uid.clone(),
            reason,
            message,
        };
        if sender.try_send(notice).is_err() {
            tracing::debug!(pod = %sandbox.pod, reason, "too many events wait; this one is not made");
        }
    }
}

fn send_all(
    notices: &Receiver<Notice>,
    node: &str,
    make: impl Fn(&str, &Value) -> Result<(), String>,
) {
    for notice in notices {
        if let Err(error) = make(&notice.namespace, &notice.event(node)) {
            tracing::warn!(pod = notice.pod, error, "no event could be made of it");
        }
    }
}

impl Notice {
    fn event(&self, node: &str) -> Value {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let mut message = self.message.clone();
        message.truncate(message.floor_char_boundary(LONGEST));
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"generateName": format!("{}-", self.pod), "namespace": self.namespace},
            "type": "Warning", "reason": self.reason, "message": message,
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "name": self.pod, "namespace": self.namespace, "uid": self.uid,
            },
            "source": {"component": "keelson-node-agent", "host": node},
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        })
    }
}

/// Pods of a node, twice.
const WAITING: usize = 256;
/// What the API server takes as the message of an event.
const LONGEST: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::PodName;

    fn sandbox() -> Sandbox {
        Sandbox {
            pod: PodName {
                namespace: "shop".to_owned(),
                name: "cart".to_owned(),
            },
            uid: "u1".to_owned(),
            netns: std::path::PathBuf::new(),
            ips: Vec::new(),
        }
    }

    #[test]
    fn an_event_is_of_the_pod_that_is_meant() {
        let (sender, notices) = mpsc::sync_channel(1);
        let warned = Notices(Some(sender));
        warned.warn(&sandbox(), "CaptureFailed", "é".repeat(1000));
        // There is no room for it, and nobody waits.
        warned.warn(&sandbox(), "CaptureFailed", "again".to_owned());
        let event = notices.try_recv().unwrap().event("n1");
        assert!(notices.try_recv().is_err());
        assert_eq!(event["involvedObject"]["kind"], "Pod");
        assert_eq!(event["involvedObject"]["uid"], "u1");
        assert_eq!(event["metadata"]["namespace"], "shop");
        assert_eq!(event["source"]["host"], "n1");
        assert_eq!(event["message"].as_str().unwrap(), "é".repeat(512));
        Notices::default().warn(&sandbox(), "CaptureFailed", "nowhere".to_owned());
    }
}
