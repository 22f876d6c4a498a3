//! Why a TLS handshake failed, in words that tell our refusal from the peer's.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use model::Reason;
use rustls::{AlertDescription, CertificateError, Error, OtherError};
use rustls_pki_types::UnixTime;

use crate::peer::PeerError;

/// Why a handshake, or the connection right after it, failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TlsFailure {
    /// We refused the peer.
    #[error("{0}")]
    Peer(PeerError),
    /// The peer sent an alert.
    #[error("the peer refused us: {0}")]
    RefusedByPeer(PeerRefusal),
    /// The bytes were not the TLS that we speak.
    #[error("the TLS handshake failed: {0}")]
    Protocol(Error),
    /// The connection broke; [`io::ErrorKind::UnexpectedEof`] means that the peer closed without a word.
    #[error("the connection ended during the TLS handshake: {0}")]
    Io(Arc<io::Error>),
}

/// What the peer's alert (RFC 8446 section 6.2) says about us.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PeerRefusal {
    /// `certificate_required`.
    #[error("it wants a certificate and we presented none")]
    NoCertificate,
    /// `unknown_ca`.
    #[error("it does not trust the authority that issued our certificate")]
    UnknownRoot,
    /// `certificate_expired`; sent for certificates that are not yet valid, too.
    #[error("our certificate is expired or not yet valid by its clock")]
    NotInDate,
    /// `certificate_unknown` or `access_denied`: the chain is good, the name is not.
    #[error(
        "it does not accept our identity (another trust domain, or not exactly one SPIFFE name)"
    )]
    Identity,
    /// `unsupported_certificate`.
    #[error("our certificate is not meant for this use")]
    WrongPurpose,
    /// `certificate_revoked`.
    #[error("our certificate is revoked")]
    Revoked,
    /// `bad_certificate`.
    #[error("it cannot read our certificate")]
    Malformed,
    /// `decrypt_error`.
    #[error("it could not verify a signature of ours")]
    Signature,
    /// `no_application_protocol`.
    #[error("it does not speak h2")]
    Protocol,
    /// `protocol_version` or `handshake_failure`.
    #[error("it does not speak TLS 1.3 with AES-GCM")]
    Version,
    /// Any other alert.
    #[error("it sent the alert {0:?}")]
    Other(AlertDescription),
}

impl TlsFailure {
    /// The word for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Peer(error) => error.reason(),
            Self::RefusedByPeer(refusal) => refusal.reason(),
            Self::Protocol(_) => Reason::TlsProtocol,
            Self::Io(_) => Reason::TlsIo,
        }
    }
}

impl PeerRefusal {
    /// The word for metrics and logs.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::NoCertificate => Reason::RefusedByPeerNoCertificate,
            Self::UnknownRoot => Reason::RefusedByPeerUnknownRoot,
            Self::NotInDate => Reason::RefusedByPeerNotInDate,
            Self::Identity => Reason::RefusedByPeerIdentity,
            Self::WrongPurpose => Reason::RefusedByPeerWrongPurpose,
            Self::Revoked => Reason::RefusedByPeerRevoked,
            Self::Malformed => Reason::RefusedByPeerMalformed,
            Self::Signature => Reason::RefusedByPeerSignature,
            Self::Protocol => Reason::RefusedByPeerAlpn,
            Self::Version => Reason::RefusedByPeerVersion,
            Self::Other(_) => Reason::RefusedByPeerOther,
        }
    }
}

impl From<AlertDescription> for PeerRefusal {
    fn from(alert: AlertDescription) -> Self {
        use AlertDescription as A;
        match alert {
            A::CertificateRequired | A::NoCertificate => Self::NoCertificate,
            A::UnknownCA => Self::UnknownRoot,
            A::CertificateExpired => Self::NotInDate,
            A::CertificateUnknown | A::AccessDenied => Self::Identity,
            A::UnsupportedCertificate => Self::WrongPurpose,
            A::CertificateRevoked => Self::Revoked,
            A::BadCertificate => Self::Malformed,
            A::DecryptError => Self::Signature,
            A::NoApplicationProtocol => Self::Protocol,
            A::ProtocolVersion | A::HandshakeFailure => Self::Version,
            other => Self::Other(other),
        }
    }
}

/// The reason behind an error of rustls.
#[must_use]
pub fn classify(error: &Error) -> TlsFailure {
    match error {
        Error::NoCertificatesPresented => TlsFailure::Peer(PeerError::NoCertificate),
        Error::AlertReceived(alert) => TlsFailure::RefusedByPeer((*alert).into()),
        Error::InvalidCertificate(error) => TlsFailure::Peer(certificate_error(error)),
        other => TlsFailure::Protocol(other.clone()),
    }
}

/// [`classify`] for the `io::Error` that tokio-rustls wraps around an error of rustls, at the handshake or later.
///
/// In TLS 1.3 a client has finished its handshake when the server judges it: the refusal arrives with the first read.
#[must_use]
pub fn classify_io(error: &io::Error) -> TlsFailure {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(error) => classify(error),
        None => TlsFailure::Io(Arc::new(match error.get_ref() {
            Some(inner) => io::Error::new(error.kind(), inner.to_string()),
            None => error.kind().into(),
        })),
    }
}

/// In the variant whose alert tells the peer the most; [`certificate_error`] reads it back.
pub(crate) fn to_rustls(error: Arc<PeerError>) -> Error {
    Error::InvalidCertificate(match error.as_ref() {
        PeerError::NoCertificate => return Error::NoCertificatesPresented,
        PeerError::UnknownRoot => CertificateError::UnknownIssuer,
        PeerError::Expired { ago } => CertificateError::ExpiredContext {
            time: UnixTime::since_unix_epoch(*ago),
            not_after: UnixTime::since_unix_epoch(Duration::ZERO),
        },
        PeerError::NotYetValid { until } => CertificateError::NotValidYetContext {
            time: UnixTime::since_unix_epoch(Duration::ZERO),
            not_before: UnixTime::since_unix_epoch(*until),
        },
        PeerError::WrongPurpose(_) => CertificateError::InvalidPurpose,
        PeerError::KeyNotProven => CertificateError::BadSignature,
        _ => CertificateError::Other(OtherError(error)),
    })
}

fn certificate_error(error: &CertificateError) -> PeerError {
    use CertificateError as C;
    match error {
        C::UnknownIssuer => PeerError::UnknownRoot,
        C::ExpiredContext { time, not_after } => PeerError::Expired {
            ago: Duration::from_secs(time.as_secs().saturating_sub(not_after.as_secs())),
        },
        C::NotValidYetContext { time, not_before } => PeerError::NotYetValid {
            until: Duration::from_secs(not_before.as_secs().saturating_sub(time.as_secs())),
        },
        C::InvalidPurpose => PeerError::WrongPurpose("key usage".to_owned()),
        C::BadSignature => PeerError::KeyNotProven,
        C::Other(OtherError(inner)) => match inner.downcast_ref::<PeerError>() {
            Some(error) => error.clone(),
            None => PeerError::Malformed(inner.to_string()),
        },
        other => PeerError::Malformed(other.to_string()),
    }
}
