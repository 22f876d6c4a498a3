//! Images and the chart of an earlier commit, for tests of a mesh of two versions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{build, images, shell};

/// What was made of the commit.
#[derive(Debug)]
pub(super) struct Earlier {
    /// The commit's chart.
    pub(super) chart: PathBuf,
    /// Archives of images, tagged [`TAG`].
    pub(super) images: Vec<PathBuf>,
}

/// Makes what is missing. The commit's sources are a work tree below `target/earlier`, and are built in a target directory that
/// all earlier commits share. This checkout's would not do: cargo tells packages apart by their paths within a workspace, so
/// that both versions of one would have the same place, and what build scripts have made of one would be taken for the other.
///
/// # Errors
/// There is no such commit here, or it cannot be built.
pub(super) fn make(commit: &str) -> Result<Earlier> {
    let root = shell::root()?;
    let hash = shell::read(
        Command::new("git")
            .args(["rev-parse", "--verify", "--quiet"])
            .arg(format!("{commit}^{{commit}}"))
            .current_dir(&root),
    )
    .with_context(|| format!("there is no commit {commit} here; --earlier names another"))?;
    let directory = root.join("target/earlier").join(&hash);
    let (sources, programs) = (directory.join("sources"), directory.join("programs"));
    if !programs.is_dir() {
        println!("to be compiled: the programs of {hash}, an earlier version");
        check_out(&root, &hash, &sources)?;
        compile(&root, &sources)?;
        keep(&root, &programs)?;
    }
    Ok(Earlier {
        chart: sources.join("deploy/charts/keelson"),
        images: images::make_of(&programs, TAG, &directory.join("images"))?,
    })
}

fn check_out(root: &Path, hash: &str, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("removing {}", to.display()))?;
    }
    // Of a work tree that was removed as a folder, git still has the name.
    shell::run(
        Command::new("git")
            .args(["worktree", "prune"])
            .current_dir(root),
    )?;
    let mut add = Command::new("git");
    add.args(["worktree", "add", "--detach"]).arg(to).arg(hash);
    shell::run(add.current_dir(root))
}

fn compile(root: &Path, sources: &Path) -> Result<()> {
    let mut command = shell::cargo(&build::WITH_FEATURES_OF_TESTS)?;
    for name in images::PROGRAMS {
        command.args(["--bin", name]);
    }
    command
        .current_dir(sources)
        .env("CARGO_TARGET_DIR", target(root));
    shell::run(&mut command)
}

fn target(root: &Path) -> PathBuf {
    root.join("target/earlier/target")
}

fn keep(root: &Path, to: &Path) -> Result<()> {
    let partly = to.with_extension("partly");
    fs::create_dir_all(&partly).with_context(|| format!("making {}", partly.display()))?;
    let built = target(root).join("debug");
    for name in images::PROGRAMS {
        fs::copy(built.join(name), partly.join(name)).with_context(|| format!("keeping {name}"))?;
    }
    fs::rename(&partly, to)?;
    Ok(())
}

/// The tag of the images.
pub(super) const TAG: &str = "earlier";
