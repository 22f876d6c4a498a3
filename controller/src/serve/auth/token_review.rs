//! Kubernetes says whose a token is: a `TokenReview` of a service account token that is bound to a pod. The API server
//! names the node on which the pod runs, so a caller cannot.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Client;
use kube::api::{Api, PostParams};
use manifest::NamespacedName;
use model::{Identity, TrustDomain};
use tracing::{debug, warn};

use super::{Authenticating, Authenticator, Subscriber, Unauthenticated};

/// Asks an API server. Only service accounts that the settings name speak for their node; any other pod speaks for itself.
pub struct TokenReviews {
    reviews: Api<TokenReview>,
    audiences: Vec<String>,
    agents: Vec<NamespacedName>,
    trust_domain: TrustDomain,
}

impl TokenReviews {
    /// Takes tokens that are meant for one of `audiences`; the service accounts `agents` speak for their nodes.
    pub fn new(
        client: Client,
        audiences: &[String],
        agents: &[NamespacedName],
        trust_domain: TrustDomain,
    ) -> Self {
        Self {
            reviews: Api::all(client),
            audiences: audiences.to_vec(),
            agents: agents.to_vec(),
            trust_domain,
        }
    }

    async fn review(&self, token: &str) -> Result<Subscriber, Unauthenticated> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(self.audiences.clone()),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let asked = self.reviews.create(&params, &review);
        let answer = match tokio::time::timeout(ANSWERS_WITHIN, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                warn!(%error, "the API server cannot say whose a token is");
                return Err(Unauthenticated::CannotTell);
            }
            Err(_elapsed) => {
                warn!("the API server does not say whose a token is");
                return Err(Unauthenticated::CannotTell);
            }
        };
        let status = answer.status.unwrap_or_default();
        caller(status, &self.audiences, &self.agents, &self.trust_domain).map_err(|why| {
            debug!(why, "a token is not taken");
            Unauthenticated::Unknown
        })
    }
}

/// Who the API server says it is, or why that is nobody for us.
fn caller(
    status: TokenReviewStatus,
    audiences: &[String],
    agents: &[NamespacedName],
    trust_domain: &TrustDomain,
) -> Result<Subscriber, String> {
    if status.authenticated != Some(true) {
        return Err(status.error.unwrap_or_else(|| "not valid".to_owned()));
    }
    // A server that does not know audiences answers with none: the token could be one for the API server itself, which any
    // program of the pod may hand to others.
    let meant = status.audiences.unwrap_or_default();
    if !meant.iter().any(|audience| audiences.contains(audience)) {
        return Err("meant for another audience".to_owned());
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|account| account.split_once(':'))
        .ok_or_else(|| format!("{name:?} is no service account"))?;
    let extra = user.extra.unwrap_or_default();
    let node = first(&extra, NODE_NAME)
        .ok_or_else(|| format!("{name}: not bound to a pod that runs on a node"))?;
    let (namespace, account) = account;
    let account = NamespacedName::new(namespace, account);
    if agents.contains(&account) {
        return Ok(Subscriber::Node(node.into()));
    }
    let (namespace, account) = (&account.namespace, &account.name);
    let text = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}");
    let identity: Identity = text
        .parse()
        .map_err(|error: model::identity::IdentityError| error.to_string())?;
    Ok(Subscriber::Workload {
        node: node.into(),
        identity,
    })
}

fn first<'e>(extra: &'e BTreeMap<String, Vec<String>>, key: &str) -> Option<&'e str> {
    let value = extra.get(key)?.first()?;
    Some(value.as_str()).filter(|value| !value.is_empty())
}

impl Authenticator for TokenReviews {
    fn authenticate<'a>(&'a self, token: &'a str) -> Authenticating<'a> {
        Box::pin(self.review(token))
    }
}

impl fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenReviews")
            .field("audiences", &self.audiences)
            .field("agents", &self.agents)
            .finish_non_exhaustive()
    }
}

/// The key under which the API server names the node of a token's pod (Kubernetes 1.30 and newer).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// How long a caller waits for the API server's answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(status: serde_json::Value) -> Result<Subscriber, String> {
        let status = serde_json::from_value(status).expect("a status");
        let agents = [NamespacedName::new("keelson-system", "keelson-node-agent")];
        let trust_domain = "cluster.local".parse().expect("a trust domain");
        caller(status, &["keelson".to_owned()], &agents, &trust_domain)
    }

    fn status(account: &str) -> serde_json::Value {
        json!({
            "authenticated": true, "audiences": ["keelson"],
            "user": {"username": account, "extra": {NODE_NAME: ["n1"]}},
        })
    }

    #[test]
    fn an_agent_speaks_for_its_node_and_any_other_pod_for_itself() {
        let agent = asked(status(
            "system:serviceaccount:keelson-system:keelson-node-agent",
        ));
        assert_eq!(agent, Ok(Subscriber::Node("n1".into())));
        for (account, identity) in [
            (
                "system:serviceaccount:shop:cart",
                "spiffe://cluster.local/ns/shop/sa/cart",
            ),
            // The agent's name in a tenant's namespace.
            (
                "system:serviceaccount:shop:keelson-node-agent",
                "spiffe://cluster.local/ns/shop/sa/keelson-node-agent",
            ),
        ] {
            let expected = Subscriber::Workload {
                node: "n1".into(),
                identity: identity.parse().expect("an identity"),
            };
            assert_eq!(asked(status(account)), Ok(expected));
        }
    }

    #[test]
    fn who_is_no_pod_or_is_meant_for_others_is_nobody() {
        let agent = "system:serviceaccount:keelson-system:keelson-node-agent";
        let change = |pointer: &str, value: serde_json::Value| {
            let mut status = status(agent);
            *status.pointer_mut(pointer).expect("there") = value;
            asked(status)
        };
        assert!(change("/user/username", json!(agent)).is_ok());
        for (pointer, value) in [
            ("/authenticated", json!(false)),
            ("/authenticated", json!(null)),
            ("/audiences", json!([])),
            ("/audiences", json!(null)),
            ("/audiences", json!(["https://kubernetes.default.svc"])),
            ("/user/username", json!("system:node:n1")),
            ("/user/username", json!("kubernetes-admin")),
            ("/user/extra", json!({})),
            ("/user/extra", json!({NODE_NAME: [""]})),
            ("/user/extra", json!({NODE_NAME: []})),
            ("/user", json!(null)),
        ] {
            assert!(change(pointer, value.clone()).is_err(), "{pointer} {value}");
        }
    }
}
