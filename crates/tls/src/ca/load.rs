//! Whether a CA that was handed to us can do its work: certificate, key, chain and roots checked against each other.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::identity::{Identity, TrustDomain};
use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authority, AuthorityPem};
use crate::clock::Clock;
use crate::roots::{self, Roots, RootsError};
use crate::source::IssueError;
use crate::svid::from_unix;

/// Why a certificate authority cannot be used. `file` is a path, or a name like "CA certificate" when it was no file.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A new root could not be made.
    #[error("cannot generate a root certificate")]
    Generate {
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file holds no certificate that can be read.
    #[error("{file} holds no certificate that can be read: {reason}; PEM is expected")]
    Certificate {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The roots cannot be used.
    #[error("{file} cannot be used as the mesh's roots")]
    Roots {
        /// The file.
        file: String,
        /// What is wrong.
        #[source]
        source: RootsError,
    },
    /// The key cannot be read.
    #[error(
        "{file} holds no private key that can be read; PEM with PKCS #8, SEC 1 or PKCS #1 is expected"
    )]
    Key {
        /// The file.
        file: String,
        /// What is wrong.
        #[source]
        source: rcgen::Error,
    },
    /// Key and certificate are not of one pair.
    #[error("the key in {key_file} does not belong to the certificate in {file}")]
    Mismatch {
        /// The certificate's file.
        file: String,
        /// The key's file.
        key_file: String,
    },
    /// The certificate may not sign others.
    #[error("the certificate in {file} is not a CA: {reason}")]
    NotCa {
        /// The file.
        file: String,
        /// Which right it lacks.
        reason: &'static str,
    },
    /// It has ended.
    #[error("the CA certificate in {file} expired {} s ago", ago.as_secs())]
    Expired {
        /// The file.
        file: String,
        /// How long ago.
        ago: Duration,
    },
    /// It has not begun.
    #[error("the CA certificate in {file} becomes valid in {} s; compare the clocks", until.as_secs())]
    NotYetValid {
        /// The file.
        file: String,
        /// How long from now.
        until: Duration,
    },
    /// What it signs would be refused.
    #[error(
        "certificates signed by {file} do not lead to the roots in {roots_file}; is {chain_file} complete?"
    )]
    Chain {
        /// The CA certificate's file.
        file: String,
        /// The chain's file.
        chain_file: String,
        /// The roots' file.
        roots_file: String,
        /// What a peer would say.
        #[source]
        source: Box<IssueError>,
    },
}

/// The parts of an authority as text, with the names that errors use.
struct Parts {
    certificate: (String, String),
    key: (String, String),
    chain: (String, String),
    roots: (String, String),
}

impl Authority {
    /// Reads back what [`Authority::to_pem`] wrote.
    ///
    /// # Errors
    /// Damaged text, a pair that does not match, a certificate that is no CA or not in date.
    pub fn from_pem(pem: &AuthorityPem, clock: Arc<dyn Clock>) -> Result<Self, CaError> {
        Self::from_pem_beside(pem, "", clock)
    }

    /// The same beside other roots (PEM): who gets a certificate is told to trust those too, as while one root follows
    /// another.
    ///
    /// # Errors
    /// As [`Authority::from_pem`], or damaged text of the others.
    pub fn from_pem_beside(
        pem: &AuthorityPem,
        others: &str,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        let certificate = ("the CA certificate".to_owned(), pem.certificate.clone());
        let roots = format!("{}\n{others}", pem.certificate);
        Self::from_parts(
            &Parts {
                key: ("the CA key".to_owned(), pem.key.clone()),
                chain: certificate.clone(),
                roots: ("the trusted roots".to_owned(), roots),
                certificate,
            },
            clock,
        )
    }

    /// Reads a directory in the form of Istio's `cacerts` secret: `ca-cert.pem`, `ca-key.pem`, `root-cert.pem` and,
    /// for a CA that is not a root, `cert-chain.pem`.
    ///
    /// # Errors
    /// As [`Authority::from_pem`], naming the file.
    pub fn load(directory: &Path, clock: Arc<dyn Clock>) -> Result<Self, CaError> {
        let certificate = read(directory, "ca-cert.pem")?;
        let chain = match read(directory, "cert-chain.pem") {
            Err(CaError::Read { file, source }) if source.kind() == io::ErrorKind::NotFound => {
                (file, certificate.1.clone())
            }
            other => other?,
        };
        Self::from_parts(
            &Parts {
                key: read(directory, "ca-key.pem")?,
                roots: read(directory, "root-cert.pem")?,
                certificate,
                chain,
            },
            clock,
        )
    }

