//! Whether the caller may do in the API server what an installation takes.

use anyhow::{Result, bail};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api as Of, PostParams};
use serde_json::Value;

use super::Finding;
use crate::api::{Api, Deed};
use crate::install::kinds::KINDS;

/// What the caller may not do of what an installation of these objects into a namespace takes.
fn missing(api: &Api, namespace: &str, objects: &[Value]) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    let mut ask = |group: &str, resource: &str, verb: &str, within: Option<&str>| -> Result<()> {
        if !may(api, group, resource, verb, within)? {
            let name = if group.is_empty() {
                resource.to_owned()
            } else {
                format!("{resource}.{group}")
            };
            let within = within.map_or_else(String::new, |name| format!(" in {name}"));
            missing.push(format!("{verb} {name}{within}"));
        }
        Ok(())
    };
    for kind in KINDS {
        let is_made = objects.iter().any(|object| object["kind"] == kind.name);
        // Others are only looked for: an earlier version may have made some.
        let verbs: &[&str] = if is_made {
            &["get", "list", "create", "patch", "delete"]
        } else {
            &["list"]
        };
        let within = kind.namespaced.then_some(namespace);
        for verb in verbs {
            ask(kind.group, kind.plural, verb, within)?;
        }
    }
    ask("", "namespaces", "get", None)?;
    ask("", "pods", "list", Some(namespace))?;
    Ok(missing)
}

/// Ends what would only half succeed.
pub(crate) fn demand(api: &Api, namespace: &str, objects: &[Value]) -> Result<()> {
    let missing = missing(api, namespace, objects)?;
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "these rights are missing, and nothing was changed: {}",
        missing.join(", ")
    )
}

/// The same, for `check`.
pub(super) fn finding(api: &Api, namespace: &str) -> Result<Finding> {
    let release = chart::Release {
        name: "keelson".to_owned(),
        namespace: namespace.to_owned(),
    };
    let objects = chart::objects(&release, &chart::values(&[])?)?;
    let missing = missing(api, namespace, &objects)?;
    Ok(Finding {
        what: "rights".to_owned(),
        good: missing.is_empty(),
        said: if missing.is_empty() {
            "you may install and uninstall".to_owned()
        } else {
            format!("you may not {}", missing.join(", "))
        },
    })
}

fn may(
    api: &Api,
    group: &str,
    resource: &str,
    verb: &str,
    namespace: Option<&str>,
) -> Result<bool> {
    let reviews: Of<SelfSubjectAccessReview> = Of::all(api.client.clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                verb: Some(verb.to_owned()),
                namespace: namespace.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let params = PostParams::default();
    let deed = Deed::new("create", "selfsubjectaccessreviews.authorization.k8s.io");
    let answer = api.call(&deed, reviews.create(&params, &review))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
