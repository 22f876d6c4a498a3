//! Which certificates a workload trusts as roots.

use std::fmt;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor};

/// A set of root certificates, never empty; clones share it.
#[derive(Clone)]
pub struct Roots {
    shared: Arc<Shared>,
}

struct Shared {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

/// Why a set of roots cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RootsError {
    /// There is no certificate in the input.
    #[error("there is no root certificate; at least one PEM block CERTIFICATE is needed")]
    Empty,
    /// The PEM text is damaged.
    #[error("the PEM text of the root certificates cannot be read: {0}")]
    Pem(String),
    /// One certificate cannot be used as a trust anchor.
    #[error("root certificate number {number} cannot be used as a trust anchor")]
    Anchor {
        /// Its place in the input, counted from 1.
        number: usize,
        /// What is wrong with it.
        #[source]
        source: webpki::Error,
    },
}

impl Roots {
    /// From DER certificates.
    ///
    /// # Errors
    /// None at all, or one that is no certificate.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, RootsError> {
        if certificates.is_empty() {
            return Err(RootsError::Empty);
        }
        let anchors = certificates
            .iter()
            .enumerate()
            .map(|(index, certificate)| {
                webpki::anchor_from_trusted_cert(certificate)
                    .map(|anchor| anchor.to_owned())
                    .map_err(|source| RootsError::Anchor {
                        number: index + 1,
                        source,
                    })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            shared: Arc::new(Shared {
                certificates,
                anchors,
            }),
        })
    }

    /// From PEM text with one or more certificates.
    ///
    /// # Errors
    /// As [`Roots::new`], or damaged PEM.
    pub fn from_pem(text: &str) -> Result<Self, RootsError> {
        Self::new(certificates(text).map_err(RootsError::Pem)?)
    }

    /// The certificates.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.shared.certificates
    }

    /// The certificates as concatenated PEM blocks.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.certificates().iter().map(to_pem).collect()
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.shared.anchors
    }

    pub(crate) fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        self.certificates()
            .iter()
            .any(|root| root.as_ref() == certificate.as_ref())
    }
}

impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        self.certificates() == other.certificates()
    }
}

impl Eq for Roots {}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.certificates().len())
    }
}

/// Every certificate of a PEM text, in order; other blocks are passed over.
///
/// # Errors
/// The PEM text is damaged; in words.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

/// One certificate as a PEM block.
pub(crate) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    pem_block("CERTIFICATE", certificate)
}

/// A PEM block (RFC 7468) around `der`.
pub(crate) fn pem_block(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for (index, group) in der.chunks(3).enumerate() {
        if index > 0 && index % 16 == 0 {
            text.push('\n');
        }
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4_usize {
            text.push(if place <= group.len() {
                base64_digit(bits >> (18 - 6 * place))
            } else {
                '='
            });
        }
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

fn base64_digit(bits: u32) -> char {
    let value = u8::try_from(bits & 63).unwrap_or(0);
    char::from(match value {
        0..=25 => b'A' + value,
        26..=51 => b'a' + value - 26,
        52..=61 => b'0' + value - 52,
        62 => b'+',
        _ => b'/',
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_blocks_are_read_back() {
        for length in [1_usize, 2, 3, 47, 48, 49, 500] {
            let der: Vec<u8> = (0..length)
                .map(|n| u8::try_from(n % 251).unwrap())
                .collect();
            let text = pem_block("CERTIFICATE", &der);
            let read = certificates(&text).unwrap();
            assert_eq!(read, [CertificateDer::from(der)], "{text}");
            assert!(text.lines().all(|line| line.len() <= 64));
        }
    }

    #[test]
    fn roots_say_what_is_wrong() {
        let junk = pem_block("CERTIFICATE", b"junk");
        for (text, part) in [
            ("", "no root certificate"),
            (junk.as_str(), "number 1"),
            (
                "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
                "PEM",
            ),
        ] {
            let error = Roots::from_pem(text).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
