//! `keelson version`.

use anyhow::Result;
use serde_json::json;

use crate::output::Answer;
use crate::reach::Where;
use crate::table::Table;

/// Say which version this is, and which the agents have.
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
    for node in mesh.nodes() {
        let (version, abi) = match mesh.dump(&node) {
            Ok(dump) => (dump.version, dump.abi.to_string()),
            Err(error) => {
                is_good = false;
                (format!("{error:#}"), String::new())
            }
        };
        table.row([format!("agent of {node}"), version.clone(), abi]);
        agents.insert(node, version.into());
    }
    let data = json!({ "keelson": OWN, "agents": agents });
    Ok(Answer::good(&data, table.to_string())?.but(is_good))
}

const OWN: &str = env!("CARGO_PKG_VERSION");
