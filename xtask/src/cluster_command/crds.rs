//! Definitions of the Gateway API's kinds and of Istio's, from the Go modules that `tools/cluster/crds` pins, for tests that
//! apply them.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::cluster_command::base;
use crate::shell;

/// Puts them into `target/cluster/crds`: `gateway-api.yaml`, the standard channel, and `istio.yaml`.
///
/// # Errors
/// There is no Go here, or a module cannot be fetched or is not the one that is pinned.
pub(crate) fn fetch() -> Result<()> {
    let to = base()?.join("crds");
    fs::create_dir_all(&to)?;
    let gateway = directory("sigs.k8s.io/gateway-api")?;
    let mut parts = Vec::new();
    for file in fs::read_dir(format!("{gateway}/config/crd/standard"))? {
        let text = fs::read_to_string(file?.path())?;
        // Beside them is a policy of admission.
        if text.contains("kind: CustomResourceDefinition") {
            parts.push(text);
        }
    }
    fs::write(to.join("gateway-api.yaml"), parts.join("\n---\n"))?;
    let istio = directory("istio.io/api")?;
    let all = fs::read_to_string(format!(
        "{istio}/kubernetes/customresourcedefinitions.gen.yaml"
    ))?;
    let documents = all.split("\n---\n");
    let of_network = documents.filter(|text| text.contains("\n  group: networking.istio.io"));
    let of_network: Vec<&str> = of_network.collect();
    fs::write(to.join("istio.yaml"), of_network.join("\n---\n"))?;
    Ok(())
}

/// Where Go keeps the module of the version that is pinned.
fn directory(module: &str) -> Result<String> {
    let pinned = shell::root()?.join("tools/cluster/crds");
    let mods = fs::read_to_string(pinned.join("go.mod"))?;
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let version = mods.lines().map(words).find_map(|words| {
        let [name, version] = words.as_slice() else {
            return None;
        };
        (name == module).then(|| version.clone())
    });
    let version = version.with_context(|| format!("{module} is not pinned"))?;
    let output = Command::new("go")
        .args(["mod", "download", "-json", &format!("{module}@{version}")])
        .current_dir(&pinned)
        .env("GOWORK", "off")
        .stdin(Stdio::null())
        .output()
        .context("starting go")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        bail!("go cannot fetch {module}: {said}");
    }
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    let sums = fs::read_to_string(pinned.join("go.sum"))?;
    let sum = format!("{module} {version} {}", text("Sum"));
    if !sums.lines().any(|line| line == sum) {
        bail!("{module} {version} is not what go.sum says");
    }
    Ok(text("Dir"))
}
