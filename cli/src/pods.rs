//! What the API server says of pods of ours.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;

/// Whether its first container runs, so that it can be asked.
pub(crate) fn is_running(pod: &Pod) -> bool {
    statuses(pod).iter().any(|container| {
        container
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some())
    })
}

/// Whether it is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let is_so = |condition: &k8s_openapi::api::core::v1::PodCondition| {
        condition.type_ == "Ready" && condition.status == "True"
    };
    conditions.is_some_and(|all| all.iter().any(is_so))
}

/// An order of the pods of one node: who is asked first is greatest. Of an agent and its successor both answer.
pub(crate) fn liveliness(pod: &Pod) -> (bool, bool, bool, Option<i64>) {
    let made = pod.creation_timestamp().map(|time| time.0.as_second());
    (
        is_running(pod),
        pod.metadata.deletion_timestamp.is_none(),
        is_ready(pod),
        made,
    )
}

/// Why it is not ready, as far as its object says; nothing if it is.
pub(crate) fn why_not_ready(pod: &Pod) -> Option<String> {
    if is_ready(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() == Some("Succeeded") {
        return None;
    }
    for container in statuses(pod) {
        let Some(state) = &container.state else {
            continue;
        };
        let ended = state.terminated.as_ref().or_else(|| {
            let last = container.last_state.as_ref();
            last.and_then(|state| state.terminated.as_ref())
        });
        if let Some(waiting) = &state.waiting {
            let mut said = waiting.reason.clone().unwrap_or_default();
            if let Some(message) = waiting.message.as_ref().filter(|text| !text.is_empty()) {
                said.push_str(&format!(": {message}"));
            }
            if let Some(ended) = ended {
                said.push_str(&format!("; it ended with code {}", ended.exit_code));
            }
            return Some(said);
        }
        if let Some(ended) = &state.terminated {
            return Some(format!("it ended with code {}", ended.exit_code));
        }
    }
    // No container yet: it waits for a node, or for volumes.
    let conditions = status.conditions.iter().flatten();
    let open = conditions
        .filter(|condition| condition.status == "False")
        .find_map(|condition| condition.message.clone());
    let phase = status.phase.clone().unwrap_or_default();
    if is_running(pod) {
        return Some("it runs and is not ready".to_owned());
    }
    Some(match open {
        Some(message) => format!("{phase}: {message}"),
        None => phase,
    })
}

fn statuses(pod: &Pod) -> &[ContainerStatus] {
    let status = pod.status.as_ref();
    let all = status.and_then(|status| status.container_statuses.as_deref());
    all.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        let pod = json!({"metadata": {"name": "a"}, "status": status});
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn a_pod_that_is_not_ready_says_why() {
        for (status, expected) in [
            (
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
                None,
            ),
            (
                json!({"phase": "Pending", "containerStatuses": [{
                    "name": "a", "image": "a", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
                }]}),
                Some("ImagePullBackOff: no such image"),
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{
                    "name": "a", "image": "a", "imageID": "", "ready": false, "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": 1}},
                }]}),
                Some("CrashLoopBackOff; it ended with code 1"),
            ),
            (
                json!({"phase": "Pending", "conditions": [
                    {"type": "PodScheduled", "status": "False", "message": "no node is free"},
                ]}),
                Some("Pending: no node is free"),
            ),
        ] {
            let said = why_not_ready(&pod(status));
            assert_eq!(said.as_deref(), expected);
        }
    }
}
