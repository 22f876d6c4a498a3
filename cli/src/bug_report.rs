//! `keelson bug-report`: what a person who looks into a fault asks for first, in one file, without secrets.

use std::fs::File;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use admin_api::page;
use anyhow::{Context as _, Result};

use crate::output::Answer;
use crate::reach::Mesh;
use crate::table::Table;

/// Write the pages of all agents and of the controller into one file, for a bug report.
///
/// No private key and no token is on these pages, and what looks like one is left out all the same. Names, addresses,
/// identities and policies are inside: look at it before you give it away.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file; keelson-bug-report-TIME.tar if none is named. It must not exist.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(crate) fn answer(args: &Args, mesh: &Mesh) -> Result<Answer> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let path = match &args.file {
        Some(path) => path.clone(),
        None => format!("keelson-bug-report-{now}.tar").into(),
    };
    let file =
        File::create_new(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = tar::Builder::new(file);
    let mut table = Table::new(["PAGE", "BYTES", "LEFT OUT"]);
    let mut is_whole = true;
    let mut add = |name: String, text: Result<String>| -> Result<()> {
        is_whole &= text.is_ok();
        let text = text.unwrap_or_else(|error| format!("{error:#}\n"));
        let (text, left_out) = without_secrets(&text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive
            .append_data(&mut header, &name, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        let left_out = if left_out == 0 {
            String::new()
        } else {
            format!("{left_out} lines")
        };
        table.row([name, text.len().to_string(), left_out]);
        Ok(())
    };
    add(
        "keelson-version".to_owned(),
        Ok(format!("{}\n", env!("CARGO_PKG_VERSION"))),
    )?;
    for (name, page) in CONTROLLER {
        match mesh.controllers(page) {
            Ok(all) => {
                for (controller, page) in all {
                    let text = page.map(|page| page.body);
                    add(format!("controllers/{controller}/{name}"), text)?;
                }
            }
            Err(error) => add(format!("controllers/{name}"), Err(error))?,
        }
    }
    for node in mesh.nodes() {
        for (name, page) in AGENT {
            let text = mesh.agent(&node, page).map(|page| page.body);
            add(format!("nodes/{node}/{name}"), text)?;
        }
    }
    archive.finish()?;
    let text = format!(
        "{table}\nwrote {}; look at it before you give it away\n",
        path.display()
    );
    Ok(Answer::good(&serde_json::json!({ "file": path }), text)?.but(is_whole))
}

/// The text without lines that hold a key or a token, and how many those were. A block of PEM goes as a whole.
fn without_secrets(text: &str) -> (String, usize) {
    let (mut kept, mut left_out, mut in_key) = (String::new(), 0, false);
    for line in text.lines() {
        let begins = line.contains("-----BEGIN") && line.contains("PRIVATE KEY");
        let is_secret = in_key || begins || has_token(line);
        // A page of JSON has its line feeds escaped: such a block begins and ends in one line.
        in_key = (in_key || begins) && !line.contains("-----END");
        if is_secret {
            left_out += 1;
            kept.push_str("(left out: looks like a secret)\n");
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    (kept, left_out)
}

/// A JSON web token, or a bearer's.
fn has_token(line: &str) -> bool {
    let is_part = |part: &str| {
        part.len() >= 10
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let of_token = |b: char| !(b.is_ascii_alphanumeric() || b == '-' || b == '_' || b == '.');
    let mut words = line.split(of_token);
    let is_jwt = words.any(|word| {
        let parts: Vec<&str> = word.split('.').collect();
        parts.len() == 3 && parts.iter().all(|part| is_part(part)) && word.starts_with("eyJ")
    });
    is_jwt || line.to_ascii_lowercase().contains("bearer ")
}

const CONTROLLER: [(&str, &str); 5] = [
    ("health", page::HEALTH),
    ("sync.json", page::SYNC),
    ("diagnostics.json", page::DIAGNOSTICS),
    ("unreported.json", page::UNREPORTED),
    ("metrics", page::METRICS),
];

const AGENT: [(&str, &str); 7] = [
    ("health", page::HEALTH),
    ("config_dump.json", page::CONFIG_DUMP),
    ("certificates.json", page::CERTIFICATES),
    ("connections.json", page::CONNECTIONS),
    ("refusals.json", page::REFUSALS),
    ("metrics", page::METRICS),
    ("logging", page::LOGGING),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_left_out() {
        let jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzaG9wIn0.c2lnbmF0dXJlLW9mLWl0";
        let pem = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----";
        let text = format!(
            "a: 1\n{pem}\nb: 2\ntoken {jwt}\nAuthorization: Bearer x\nspiffe://cluster.local/ns/a/sa/b\n10.1.2.3 web.shop.svc\n"
        );
        let (kept, left_out) = without_secrets(&text);
        assert_eq!(left_out, 5, "{kept}");
        for gone in ["MIGH", "eyJ", "Bearer"] {
            assert!(!kept.contains(gone), "{gone}: {kept}");
        }
        for stays in [
            "a: 1",
            "b: 2",
            "spiffe://cluster.local/ns/a/sa/b",
            "10.1.2.3 web.shop.svc",
        ] {
            assert!(kept.contains(stays), "{stays}: {kept}");
        }
    }
}
