//! `keelson install` and `upgrade`: the chart's objects, applied without Helm.
//!
//! They carry the marks by which Helm knows what belongs to a release, so that `helm upgrade` takes them over as they
//! are, and this takes over what Helm has made.

pub(crate) mod kinds;
mod objects;
mod ownership;
mod ready;
mod release;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use crate::api::Api;
use crate::check::rights;
use crate::output::Answer;
use crate::reach::Where;
use crate::table::Table;
use crate::version::OWN;
use objects::{Action, Change};
pub(crate) use objects::{MADE_BY, of_release, remove};
use ready::Outcome;
pub(crate) use release::{Found, find as found};

/// Install the mesh in a cluster, or put an installation right: the objects of the Helm chart, by server-side apply.
///
/// It can be run again, and takes over what Helm has installed. Helm takes over what it has installed:
/// `helm upgrade --install` of the same release. Values that are not given are the chart's; `keelson upgrade` keeps those
/// of the last time.
///
/// Exit codes: 0, done, and with --wait everything is ready; 1, something is not ready in time, or a node cannot be
/// served; 2, it could not be installed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    what: What,
}

/// Install another version or other values; values that are not given stay as they were.
///
/// Exit codes: as those of install.
#[derive(Debug, clap::Args)]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    what: What,
    /// Begin with the chart's values, and not with those of the last time.
    #[arg(long)]
    reset_values: bool,
}

#[derive(Debug, clap::Args)]
struct What {
    /// The namespace that it is installed into, and is made if it is not there.
    #[arg(short, long, value_name = "NAMESPACE", default_value = crate::reach::USUAL_NAMESPACE)]
    namespace: String,
    /// The release's name, as Helm calls it. If none is named, the one that is there, or keelson.
    #[arg(long, value_name = "NAME")]
    release: Option<String>,
    #[command(flatten)]
    given: Given,
    /// Make the kinds of Istio's APIs that the mesh reads too, where the cluster has none. They are never changed or removed.
    #[arg(long)]
    crds: bool,
    /// Say what would change, and change nothing. `-o yaml` shows the objects.
    #[arg(long)]
    dry_run: bool,
    /// Wait until everything is ready, or until it is clear that a node cannot be served.
    #[arg(long)]
    wait: bool,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Values of the chart.
#[derive(Debug, clap::Args)]
pub(crate) struct Given {
    /// A file of values, - for standard input. Can be given several times; later ones win.
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One value: a.b.c=value. Can be given several times; wins over files.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// A set of values to begin with.
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Values for a kind of cluster: folders of the CNI, the kubelet's cgroup, rights.
    #[arg(long, value_name = "NAME", value_parser = chart::platform_names())]
    platform: Option<String>,
}

/// A set of values to begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// The chart's own values.
    #[default]
    Default,
    /// For a small cluster of one's own: one controller, small requests.
    Minimal,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    release: String,
    namespace: String,
    dry_run: bool,
    changes: Vec<Change>,
    /// What is not ready, with the reason. Only asked for with --wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    /// With --dry-run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    objects: Vec<Value>,
}

pub(crate) fn install(args: &Args, at: &Where) -> Result<Answer> {
    let api = at.api()?;
    let found = release::find(&api, &args.what.namespace)?;
    let given = args.what.given.read()?;
    put(&api, &args.what, found.as_ref(), given)
}

pub(crate) fn upgrade(args: &UpgradeArgs, at: &Where) -> Result<Answer> {
    let api = at.api()?;
    let namespace = &args.what.namespace;
    let found = release::find(&api, namespace)?;
    let found = found.with_context(|| {
        format!("there is nothing to upgrade in namespace {namespace}: `keelson install` installs")
    })?;
    let given = args.what.given.read()?;
    let mut values = Vec::new();
    if !args.reset_values {
        match (&found.values, found.by_helm) {
            (Some(kept), false) => values.push(kept.clone()),
            _ if given.is_empty() => bail!(
                "the values of the last time are Helm's to know: `helm get values {} -n {namespace} -o yaml > values.yaml`, \
                 then --values values.yaml; or --reset-values for the chart's own",
                found.release
            ),
            _ => {}
        }
    }
    values.extend(given);
    put(&api, &args.what, Some(&found), values)
}

