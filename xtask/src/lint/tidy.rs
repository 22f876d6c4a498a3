//! The workspace's own rules, which no other tool knows.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::lint::metadata::{Metadata, Package};
use crate::shell;

/// Who may depend on whom within the workspace (ARCHITECTURE.md). A member that is not listed
/// may depend on nothing here; tests' dependencies are free.
const ARROWS: [(&str, &[&str]); 29] = [
    ("abi", &[]),
    ("model", &[]),
    ("l7", &["model"]),
    ("admin-api", &["model"]),
    ("ebpf", &["abi"]),
    ("proto", &["l7", "model"]),
    ("k8s-api", &["model"]),
    ("manifest", &["k8s-api"]),
    ("compile", &["k8s-api", "l7", "manifest", "model", "proto"]),
    ("tls", &["model"]),
    ("tunnel", &["model", "runtime", "tls"]),
    ("runtime", &[]),
    ("telemetry", &["admin-api", "model", "runtime"]),
    ("xds-client", &["model", "proto", "runtime", "tls"]),
    (
        "node-agent",
        &[
            "abi",
            "admin-api",
            "model",
            "proto",
            "runtime",
            "telemetry",
            "tls",
            "tunnel",
            "xds-client",
        ],
    ),
    (
        "waypoint",
        &[
            "admin-api",
            "l7",
            "model",
            "proto",
            "runtime",
            "telemetry",
            "xds-client",
        ],
    ),
    (
        "controller",
        &[
            "compile", "k8s-api", "manifest", "model", "proto", "runtime", "tls",
        ],
    ),
    ("cni", &[]),
    (
        "keelson",
        &["admin-api", "chart", "compile", "lab", "manifest", "model"],
    ),
    ("lab", &["testkit"]),
    ("chart", &[]),
    ("cluster", &["lab"]),
    ("faults", &[]),
    ("bench", &["lab"]),
    ("subscribers", &["bench", "proto", "xds-client"]),
    ("testkit", &[]),
    (
        "tests-lab",
        &[
            "abi",
            "controller",
            "k8s-api",
            "lab",
            "model",
            "node-agent",
            "proto",
            "runtime",
            "testkit",
            "tls",
            "tunnel",
            "xds-client",
        ],
    ),
    ("tests-cluster", &["cluster", "faults", "lab", "testkit"]),
    ("xtask", &["bench", "cluster", "lab", "testkit"]),
];

/// Where each requirement stands.
const STATUSES: &str = "docs/requirements-status.md";

/// What must not be linked into a package, however indirectly. A star ends a prefix.
const ABSENT: [(&str, &[&str]); 6] = [
    ("abi", &["tokio", "libc"]),
    ("model", &["tokio", "prost", "aya*", "kube*", "k8s-openapi"]),
    (
        "l7",
        &["tokio", "prost", "hyper", "aya*", "kube*", "k8s-openapi"],
    ),
    ("node-agent", &["kube*", "k8s-openapi", "k8s-api"]),
    (
        "waypoint",
        &["aya*", "kube*", "k8s-openapi", "k8s-api", "abi", "tunnel"],
    ),
    ("controller", &["aya*", "abi", "tunnel"]),
];

/// Checks every rule and names every breach.
pub(crate) fn check() -> Result<()> {
    println!("{} tidy", shell::dim("$"));
    let metadata = Metadata::read()?;
    let mut breaches = Vec::new();
    for member in metadata.members() {
        arrows(&metadata, member, &mut breaches);
        absences(member, &mut breaches)?;
        manifest(member, &mut breaches)?;
        let files = sources(member.directory())?;
        for file in &files {
            source(file, &mut breaches)?;
        }
        breaches.extend(super::rooms::breaches(&files)?);
    }
    let page = shell::root()?.join(STATUSES);
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    breaches.extend(
        super::statuses::breaches(&text)
            .into_iter()
            .map(|breach| format!("{STATUSES}: {breach}")),
    );
    for breach in &breaches {
        println!("  {} {breach}", shell::red("NO"));
    }
    if !breaches.is_empty() {
        bail!("{} breaches of the workspace's rules", breaches.len());
    }
    Ok(())
}

fn arrows(metadata: &Metadata, member: &Package, breaches: &mut Vec<String>) {
    let allowed = ARROWS.iter().find(|(name, _)| *name == member.name);
    let Some((_, allowed)) = allowed else {
        breaches.push(format!(
            "{} has no line in ARROWS: say there what it may depend on",
            member.name
        ));
        return;
    };
    let members: Vec<&str> = metadata.members().map(|member| &*member.name).collect();
    for name in metadata.direct(member) {
        if members.contains(&name) && !allowed.contains(&name) {
            breaches.push(format!(
                "{} depends on {name}, which no arrow allows",
                member.name
            ));
        }
    }
}

