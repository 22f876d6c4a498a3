//! Whether the client may have its request go to the endpoint that was chosen: asked with the client's identity, and
//! again before each attempt.

use std::net::Ipv4Addr;
use std::sync::Arc;

use admin_api::Decision;
use l7::Endpoint;
use l7::backend::{Locality, Member};
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

/// The same of a request that nobody has sent, with the object that decides.
pub(crate) fn explain(active: &Active, request: &Request<'_>, member: &Member) -> Decision {
    let target = Target {
        address: member.address.ip(),
        port: member.address.port(),
    };
    match active.l7.authorize(request, &member.endpoint, target) {
        Verdict::Allow { by: None } => Decision {
            allowed: true,
            reason: None,
            text: "there is no ALLOW policy, and no DENY policy matches".to_owned(),
            object: None,
            rule: None,
        },
        Verdict::Allow {
            by: Some((policy, rule)),
        } => Decision {
            allowed: true,
            reason: None,
            text: format!("rule {rule} of ALLOW {} matches", object(policy)),
            object: Some(object(policy)),
            rule: Some(rule),
        },
        Verdict::Deny(denial) => {
            let (of, rule) = match denial {
                Denial::Matched { policy, rule } => {
                    let is_written = policy.unenforceable.is_none();
                    (Some(object(policy)), is_written.then_some(rule))
                }
                Denial::NoAllowMatched { policy } => (Some(object(policy)), None),
                Denial::Undelivered { .. } => (None, None),
            };
            let Refusal { reason, text } = refusal(denial);
            Decision {
                allowed: false,
                reason: Some(reason),
                text,
                object: of,
                rule,
            }
        }
    }
}

/// The same where no endpoint is chosen: what is answered at once, at a gateway or for a service that has no endpoint.
///
/// # Errors
/// Policy refuses.
pub(crate) fn authorize_nowhere(
    active: &Active,
    request: &Request<'_>,
    namespace: &str,
) -> Result<(), Refusal> {
    let nobody = nobody(namespace, request.destination.port());
    let target = Target {
        address: nobody.address.ip(),
        port: nobody.address.port(),
    };
    match active.l7.authorize(request, &nobody.endpoint, target) {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny(denial) => Err(refusal(denial)),
    }
}

/// Stands for the endpoint of a request that needs none.
pub(crate) fn nobody(namespace: &str, port: u16) -> Member {
    let endpoint = Endpoint {
        uid: "".into(),
        addresses: Vec::new(),
        hostname: None,
        identity: None,
        namespace: namespace.into(),
        labels: Arc::default(),
        node: "".into(),
        locality: Locality::default(),
        weight: 1,
        ports: Vec::new(),
        policies: Vec::new(),
    };
    Member {
        endpoint: Arc::new(endpoint),
        address: (Ipv4Addr::UNSPECIFIED, port).into(),
        ready: false,
    }
}

fn object(policy: &l7::Policy) -> String {
    let origin = &policy.origin;
    format!(
        "{} {}/{}",
        origin.kind.as_str(),
        origin.namespace,
        origin.name
    )
}

fn refusal(denial: Denial<'_>) -> Refusal {
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
