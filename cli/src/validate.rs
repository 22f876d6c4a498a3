//! `keelson validate`: what the controller would say of manifests, without a cluster.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use compile::index::MeshConfig;
use compile::memory::list;
use compile::validate::{Place, Said, validate};
use manifest::Severity;

use crate::output::Answer;

/// Say what is wrong with manifests: the sentences of the controller, with file, line and field.
///
/// No cluster is asked: what is in no file counts as absent. Beside what the controller reads, Istio's VirtualService,
/// DestinationRule and Gateway are looked at for what is known to go wrong with them.
///
/// Exit codes: 0, no errors (there may be warnings); 1, errors; 2, wrong usage or something cannot be read.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file, a folder (its *.yaml, *.yml and *.json), or - for standard input. Can be given several times.
    #[arg(short, long = "filename", required = true, value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// Look into the folders of folders too.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// The namespace whose policies are for the whole mesh.
    #[arg(long, default_value = "istio-system", value_name = "NAMESPACE")]
    root_namespace: String,
    /// The trust domain of the mesh.
    #[arg(long, default_value = "cluster.local", value_name = "NAME")]
    trust_domain: String,
    /// Further names of it, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    trust_domain_aliases: Vec<String>,
    /// Do not show what is only worth knowing, such as kinds that are ignored.
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn answer(args: &Args) -> Result<Answer> {
    let mut places = Vec::new();
    for name in &args.filename {
        find(name, args.recursive, &mut places)?;
    }
    let mesh = MeshConfig {
        root_namespace: args.root_namespace.clone(),
        trust_domain: args.trust_domain.clone(),
        trust_domain_aliases: args.trust_domain_aliases.clone(),
        ..MeshConfig::default()
    };
    let mut said = validate(&places, mesh);
    let info = count(&said, Severity::Info);
    if args.quiet {
        said.findings
            .retain(|found| found.severity != Severity::Info);
    }
    let errors = count(&said, Severity::Error);
    let mut text = String::new();
    for found in &said.findings {
        text.push_str(&format!("{found}\n"));
    }
    text.push_str(&format!(
        "{}, {}, {} in {} ({} that the mesh reads)\n",
        many(errors, "error"),
        many(count(&said, Severity::Warning), "warning"),
        if info == 1 {
            "1 remark".to_owned()
        } else {
            format!("{info} remarks")
        },
        many(places.len(), "file"),
        many(said.objects, "object"),
    ));
    Ok(Answer::good(&said.findings, text)?.but(errors == 0))
}

fn count(said: &Said, severity: Severity) -> usize {
    let of = said
        .findings
        .iter()
        .filter(|found| found.severity == severity);
    of.count()
}

fn many(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// Adds the files that a name means.
fn find(name: &Path, recursive: bool, into: &mut Vec<Place>) -> Result<()> {
    if name == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("reading standard input")?;
        let name = "standard input".into();
        into.push(Place::Text { name, text });
        return Ok(());
    }
    let meta =
        std::fs::metadata(name).with_context(|| format!("cannot read {}", name.display()))?;
    if meta.is_dir() {
        let before = into.len();
        folder(name, recursive, into)?;
        if into.len() == before {
            let deeper = if recursive {
                ""
            } else {
                "; -R looks into its folders too"
            };
            bail!(
                "no *.yaml, *.yml or *.json is in {}{deeper}",
                name.display()
            );
        }
        return Ok(());
    }
    if meta.is_file() {
        File::open(name).with_context(|| format!("cannot read {}", name.display()))?;
    }
    into.push(Place::File(name.to_owned()));
    Ok(())
}

fn folder(path: &Path, recursive: bool, into: &mut Vec<Place>) -> Result<()> {
    let attempted = || format!("cannot read {}", path.display());
    for name in list(path).with_context(attempted)? {
        let path = path.join(&*name);
        if !(recursive && path.is_dir()) {
            into.push(Place::File(path));
        }
    }
    if recursive {
        let mut below = Vec::new();
        for entry in std::fs::read_dir(path).with_context(attempted)? {
            let entry = entry.with_context(attempted)?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            // Links are not followed: they may lead in circles.
            if entry.file_type().with_context(attempted)?.is_dir() && !hidden {
                below.push(entry.path());
            }
        }
        below.sort();
        for path in below {
            folder(&path, recursive, into)?;
        }
    }
    Ok(())
}
