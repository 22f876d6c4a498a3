//! Where certificates come from, and how asking for one can fail.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use model::identity::Identity;

use crate::csr::CsrError;
use crate::svid::{Svid, SvidError};

/// The future that [`SvidSource::issue`] returns.
pub type Issuing<'a> = Pin<Box<dyn Future<Output = Result<Svid, IssueError>> + Send + 'a>>;

/// Issues certificates; implemented by the client of the CA API and by [`crate::ca::LocalSource`].
pub trait SvidSource: Send + Sync {
    /// Makes a key, has it certified for `identity` and returns both. One attempt: the caller retries.
    fn issue<'a>(&'a self, identity: &'a Identity) -> Issuing<'a>;
}

/// Why no certificate was issued.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IssueError {
    /// The authority could not be asked; asking again may help.
    #[error("the certificate authority {authority} cannot be reached")]
    Unreachable {
        /// Its address.
        authority: String,
        /// What went wrong.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The authority says no to this identity; asking again helps only after something changed there.
    #[error("the certificate authority refuses a certificate for {identity}: {reason}")]
    Refused {
        /// The identity asked for.
        identity: Identity,
        /// What it said.
        reason: String,
    },
    /// It answered with something that no peer would accept.
    #[error("the certificate authority's answer for {identity} cannot be used")]
    Unusable {
        /// The identity asked for.
        identity: Identity,
        /// What is wrong with the answer.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// It did not answer in time.
    #[error("the certificate authority did not answer within {0:?}")]
    Timeout(Duration),
    /// No key or CSR could be made here.
    #[error("no certificate can be asked for")]
    Request(#[source] CsrError),
}

impl IssueError {
    /// The word for metrics and logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Refused { .. } => "refused",
            Self::Unusable { .. } => "unusable",
            Self::Timeout(_) => "timeout",
            Self::Request(_) => "request",
        }
    }

    /// An answer that is no SVID.
    #[must_use]
    pub fn unusable(identity: &Identity, source: SvidError) -> Self {
        Self::Unusable {
            identity: identity.clone(),
            source: Arc::new(source),
        }
    }
}
