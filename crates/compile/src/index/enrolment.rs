//! Whether a pod is to be captured, and because of which label of which object.

use manifest::{Labels, PodFacts};

/// Whose the pods are that Istio's label names, in a cluster where Istio's own ambient mesh may run too. Each pod has one
/// owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AmbientLabel {
    /// This mesh's.
    #[default]
    Keelson,
    /// Istio's: its label and annotation enrol nobody here.
    Istio,
    /// This mesh's, which takes the place of Istio's node agents under its control plane. What says there that a pod's network is
    /// redirected is our own mark, by which nobody else owns the pod.
    UnderIstiod,
}

/// The decision on one pod, with its reason in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// Whether its traffic is to be captured.
    pub capture: bool,
    /// Which label or field of which object decided.
    pub reason: String,
}

/// Decides for `pod`, given the labels of its namespace; `None` when there is no Namespace object.
///
/// A pod's own label goes before its annotation, and both before the namespace. Pods on the host's network cannot be
/// captured, and pods with a sidecar, or with Istio's redirection in their network, are in another mesh already.
pub fn decide(pod: &PodFacts, namespace: Option<&Labels>, ambient: AmbientLabel) -> Enrolment {
    let subject = format!("pod {}", pod.key);
    if pod.host_network {
        return exempt(format!(
            "{subject} uses the host network (spec.hostNetwork)"
        ));
    }
    if pod.annotations.contains_key(SIDECAR_STATUS) {
        return exempt(format!(
            "{subject} has a sidecar (annotation {SIDECAR_STATUS})"
        ));
    }
    if ambient != AmbientLabel::UnderIstiod && pod.is_redirected() {
        return exempt(format!(
            "{subject} is in Istio's ambient mesh (annotation {REDIRECTION}=enabled, which Istio's CNI plugin writes)"
        ));
    }
    for (what, pairs) in [("label", &pod.labels), ("annotation", &pod.annotations)] {
        if let Some(decision) = mode(&format!("{subject} has {what}"), pairs, ambient) {
            return decision;
        }
    }
    for (what, pairs) in [("label", &pod.labels), ("annotation", &pod.annotations)] {
        if pairs
            .get(SIDECAR_INJECT)
            .is_some_and(|value| value == "false")
        {
            return exempt(format!("{subject} has {what} {SIDECAR_INJECT}=false"));
        }
    }
    let name = &pod.key.namespace;
    let Some(labels) = namespace else {
        return exempt(format!(
            "namespace {name} is not known, so nothing enrols {subject}"
        ));
    };
    mode(&format!("namespace {name} has label"), labels, ambient).unwrap_or_else(|| {
        exempt(format!(
            "namespace {name} has neither label {MESH}=enabled nor {DATAPLANE_MODE}=ambient"
        ))
    })
}

/// Whether a namespace with these labels enrols its pods, but for those that say otherwise themselves.
pub fn enrols(namespace: &Labels, ambient: AmbientLabel) -> bool {
    mode("", namespace, ambient).is_some_and(|decision| decision.capture)
}

/// What one set of labels or annotations says; values that mean nothing say nothing.
fn mode(subject: &str, pairs: &Labels, ambient: AmbientLabel) -> Option<Enrolment> {
    for key in [MESH, DATAPLANE_MODE] {
        let Some(value) = pairs.get(key) else {
            continue;
        };
        let reason = format!("{subject} {key}={value}");
        match (key, value.as_str()) {
            (DATAPLANE_MODE, "ambient") if ambient == AmbientLabel::Istio => {
                return Some(exempt(format!(
                    "{reason}, which is Istio's here (--ambient-label=istio)"
                )));
            }
            (MESH, "enabled") | (DATAPLANE_MODE, "ambient") => {
                return Some(Enrolment {
                    capture: true,
                    reason,
                });
            }
            (_, "disabled" | "none") => return Some(exempt(reason)),
            _ => {}
        }
    }
    None
}

fn exempt(reason: String) -> Enrolment {
    Enrolment {
        capture: false,
        reason,
    }
}

/// Keelson's own label and annotation: `enabled`, or `disabled`/`none`.
pub const MESH: &str = "keelson.io/mesh";
/// The label of a namespace whose pods may connect to nobody that the mesh does not know, where it says `closed`.
pub const EGRESS: &str = "keelson.io/egress";
/// Istio's label and annotation: `ambient`, or `none`.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
const SIDECAR_INJECT: &str = "sidecar.istio.io/inject";
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// Written by Istio's CNI plugin on a pod whose network leads to ztunnel (`pkg/util` of istio's `cni`).
const REDIRECTION: &str = "ambient.istio.io/redirection";
