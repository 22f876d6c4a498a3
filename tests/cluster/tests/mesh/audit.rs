//! What accounts of ours have asked the API server for, by its audit log, and what the chart lets them ask for.

use std::fmt;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests_cluster::get;

use crate::installed::{Installed, NAMESPACE};

/// One thing that an account has asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deed {
    account: String,
    verb: String,
    resource: String,
    namespace: String,
    name: String,
    /// What the API server said where the account may not.
    pub(crate) refusal: Option<String>,
}

impl fmt::Display for Deed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            account,
            verb,
            resource,
            namespace,
            name,
            ..
        } = self;
        write!(out, "{account}: {verb} {resource} {namespace}/{name}")
    }
}

/// The audit log from one moment on.
pub(crate) struct Log {
    from: u64,
}

impl Log {
    /// What comes from now on.
    pub(crate) fn begin(mesh: &Installed) -> Result<Self> {
        let size = mesh.on("control", &format!("stat -c %s {FILE}"))?;
        Ok(Self {
            from: size.parse::<u64>()? + 1,
        })
    }

    /// What accounts of the installation have asked for since then. An object that is made by a patch is both: the API server
    /// asks for both rights.
    pub(crate) fn deeds(&self, mesh: &Installed) -> Result<Vec<Deed>> {
        let from = self.from;
        let text = mesh.on(
            "control",
            &format!("tail -c +{from} {FILE} | grep -F '{ACCOUNTS}' || true"),
        )?;
        let mut deeds = Vec::new();
        for line in text.lines() {
            let event: Value = serde_json::from_str(line).context("a line of the audit log")?;
            let Some(deed) = deed(&event) else {
                continue;
            };
            if deed.verb == "patch" && event["responseStatus"]["code"] == 201 {
                deeds.push(Deed {
                    verb: "create".to_owned(),
                    ..deed.clone()
                });
            }
            deeds.push(deed);
        }
        deeds.sort();
        deeds.dedup();
        Ok(deeds)
    }
}

/// What an event of the log tells of an account of ours and an object.
fn deed(event: &Value) -> Option<Deed> {
    let account = event["user"]["username"].as_str()?;
    let (namespace, account) = account
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    let object = &event["objectRef"];
    if namespace != NAMESPACE || !object.is_object() {
        return None;
    }
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    Some(Deed {
        account: account.to_owned(),
        verb: event["verb"].as_str()?.to_owned(),
        resource: named(&text("apiGroup"), &text("resource"), &text("subresource")),
        namespace: text("namespace"),
        name: text("name"),
        refusal: refusal(event),
    })
}

/// Why the account may not. Who makes an object by a patch is asked for the right to make it later, and only the answer shows it.
fn refusal(event: &Value) -> Option<String> {
    let decision = &event["annotations"]["authorization.k8s.io/decision"];
    let status = &event["responseStatus"];
    let said = status["message"].as_str().unwrap_or_default();
    let is_refused =
        decision == "forbid" || (status["code"] == 403 && said.contains(" cannot create "));
    is_refused.then(|| said.to_owned())
}

/// `pods`, `deployments.apps`, `gateways.gateway.networking.k8s.io/status`.
fn named(group: &str, resource: &str, subresource: &str) -> String {
    let mut name = resource.to_owned();
    if !group.is_empty() {
        name = format!("{name}.{group}");
    }
    if !subresource.is_empty() {
        name = format!("{name}/{subresource}");
    }
    name
}

/// One verb on one resource that an account is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    pub(crate) account: String,
    pub(crate) verb: String,
    pub(crate) resource: String,
    /// Only objects of these names; all, if there are none.
    names: Vec<String>,
    /// Only in this namespace.
    namespace: Option<String>,
}

impl fmt::Display for Right {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            account,
            verb,
            resource,
            names,
            namespace,
        } = self;
        write!(out, "{account}: {verb} {resource}")?;
        if !names.is_empty() {
            write!(out, " {}", names.join(","))?;
        }
        match namespace {
            Some(namespace) => write!(out, " in {namespace}"),
            None => write!(out, " everywhere"),
        }
    }
}

impl Right {
    fn allows(&self, deed: &Deed) -> bool {
        let is_here = self
            .namespace
            .as_ref()
            .is_none_or(|namespace| *namespace == deed.namespace);
        let is_named = self.names.is_empty() || self.names.contains(&deed.name);
        self.account == deed.account
            && self.verb == deed.verb
            && self.resource == deed.resource
            && is_here
            && is_named
    }
}

/// The rights that are of no use to what was done: a right for all namespaces is used where a narrower one would not do.
pub(crate) fn unused<'r>(rights: &'r [Right], deeds: &[Deed]) -> Vec<&'r Right> {
    let narrow = |deed: &Deed| {
        let mut narrow = rights.iter().filter(|right| right.namespace.is_some());
        narrow.any(|right| right.allows(deed))
    };
    let is_used = |right: &Right| {
        let mut used = deeds.iter().filter(|deed| deed.refusal.is_none());
        used.any(|deed| right.allows(deed) && (right.namespace.is_some() || !narrow(deed)))
    };
    rights.iter().filter(|right| !is_used(right)).collect()
}

/// What the roles give that are bound to accounts of the installation, as the API server has them.
pub(crate) fn rights() -> Result<Vec<Right>> {
    let label = ["-A", "-l", "app.kubernetes.io/part-of=keelson"];
    let read = |kinds: &'static str| -> Result<Vec<Value>> {
        let found = get(&[&[kinds][..], &label].concat())?;
        Ok(found["items"].as_array().context("a list")?.clone())
    };
    let roles = read("clusterroles,roles")?;
    let mut rights = Vec::new();
    for binding in read("clusterrolebindings,rolebindings")? {
        let namespace = binding["metadata"]["namespace"].as_str();
        let to = &binding["roleRef"];
        let role = roles.iter().find(|role| {
            role["kind"] == to["kind"]
                && role["metadata"]["name"] == to["name"]
                && (to["kind"] == "ClusterRole"
                    || role["metadata"]["namespace"].as_str() == namespace)
        });
        let role = role.with_context(|| format!("no role for {binding}"))?;
        for subject in texts(&binding["subjects"], |one| one["name"].clone()) {
            for rule in role["rules"].as_array().context("rules")? {
                rights.extend(of_rule(rule, &subject, namespace));
            }
        }
    }
    Ok(rights)
}

fn of_rule(rule: &Value, account: &str, namespace: Option<&str>) -> Vec<Right> {
    let all = |field: &str| texts(&rule[field], Value::clone);
    let mut rights = Vec::new();
    for group in all("apiGroups") {
        for resource in all("resources") {
            let (resource, subresource) = resource.split_once('/').unwrap_or((&resource, ""));
            for verb in all("verbs") {
                rights.push(Right {
                    account: account.to_owned(),
                    verb,
                    resource: named(&group, resource, subresource),
                    names: all("resourceNames"),
                    namespace: namespace.map(str::to_owned),
                });
            }
        }
    }
    rights
}

fn texts(list: &Value, of: impl Fn(&Value) -> Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items
        .filter_map(|item| of(item).as_str().map(str::to_owned))
        .collect()
}

/// As `tools/cluster` has it.
const FILE: &str = "/var/log/audit.log";
/// How the log names accounts of the installation.
const ACCOUNTS: &str = r#""username":"system:serviceaccount:keelson-system:"#;
