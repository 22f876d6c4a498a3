//! Whether a peer's certificate is good enough, and whom it names. Pure: chain and clock in, identity or reason out.

use std::fmt;
use std::time::Duration;

use model::identity::{Identity, TrustDomain};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::roots::Roots;

/// Why a peer is refused. Each has its own [`PeerError::code`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PeerError {
    /// The peer presented no certificate.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// The chain does not end at a root that we trust.
    #[error("the peer's certificate was issued by an authority that we do not trust")]
    UnknownRoot,
    /// The certificate, or one that issued it, has ended.
    #[error("the peer's certificate expired {} s ago", ago.as_secs())]
    Expired {
        /// How long ago.
        ago: Duration,
    },
    /// The certificate, or one that issued it, is not valid yet.
    #[error("the peer's certificate becomes valid in {} s; compare the clocks", until.as_secs())]
    NotYetValid {
        /// How long from now.
        until: Duration,
    },
    /// All its identities are in other trust domains.
    #[error("the peer is {got}, which is not in our trust domain {expected}")]
    OtherTrustDomain {
        /// Ours.
        expected: TrustDomain,
        /// The peer's first identity.
        got: Identity,
    },
    /// It is somebody else than the one we wanted to talk to.
    #[error("expected {}, but the peer is {}", list(expected), list(got))]
    UnexpectedIdentity {
        /// Any of these would have been right.
        expected: Vec<Identity>,
        /// What the peer's certificate names.
        got: Vec<Identity>,
    },
    /// No URI SAN of the form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[error(
        "the peer's certificate names no SPIFFE identity (URI names: {})",
        list(got)
    )]
    NoSpiffeId {
        /// The URI SANs that it has.
        got: Vec<String>,
    },
    /// It carries extended key usages, but not the one for this side of the handshake; or it is a CA.
    #[error("the peer's certificate is not meant for this use: {0}")]
    WrongPurpose(String),
    /// The peer did not prove that it holds the certificate's key.
    #[error("the peer did not prove that it holds the key of its certificate")]
    KeyNotProven,
    /// It is not an X.509 certificate that can be judged.
    #[error("the peer's certificate cannot be read: {0}")]
    Malformed(String),
}

impl PeerError {
    /// The word for metrics and logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::UnknownRoot => "unknown_root",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::OtherTrustDomain { .. } => "other_trust_domain",
            Self::UnexpectedIdentity { .. } => "unexpected_identity",
            Self::NoSpiffeId { .. } => "no_spiffe_id",
            Self::WrongPurpose(_) => "wrong_purpose",
            Self::KeyNotProven => "key_not_proven",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// The peer's identity: the first SPIFFE name of its leaf in `trust_domain`.
///
/// For a chain that the handshake has verified (`peer_certificates()` of a rustls connection).
///
/// # Errors
/// No chain, no SPIFFE name, or none in this trust domain.
pub fn peer_identity(
    chain: &[CertificateDer<'_>],
    trust_domain: &TrustDomain,
) -> Result<Identity, PeerError> {
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    identity_in(&parse(leaf)?, trust_domain)
}

/// Which of the `expected` identities the peer has: any URI SAN may equal any of them.
///
/// To be called after the handshake and before any byte is sent. An empty list expects nobody and refuses.
///
/// # Errors
/// No chain, no SPIFFE name, or nobody that we expect.
pub fn verify_expected(
    chain: &[CertificateDer<'_>],
    expected: &[Identity],
) -> Result<Identity, PeerError> {
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    let got = identities(&parse(leaf)?)?;
    match got.iter().find(|identity| expected.contains(identity)) {
        Some(identity) => Ok(identity.clone()),
        None => Err(not_expected(expected, got)),
    }
}

/// Somebody of another trust domain is told apart from somebody else of ours.
fn not_expected(expected: &[Identity], got: Vec<Identity>) -> PeerError {
    let is_known = |domain: &TrustDomain| expected.iter().any(|one| one.trust_domain == *domain);
    match (expected.first(), got.first()) {
        (Some(one), Some(stranger)) if !got.iter().any(|got| is_known(&got.trust_domain)) => {
            PeerError::OtherTrustDomain {
                expected: one.trust_domain.clone(),
                got: stranger.clone(),
            }
        }
        _ => PeerError::UnexpectedIdentity {
            expected: expected.to_vec(),
            got,
        },
    }
}

/// Chain, dates, purpose (only if the leaf names one, as Istio does) and the presence of a SPIFFE name.
pub(crate) fn verify_chain<'a>(
    leaf: &'a CertificateDer<'a>,
    intermediates: &[CertificateDer<'_>],
    roots: &Roots,
    usage: KeyUsage,
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<EndEntityCert<'a>, PeerError> {
    let parsed = parse(leaf)?;
    parsed
        .verify_for_usage(
            algorithms.all,
            roots.anchors(),
            intermediates,
            now,
            usage,
            None,
            None,
        )
        .map_err(|error| chain_error(&error))?;
    identities(&parsed)?;
    Ok(parsed)
}

pub(crate) fn identity_in(
    leaf: &EndEntityCert<'_>,
    trust_domain: &TrustDomain,
) -> Result<Identity, PeerError> {
    let mut first = None;
    for identity in identities(leaf)? {
        if identity.trust_domain == *trust_domain {
            return Ok(identity);
        }
        first.get_or_insert(identity);
    }
    match first {
        Some(got) => Err(PeerError::OtherTrustDomain {
            expected: trust_domain.clone(),
            got,
        }),
        None => Err(PeerError::NoSpiffeId { got: Vec::new() }),
    }
}

/// Every SPIFFE identity of the leaf, at least one.
pub(crate) fn identities(leaf: &EndEntityCert<'_>) -> Result<Vec<Identity>, PeerError> {
    let identities: Vec<Identity> = leaf
        .valid_uri_names()
        .filter_map(|name| name.parse().ok())
        .collect();
    if identities.is_empty() {
        return Err(PeerError::NoSpiffeId {
            got: leaf.valid_uri_names().map(str::to_owned).collect(),
        });
    }
    Ok(identities)
}

pub(crate) fn parse<'a>(leaf: &'a CertificateDer<'a>) -> Result<EndEntityCert<'a>, PeerError> {
    EndEntityCert::try_from(leaf).map_err(|error| PeerError::Malformed(error.to_string()))
}

fn chain_error(error: &webpki::Error) -> PeerError {
    use webpki::Error as E;
    match error {
        E::CertExpired { time, not_after } => PeerError::Expired {
            ago: between(*not_after, *time),
        },
        E::CertNotValidYet { time, not_before } => PeerError::NotYetValid {
            until: between(*time, *not_before),
        },
        // A foreign root may have the same name as ours; then the path is found and its signature is wrong.
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => PeerError::UnknownRoot,
        E::RequiredEkuNotFoundContext(_)
        | E::EmptyEkuExtension
        | E::CaUsedAsEndEntity
        | E::EndEntityUsedAsCa
        | E::PathLenConstraintViolated
        | E::NameConstraintViolation => PeerError::WrongPurpose(error.to_string()),
        other => PeerError::Malformed(other.to_string()),
    }
}

fn between(earlier: UnixTime, later: UnixTime) -> Duration {
    Duration::from_secs(later.as_secs().saturating_sub(earlier.as_secs()))
}

fn list(items: &[impl fmt::Display]) -> String {
    if items.is_empty() {
        return "nobody".to_owned();
    }
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(" or ")
}
