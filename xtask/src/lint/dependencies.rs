//! Which foreign crates may be built in: deny.toml, checked by cargo-deny where it is installed
//! and otherwise, licences, bans, sources and duplicates, by this program.
//!
//! Known vulnerabilities need cargo-deny and its database; this program does not check them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::lint::metadata::{Metadata, Package};
use crate::shell;

/// The parts of deny.toml that are read here.
#[derive(Debug, Deserialize)]
struct Policy {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
    #[serde(default)]
    clarify: Vec<Clarification>,
}

#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Clarification {
    #[serde(rename = "crate")]
    name: String,
    expression: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Bans {
    deny: Vec<Ban>,
    #[serde(default)]
    skip: Vec<Skip>,
}

#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: Option<String>,
    /// Packages that may depend on it nevertheless.
    #[serde(default)]
    wrappers: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

/// Checks with cargo-deny if it is there, and here otherwise.
pub(crate) fn check() -> Result<()> {
    if shell::which("cargo-deny").is_some() {
        let checks = [
            "deny",
            "--all-features",
            "check",
            "licenses",
            "bans",
            "sources",
        ];
        return shell::run(&mut shell::cargo(&checks)?);
    }
    println!(
        "{} deny.toml (cargo-deny is not installed: licences, bans, sources and duplicates are checked here)",
        shell::dim("$")
    );
    let path = shell::root()?.join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let policy: Policy = toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
    let breaches = breaches(&policy, &Metadata::read()?)?;
    for breach in &breaches {
        println!("  {} {breach}", shell::red("NO"));
    }
    if !breaches.is_empty() {
        bail!("{} breaches of deny.toml", breaches.len());
    }
    Ok(())
}

fn breaches(policy: &Policy, metadata: &Metadata) -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    let shipped = metadata.shipped()?;
    for package in &metadata.packages {
        if !metadata.is_member(package) {
            breaches.extend(source_breach(policy, package));
        }
    }
    for package in &shipped {
        breaches.extend(license_breach(policy, package));
        for ban in policy
            .bans
            .deny
            .iter()
            .filter(|ban| ban.name == package.name)
        {
            breaches.extend(ban_breaches(ban, metadata));
        }
    }
    breaches.extend(duplicates(policy, &shipped));
    Ok(breaches)
}

fn source_breach(policy: &Policy, package: &Package) -> Option<String> {
    let source = package
        .source
        .as_deref()
        .unwrap_or("a path outside the workspace");
    let registry = source.strip_prefix("registry+");
    let allowed = registry.is_some_and(|registry| {
        policy
            .sources
            .allow_registry
            .iter()
            .any(|allowed| allowed == registry)
    });
    (!allowed).then(|| {
        format!(
            "{} {} comes from {source}, which deny.toml does not allow",
            package.name, package.version
        )
    })
}

fn license_breach(policy: &Policy, package: &Package) -> Option<String> {
    let clarified = policy
        .licenses
        .clarify
        .iter()
        .find(|clarify| clarify.name == package.name);
    let expression = match (clarified, &package.license) {
        (Some(clarified), _) => &clarified.expression,
        (None, Some(license)) => license,
        (None, None) => {
            let file = package
                .license_file
                .as_ref()
                .map_or("no file", |_| "only a file");
            return Some(format!(
                "{} {} states no licence ({file})",
                package.name, package.version
            ));
        }
    };
    let mut allowed = policy.licenses.allow.clone();
    for exception in policy
        .licenses
        .exceptions
        .iter()
        .filter(|exception| exception.name == package.name)
    {
        allowed.extend(exception.allow.iter().cloned());
    }
    (!is_allowed(expression, &allowed)).then(|| {
        format!(
            "{} {} has the licence {expression}, which deny.toml does not allow",
            package.name, package.version
        )
    })
}

/// Whether an SPDX expression can be met with allowed licences. `/` is the old form of `OR`.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    any_of(&words, &mut at, allowed) && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all_of(words, at, allowed);
    }
    met
}

fn all_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(word) = words.get(*at) else {
        return false;
    };
    *at += 1;
    if *word == "(" {
        let met = any_of(words, at, allowed);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return met && closed;
    }
    let mut license = (*word).to_owned();
    if words.get(*at) == Some(&"WITH") {
        license = format!("{license} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    allowed.contains(&license)
}

fn ban_breaches(ban: &Ban, metadata: &Metadata) -> Vec<String> {
    let dependents = metadata.packages.iter().filter(|package| {
        metadata.direct(package).contains(&*ban.name) && !ban.wrappers.contains(&package.name)
    });
    let reason = ban.reason.as_deref().unwrap_or("deny.toml bans it");
    dependents
        .map(|package| format!("{} depends on {}: {reason}", package.name, ban.name))
        .collect()
}

/// A crate in two versions costs build time and memory; the skipped ones are accepted.
fn duplicates(policy: &Policy, shipped: &[&Package]) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in shipped {
        versions
            .entry(&package.name)
            .or_default()
            .insert(&package.version);
    }
    versions
        .into_iter()
        .filter(|(name, versions)| {
            versions.len() > 1 && !policy.bans.skip.iter().any(|skip| skip.name == *name)
        })
        .map(|(name, versions)| {
            let versions: Vec<&str> = versions.into_iter().collect();
            format!("{name} is built in versions {}", versions.join(" and "))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions_are_met_or_not() {
        let allowed = [
            "MIT",
            "Apache-2.0",
            "Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ];
        let allowed: BTreeSet<String> = allowed.map(str::to_owned).into();
        for (expression, met) in [
            ("MIT", true),
            ("GPL-2.0", false),
            ("MIT OR GPL-2.0", true),
            ("MIT/Apache-2.0", true),
            ("MIT AND GPL-2.0", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(GPL-2.0 OR LGPL-2.1) AND MIT", false),
            ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", true),
            ("GPL-2.0 WITH Classpath-exception-2.0", false),
            ("MIT OR", true),
            ("(MIT", false),
            ("", false),
        ] {
            // A dangling `OR` adds nothing that could be met.
            assert_eq!(is_allowed(expression, &allowed), met, "{expression}");
        }
    }
}
