//! Certificates from the controller, by Istio's CA API: `istio.v1.auth.IstioCertificateService/CreateCertificate`.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::identity::Identity;
use proto::istio::ca::IstioCertificateRequest;
use proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tls::source::Issuing;
use tls::svid::SvidError;
use tls::{Clock, IssueError, Roots, Svid, SvidSource, SystemClock, csr};
use tonic::Code;
use tonic::transport::Channel;

use crate::controller::Controller;
use crate::node::strings;

type Service = IstioCertificateServiceClient<Channel>;

/// A client of the CA API on behalf of the node's pods.
pub struct CaClient {
    controller: Controller,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    /// Kept while it works. Calls share its one connection.
    service: Mutex<Option<Service>>,
}

impl CaClient {
    /// Asks `controller` for certificates that live for `ttl`; it may shorten that. Connects with the first request.
    #[must_use]
    pub fn new(controller: Controller, ttl: Duration) -> Self {
        Self {
            controller,
            ttl,
            clock: Arc::new(SystemClock),
            service: Mutex::new(None),
        }
    }

    /// With another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    async fn create(&self, identity: &Identity) -> Result<Svid, IssueError> {
        let (key, csr) = csr::new_key_and_csr(identity).map_err(IssueError::Request)?;
        let impersonated = ("ImpersonatedIdentity".to_owned(), identity.to_string());
        let message = IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(strings([impersonated])),
        };
        let mut service = self.service().await?;
        let request = self
            .controller
            .authorize(message)
            .map_err(|error| self.unreachable(error))?;
        let answer = match service.create_certificate(request).await {
            Ok(answer) => answer.into_inner().cert_chain,
            Err(status) => {
                let error = self.failed(identity, status);
                let answered = matches!(error, IssueError::Refused { .. });
                self.keep(answered.then_some(service));
                return Err(error);
            }
        };
        self.keep(Some(service));
        let (chain, roots) =
            split(&answer).map_err(|error| IssueError::unusable(identity, error))?;
        Svid::new(identity.clone(), chain, key, roots, self.clock.now())
            .map_err(|error| IssueError::unusable(identity, error))
    }

    async fn service(&self) -> Result<Service, IssueError> {
        let kept = self
            .service
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match kept {
            Some(service) => Ok(service),
            None => Ok(Service::new(
                self.controller
                    .connect()
                    .await
                    .map_err(|error| self.unreachable(error))?,
            )),
        }
    }

    fn keep(&self, service: Option<Service>) {
        *self.service.lock().unwrap_or_else(PoisonError::into_inner) = service;
    }

    /// Answers about the caller or the request are refusals; everything else is a matter of trying again.
    fn failed(&self, identity: &Identity, status: tonic::Status) -> IssueError {
        match status.code() {
            Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::Unimplemented => IssueError::Refused {
                identity: identity.clone(),
                reason: format!("{:?}: {}", status.code(), status.message()),
            },
            _ => self.unreachable(status),
        }
    }

    fn unreachable(&self, error: impl Error + Send + Sync + 'static) -> IssueError {
        IssueError::Unreachable {
            authority: self.controller.uri.clone(),
            source: Arc::new(error),
        }
    }
}

impl SvidSource for CaClient {
    fn issue<'a>(&'a self, identity: &'a Identity) -> Issuing<'a> {
        Box::pin(self.create(identity))
    }
}

type Chain = Vec<tls::CertificateDer<'static>>;

/// The answer is a list of PEM texts: the leaf, what issued it, and last the roots (one text, may be several).
fn split(answer: &[String]) -> Result<(Chain, Roots), SvidError> {
    let Some((roots, chain)) = answer.split_last() else {
        return Err(SvidError::Empty);
    };
    if chain.is_empty() {
        let reason = "the answer has one element; a leaf and a root are expected";
        return Err(SvidError::Malformed(reason.to_owned()));
    }
    let roots = Roots::from_pem(roots).map_err(|error| SvidError::Malformed(error.to_string()))?;
    let chain = tls::roots::certificates(&chain.concat()).map_err(SvidError::Malformed)?;
    Ok((chain, roots))
}

impl fmt::Debug for CaClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaClient")
            .field("controller", &self.controller)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
