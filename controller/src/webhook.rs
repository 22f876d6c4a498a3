//! Tells the API server which root our answers to its reviews lead to. The chart makes the configuration without; this is the
//! one field of it that the controller owns, so an upgrade of the chart and a new root do not contend for it.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

/// Keeps `caBundle` of every webhook of the configuration `name` at `roots` (PEM).
pub(crate) async fn keep_bundle(client: Client, name: String, roots: impl Fn() -> String) {
    let all: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let mut was_missing = false;
    loop {
        match attempt(&all, &name, &roots()).await {
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

/// Whether it had to be written; nothing, where there is no configuration.
async fn attempt(
    all: &Api<ValidatingWebhookConfiguration>,
    name: &str,
    roots: &str,
) -> kube::Result<Option<bool>> {
    let Some(there) = all.get_opt(name).await? else {
        return Ok(None);
    };
    let Some(patch) = patch(&there, roots) else {
        return Ok(Some(false));
    };
    let params = PatchParams::apply(MANAGER).force();
    all.patch(name, &params, &Patch::Apply(&patch)).await?;
    Ok(Some(true))
}

/// What is to be applied; nothing where all is as it should be.
fn patch(there: &ValidatingWebhookConfiguration, roots: &str) -> Option<Value> {
    let bundle = ByteString(roots.as_bytes().to_vec());
    let webhooks = there.webhooks.iter().flatten();
    if webhooks
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
        let written = patch(&there, "PEM").expect("it has none");
        assert_eq!(
            written["webhooks"],
            json!([{"name": "a.keelson.io", "clientConfig": {"caBundle": "UEVN"}}])
        );
        for webhook in there.webhooks.iter_mut().flatten() {
            webhook.client_config.ca_bundle = Some(ByteString(b"PEM".to_vec()));
        }
        assert!(patch(&there, "PEM").is_none());
        assert!(patch(&there, "another").is_some());
    }
}
