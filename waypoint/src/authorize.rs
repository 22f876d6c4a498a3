//! Whether the client may have its request go to the endpoint that was chosen: asked with the client's identity, and
//! again before each attempt.

use std::net::Ipv4Addr;
use std::sync::Arc;

use l7::Endpoint;
use l7::backend::Locality;
use l7::policy::{Denial, Target};
use l7::{Request, Verdict};
use model::Reason;
use telemetry::Refusal;

use crate::active::Active;
use crate::balance::Candidate;

/// Nothing, or why it may not.
///
/// # Errors
/// Policy refuses.
pub(crate) fn authorize(
    active: &Active,
    request: &Request<'_>,
    candidate: &Candidate,
) -> Result<(), Refusal> {
    let address = candidate.member.address;
    let target = Target {
        address: address.ip(),
        port: address.port(),
    };
    let endpoint = &candidate.member.endpoint;
    for (policy, rule) in active.l7.noted(request, endpoint, target) {
        tracing::info!(target: "audit", policy = %policy.origin, rule, client = %request.client.address, %address, "matches");
    }
    match active.l7.authorize(request, endpoint, target) {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny(denial) => Err(refusal(denial)),
    }
}

/// The same at a gateway where no endpoint is chosen: what is answered at once.
///
/// # Errors
/// Policy refuses.
pub(crate) fn authorize_at_edge(active: &Active, request: &Request<'_>) -> Result<(), Refusal> {
    let port = request.destination.port();
    let nobody = Endpoint {
        uid: "".into(),
        addresses: Vec::new(),
        hostname: None,
        identity: None,
        namespace: "".into(),
        labels: Arc::default(),
        node: "".into(),
        locality: Locality::default(),
        weight: 1,
        ports: Vec::new(),
        policies: Vec::new(),
    };
    let target = Target {
        address: Ipv4Addr::UNSPECIFIED.into(),
        port,
    };
    match active.l7.authorize(request, &nobody, target) {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny(denial) => Err(refusal(denial)),
    }
}

fn refusal(denial: Denial<'_>) -> Refusal {
    let object = |policy: &l7::Policy| {
        let origin = &policy.origin;
        format!(
            "{} {}/{}",
            origin.kind.as_str(),
            origin.namespace,
            origin.name
        )
    };
    let (reason, text) = match denial {
        Denial::Matched { policy, rule } => match &policy.unenforceable {
            Some(why) => {
                let text = format!("{} cannot be enforced and refuses: {why}", object(policy));
                (Reason::PolicyUnenforceable, text)
            }
            None => {
                let text = format!("rule {rule} of DENY {} matches", object(policy));
                (Reason::PolicyDeny, text)
            }
        },
        Denial::NoAllowMatched { policy } => {
            let text = format!("no ALLOW matches; the first is {}", object(policy));
            (Reason::PolicyNoAllow, text)
        }
        Denial::Undelivered { name } => {
            let text = format!("policy {name} is named by the endpoint and has not arrived");
            (Reason::PolicyUnknown, text)
        }
    };
    Refusal { reason, text }
}
