//! One X.509 SVID: an identity, its certificate chain, its key and its roots, checked to belong together.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::identity::Identity;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::KeyUsage;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::peer::{self, PeerError};
use crate::roots::Roots;

/// A certificate of one identity with its key. `Debug` does not show the key.
pub struct Svid {
    /// Whom it names.
    pub identity: Identity,
    /// The leaf first, then what leads to a root; no root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// The roots that the authority handed out with it.
    pub roots: Roots,
    /// Start of validity. Authorities put it into the past to forgive clocks.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// When it was issued to us; the life that rotation measures begins here.
    pub obtained: SystemTime,
}

/// What an administrator may see of an [`Svid`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SvidInfo {
    /// Whom it names.
    pub identity: Identity,
    /// The serial number, hexadecimal.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// When it was issued to us.
    pub obtained: SystemTime,
    /// URI SANs of the leaf.
    pub sans: Vec<String>,
    /// Certificates in the chain, the leaf included.
    pub chain_length: usize,
}

/// Why a chain and a key are no usable SVID.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SvidError {
    /// The chain is empty.
    #[error("the certificate chain is empty")]
    Empty,
    /// The leaf cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// The leaf names somebody else.
    #[error("the certificate was asked for {asked} but its first name is {got}")]
    OtherIdentity {
        /// The identity asked for.
        asked: Identity,
        /// The first URI SAN, or "nothing".
        got: String,
    },
    /// The key does not belong to the leaf.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// A peer would not accept it.
    #[error("a peer would not accept the certificate")]
    Unacceptable(#[source] PeerError),
}

impl Svid {
    /// Puts an SVID together from what an authority answered and checks it as a peer would.
    ///
    /// # Errors
    /// What a peer, or the far end of the CA API, would complain about.
    pub fn new(
        identity: Identity,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Roots,
        obtained: SystemTime,
    ) -> Result<Self, SvidError> {
        let (leaf, intermediates) = chain.split_first().ok_or(SvidError::Empty)?;
        let (not_before, not_after) = validity(leaf)?;
        check_name(leaf, &identity)?;
        let provider = aws_lc_rs::default_provider();
        let signer = provider
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(|error| SvidError::Malformed(error.to_string()))?;
        CertifiedKey::new(chain.clone(), signer)
            .keys_match()
            .map_err(|_mismatch| SvidError::KeyMismatch)?;
        peer::verify_chain(
            leaf,
            intermediates,
            &roots,
            KeyUsage::client_auth(),
            &provider.signature_verification_algorithms,
            unix(obtained),
        )
        .map_err(SvidError::Unacceptable)?;
        Ok(Self {
            identity,
            chain,
            key,
            roots,
            not_before,
            not_after,
            obtained,
        })
    }

    /// What may be shown of it.
    #[must_use]
    pub fn info(&self) -> SvidInfo {
        let leaf = self
            .chain
            .first()
            .and_then(|leaf| webpki::EndEntityCert::try_from(leaf).ok());
        SvidInfo {
            identity: self.identity.clone(),
            serial: leaf
                .as_ref()
                .map(|leaf| hex(leaf.serial()))
                .unwrap_or_default(),
            not_before: self.not_before,
            not_after: self.not_after,
            obtained: self.obtained,
            sans: leaf
                .as_ref()
                .map(|leaf| leaf.valid_uri_names().map(str::to_owned).collect())
                .unwrap_or_default(),
            chain_length: self.chain.len(),
        }
    }
}

impl Clone for Svid {
    fn clone(&self) -> Self {
        Self {
            identity: self.identity.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            roots: self.roots.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
            obtained: self.obtained,
        }
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("identity", &self.identity)
            .field("chain", &self.chain.len())
            .field("roots", &self.roots)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn check_name(leaf: &CertificateDer<'_>, asked: &Identity) -> Result<(), SvidError> {
    let leaf = webpki::EndEntityCert::try_from(leaf)
        .map_err(|error| SvidError::Malformed(error.to_string()))?;
    let first = leaf.valid_uri_names().next().unwrap_or("nothing");
    if first.parse::<Identity>().is_ok_and(|got| got == *asked) {
        return Ok(());
    }
    Err(SvidError::OtherIdentity {
        asked: asked.clone(),
        got: first.to_owned(),
    })
}

fn validity(leaf: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), SvidError> {
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|error| SvidError::Malformed(error.to_string()))?;
    let validity = parsed.validity();
    Ok((
        from_unix(validity.not_before.timestamp()),
        from_unix(validity.not_after.timestamp()),
    ))
}

pub(crate) fn from_unix(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(UNIX_EPOCH)
}

pub(crate) fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