impl Given {
    /// The values that are given here, in the order in which they win.
    pub(crate) fn read(&self) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        if self.profile == Profile::Minimal {
            all.push(chart::read(chart::MINIMAL)?);
        }
        if let Some(name) = &self.platform {
            let text = chart::platform(name).context("it was in the list")?;
            all.push(chart::read(text)?);
        }
        for file in &self.files {
            let text = if file.as_os_str() == "-" {
                let mut text = String::new();
                io::stdin().read_to_string(&mut text).map(|_| text)
            } else {
                fs::read_to_string(file)
            };
            let text = text.with_context(|| format!("cannot read {}", file.display()))?;
            let values = chart::read(&text);
            all.push(values.with_context(|| file.display().to_string())?);
        }
        for text in &self.settings {
            all.push(chart::setting(text).context("--set")?);
        }
        Ok(all)
    }
}

/// Makes the cluster have the chart's objects, and no other of an earlier version.
fn put(api: &Api, what: &What, found: Option<&Found>, given: Vec<Value>) -> Result<Answer> {
    let namespace = &what.namespace;
    let named = what.release.as_deref();
    let release = match found {
        Some(found) if named.is_some_and(|name| name != found.release) => bail!(
            "namespace {namespace} has the release {}: it cannot be renamed, uninstall it first",
            found.release
        ),
        Some(found) => found.release.clone(),
        None => named.unwrap_or("keelson").to_owned(),
    };
    let release = chart::Release {
        name: release,
        namespace: namespace.clone(),
    };
    let kept = chart::merged(&given)?;
    let values = chart::values(&given)?;
    let objects = chart::objects(&release, &values)?;
    let objects = objects::marked(objects, &release, &kept)?;
    rights::demand(api, namespace, &objects)?;

    let mut report = Report {
        version: OWN,
        release: release.name.clone(),
        namespace: namespace.clone(),
        dry_run: what.dry_run,
        changes: Vec::new(),
        outcome: None,
        objects: if what.dry_run {
            objects.clone()
        } else {
            Vec::new()
        },
    };
    let has_namespace = objects::namespace(api, namespace, what.dry_run, &mut report.changes)?;
    if what.crds {
        objects::crds(api, what.dry_run, &mut report.changes)?;
    }
    let mut apply = objects::Apply {
        api,
        release: &release,
        dry_run: what.dry_run,
        has_namespace,
        changes: &mut report.changes,
    };
    for object in &objects {
        apply.object(object)?;
    }
    apply.prune(&objects)?;
    if what.wait && !what.dry_run {
        report.outcome = Some(ready::wait(api, namespace, what.timeout)?);
    }
    report.answer()
}

impl Report {
    fn answer(self) -> Result<Answer> {
        let mut text = String::new();
        if self.dry_run {
            text.push_str(&self.table());
            text.push_str("nothing was changed (--dry-run)\n");
        } else {
            let count = |action| {
                self.changes
                    .iter()
                    .filter(|one| one.action == action)
                    .count()
            };
            text.push_str(&format!(
                "Keelson {} is installed in namespace {}: {} objects made, {} changed, {} as they were, {} removed\n",
                self.version,
                self.namespace,
                count(Action::Created),
                count(Action::Configured),
                count(Action::Unchanged),
                count(Action::Removed),
            ));
        }
        let mut is_good = true;
        match &self.outcome {
            Some(outcome) => {
                is_good = outcome.is_good();
                text.push_str(&outcome.text());
            }
            None if self.dry_run => {}
            None => text.push_str("programs may still be starting: keelson check says\n"),
        }
        if is_good && !self.dry_run {
            text.push_str(NEXT);
        }
        Ok(Answer::good(&self, text)?.but(is_good))
    }

    fn table(&self) -> String {
        let mut table = Table::new(["ACTION", "KIND", "NAME"]);
        for change in &self.changes {
            table.row([
                change.action.to_string(),
                change.kind.clone(),
                change.name.clone(),
            ]);
        }
        table.to_string()
    }
}

/// Tells whoever waits. Nobody has to read it.
fn progress(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// The annotation with the values that were given, as JSON.
const VALUES: &str = "keelson.io/values";
/// By whom fields were set, for the API server.
const MANAGER: &str = "keelson";

const NEXT: &str = "
next:
  kubectl label namespace NAME keelson.io/mesh=enabled    its pods are captured while they run
  keelson status                                          nodes, pods wanted and captured
  keelson explain NAMESPACE/POD SERVICE:PORT              whether a connection is allowed, and how it goes
";

#[cfg(test)]
mod tests;
