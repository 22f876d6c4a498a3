//! The packages of the build and who depends on whom, as `cargo metadata` tells it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::shell;

/// The resolved graph of the workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

/// One package.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    pub(crate) license_file: Option<PathBuf>,
    /// `registry+...`, `git+...`, or nothing for a path.
    pub(crate) source: Option<String>,
    manifest_path: PathBuf,
}

impl Package {
    /// Its directory.
    pub(crate) fn directory(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new("."))
    }
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    /// `None` is a normal dependency, otherwise `dev` or `build`.
    kind: Option<String>,
}

impl Metadata {
    pub(crate) fn read() -> Result<Self> {
        let mut command = shell::cargo(&["metadata", "--format-version", "1"])?;
        let text = shell::read(&mut command)?;
        serde_json::from_str(&text).context("reading what `cargo metadata` wrote")
    }

    /// The packages of this workspace.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| self.is_member(package))
    }

    pub(crate) fn is_member(&self, package: &Package) -> bool {
        self.workspace_members.contains(&package.id)
    }

    /// The names of the packages that this one names in its own manifest, for its code.
    pub(crate) fn direct(&self, package: &Package) -> BTreeSet<&str> {
        let node = self.resolve.nodes.iter().find(|node| node.id == package.id);
        let deps = node.into_iter().flat_map(|node| &node.deps);
        let for_code = |kind: &Kind| kind.kind.is_none();
        deps.filter(|dep| dep.dep_kinds.iter().any(for_code))
            .filter_map(|dep| self.packages.iter().find(|package| package.id == dep.pkg))
            .map(|package| &*package.name)
            .collect()
    }

    /// The names of all packages that are linked into this one.
    pub(crate) fn linked(package: &Package) -> Result<BTreeSet<String>> {
        let linked = tree(&["--package", &package.name, "--edges", "normal"])?;
        Ok(linked.into_iter().map(|(name, _)| name).collect())
    }

    /// The packages that are built for the programs, tests apart.
    pub(crate) fn shipped(&self) -> Result<Vec<&Package>> {
        let shipped = tree(&["--workspace", "--edges", "normal,build"])?;
        let built =
            |package: &&Package| shipped.contains(&(package.name.clone(), package.version.clone()));
        Ok(self.packages.iter().filter(built).collect())
    }
}

/// Names and versions, as `cargo tree` tells them: unlike `cargo metadata` it leaves out optional
/// dependencies that nobody has enabled.
fn tree(args: &[&str]) -> Result<BTreeSet<(String, String)>> {
    let mut command = shell::cargo(&["tree", "--prefix", "none", "--format", "{p}"])?;
    let text = shell::read(command.args(args))?;
    let package = |line: &str| {
        let (name, rest) = line.split_once(" v")?;
        let version = rest.split(' ').next()?;
        Some((name.to_owned(), version.to_owned()))
    };
    Ok(text.lines().filter_map(package).collect())
}
