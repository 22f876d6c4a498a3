//! The kinds of the Gateway API and of Istio, as long as a test needs them.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests_cluster::{eventually, kubectl};

/// Dropping it takes them away, with all their objects.
pub(crate) struct Kinds(PathBuf);

impl Kinds {
    /// Applies what `cargo xtask cluster build` has fetched.
    pub(crate) fn apply() -> Result<Self> {
        let base = env::var_os("KEELSON_CLUSTER_BASE").context("a cluster of this machine")?;
        let crds = PathBuf::from(base).join("crds");
        ensure!(
            crds.is_dir(),
            "{} is missing: cargo xtask cluster build",
            crds.display()
        );
        let kinds = Self(crds);
        let path = kinds.path();
        kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &path])?;
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

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Kinds {
    fn drop(&mut self) {
        // A test that fails has its own message.
        drop(kubectl(&[
            "delete",
            "--ignore-not-found",
            "--timeout=60s",
            "-f",
            &self.path(),
        ]));
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
