//! The layers inside node-agent: a room names only rooms below it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::shell;

/// The rooms of `node-agent/src`, each above those before it.
const ROOMS: [&str; 10] = [
    "host",
    "bpf",
    "telemetry",
    "pod",
    "mesh",
    "direct",
    "carry",
    "enrol",
    "succession",
    "agent",
];

/// Where they lie.
const PLACE: &str = "node-agent/src";

/// Names every line of node-agent by which a room reaches a room above it.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn breaches(files: &[impl AsRef<Path>]) -> Result<Vec<String>> {
    let place = shell::root()?.join(PLACE);
    let mut breaches = Vec::new();
    for file in files {
        let file = file.as_ref();
        let Ok(inside) = file.strip_prefix(&place) else {
            continue;
        };
        let inside = inside.to_string_lossy();
        if ["lib.rs", "main.rs"].contains(&&*inside) {
            continue;
        }
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let found = upward(&inside, &text);
        breaches.extend(found.map_err(|what| anyhow::anyhow!("{PLACE}/{inside}: {what}"))?);
    }
    Ok(breaches)
}

/// The upward arrows of one file, by its path below [`PLACE`].
fn upward(path: &str, text: &str) -> Result<Vec<String>, String> {
    let own = path.split(['/', '.']).next().unwrap_or_default();
    let height = |room: &str| ROOMS.iter().position(|known| *known == room);
    let own_height =
        height(own).ok_or_else(|| format!("{own} is no room: give it a place in ROOMS"))?;
    let mut breaches = Vec::new();
    for (line, room) in named(text) {
        let Some(other) = height(room) else {
            continue;
        };
        if other > own_height {
            breaches.push(format!(
                "{PLACE}/{path}:{line} names {room}, which stands above {own}"
            ));
        }
    }
    Ok(breaches)
}

/// The first names after `crate::`, alone or in braces, with their lines.
fn named(text: &str) -> Vec<(usize, &str)> {
    let mut names = Vec::new();
    for (at, found) in text.match_indices("crate::") {
        // `pub(in crate::...)` says who may see, and names nothing.
        let line_start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        if text[line_start..at].trim_start().starts_with("//") {
            continue;
        }
        let from = at + found.len();
        let rest = &text[from..];
        let starts: Vec<usize> = match rest.strip_prefix('{') {
            Some(list) => tops(list)
                .into_iter()
                .map(|start| from + 1 + start)
                .collect(),
            None => vec![from],
        };
        for start in starts {
            let name = &text[start..];
            let end = name
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .unwrap_or(name.len());
            let line = text[..start].matches('\n').count() + 1;
            names.push((line, &name[..end]));
        }
    }
    names
}

/// Where the items of a list in braces start, nested lists left out; the list's opening brace is gone.
fn tops(list: &str) -> Vec<usize> {
    let mut starts = Vec::new();
    let (mut depth, mut is_new) = (0_usize, true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_new = true,
            c if is_new && !c.is_whitespace() => {
                starts.push(at);
                is_new = false;
            }
            _ => {}
        }
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::upward;

    #[test]
    fn a_room_may_name_itself_and_those_below() {
        let text = "use crate::{\n    host::{netns, veth},\n    bpf::Kernel,\n};\nfn a() { crate::pod::b() }";
        assert_eq!(upward("pod/sock.rs", text), Ok(Vec::new()));
        assert_eq!(upward("agent.rs", text), Ok(Vec::new()));
    }

    #[test]
    fn what_stands_above_is_named_with_its_line() {
        let text = "use crate::{\n    host::{agent, carry},\n    carry::worker,\n};\n// crate::agent\nfn a() { crate::enrol::b() }";
        assert_eq!(
            upward("pod/sock.rs", text),
            Ok(vec![
                "node-agent/src/pod/sock.rs:3 names carry, which stands above pod".to_owned(),
                "node-agent/src/pod/sock.rs:6 names enrol, which stands above pod".to_owned(),
            ])
        );
    }

    #[test]
    fn a_file_in_no_room_is_an_error() {
        assert!(upward("odds/ends.rs", "").is_err());
    }
}
