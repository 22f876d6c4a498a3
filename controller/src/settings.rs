//! Settings of the mesh that may change while the controller runs: one YAML file, in a cluster a key of a ConfigMap that is
//! mounted.
//!
//! The file is read anew when its content changes. One that cannot be read or that says what nobody understands is refused
//! as a whole: the finding names line and field, and what was read last stays in force, also when the controller starts again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use compile::diagnostics::Diagnostics;
use compile::index::{Canary, MeshConfig};
use manifest::{Diagnostic, Origin, Severity};
use model::TrustDomain;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use runtime::file::atomic_write;
use serde::Deserialize;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::options::SameNode;

/// What the file may say. What it leaves out is as the command line has it.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Settings {
    same_node: Option<SameNode>,
    trust_domain_aliases: Option<Aliases>,
    canary: Option<CanarySettings>,
}

/// Names of the mesh: a list, or one text with commas between them.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Aliases {
    List(Vec<String>),
    Text(String),
}

impl Aliases {
    fn names(&self) -> Vec<String> {
        let trimmed = |name: &str| name.trim().to_owned();
        match self {
            Self::List(names) => names.clone(),
            Self::Text(text) => {
                let names = text.split(',').map(trimmed);
                names.filter(|name| !name.is_empty()).collect()
            }
        }
    }
}

/// What some nodes have in place of it.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CanarySettings {
    nodes: BTreeSet<String>,
    same_node: Option<SameNode>,
}

impl Settings {
    fn read(text: &str) -> Result<Self> {
        let settings: Option<Self> = serde_saphyr::from_str(text)?;
        let settings = settings.unwrap_or_default();
        let aliases = settings.trust_domain_aliases.as_ref();
        for alias in aliases.map(Aliases::names).unwrap_or_default() {
            let parsed: Result<TrustDomain, _> = alias.parse();
            parsed.with_context(|| format!("trustDomainAliases: {alias:?}"))?;
        }
        Ok(settings)
    }

    /// The mesh of the command line, with these settings.
    fn over(self, base: &MeshConfig) -> MeshConfig {
        let mut mesh = base.clone();
        if let Some(same_node) = self.same_node {
            mesh.same_node = same_node.into();
        }
        if let Some(aliases) = self.trust_domain_aliases {
            mesh.trust_domain_aliases = aliases.names();
        }
        mesh.canary = self.canary.map(|canary| Canary {
            nodes: canary.nodes,
            same_node: canary.same_node.map_or(mesh.same_node, Into::into),
        });
        mesh
    }
}

/// The file, and what it is laid over.
pub struct SettingsFile {
    path: PathBuf,
    kept: PathBuf,
    base: MeshConfig,
    /// What the file held when it was looked at last; nothing if it could not be read.
    seen: Option<String>,
    mesh: watch::Sender<MeshConfig>,
}

/// Where findings about the file go.
pub struct Findings {
    /// All findings of the controller.
    pub diagnostics: Arc<Mutex<Diagnostics>>,
    /// 1 while the file is refused.
    pub refused: Gauge,
}

/// How often the file is looked at. A mounted ConfigMap is replaced by a symbolic link some levels up, so its content is
/// compared.
const LOOK: Duration = Duration::from_secs(1);

impl SettingsFile {
    /// Reads the file for the first time. What was in force last is kept in `state_dir`.
    ///
    /// # Errors
    /// The file is refused, and nothing was ever in force.
    pub fn open(path: &Path, state_dir: &Path, base: MeshConfig) -> Result<Self> {
        let kept = state_dir.join("settings.last-good.yaml");
        let read = fs::read_to_string(path).context("cannot be read");
        let good = read.and_then(|text| Ok((Settings::read(&text)?, text)));
        let (settings, seen) = match good {
            Ok((settings, text)) => {
                atomic_write(&kept, text.as_bytes())?;
                (settings, Some(text))
            }
            Err(wrong) => {
                let last = fs::read_to_string(&kept).ok();
                let last = last.and_then(|text| Settings::read(&text).ok());
                let Some(settings) = last else {
                    return Err(wrong.context(format!("--settings {}", path.display())));
                };
                warn!(error = %format!("{wrong:#}"), "the settings are refused; those that were in force last stay");
                // It is told of again, where everybody looks.
                (settings, None)
            }
        };
        let mesh = watch::Sender::new(settings.over(&base));
        Ok(Self {
            path: path.to_owned(),
            kept,
            base,
            seen,
            mesh,
        })
    }

    /// What is in force, and what comes into force.
    pub fn mesh(&self) -> watch::Receiver<MeshConfig> {
        self.mesh.subscribe()
    }

    /// Follows the file for ever.
    pub async fn follow(mut self, findings: Findings) {
        loop {
            self.look(&findings);
            tokio::time::sleep(LOOK).await;
        }
    }

