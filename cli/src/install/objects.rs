//! Objects put into the cluster, and taken out of it.

use std::fmt;

use anyhow::{Context as _, Result, bail};
use chart::Release;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::{
    Api as Of, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::kinds::{KINDS, Kind};
use super::{MANAGER, VALUES, ownership, progress};
use crate::api::{Api, Deed};
use crate::reach::AGENT;

/// What became of an object.
#[derive(Debug, Serialize)]
pub(crate) struct Change {
    pub(super) action: Action,
    pub(super) kind: String,
    pub(super) name: String,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Created,
    Configured,
    Unchanged,
    Removed,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Removed => "removed",
        })
    }
}

/// The objects with the marks of their release, as Helm sets them: by these it knows what it may take over.
pub(super) fn marked(objects: Vec<Value>, release: &Release, values: &Value) -> Result<Vec<Value>> {
    let values = values.to_string();
    let mark = |mut object: Value| {
        let is_agents = object["kind"] == "DaemonSet" && object["metadata"]["name"] == AGENT;
        let metadata = object["metadata"].as_object_mut();
        let metadata = metadata.context("an object of the chart has metadata")?;
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        labels["app.kubernetes.io/managed-by"] = "Helm".into();
        let notes = metadata.entry("annotations").or_insert_with(|| json!({}));
        notes["meta.helm.sh/release-name"] = release.name.as_str().into();
        notes["meta.helm.sh/release-namespace"] = release.namespace.as_str().into();
        if is_agents {
            notes[VALUES] = values.as_str().into();
        }
        Ok(object)
    };
    objects.into_iter().map(mark).collect()
}

/// Makes the namespace if it is not there, and says whether it is.
pub(super) fn namespace(
    api: &Api,
    name: &str,
    dry_run: bool,
    changes: &mut Vec<Change>,
) -> Result<bool> {
    let all: Of<Namespace> = Of::all(api.client.clone());
    let found = api.find(&Deed::new("get", "namespaces"), all.get(name))?;
    if let Some(found) = found {
        let level = found.labels().get(ENFORCE);
        if let Some(level) = level.filter(|level| *level != "privileged") {
            bail!(
                "namespace {name} has the label {ENFORCE}={level}, which keeps agents away: they use the node's network and \
                 processes. `kubectl label --overwrite namespace {name} {ENFORCE}=privileged`, or -n for another"
            );
        }
        if found.metadata.deletion_timestamp.is_some() {
            bail!("namespace {name} is being deleted; wait until it is gone");
        }
        return Ok(true);
    }
    changes.push(Change {
        action: Action::Created,
        kind: "Namespace".to_owned(),
        name: name.to_owned(),
    });
    if dry_run {
        return Ok(false);
    }
    let made = json!({
        "apiVersion": "v1", "kind": "Namespace",
        // By the first label it is known whose it is when all is uninstalled.
        "metadata": {"name": name, "labels": {MADE_BY: MANAGER, ENFORCE: "privileged"}},
    });
    let made: Namespace = serde_json::from_value(made)?;
    let done = api.wait(all.create(&PostParams::default(), &made));
    match done {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => drop(api.call(&Deed::new("create", "namespaces"), async { other })?),
    }
    progress(&format!("namespace {name} made"));
    Ok(true)
}