    fn from_parts(parts: &Parts, clock: Arc<dyn Clock>) -> Result<Self, CaError> {
        let (file, text) = &parts.certificate;
        let certificate = certificates(&parts.certificate)?
            .into_iter()
            .next()
            .ok_or_else(|| no_certificate(file, "it has no PEM block CERTIFICATE"))?;
        let (key_file, key_text) = &parts.key;
        let key = KeyPair::from_pem(key_text).map_err(|source| CaError::Key {
            file: key_file.clone(),
            source,
        })?;
        let not_after = check(file, key_file, &certificate, &key, clock.as_ref())?;
        let issuer = Issuer::from_ca_cert_pem(text, key)
            .map_err(|error| no_certificate(file, &error.to_string()))?;
        let (roots_file, roots_text) = &parts.roots;
        let roots = Roots::from_pem(roots_text).map_err(|source| CaError::Roots {
            file: roots_file.clone(),
            source,
        })?;
        let authority = Self {
            intermediates: intermediates(&certificate, certificates(&parts.chain)?, &roots),
            issuer,
            certificate,
            roots,
            not_after,
            clock,
        };
        authority.prove().map_err(|source| CaError::Chain {
            file: file.clone(),
            chain_file: parts.chain.0.clone(),
            roots_file: roots_file.clone(),
            source: Box::new(source),
        })?;
        Ok(authority)
    }

    /// Signs a certificate for nobody and looks at it as a peer would.
    fn prove(&self) -> Result<(), IssueError> {
        let nobody = Identity::new(TrustDomain::default(), "self-test", "self-test");
        self.issue(&nobody, Duration::from_secs(60)).map(drop)
    }
}

/// Rights, dates and key of a CA certificate; returns its end.
fn check(
    file: &str,
    key_file: &str,
    certificate: &CertificateDer<'_>,
    key: &KeyPair,
    clock: &dyn Clock,
) -> Result<std::time::SystemTime, CaError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| no_certificate(file, &error.to_string()))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(CaError::Mismatch {
            file: file.to_owned(),
            key_file: key_file.to_owned(),
        });
    }
    let not_ca = |reason| CaError::NotCa {
        file: file.to_owned(),
        reason,
    };
    if !parsed.is_ca() {
        return Err(not_ca("its basic constraints do not say CA:TRUE"));
    }
    if let Ok(Some(usage)) = parsed.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err(not_ca("its key usage lacks keyCertSign"));
    }
    let now = clock.now();
    let not_before = from_unix(parsed.validity().not_before.timestamp());
    let not_after = from_unix(parsed.validity().not_after.timestamp());
    if let Ok(ago) = now.duration_since(not_after) {
        return Err(CaError::Expired {
            file: file.to_owned(),
            ago,
        });
    }
    match not_before.duration_since(now) {
        Ok(until) if !until.is_zero() => Err(CaError::NotYetValid {
            file: file.to_owned(),
            until,
        }),
        _ => Ok(not_after),
    }
}

/// The CA's certificate and the rest of its chain, without roots and without doubles.
fn intermediates(
    certificate: &CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    roots: &Roots,
) -> Vec<CertificateDer<'static>> {
    let mut kept: Vec<CertificateDer<'static>> = Vec::new();
    for candidate in [certificate.clone()].into_iter().chain(chain) {
        if !roots.contains(&candidate) && !kept.contains(&candidate) {
            kept.push(candidate);
        }
    }
    kept
}

fn certificates((file, text): &(String, String)) -> Result<Vec<CertificateDer<'static>>, CaError> {
    roots::certificates(text).map_err(|reason| no_certificate(file, &reason))
}

fn no_certificate(file: &str, reason: &str) -> CaError {
    CaError::Certificate {
        file: file.to_owned(),
        reason: reason.to_owned(),
    }
}

fn read(directory: &Path, name: &str) -> Result<(String, String), CaError> {
    let path = directory.join(name);
    let file = path.display().to_string();
    match fs::read_to_string(&path) {
        Ok(text) => Ok((file, text)),
        Err(source) => Err(CaError::Read { file, source }),
    }
}
