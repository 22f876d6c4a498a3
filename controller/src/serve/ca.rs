//! Istio's CA API: signs for a node the identities of the pods that run on it, and for nobody else.

use std::sync::Arc;
use std::time::Duration;

use model::{Identity, TrustDomain};
use prost_types::value::Kind;
use proto::istio::ca::istio_certificate_service_server::IstioCertificateService;
use proto::istio::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tls::ca::SignError;
use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};
use tracing::{info, warn};

use super::Services;
use super::auth::{Authenticator, Subscriber, Unauthenticated, caller, peer};
use crate::metrics::{Metrics, ReasonLabel};
use crate::pipeline::Published;
use crate::signer::Signer;
use compile::snapshot::Snapshot;

/// The service.
pub struct CertificateService {
    authenticator: Arc<dyn Authenticator>,
    published: watch::Receiver<Arc<Published>>,
    signer: Signer,
    trust_domain: TrustDomain,
    cert_ttl: Duration,
    metrics: Metrics,
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The caller is nobody.
    #[error(transparent)]
    Unauthenticated(#[from] Unauthenticated),
    /// The request does not say for whom.
    #[error(
        "metadata ImpersonatedIdentity is missing: a node's agent says for which identity the certificate is"
    )]
    NoIdentity,
    /// What it says is no identity.
    #[error("ImpersonatedIdentity is not an identity")]
    BadIdentity(#[source] model::identity::IdentityError),
    /// It is one of another mesh.
    #[error("{identity} is not in the trust domain {ours}")]
    OtherTrustDomain {
        /// The identity asked for.
        identity: Identity,
        /// Our trust domain.
        ours: TrustDomain,
    },
    /// The caller is another identity itself, and no node's agent.
    #[error("the token is that of {own}, which may not ask for {identity}")]
    NotItsOwn {
        /// The identity asked for.
        identity: Identity,
        /// The caller's.
        own: Identity,
    },
    /// No pod of the caller's node has it.
    #[error("no running pod of node {node} has the identity {identity}")]
    NotOnNode {
        /// The caller's node.
        node: Arc<str>,
        /// The identity asked for.
        identity: Identity,
    },
    /// The certificate request was not signed.
    #[error("the certificate was not signed")]
    Sign(#[from] SignError),
}

impl CertificateService {
    /// Signs with the authority of `services`.
    pub fn new(services: &Services) -> Self {
        Self {
            authenticator: Arc::clone(&services.authenticator),
            published: services.published.clone(),
            signer: services.signer.clone(),
            trust_domain: services.trust_domain.clone(),
            cert_ttl: services.cert_ttl,
            metrics: services.metrics.clone(),
        }
    }

    async fn issue(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, Refusal> {
        let caller = caller(
            &*self.authenticator,
            request.metadata(),
            request.extensions(),
        )
        .await?;
        let request = request.into_inner();
        let identity = requested(&request, &caller)?;
        let (Subscriber::Node(node) | Subscriber::Workload { node, .. }) = &caller;
        authorize(
            &self.published.borrow().snapshot,
            &self.trust_domain,
            node,
            &identity,
        )?;
        let ttl = lifetime(request.validity_duration, self.cert_ttl);
        let cert_chain = self.signer.now().sign(&request.csr, &identity, ttl)?;
        info!(node = &**node, %identity, ttl_seconds = ttl.as_secs(), "certificate issued");
        Ok(IstioCertificateResponse { cert_chain })
    }
}

#[async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = peer(request.extensions());
        match self.issue(request).await {
            Ok(response) => {
                self.metrics.certificates_issued.inc();
                Ok(Response::new(response))
            }
            Err(refusal) => {
                self.metrics
                    .certificates_refused
                    .get_or_create(&ReasonLabel {
                        reason: refusal.reason(),
                    })
                    .inc();
                let cause = std::error::Error::source(&refusal).map(ToString::to_string);
                warn!(?peer, reason = refusal.reason(), %refusal, cause, "certificate refused");
                Err(refusal.status())
            }
        }
    }
}

impl Refusal {
    /// A fixed word for the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unauthenticated(error) => error.reason(),
            Self::NoIdentity => "no_identity",
            Self::BadIdentity(_) => "bad_identity",
            Self::OtherTrustDomain { .. } => "other_trust_domain",
            Self::NotItsOwn { .. } => "not_its_own",
            Self::NotOnNode { .. } => "not_on_node",
            Self::Sign(SignError::Expired) => "ca_expired",
            Self::Sign(SignError::Sign(_)) => "signing_failed",
            Self::Sign(_) => "bad_request",
        }
    }

    fn status(&self) -> Status {
        let text = match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        };
        match self {
            Self::Unauthenticated(error) => error.status(text),
            Self::OtherTrustDomain { .. } | Self::NotItsOwn { .. } | Self::NotOnNode { .. } => {
                Status::permission_denied(text)
            }
            Self::Sign(SignError::Expired | SignError::Sign(_)) => Status::internal(text),
            Self::NoIdentity | Self::BadIdentity(_) | Self::Sign(_) => {
                Status::invalid_argument(text)
            }
        }
    }
}

/// For whom the certificate is: whom the request names, or else the caller itself, if it is somebody. A node's agent is
/// nobody and has to name one of its pods' identities; who is somebody gets no other.
fn requested(request: &IstioCertificateRequest, caller: &Subscriber) -> Result<Identity, Refusal> {
    let named = named(request)?;
    match caller {
        Subscriber::Node(_) => named.ok_or(Refusal::NoIdentity),
        Subscriber::Workload { identity: own, .. } => match named {
            Some(identity) if identity != *own => Err(Refusal::NotItsOwn {
                identity,
                own: own.clone(),
            }),
            _ => Ok(own.clone()),
        },
    }
}

fn named(request: &IstioCertificateRequest) -> Result<Option<Identity>, Refusal> {
    let value = request
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text.parse().map(Some).map_err(Refusal::BadIdentity),
        _ => Ok(None),
    }
}

/// A node may have the identities of the pods that run on it.
fn authorize(
    snapshot: &Snapshot,
    ours: &TrustDomain,
    node: &Arc<str>,
    identity: &Identity,
) -> Result<(), Refusal> {
    if identity.trust_domain != *ours {
        return Err(Refusal::OtherTrustDomain {
            identity: identity.clone(),
            ours: ours.clone(),
        });
    }
    if !snapshot.node_has_identity(node, &identity.namespace, &identity.service_account) {
        return Err(Refusal::NotOnNode {
            node: Arc::clone(node),
            identity: identity.clone(),
        });
    }
    Ok(())
}

/// What was asked for, but never more than `longest`; nothing asked for means the longest.
fn lifetime(asked_seconds: i64, longest: Duration) -> Duration {
    match u64::try_from(asked_seconds) {
        Ok(seconds) if seconds > 0 => Duration::from_secs(seconds).min(longest),
        _ => longest,
    }
}
