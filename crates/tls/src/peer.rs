//! Whether a peer's certificate is good enough, and whom it names. Pure: chain and clock in, identity or reason out.

use std::fmt;
use std::time::{Duration, SystemTime};

use model::Reason;
use model::identity::{Identity, TrustDomain};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::asn1_rs::Tag;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::roots::Roots;
use crate::svid::from_unix;

/// Why a peer is refused. Each has its own [`PeerError::reason`].
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
    /// Its identity is in another trust domain.
    #[error("the peer is {got}, which is not in our trust domain {expected}")]
    OtherTrustDomain {
        /// Ours.
        expected: TrustDomain,
        /// The peer's identity.
        got: Identity,
    },
    /// It is somebody else than the one we wanted to talk to.
    #[error("expected {}, but the peer is {got}", list(expected))]
    UnexpectedIdentity {
        /// Any of these would have been right.
        expected: Vec<Identity>,
        /// What the peer's certificate names.
        got: Identity,
    },
    /// More than one URI SAN, which no SVID has (X.509-SVID, section 2): whom it is, is for nobody to choose.
    #[error(
        "the peer's certificate has several URI names, and an identity is exactly one: {}",
        list(got)
    )]
    ManyNames {
        /// All of them.
        got: Vec<String>,
    },
    /// The URI SAN is not of the form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
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
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoCertificate => Reason::NoCertificate,
            Self::UnknownRoot => Reason::UnknownRoot,
            Self::Expired { .. } => Reason::Expired,
            Self::NotYetValid { .. } => Reason::NotYetValid,
            Self::OtherTrustDomain { .. } => Reason::OtherTrustDomain,
            Self::UnexpectedIdentity { .. } => Reason::UnexpectedIdentity,
            Self::ManyNames { .. } => Reason::ManyNames,
            Self::NoSpiffeId { .. } => Reason::NoSpiffeId,
            Self::WrongPurpose(_) => Reason::WrongPurpose,
            Self::KeyNotProven => Reason::KeyNotProven,
            Self::Malformed(_) => Reason::Malformed,
        }
    }
}

/// The peer's identity: the SPIFFE name of its leaf, which must be in `trust_domain`.
///
/// For a chain that the handshake has verified (`peer_certificates()` of a rustls connection).
///
/// # Errors
/// No chain, no SPIFFE name, several names, or one of another trust domain.
pub fn peer_identity(
    chain: &[CertificateDer<'_>],
    trust_domain: &TrustDomain,
) -> Result<Identity, PeerError> {
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    identity_in(leaf, trust_domain)
}

/// Which of the `expected` identities the peer has.
///
/// To be called after the handshake and before any byte is sent. An empty list expects nobody and refuses.
///
/// # Errors
/// No chain, no SPIFFE name, several names, or nobody that we expect.
pub fn verify_expected(
    chain: &[CertificateDer<'_>],
    expected: &[Identity],
) -> Result<Identity, PeerError> {
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    let got = identity(leaf)?;
    if expected.contains(&got) {
        return Ok(got);
    }
    Err(not_expected(expected, got))
}

/// When the first certificate of a chain ends. What the peer presents beside its leaf counts, too.
///
/// # Errors
/// No chain, or a leaf that cannot be read.
pub fn valid_until(chain: &[CertificateDer<'_>]) -> Result<SystemTime, PeerError> {
    let (leaf, others) = chain.split_first().ok_or(PeerError::NoCertificate)?;
    let end =
        |certificate: &X509Certificate<'_>| from_unix(certificate.validity().not_after.timestamp());
    let others = others.iter().filter_map(|other| read(other).ok());
    Ok(others
        .map(|other| end(&other))
        .fold(end(&read(leaf)?), SystemTime::min))
}

/// Somebody of another trust domain is told apart from somebody else of ours.
fn not_expected(expected: &[Identity], got: Identity) -> PeerError {
    let is_known = expected
        .iter()
        .any(|one| one.trust_domain == got.trust_domain);
    match expected.first() {
        Some(one) if !is_known => PeerError::OtherTrustDomain {
            expected: one.trust_domain.clone(),
            got,
        },
        _ => PeerError::UnexpectedIdentity {
            expected: expected.to_vec(),
            got,
        },
    }
}

/// Chain, dates, purpose (only if the leaf names one, as Istio does) and the one SPIFFE name.
pub(crate) fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Roots,
    usage: KeyUsage,
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<(), PeerError> {
    let parsed =
        EndEntityCert::try_from(leaf).map_err(|error| PeerError::Malformed(error.to_string()))?;
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
    identity(leaf)?;
    Ok(())
}

pub(crate) fn identity_in(
    leaf: &CertificateDer<'_>,
    trust_domain: &TrustDomain,
) -> Result<Identity, PeerError> {
    let got = identity(leaf)?;
    if got.trust_domain == *trust_domain {
        return Ok(got);
    }
    Err(PeerError::OtherTrustDomain {
        expected: trust_domain.clone(),
        got,
    })
}

/// The SPIFFE identity of the leaf: its only URI SAN.
fn identity(leaf: &CertificateDer<'_>) -> Result<Identity, PeerError> {
    let got = uri_names(&read(leaf)?)?;
    match got.as_slice() {
        [_, _, ..] => Err(PeerError::ManyNames { got }),
        [name] if let Ok(identity) = name.parse() => Ok(identity),
        _ => Err(PeerError::NoSpiffeId { got }),
    }
}

/// All URI SANs, also those that are no text.
fn uri_names(leaf: &X509Certificate<'_>) -> Result<Vec<String>, PeerError> {
    let names = leaf
        .subject_alternative_name()
        .map_err(|error| PeerError::Malformed(error.to_string()))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let uris = names.filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        GeneralName::Invalid(URI_TAG, bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    });
    Ok(uris.collect())
}

/// Of `uniformResourceIdentifier` in a `GeneralName` (RFC 5280 section 4.2.1.6).
const URI_TAG: Tag = Tag(6);

fn read<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PeerError> {
    match X509Certificate::from_der(certificate) {
        Ok((_, read)) => Ok(read),
        Err(error) => Err(PeerError::Malformed(error.to_string())),
    }
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