    fn look(&mut self, findings: &Findings) {
        let read = fs::read_to_string(&self.path);
        if read
            .as_ref()
            .ok()
            .is_some_and(|text| Some(text) == self.seen.as_ref())
        {
            return;
        }
        let good = match &read {
            Ok(text) => Settings::read(text),
            Err(error) => Err(anyhow::anyhow!("cannot be read: {error}")),
        };
        let said = match good {
            Ok(settings) => {
                self.adopt(settings, read.as_deref().unwrap_or_default());
                Vec::new()
            }
            Err(wrong) => {
                let origin = Origin::file(self.path.to_string_lossy(), 1);
                let text =
                    format!("the settings are refused, and those before stay in force: {wrong:#}");
                vec![Diagnostic::new(Severity::Error, &origin, None, text)]
            }
        };
        findings.refused.set(i64::from(!said.is_empty()));
        let new = findings.diagnostics.lock().replace_settings(said);
        for one in &new {
            error!(finding = %one, "settings");
        }
        self.seen = read.ok();
    }

    fn adopt(&self, settings: Settings, text: &str) {
        if let Err(error) = atomic_write(&self.kept, text.as_bytes()) {
            warn!(%error, "cannot keep the settings for the next start");
        }
        let mesh = settings.over(&self.base);
        let changed = self.mesh.send_if_modified(|known| {
            let changed = *known != mesh;
            *known = mesh;
            changed
        });
        if changed {
            info!("the settings have changed");
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::agent;

    use super::*;

    fn findings() -> Findings {
        Findings {
            diagnostics: Arc::default(),
            refused: Gauge::default(),
        }
    }

    #[test]
    fn what_the_file_says_goes_before_the_command_line_and_what_it_leaves_out_does_not() {
        let base = MeshConfig {
            same_node: agent::SameNode::Mtls,
            trust_domain_aliases: vec!["old.domain".to_owned()],
            ..MeshConfig::default()
        };
        let read = |text: &str| Settings::read(text).map(|settings| settings.over(&base));
        assert_eq!(read("").unwrap(), base);
        let mesh = read("sameNode: direct\ncanary: {nodes: [n1], sameNode: mtls}\n").unwrap();
        assert_eq!(mesh.same_node, agent::SameNode::Direct);
        assert_eq!(mesh.trust_domain_aliases, base.trust_domain_aliases);
        let canary = mesh.canary.unwrap();
        assert_eq!(
            (canary.nodes.len(), canary.same_node),
            (1, agent::SameNode::Mtls)
        );
    }

    /// The chart has them as one value, which is what its author wrote and no YAML.
    #[test]
    fn aliases_are_a_list_or_a_text_with_commas() {
        let read = |text: &str| {
            let settings = Settings::read(text).expect(text);
            settings.over(&MeshConfig::default()).trust_domain_aliases
        };
        for text in [
            "trustDomainAliases: [a.org, b.org]",
            "trustDomainAliases: \"a.org, b.org\"",
            "trustDomainAliases: \"a.org,b.org,\"",
        ] {
            assert_eq!(read(text), ["a.org", "b.org"], "{text}");
        }
        assert_eq!(read("trustDomainAliases: \"\""), [""; 0]);
        let broken = Settings::read("trustDomainAliases: \"a.org], x: [\"");
        assert!(format!("{:#}", broken.expect_err("no name")).contains("trustDomainAliases"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("sameNode: sometimes", "sometimes"),
            ("sameNodes: direct", "sameNodes"),
            (
                "trustDomainAliases: [\"not a domain\"]",
                "trustDomainAliases",
            ),
            ("canary: {sameNode: mtls}", "nodes"),
            ("- a list", ""),
        ] {
            let error = Settings::read(text).expect_err(text);
            let error = format!("{error:#}");
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_wrong_file_leaves_what_was_in_force_also_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.yaml");
        let open = || SettingsFile::open(&path, folder.path(), MeshConfig::default());
        assert!(open().is_err(), "there is none, and there never was");
        fs::write(&path, "sameNode: mtls\n").unwrap();
        let (mut file, findings) = (open().unwrap(), findings());
        let mesh = file.mesh();
        assert_eq!(mesh.borrow().same_node, agent::SameNode::Mtls);
        for wrong in ["sameNode: [\n", "sameNode: both\n"] {
            fs::write(&path, wrong).unwrap();
            file.look(&findings);
            assert_eq!(findings.refused.get(), 1);
            assert_eq!(findings.diagnostics.lock().all().len(), 1);
            assert_eq!(mesh.borrow().same_node, agent::SameNode::Mtls);
            let started = open().unwrap();
            assert_eq!(started.mesh().borrow().same_node, agent::SameNode::Mtls);
        }
        fs::write(&path, "sameNode: direct\n").unwrap();
        file.look(&findings);
        assert_eq!(findings.refused.get(), 0);
        assert!(findings.diagnostics.lock().all().is_empty());
        assert_eq!(mesh.borrow().same_node, agent::SameNode::Direct);
    }
}