/// Makes the kinds of Istio's APIs that the mesh reads and the cluster does not have.
pub(super) fn crds(api: &Api, dry_run: bool, changes: &mut Vec<Change>) -> Result<()> {
    let kind = Kind::named("CustomResourceDefinition").context("it is in the list")?;
    let all = kind.api(&api.client, "");
    for object in chart::istio_crds()? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let found = api.find(&Deed::new("get", kind.resource()), all.get(name))?;
        let action = if found.is_some() {
            Action::Unchanged
        } else {
            Action::Created
        };
        if found.is_none() && !dry_run {
            let object: DynamicObject = serde_json::from_value(object.clone())?;
            let params = PostParams::default();
            let made = all.create(&params, &object);
            api.call(&Deed::new("create", kind.resource()), made)?;
            progress(&format!("kind {name} made"));
        }
        changes.push(Change {
            action,
            kind: kind.name.to_owned(),
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// The way of objects into the cluster.
pub(super) struct Apply<'a> {
    pub(super) api: &'a Api,
    pub(super) release: &'a Release,
    pub(super) dry_run: bool,
    pub(super) has_namespace: bool,
    pub(super) changes: &'a mut Vec<Change>,
}

impl Apply<'_> {
    /// Makes an object be as it is in the chart. What others have set stays where the chart says nothing.
    pub(super) fn object(&mut self, object: &Value) -> Result<()> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, kind_name) = (text(&object["metadata"]["name"]), text(&object["kind"]));
        let kind = Kind::named(&kind_name)
            .with_context(|| format!("{kind_name} is in no list of kinds"))?;
        let action = if self.has_namespace || !kind.namespaced {
            self.apply(kind, &name, object)?
        } else {
            Action::Created
        };
        if action != Action::Unchanged && !self.dry_run {
            progress(&format!("{kind_name} {name} {action}"));
        }
        self.changes.push(Change {
            action,
            kind: kind_name,
            name,
        });
        Ok(())
    }

    fn apply(&self, kind: Kind, name: &str, object: &Value) -> Result<Action> {
        let deed = |verb| self.deed(verb, kind);
        let all = kind.api(&self.api.client, &self.release.namespace);
        let before = self.api.find(&deed("get"), all.get(name))?;
        let params = PatchParams {
            dry_run: self.dry_run,
            ..PatchParams::apply(MANAGER).force()
        };
        if let Some(before) = &before {
            self.is_foreign(kind, before)?;
            let managed = before.metadata.managed_fields.as_ref();
            let managed: Vec<Value> = managed
                .into_iter()
                .flatten()
                .filter_map(|entry| serde_json::to_value(entry).ok())
                .collect();
            if let Some(ours) = ownership::taken_over(&managed).filter(|_| !self.dry_run) {
                let patch = json!({"metadata": {
                    "managedFields": ours,
                    // Nobody has changed it meanwhile.
                    "resourceVersion": before.resource_version(),
                }});
                let params = PatchParams::default();
                self.api.call(
                    &deed("patch"),
                    all.patch(name, &params, &Patch::Merge(&patch)),
                )?;
            }
        }
        let patch = Patch::Apply(object);
        let after = self
            .api
            .call(&deed("patch"), all.patch(name, &params, &patch))?;
        Ok(match before {
            None => Action::Created,
            Some(before) if before.metadata.generation != after.metadata.generation => {
                Action::Configured
            }
            // What has no generation, and metadata.
            Some(before) if without_owners(&before)? != without_owners(&after)? => {
                Action::Configured
            }
            Some(_) => Action::Unchanged,
        })
    }

    /// Whether an object of the same name belongs to somebody else.
    fn is_foreign(&self, kind: Kind, object: &DynamicObject) -> Result<()> {
        let labels = object.labels();
        if labels.get(PART_OF).is_some_and(|value| value == "keelson") {
            return Ok(());
        }
        bail!(
            "there is a {} {} without the label {PART_OF}=keelson, which is somebody else's; rename or remove it",
            kind.name,
            object.name_any()
        )
    }

    /// Removes what is of this release and not in the chart any more.
    pub(super) fn prune(&mut self, wanted: &[Value]) -> Result<()> {
        for (kind, object) in of_release(self.api, self.release)? {
            let name = object.name_any();
            let is_wanted = wanted
                .iter()
                .any(|one| one["kind"] == kind.name && one["metadata"]["name"] == name.as_str());
            if is_wanted {
                continue;
            }
            if !self.dry_run {
                remove(self.api, kind, &object)?;
                progress(&format!("{} {name} removed", kind.name));
            }
            self.changes.push(Change {
                action: Action::Removed,
                kind: kind.name.to_owned(),
                name,
            });
        }
        Ok(())
    }

    fn deed(&self, verb: &'static str, kind: Kind) -> Deed {
        let deed = Deed::new(verb, kind.resource());
        if kind.namespaced {
            deed.within(&self.release.namespace)
        } else {
            deed
        }
    }
}

/// Every object that has the marks of a release.
pub(crate) fn of_release(api: &Api, release: &Release) -> Result<Vec<(Kind, DynamicObject)>> {
    let ours = format!(
        "{PART_OF}=keelson,app.kubernetes.io/instance={}",
        release.name
    );
    let ours = ListParams::default().labels(&ours);
    let mut all = Vec::new();
    for kind in KINDS {
        let deed = Deed::new("list", kind.resource());
        let deed = if kind.namespaced {
            deed.within(&release.namespace)
        } else {
            deed
        };
        let objects = kind.api(&api.client, &release.namespace);
        // A cluster of an older version may not know the kind.
        let Some(found) = api.find(&deed, objects.list(&ours))? else {
            continue;
        };
        let is_made_by_another = |object: &DynamicObject| {
            let namespace = object.annotations().get("meta.helm.sh/release-namespace");
            // What belongs to the installation's namespace only goes with it.
            let mut owners = object.owner_references().iter();
            namespace.is_some_and(|namespace| *namespace != release.namespace)
                || owners.any(|owner| owner.kind != "Namespace")
        };
        let own = found
            .items
            .into_iter()
            .filter(|one| !is_made_by_another(one));
        all.extend(own.map(|object| (kind, object)));
    }
    Ok(all)
}

/// Removes an object, and what belongs to it with it. It may be gone already.
pub(crate) fn remove(api: &Api, kind: Kind, object: &DynamicObject) -> Result<()> {
    let namespace = object.namespace().unwrap_or_default();
    let deed = Deed::new("delete", kind.resource());
    let deed = if kind.namespaced {
        deed.within(&namespace)
    } else {
        deed
    };
    let all = kind.api(&api.client, &namespace);
    let params = DeleteParams::background();
    api.find(&deed, all.delete(&object.name_any(), &params))?;
    Ok(())
}

/// An object without what says who has written it when.
fn without_owners(object: &DynamicObject) -> Result<Value> {
    let mut value = serde_json::to_value(object)?;
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        metadata.remove("resourceVersion");
    }
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    Ok(value)
}

const PART_OF: &str = "app.kubernetes.io/part-of";
/// Whose a namespace is.
pub(crate) const MADE_BY: &str = "app.kubernetes.io/managed-by";
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
