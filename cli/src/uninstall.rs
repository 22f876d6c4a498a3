//! `keelson uninstall`: agents first, which let their pods go and take away what is on the nodes; then all else.

mod outside;

use std::io::{self, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use chart::Release;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt as _;
use kube::api::{Api as Of, DeleteParams, ListParams};
use serde::Serialize;

use crate::api::{Api, Deed};
use crate::install::kinds::Kind;
use crate::install::{self, MADE_BY, of_release, remove};
use crate::output::Answer;
use crate::pods;
use crate::reach::Where;

/// Remove the mesh from a cluster.
///
/// The agents go first: they let their pods go, which talk on, and take away what they have put on their nodes. Then the
/// controller and all other objects, also those that Helm has made: what controllers have made for Gateways in all namespaces,
/// the GatewayClasses, the taint of nodes that wait for an agent, the mesh's root (--keep-root keeps it) and the namespace
/// if `keelson install` has made it. What users have written stays: Gateways, routes, policies, labels on namespaces. So do
/// their kinds, also those that `install --crds` has made.
///
/// Exit codes: 0, nothing is left; 1, something is left; 2, it could not be removed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The namespace that it is installed in.
    #[arg(short, long, value_name = "NAMESPACE", default_value = crate::reach::USUAL_NAMESPACE)]
    namespace: String,
    /// The release's name, if the agents that tell it are gone.
    #[arg(long, value_name = "NAME")]
    release: Option<String>,
    /// Keep the mesh's root, for an installation that is to follow.
    #[arg(long)]
    keep_root: bool,
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for the end of the agents and of the controller.
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    removed: Vec<String>,
    left: Vec<String>,
}

pub(crate) fn answer(args: &Args, at: &Where) -> Result<Answer> {
    let api = at.api()?;
    let found = install::found(&api, &args.namespace)?;
    let named = args.release.clone();
    let release = Release {
        name: found
            .map(|found| found.release)
            .or(named)
            .unwrap_or_else(|| "keelson".to_owned()),
        namespace: args.namespace.clone(),
    };
    let mut work = Work {
        api: &api,
        args,
        release: &release,
        report: Report {
            dry_run: args.dry_run,
            removed: Vec::new(),
            left: Vec::new(),
        },
    };
    work.run()?;
    work.report.answer(&release)
}

struct Work<'a> {
    api: &'a Api,
    args: &'a Args,
    release: &'a Release,
    report: Report,
}

