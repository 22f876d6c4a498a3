//! Applications that others have written for Istio, by real kubectl. Their images are not here: what is tried is their objects.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests_cluster::{Namespace, eventually, kubectl, kubectl_with};

use crate::installed::Installed;
use crate::kinds::{Kinds, condition};

/// Section C of issue 11: sock-shop, bookinfo and the book's. What they say is taken, policies with HTTP parts say
/// what a waypoint is needed for, and what is spelt wrong in any of their kinds is refused with its field.
#[test]
#[ignore = "nightly"]
fn objects_of_three_applications_are_taken_and_what_is_spelt_wrong_is_refused_by_field()
-> Result<()> {
    let _mesh = Installed::install()?;
    let _kinds = Kinds::apply()?;
    let mut policies = 0;
    let mut taken = 0;
    let mut kinds = std::collections::BTreeMap::<String, Value>::new();
    for application in ["sock-shop", "bookinfo", "book"] {
        let namespace = Namespace::create(application)?;
        for file in files(&fixtures().join(application))? {
            let objects = objects(&file, namespace.name())?;
            if objects.is_empty() {
                continue;
            }
            for object in &objects {
                let kind = object["kind"].as_str().context("a kind")?;
                kinds
                    .entry(kind.to_owned())
                    .or_insert_with(|| object.clone());
            }
            // Also where the controller has just started.
            eventually(&format!("{} is taken", file.display()), || {
                namespace.apply(&objects)
            })?;
            for object in &objects {
                taken += 1;
                let kind = object["kind"].as_str().context("a kind")?;
                if kind == "AuthorizationPolicy" {
                    policies += 1;
                    let said = lacks_a_waypoint(&namespace, object)?;
                    println!("{}: {said}", file.display());
                }
            }
        }
    }
    println!(
        "{taken} objects of {} kinds, {policies} of them policies",
        kinds.len()
    );
    ensure!(
        policies == 2 && taken > 50,
        "{taken} objects, {policies} policies"
    );

    let namespace = Namespace::create("misspelt")?;
    for (kind, field, wrong) in [
        (
            "AuthorizationPolicy",
            "/spec/rules/0/to/0/operation",
            "method",
        ),
        ("VirtualService", "/spec/http/0", "rout"),
        ("DestinationRule", "/spec", "subset"),
        ("Gateway", "/spec/servers/0", "host"),
    ] {
        let mut object = kinds
            .get(kind)
            .with_context(|| format!("no {kind}"))?
            .clone();
        object["metadata"]["namespace"] = json!(namespace.name());
        let at = object.pointer_mut(field);
        at.with_context(|| format!("{kind} has no {field}"))?[wrong] = json!(["x"]);
        match kubectl_with(&["apply", "-f", "-"], &object.to_string()) {
            Ok(_) => bail!("{kind} with {field}/{wrong} was taken"),
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(
                    said.contains(&format!(".{wrong}\""))
                        || said.contains(&format!(".{wrong}:"))
                        || said.contains(&format!(".{wrong} ")),
                    "{kind}: {said}"
                );
            }
        }
    }
    kubectl(&["get", "namespace", namespace.name()]).map(drop)
}

/// The condition of a policy whose HTTP parts nobody checks yet; its words.
fn lacks_a_waypoint(namespace: &Namespace, policy: &Value) -> Result<String> {
    let name = policy["metadata"]["name"].as_str().context("a name")?;
    eventually("the policy says what it lacks", || {
        let policy = namespace.get(&["authorizationpolicy", name])?;
        let (is, why, message) = condition(&policy["status"]["conditions"], "keelson.io/Accepted")?;
        let generation = &policy["metadata"]["generation"];
        let seen = &policy["status"]["conditions"][0]["observedGeneration"];
        ensure!(seen.is_null() || seen == generation, "not yet: {seen}");
        ensure!((is, why) == ("False", "Invalid"), "{is}, {why}: {message}");
        let of =
            |field| format!("spec.rules[0].to[0].operation.{field}: only a waypoint checks it");
        ensure!(
            message.contains(&of("methods")) || message.contains(&of("paths")),
            "{message}"
        );
        Ok(message.to_owned())
    })
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../lab/fixtures")
}

/// The manifests below a directory, in the order of their names.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(files(&path)?);
        } else if path.extension().is_some_and(|end| end == "yaml") {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// What is in a manifest, for a namespace of ours instead of its own; without what would run, and without namespaces.
fn objects(file: &Path, namespace: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file)?;
    let all: Vec<Value> =
        serde_saphyr::from_multiple(&text).with_context(|| file.display().to_string())?;
    let is_tried = |object: &Value| {
        let kind = object["kind"].as_str().unwrap_or_default();
        !["", "Deployment", "Namespace", "ServiceAccount"].contains(&kind)
    };
    let mut tried: Vec<Value> = all.into_iter().filter(is_tried).collect();
    for object in &mut tried {
        object["metadata"]["namespace"] = json!(namespace);
    }
    Ok(tried)
}