fn absences(member: &Package, breaches: &mut Vec<String>) -> Result<()> {
    let Some((_, absent)) = ABSENT.iter().find(|(name, _)| *name == member.name) else {
        return Ok(());
    };
    for name in Metadata::linked(member)? {
        if absent.iter().any(|pattern| matches(pattern, &name)) {
            breaches.push(format!("{} must not link {name}", member.name));
        }
    }
    Ok(())
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name == prefix || name.starts_with(&format!("{prefix}-")),
        None => name == pattern,
    }
}

fn manifest(member: &Package, breaches: &mut Vec<String>) -> Result<()> {
    let directory = member.directory();
    let named_after_it = directory
        .parent()
        .is_some_and(|parent| parent.ends_with("crates") || parent.ends_with("tools"));
    if named_after_it && !directory.ends_with(&member.name) {
        breaches.push(format!(
            "{} lies in {}: directory and crate have one name",
            member.name,
            directory.display()
        ));
    }
    let path = directory.join("Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let manifest: toml::Table = text
        .parse()
        .with_context(|| format!("{}", path.display()))?;
    let lints = manifest
        .get("lints")
        .and_then(|lints| lints.get("workspace"));
    if lints.and_then(toml::Value::as_bool) != Some(true) {
        breaches.push(format!(
            "{} does not inherit the workspace's lints",
            path.display()
        ));
    }
    Ok(())
}

fn source(path: &Path, breaches: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    if path.ends_with("mod.rs") {
        breaches.push(format!(
            "{}: modules are foo.rs beside foo/, never mod.rs",
            path.display()
        ));
    }
    // A module of tests is named by its place.
    let in_tests = path.ends_with("tests.rs") || path.iter().any(|part| part == "tests");
    if !text.starts_with("//!") && !in_tests {
        breaches.push(format!(
            "{}:1: the first line is not `//!`, which says what the file is for",
            path.display()
        ));
    }
    if !path.ends_with("lint/tidy.rs") {
        words(path, &text, breaches);
    }
    let lines = text.lines().count();
    if lines > LONG {
        println!("  note: {} has {lines} lines", path.display());
    }
    Ok(())
}

/// Names that are no terms of the field say nothing to a reader who comes from there.
fn words(path: &Path, text: &str, breaches: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        for word in line.split(|letter: char| !letter.is_ascii_alphanumeric()) {
            let refused = REFUSED
                .iter()
                .find(|(refused, _)| word.eq_ignore_ascii_case(refused));
            if let Some((_, instead)) = refused {
                let (path, number) = (path.display(), number + 1);
                breaches.push(format!(
                    "{path}:{number}: {word} is no term of the field: {instead}"
                ));
            }
        }
    }
}

/// Words that no code or comment may have, and what to write instead.
const REFUSED: [(&str, &str); 9] = [
    ("crew", "name what the threads do"),
    ("desk", "name the service, or what it holds"),
    ("office", "name the role"),
    ("town", "it is a mesh"),
    ("village", "it is a mesh"),
    ("hamlet", "it is a mesh"),
    ("gallery", "it is a mesh"),
    ("end1", "write which end of what"),
    ("end2", "write which end of what"),
];

/// The Rust files of a member, those of members inside it excluded.
fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut next = vec![
        directory.join("src"),
        directory.join("tests"),
        directory.join("benches"),
    ];
    while let Some(directory) = next.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() && !path.join("Cargo.toml").exists() {
                next.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

const LONG: usize = 800;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_no_terms_are_refused_with_what_to_write_instead() {
        let mut breaches = Vec::new();
        let text = "struct PodDesk;\n// The crew.\nlet town_hall = 1;\nlet downtown = End1 { };\n";
        words(Path::new("a.rs"), text, &mut breaches);
        assert_eq!(
            breaches,
            [
                "a.rs:2: crew is no term of the field: name what the threads do",
                "a.rs:3: town is no term of the field: it is a mesh",
                "a.rs:4: End1 is no term of the field: write which end of what",
            ]
        );
    }

    #[test]
    fn a_star_matches_a_family_of_crates_and_no_other() {
        assert!(matches("aya*", "aya"));
        assert!(matches("aya*", "aya-obj"));
        assert!(!matches("aya*", "ayah"));
        assert!(matches("tokio", "tokio"));
        assert!(!matches("tokio", "tokio-util"));
    }
}
