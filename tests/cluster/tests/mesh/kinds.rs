//! The kinds of the Gateway API and of Istio, as long as a test needs them.

use std::collections::BTreeSet;
use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests_cluster::{eventually, kubectl};

/// Dropping it takes them away, with all their objects. On a cluster that is none of this machine it takes away what it has
/// made.
pub(crate) enum Kinds {
    Here(PathBuf),
    Elsewhere(Vec<String>),
}

impl Kinds {
    /// Applies what `cargo xtask cluster build` has fetched.
    pub(crate) fn apply() -> Result<Self> {
        let crds = |base| PathBuf::from(base).join("crds");
        let here = env::var_os("KEELSON_CLUSTER_BASE").map(crds);
        let elsewhere = env::var_os("KEELSON_CRDS").map(PathBuf::from);
        let folder = here.as_ref().or(elsewhere.as_ref());
        let folder = folder.context("KEELSON_CRDS names no folder of definitions")?;
        let path = folder.display().to_string();
        ensure!(
            folder.is_dir(),
            "{path} is missing: cargo xtask cluster build"
        );
        let kinds = match here {
            Some(crds) => {
                let kinds = Self::Here(crds);
                kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &path])?;
                kinds
            }
            None => Self::Elsewhere(missing(&path)?),
        };
        for kind in [
            "gateways.gateway.networking.k8s.io",
            "virtualservices.networking.istio.io",
        ] {
            let wait = [
                "wait",
                "--for=condition=Established",
                "--timeout=30s",
                "crd",
                kind,
            ];
            kubectl(&wait)?;
        }
        Ok(kinds)
    }
}

impl Drop for Kinds {
    fn drop(&mut self) {
        let delete = ["delete", "--ignore-not-found", "--timeout=60s"];
        // A test that fails has its own message.
        match self {
            Self::Here(crds) => {
                let path = crds.display().to_string();
                drop(kubectl(&[&delete[..], &["-f", &path]].concat()));
            }
            Self::Elsewhere(made) => {
                for kind in made {
                    drop(kubectl(&[&delete[..], &[kind.as_str()]].concat()));
                }
            }
        }
    }
}

/// Makes the kinds that are not there, and leaves alone those that are: others' objects need them as they are.
fn missing(path: &str) -> Result<Vec<String>> {
    let names = |text: String| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
    let before = names(kubectl(&["get", "crd", "-o", "name"])?);
    // It goes on after one that is there, and says so in the end.
    let made = kubectl(&["create", "-f", path]);
    let now = names(kubectl(&["get", "crd", "-o", "name"])?);
    let new: Vec<String> = now.difference(&before).cloned().collect();
    match made {
        Err(error) if !format!("{error:#}").contains("already exists") => Err(error),
        _ => Ok(new),
    }
}

/// The status, reason and message of a condition.
pub(crate) fn condition<'v>(
    conditions: &'v Value,
    kind: &str,
) -> Result<(&'v str, &'v str, &'v str)> {
    let all = conditions.as_array().context("no conditions yet")?;
    let one = all.iter().find(|one| one["type"] == kind);
    let one = one.with_context(|| format!("no condition {kind} in {conditions}"))?;
    let text = |field: &str| one[field].as_str().unwrap_or_default();
    Ok((text("status"), text("reason"), text("message")))
}

/// Waits until a condition has this status and reason; its message.
pub(crate) fn until_said(
    read: impl Fn() -> Result<Value>,
    kind: &str,
    (status, reason): (&str, &str),
) -> Result<String> {
    eventually(&format!("{kind} is {status}, {reason}"), || {
        let conditions = read()?;
        let (is, why, message) = condition(&conditions, kind)?;
        if (is, why) != (status, reason) {
            bail!("{kind} is {is}, {why}: {message}");
        }
        Ok(message.to_owned())
    })
}
