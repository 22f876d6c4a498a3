//! Tells the API server which root our answers to its reviews lead to. The chart makes the configuration without; this is what
//! the controller owns of it, so an upgrade of the chart and a new root do not contend for it.
//!
//! The configuration belongs to the installation's namespace: with that it goes. Else who deletes the namespace would leave one
//! that asks nobody and refuses every policy.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

/// Keeps `caBundle` of every webhook of the configuration `name` at `roots` (PEM), and the configuration with the namespace.
pub(crate) async fn keep(
    client: Client,
    name: String,
    namespace: Option<String>,
    roots: impl Fn() -> String,
) {
    let all: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let namespaces: Api<Namespace> = Api::all(client);
    let mut owner = None;
    let mut was_missing = false;
    loop {
        if let (None, Some(namespace)) = (&owner, &namespace) {
            match of_namespace(&namespaces, namespace).await {
                Ok(found) => owner = found,
                Err(error) => debug!(namespace, %error, "cannot read the namespace"),
            }
        }
        match attempt(&all, &name, owner.as_ref(), &roots()).await {
            Ok(Some(true)) => info!(
                configuration = name,
                "the API server knows our root for admission"
            ),
            Ok(Some(false)) => was_missing = false,
            Ok(None) => {
                if !std::mem::replace(&mut was_missing, true) {
                    debug!(
                        configuration = name,
                        "there is no such webhook configuration"
                    );
                }
            }
            Err(error) => {
                warn!(configuration = name, %error, "cannot tell the API server our root for admission")
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The namespace as an owner. It is asked for in a list, for which there are rights.
async fn of_namespace(all: &Api<Namespace>, name: &str) -> kube::Result<Option<OwnerReference>> {
    let only = ListParams::default().fields(&format!("metadata.name={name}"));
    let found = all.list(&only).await?.items.into_iter().next();
    Ok(found.and_then(|found| {
        Some(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Namespace".to_owned(),
            name: name.to_owned(),
            uid: found.metadata.uid?,
            ..OwnerReference::default()
        })
    }))
}

/// Whether it had to be written; nothing, where there is no configuration.
async fn attempt(
    all: &Api<ValidatingWebhookConfiguration>,
    name: &str,
    owner: Option<&OwnerReference>,
    roots: &str,
) -> kube::Result<Option<bool>> {
    let Some(there) = all.get_opt(name).await? else {
        return Ok(None);
    };
    let Some(patch) = patch(&there, owner, roots) else {
        return Ok(Some(false));
    };
    let params = PatchParams::apply(MANAGER).force();
    all.patch(name, &params, &Patch::Apply(&patch)).await?;
    Ok(Some(true))
}

/// What is to be applied; nothing where all is as it should be.
fn patch(
    there: &ValidatingWebhookConfiguration,
    owner: Option<&OwnerReference>,
    roots: &str,
) -> Option<Value> {
    let bundle = ByteString(roots.as_bytes().to_vec());
    let webhooks = there.webhooks.iter().flatten();
    let mut owners = there.metadata.owner_references.iter().flatten();
    let has_owner = owner.is_none_or(|owner| owners.any(|one| one.uid == owner.uid));
    if has_owner
        && webhooks
            .clone()
            .all(|webhook| webhook.client_config.ca_bundle.as_ref() == Some(&bundle))
    {
        return None;
    }
    let webhooks: Vec<Value> = webhooks
        .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
        .collect();
    Some(json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"ownerReferences": owner.into_iter().collect::<Vec<_>>()},
        "webhooks": webhooks,
    }))
}

const MANAGER: &str = "keelson-controller-ca-bundle";
/// How late a configuration that is made anew, or whose bundle somebody took away, gets it back.
const EVERY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bundle_that_is_another_is_written_and_nothing_beside_it() {
        let mut there: ValidatingWebhookConfiguration = serde_json::from_value(json!({
            "metadata": {"name": "keelson"},
            "webhooks": [
                {"name": "a.keelson.io", "clientConfig": {"service": {"name": "s", "namespace": "n"}},
                 "sideEffects": "None", "admissionReviewVersions": ["v1"]},
            ],
        }))
        .expect("a configuration");
        let written = patch(&there, None, "PEM").expect("it has none");
        assert_eq!(
            written["webhooks"],
            json!([{"name": "a.keelson.io", "clientConfig": {"caBundle": "UEVN"}}])
        );
        for webhook in there.webhooks.iter_mut().flatten() {
            webhook.client_config.ca_bundle = Some(ByteString(b"PEM".to_vec()));
        }
        assert!(patch(&there, None, "PEM").is_none());
        assert!(patch(&there, None, "another").is_some());
    }

    /// Issue 11 B11: with the namespace goes what would refuse every policy.
    #[test]
    fn the_configuration_belongs_to_the_namespace() {
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Namespace".to_owned(),
            name: "keelson-system".to_owned(),
            uid: "u".to_owned(),
            ..OwnerReference::default()
        };
        let mut there: ValidatingWebhookConfiguration =
            serde_json::from_value(json!({"metadata": {"name": "keelson"}, "webhooks": []}))
                .expect("a configuration");
        let written = patch(&there, Some(&owner), "PEM").expect("it has no owner");
        assert_eq!(
            written["metadata"]["ownerReferences"],
            json!([{"apiVersion": "v1", "kind": "Namespace", "name": "keelson-system", "uid": "u"}])
        );
        there.metadata.owner_references = Some(vec![owner.clone()]);
        assert!(patch(&there, Some(&owner), "PEM").is_none());
        let again = OwnerReference {
            uid: "v".to_owned(),
            ..owner
        };
        let of_new = patch(&there, Some(&again), "PEM");
        assert!(
            of_new.is_some(),
            "a namespace of the same name is another one"
        );
    }
}
