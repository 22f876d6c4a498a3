//! What is installed already.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::ResourceExt as _;
use kube::api::{Api as Of, ListParams};
use serde_json::Value;

use super::{VALUES, ownership};
use crate::api::{Api, Deed};
use crate::reach::AGENT;

/// An installation.
#[derive(Debug)]
pub(crate) struct Found {
    /// The release's name.
    pub(crate) release: String,
    /// The values that this program was given the last time.
    pub(super) values: Option<Value>,
    /// Whether Helm was there after that.
    pub(super) by_helm: bool,
}

/// The installation in a namespace.
///
/// # Errors
/// There is one in another namespace: a cluster has one.
pub(crate) fn find(api: &Api, namespace: &str) -> Result<Option<Found>> {
    let sets: Of<DaemonSet> = Of::all(api.client.clone());
    let ours = ListParams::default().labels(&format!("app.kubernetes.io/name={AGENT}"));
    let deed = Deed::new("list", "daemonsets.apps");
    let found = api.call(&deed, sets.list(&ours))?.items;
    let Some(set) = found.into_iter().next() else {
        return Ok(None);
    };
    let there = set.namespace().unwrap_or_default();
    if there != namespace {
        bail!(
            "Keelson is installed in namespace {there}, and once in a cluster is all: -n {there} is it"
        );
    }
    let managed = set.metadata.managed_fields.as_ref();
    let managed: Vec<Value> = managed
        .into_iter()
        .flatten()
        .filter_map(|entry| serde_json::to_value(entry).ok())
        .collect();
    let values = set.annotations().get(VALUES);
    let values = values
        .map(|text| serde_json::from_str(text))
        .transpose()
        .with_context(|| format!("the annotation {VALUES} of the DaemonSet {AGENT}"))?;
    let release = set.labels().get("app.kubernetes.io/instance");
    Ok(Some(Found {
        release: release.cloned().unwrap_or_else(|| "keelson".to_owned()),
        values,
        by_helm: ownership::is_helms(&managed),
    }))
}