impl Work<'_> {
    fn run(&mut self) -> Result<()> {
        let began = Instant::now();
        let objects = of_release(self.api, self.release)?;
        let own = self.own_namespace()?;
        if objects.is_empty() && own.is_none() && self.beside_the_chart()?.is_empty() {
            bail!(
                "nothing of the release {} is in namespace {}",
                self.release.name,
                self.release.namespace
            );
        }
        // Agents ask the API server whether they are removed, with rights that must still be there.
        let (agents, rest): (Vec<_>, Vec<_>) = objects
            .into_iter()
            .partition(|(kind, _)| kind.name == "DaemonSet");
        for (kind, object) in &agents {
            self.remove(*kind, object)?;
        }
        self.until_gone(crate::reach::AGENT, began)?;
        // What was made last goes first.
        for (kind, object) in rest.iter().rev() {
            self.remove(*kind, object)?;
        }
        self.until_gone(crate::reach::CONTROLLER, began)?;
        for (kind, object) in self.beside_the_chart()? {
            self.remove(kind, &object)?;
        }
        self.remove_outside()?;
        if own.is_some() && !self.args.keep_root {
            self.remove_namespace(began)?;
        }
        if !self.args.dry_run {
            for (kind, object) in of_release(self.api, self.release)? {
                let left = format!("{} {}", kind.name, object.name_any());
                self.report.left.push(left);
            }
        }
        Ok(())
    }

    /// Removes what controllers have made outside of their namespace; by now none makes it again.
    fn remove_outside(&mut self) -> Result<()> {
        for (kind, object) in outside::objects(self.api)? {
            let name = outside::name(kind, &object);
            if !self.args.dry_run {
                remove(self.api, kind, &object)?;
                progress(&format!("{name} removed"));
            }
            self.report.removed.push(name);
        }
        for node in outside::tainted(self.api)? {
            let name = format!("taint {} of Node {}", outside::TAINT, node.name_any());
            if !self.args.dry_run {
                outside::free(self.api, &node)?;
                progress(&format!("{name} removed"));
            }
            self.report.removed.push(name);
        }
        if !self.args.dry_run {
            for node in outside::tainted(self.api)? {
                let left = format!("taint {} of Node {}", outside::TAINT, node.name_any());
                self.report.left.push(left);
            }
        }
        Ok(())
    }

    fn remove(&mut self, kind: Kind, object: &kube::api::DynamicObject) -> Result<()> {
        let name = format!("{} {}", kind.name, object.name_any());
        if !self.args.dry_run {
            remove(self.api, kind, object)?;
            progress(&format!("{name} removed"));
        }
        self.report.removed.push(name);
        Ok(())
    }

    /// Waits until the pods of a program have ended.
    fn until_gone(&mut self, program: &str, began: Instant) -> Result<()> {
        let all: Of<Pod> = Of::namespaced(self.api.client.clone(), &self.release.namespace);
        let label = format!("app.kubernetes.io/name={program}");
        let ours = ListParams::default().labels(&label);
        let deed = Deed::new("list", "pods").within(&self.release.namespace);
        let mut said = usize::MAX;
        while !self.args.dry_run {
            let left = self.api.call(&deed, all.list(&ours))?.items;
            if left.is_empty() {
                break;
            }
            if began.elapsed() > self.args.timeout {
                let why = |pod: &Pod| {
                    let why = pods::why_not_ready(pod).unwrap_or_else(|| "it runs".to_owned());
                    format!("pod {}: {why}", pod.name_any())
                };
                self.report.left.extend(left.iter().map(why));
                break;
            }
            if left.len() != said {
                said = left.len();
                progress(&format!("{said} pods of {program} are ending"));
            }
            thread::sleep(EVERY);
        }
        Ok(())
    }

    /// What no chart has: what controllers have written, the root that one has made, and what Helm has written down of the
    /// release. The garbage collector takes what controllers have written too, but later.
    fn beside_the_chart(&self) -> Result<Vec<(Kind, kube::api::DynamicObject)>> {
        let mut all = Vec::new();
        let root = (!self.args.keep_root).then_some(ROOT);
        for (kind, name) in WRITTEN.into_iter().chain(root) {
            let Some(kind) = Kind::named(kind) else {
                continue;
            };
            let objects = kind.api(&self.api.client, &self.release.namespace);
            let deed = Deed::new("get", kind.resource()).within(&self.release.namespace);
            let found = self.api.find(&deed, objects.get(name))?;
            all.extend(found.map(|object| (kind, object)));
        }
        let of_helm = format!("owner=helm,name={}", self.release.name);
        for (kind, label) in [("ConfigMap", KEPT), ("Secret", &of_helm)] {
            let Some(kind) = Kind::named(kind) else {
                continue;
            };
            let objects = kind.api(&self.api.client, &self.release.namespace);
            let deed = Deed::new("list", kind.resource()).within(&self.release.namespace);
            let labelled = ListParams::default().labels(label);
            let found = self.api.call(&deed, objects.list(&labelled))?;
            all.extend(found.items.into_iter().map(|object| (kind, object)));
        }
        Ok(all)
    }

    /// The namespace, if `keelson install` has made it.
    fn own_namespace(&self) -> Result<Option<Namespace>> {
        let all: Of<Namespace> = Of::all(self.api.client.clone());
        let deed = Deed::new("get", "namespaces");
        let found = self.api.find(&deed, all.get(&self.release.namespace))?;
        let is_ours = |namespace: &Namespace| {
            let owner = namespace.labels().get(MADE_BY);
            owner.is_some_and(|owner| owner == "keelson")
        };
        Ok(found.filter(is_ours))
    }

    fn remove_namespace(&mut self, began: Instant) -> Result<()> {
        let name = &self.release.namespace;
        let pods: Of<Pod> = Of::namespaced(self.api.client.clone(), name);
        let deed = Deed::new("list", "pods").within(name);
        let foreign = self.api.call(&deed, pods.list(&ListParams::default()))?;
        let label = "app.kubernetes.io/part-of";
        let is_foreign = |pod: &&Pod| pod.labels().get(label).is_none_or(|of| of != "keelson");
        if let Some(pod) = foreign.items.iter().find(is_foreign) {
            let name = format!(
                "Namespace {name}: it has a pod {} that is not ours",
                pod.name_any()
            );
            self.report.left.push(name);
            return Ok(());
        }
        self.report.removed.push(format!("Namespace {name}"));
        if self.args.dry_run {
            return Ok(());
        }
        let all: Of<Namespace> = Of::all(self.api.client.clone());
        let deed = Deed::new("delete", "namespaces");
        let params = DeleteParams::default();
        self.api.find(&deed, all.delete(name, &params))?;
        let deed = Deed::new("get", "namespaces");
        while self.api.find(&deed, all.get(name))?.is_some() {
            if began.elapsed() > self.args.timeout {
                self.report.left.push(format!("Namespace {name}"));
                break;
            }
            thread::sleep(EVERY);
        }
        Ok(())
    }
}

impl Report {
    fn answer(self, release: &Release) -> Result<Answer> {
        let mut text = String::new();
        if self.dry_run {
            for name in &self.removed {
                text.push_str(&format!("would be removed: {name}\n"));
            }
        } else if self.left.is_empty() {
            text.push_str(&format!(
                "the release {} is gone from namespace {}: {} objects removed. What users have written stays, with its kinds: Gateways, routes, policies, labels\n",
                release.name,
                release.namespace,
                self.removed.len()
            ));
        }
        for name in &self.left {
            text.push_str(&format!("NO  is left: {name}\n"));
        }
        let is_good = self.left.is_empty();
        Ok(Answer::good(&self, text)?.but(is_good))
    }
}

fn progress(text: &str) {
    // Nobody has to read it.
    drop(writeln!(io::stderr(), "{text}"));
}

/// What controllers write in their namespace, by kind and name.
const WRITTEN: [(&str, &str); 2] = [
    ("ConfigMap", "keelson-ca-root"),
    ("Lease", "keelson-controller"),
];
/// The mesh's root, which the first controller has made.
const ROOT: (&str, &str) = ("Secret", "keelson-ca");
/// The label of what controllers write of each node and of each other.
const KEPT: &str = "keelson.io/kept";
const EVERY: Duration = Duration::from_millis(500);
