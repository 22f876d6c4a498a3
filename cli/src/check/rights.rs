//! Whether the caller may do in the API server what an installation takes.

use std::collections::BTreeSet;
use std::fmt;

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
        let right = Right {
            group,
            resource,
            verb,
            name: None,
        };
        if !may(api, right, within)? {
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
    missing.extend(not_to_give(api, namespace, objects)?);
    Ok(missing)
}

/// What the caller may not give to others, for the lack of it: the API server lets nobody make a role with rights that the
/// maker has not, unless he may escalate.
fn not_to_give(api: &Api, namespace: &str, objects: &[Value]) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for (kind, plural, within) in [
        ("ClusterRole", "clusterroles", None),
        ("Role", "roles", Some(namespace)),
    ] {
        let escalate = Right {
            group: RBAC,
            resource: plural,
            verb: "escalate",
            name: None,
        };
        if may(api, escalate, within)? {
            continue;
        }
        let roles = objects.iter().filter(|object| object["kind"] == kind);
        let given: BTreeSet<Right<'_>> = roles.flat_map(given).collect();
        for right in given {
            if !may(api, right, within)? {
                missing.push(format!("give to others: {right}"));
            }
        }
    }
    Ok(missing)
}

/// One verb on one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right<'r> {
    group: &'r str,
    /// With a subresource behind a slash.
    resource: &'r str,
    verb: &'r str,
    /// Of this object only.
    name: Option<&'r str>,
}

impl fmt::Display for Right<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        match self.name {
            Some(name) => write!(f, " {name}"),
            None => Ok(()),
        }
    }
}

/// The rights that a role gives.
fn given(role: &Value) -> Vec<Right<'_>> {
    let rules = role["rules"].as_array().into_iter().flatten();
    let mut all = Vec::new();
    for rule in rules {
        let texts = |field: &str| -> Vec<&str> {
            let list = rule[field].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).collect()
        };
        let mut names: Vec<Option<&str>> = texts("resourceNames").into_iter().map(Some).collect();
        if names.is_empty() {
            names.push(None);
        }
        for group in texts("apiGroups") {
            for resource in texts("resources") {
                for verb in texts("verbs") {
                    all.extend(names.iter().map(|name| Right {
                        group,
                        resource,
                        verb,
                        name: *name,
                    }));
                }
            }
        }
    }
    all
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
pub(super) fn finding(api: &Api, namespace: &str, values: &[Value]) -> Result<Finding> {
    let release = chart::Release {
        name: "keelson".to_owned(),
        namespace: namespace.to_owned(),
    };
    let objects = chart::objects(&release, &chart::values(values)?)?;
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

fn may(api: &Api, right: Right<'_>, namespace: Option<&str>) -> Result<bool> {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (right.resource, None),
    };
    let reviews: Of<SelfSubjectAccessReview> = Of::all(api.client.clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(right.group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                verb: Some(right.verb.to_owned()),
                name: right.name.map(str::to_owned),
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

const RBAC: &str = "rbac.authorization.k8s.io";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_role_gives_each_verb_on_each_resource_and_name() {
        let role = json!({"rules": [
            {"apiGroups": [""], "resources": ["pods", "pods/status"], "verbs": ["list"]},
            {"apiGroups": ["a.org"], "resources": ["bs"], "verbs": ["get", "patch"], "resourceNames": ["c"]},
        ]});
        let said: Vec<String> = given(&role).iter().map(Right::to_string).collect();
        assert_eq!(
            said,
            [
                "list pods",
                "list pods/status",
                "get bs.a.org c",
                "patch bs.a.org c"
            ]
        );
        assert!(given(&json!({})).is_empty());
    }

    /// The values of an installation decide which rights its roles give.
    #[test]
    fn the_values_that_are_given_decide() {
        let release = chart::Release {
            name: "keelson".to_owned(),
            namespace: "n".to_owned(),
        };
        let frees_nodes = |given_values: &[Value]| {
            let values = chart::values(given_values).expect("values");
            let objects = chart::objects(&release, &values).expect("objects");
            let roles = objects.iter().filter(|one| one["kind"] == "ClusterRole");
            let all: Vec<String> = roles
                .flat_map(given)
                .map(|right| right.to_string())
                .collect();
            all.contains(&"patch nodes".to_owned())
        };
        assert!(!frees_nodes(&[]));
        assert!(frees_nodes(&[json!({"agent": {"startupTaint": true}})]));
    }
}
