//! `keelson version`.

use anyhow::Result;
use serde_json::json;

use crate::output::Answer;
use crate::reach::Where;
use crate::table::Table;

/// Say which version this is, and which the programs of the mesh have. Of a controller it is the tag of its image.
///
/// Exit codes: 0; 1, an agent does not answer, or is more than one version apart; 2, nobody could be asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ask no agent.
    #[arg(long)]
    pub(crate) client: bool,
}

/// The version of this program.
pub(crate) fn own() -> Result<Answer> {
    Answer::good(&json!({ "keelson": OWN }), format!("keelson {OWN}\n"))
}

/// The same, and those of the agents.
pub(crate) fn all(at: &Where) -> Result<Answer> {
    let mesh = at.open()?;
    let mut agents = serde_json::Map::new();
    let mut table = Table::new(["PROGRAM", "VERSION", "KERNEL CONTRACT"]);
    table.row(["keelson".to_owned(), OWN.to_owned(), String::new()]);
    let mut is_good = true;
    let controllers = mesh.versions();
    for (name, version) in &controllers {
        table.row([format!("controller {name}"), version.clone(), String::new()]);
    }
    for node in mesh.nodes() {
        let (version, abi) = match mesh.dump(&node) {
            Ok(dump) => (dump.version, dump.abi.to_string()),
            Err(error) => {
                is_good = false;
                (format!("{error:#}"), String::new())
            }
        };
        let mut shown = version.clone();
        if is_apart(&version) {
            is_good = false;
            shown.push_str(" (more than one version apart from keelson)");
        }
        table.row([format!("agent of {node}"), shown, abi]);
        agents.insert(node, version.into());
    }
    let controllers: serde_json::Map<_, _> = controllers
        .into_iter()
        .map(|(name, version)| (name, version.into()))
        .collect();
    let data = json!({ "keelson": OWN, "controllers": controllers, "agents": agents });
    Ok(Answer::good(&data, table.to_string())?.but(is_good))
}

/// Whether a version is so far from this one's that the two need not understand each other. What is no version, as the
/// sentence why nobody answers, is not.
pub(crate) fn is_apart(version: &str) -> bool {
    apart(OWN, version)
}

fn apart(one: &str, other: &str) -> bool {
    let read = |text: &str| -> Option<(u64, u64)> {
        let mut parts = text.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    match (read(one), read(other)) {
        (Some((major, minor)), Some((other_major, other_minor))) => {
            major != other_major || minor.abs_diff(other_minor) > 1
        }
        _ => false,
    }
}

pub(crate) const OWN: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_minor_version_is_near_and_two_are_apart() {
        for (one, other, is) in [
            ("0.3.0", "0.2.9", false),
            ("0.3.0", "0.4.1", false),
            ("0.3.0", "0.5.0", true),
            ("1.0.0", "0.9.0", true),
            ("0.3.0", "no answer", false),
        ] {
            assert_eq!(apart(one, other), is, "{one} {other}");
        }
    }
}
