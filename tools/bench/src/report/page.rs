//! The part of the documentation that a run writes: between two markers, everything else stays.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::report::{budget, chart, details, programs, syscalls};
use crate::results::Results;

/// Replaces what stands between the markers of `page`, and the picture beside it.
///
/// # Errors
/// The page cannot be read or written, or has no markers.
pub fn update(page: &Path, results: &Results) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let text =
        replace(&text, "bench", &section(results)).with_context(|| page.display().to_string())?;
    fs::write(page, text).with_context(|| format!("writing {}", page.display()))?;
    let picture = page.with_file_name(PICTURE);
    fs::write(&picture, chart(results)).with_context(|| format!("writing {}", picture.display()))
}

/// Replaces what stands between the markers for the table of a further benchmark, such as `scale`.
///
/// # Errors
/// As [`update`].
pub fn update_part(page: &Path, name: &str, table: &str) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let text = replace(&text, name, table).with_context(|| page.display().to_string())?;
    fs::write(page, text).with_context(|| format!("writing {}", page.display()))
}

fn section(results: &Results) -> String {
    let (machine, settings) = (&results.machine, &results.settings);
    let mut out = String::new();
    let kind = if machine.virtual_machine {
        ", virtual"
    } else {
        ""
    };
    let _ = write!(
        out,
        "Measured {} UTC at commit `{}` ({} build) on {} x {}{kind}, {} MiB, kernel {}, {}",
        settings.started,
        machine.commit,
        machine.profile,
        machine.processors,
        machine.processor,
        machine.memory_mib,
        machine.kernel,
        machine.system,
    );
    if let Some(envoy) = &machine.envoy {
        let _ = write!(out, ", Envoy {envoy}");
    }
    let disturbed = results.runs.iter().filter(|run| run.disturbed).count();
    let _ = write!(
        out,
        ". {} repetitions of {} s each after {} s of warm-up; {disturbed} of {} runs were left out because others \
         used more than {} processors meanwhile.\n\n![The cost of a mesh, relative to none]({PICTURE})\n\n{}\n",
        settings.repetitions,
        settings.window,
        settings.warm_up,
        results.runs.len(),
        settings.others_allowed,
        budget(results),
    );
    for skipped in &results.skipped {
        let _ = writeln!(out, "- `{}` took no part: {}", skipped.mode, skipped.reason);
    }
    let _ = write!(out, "\n### All figures\n\n{}", details(results));
    let programs = programs(results);
    if !programs.is_empty() {
        let _ = write!(out, "### eBPF programs\n\n{programs}");
    }
    let syscalls = syscalls(results);
    if !syscalls.is_empty() {
        let _ = write!(out, "\n### System calls of the mesh\n\n{syscalls}");
    }
    out
}

fn replace(page: &str, name: &str, section: &str) -> Result<String> {
    let begin_mark = format!("<!-- {name}: begin -->");
    let end_mark = format!("<!-- {name}: end -->");
    let (Some(begin), Some(end)) = (page.find(&begin_mark), page.find(&end_mark)) else {
        bail!("has no markers {begin_mark} and {end_mark}");
    };
    let (Some(before), Some(after)) = (page.get(..begin + begin_mark.len()), page.get(end..))
    else {
        bail!("has its markers in the wrong order");
    };
    Ok(format!("{before}\n\n{}\n\n{after}", section.trim()))
}

const PICTURE: &str = "benchmarks.svg";

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "<!-- bench: begin -->";
    const END: &str = "<!-- bench: end -->";

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let once = replace(&page, "bench", "new\n").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(replace(&once, "bench", "new").unwrap(), once);
        assert!(replace("no markers", "bench", "new").is_err());
    }
}
