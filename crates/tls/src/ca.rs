//! A certificate authority: its own root, or one that an administrator brings, and what it signs.
//!
//! It decides nothing about who may have which identity; the caller has authenticated and authorised.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::clock::{Clock, SystemClock};
use crate::csr;
use crate::roots::{self, Roots};
use crate::source::{IssueError, Issuing, SvidSource};
use crate::svid::Svid;

mod load;

pub use load::CaError;

/// Signs certificates of workloads and of our own servers.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// What a peer needs between a leaf and the roots; empty for a root that signs itself.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Roots,
    not_after: SystemTime,
    clock: Arc<dyn Clock>,
}

/// A generated root as text, to be kept by the caller: the key is a secret.
#[derive(Clone, Eq, PartialEq)]
pub struct AuthorityPem {
    /// The certificate.
    pub certificate: String,
    /// The key (PKCS #8).
    pub key: String,
}

/// A certificate for a TLS server of ours, with DNS and IP names.
pub struct ServingCert {
    /// The leaf first; no root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// End of validity.
    pub not_after: SystemTime,
}

/// Why a certificate was not signed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SignError {
    /// The request is no CSR, or its signature does not match its key.
    #[error("the certificate request cannot be read or its signature is wrong: {0}")]
    Request(rcgen::Error),
    /// The key in the request is of a kind that we do not certify.
    #[error("the certificate request has a key of another kind; use ECDSA P-256")]
    KeyKind,
    /// The request names somebody else than the caller was authorised for.
    #[error("the certificate request names {named:?}, but the caller may have {allowed}")]
    OtherName {
        /// The name in the request.
        named: String,
        /// The identity that was authorised.
        allowed: Identity,
    },
    /// A serving name is neither an IP address nor a DNS name.
    #[error("{0:?} is neither an IP address nor a DNS name")]
    Name(String),
    /// The authority's own certificate has ended.
    #[error("the CA certificate has expired; give the mesh a new one")]
    Expired,
    /// The signing itself failed.
    #[error("the certificate could not be signed: {0}")]
    Sign(rcgen::Error),
}

impl ServingCert {
    /// The chain as concatenated PEM blocks, leaf first.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(roots::to_pem).collect()
    }

    /// The key as a PEM block (PKCS #8): a secret.
    #[must_use]
    pub fn key_pem(&self) -> String {
        roots::pem_block("PRIVATE KEY", self.key.secret_der())
    }
}

impl Authority {
    /// A new root: P-256, ten years, self-signed, with `organization` as its name.
    ///
    /// # Errors
    /// The random source fails.
    pub fn generate(organization: &str, clock: Arc<dyn Clock>) -> Result<Self, CaError> {
        let generated = |source| CaError::Generate { source };
        let key = KeyPair::generate().map_err(generated)?;
        let now = clock.now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        params.not_before = (now - ROOT_BACKDATE).into();
        params.not_after = (now + ROOT_LIFE).into();
        let certificate = params.self_signed(&key).map_err(generated)?.pem();
        Self::from_pem(
            &AuthorityPem {
                certificate,
                key: key.serialize_pem(),
            },
            clock,
        )
    }

    /// The certificate and the key of this authority, to be read back by [`Authority::from_pem`].
    #[must_use]
    pub fn to_pem(&self) -> AuthorityPem {
        AuthorityPem {
            certificate: roots::to_pem(&self.certificate),
            key: self.issuer.key().serialize_pem(),
        }
    }

    /// The roots that its certificates lead to.
    #[must_use]
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// End of the CA certificate; nothing that it signs outlives it.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Certifies the key of `csr` (PEM) for `identity` and for `ttl`: the chain as PEM texts, leaf first, roots last
    /// and together in one element, as the CA API answers.
    ///
    /// What the request asks for beyond its key is ignored, except that it may not name somebody else.
    ///
    /// # Errors
    /// A bad request, or an authority that has expired.
    pub fn sign(
        &self,
        csr: &str,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<Vec<String>, SignError> {
        let chain = self.sign_chain(csr, identity, ttl)?;
        Ok(chain
            .iter()
            .map(roots::to_pem)
            .chain([self.roots.to_pem()])
            .collect())
    }

    /// A key and a certificate for `identity`, both made here.
    ///
    /// # Errors
    /// As [`Authority::sign`], in the words of an [`SvidSource`].
    pub fn issue(&self, identity: &Identity, ttl: Duration) -> Result<Svid, IssueError> {
        let (key, request) = csr::new_key_and_csr(identity).map_err(IssueError::Request)?;
        let chain =
            self.sign_chain(&request, identity, ttl)
                .map_err(|error| IssueError::Refused {
                    identity: identity.clone(),
                    reason: error.to_string(),
                })?;
        Svid::new(
            identity.clone(),
            chain,
            key,
            self.roots.clone(),
            self.clock.now(),
        )
        .map_err(|source| IssueError::unusable(identity, source))
    }

    /// A certificate for a TLS server of ours. `names` are IP addresses and DNS names.
    ///
    /// # Errors
    /// A name that is neither, or an authority that has expired.
    pub fn serving_cert(&self, names: &[String], ttl: Duration) -> Result<ServingCert, SignError> {
        let key = KeyPair::generate().map_err(SignError::Sign)?;
        let mut params = self.leaf(ttl)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names
            .iter()
            .map(|name| serving_name(name))
            .collect::<Result<_, _>>()?;
        let leaf = params
            .signed_by(&key, &self.issuer)
            .map_err(SignError::Sign)?;
        Ok(ServingCert {
            chain: self.chain_from(leaf.into()),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            not_after: params.not_after.into(),
        })
    }

    fn sign_chain(
        &self,
        csr: &str,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        let request = CertificateSigningRequestParams::from_pem(csr).map_err(SignError::Request)?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(SignError::KeyKind);
        }
        let name = identity.to_string();
        for san in &request.params.subject_alt_names {
            if !matches!(san, SanType::URI(uri) if uri.as_str() == name) {
                return Err(SignError::OtherName {
                    named: san_text(san),
                    allowed: identity.clone(),
                });
            }
        }
        let mut params = self.leaf(ttl)?;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.subject_alt_names = vec![SanType::URI(name.try_into().map_err(SignError::Sign)?)];
        let leaf = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(SignError::Sign)?;
        Ok(self.chain_from(leaf.into()))
    }

    /// What every leaf has: an empty subject (so that the SAN is critical), a random serial, no CA rights, and dates.
    fn leaf(&self, ttl: Duration) -> Result<CertificateParams, SignError> {
        let now = self.clock.now();
        if now >= self.not_after {
            return Err(SignError::Expired);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial());
        // X.509 counts seconds: round up, so that a life of seconds is not cut by one of them.
        let end = now + ttl.max(Duration::from_secs(1)) + Duration::from_millis(999);
        let end = end.min(self.not_after);
        let life = end.duration_since(now).unwrap_or_default();
        params.not_before = (now - LEAF_BACKDATE.min(life / 4)).into();
        params.not_after = end.into();
        Ok(params)
    }

    fn chain_from(&self, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        [leaf]
            .into_iter()
            .chain(self.intermediates.iter().cloned())
            .collect()
    }
}

/// An [`Authority`] in this process as a source of certificates.
#[derive(Clone, Debug)]
pub struct LocalSource {
    authority: Arc<Authority>,
    ttl: Duration,
}

impl LocalSource {
    /// Issues certificates that live for `ttl`.
    #[must_use]
    pub fn new(authority: Arc<Authority>, ttl: Duration) -> Self {
        Self { authority, ttl }
    }
}

impl SvidSource for LocalSource {
    fn issue<'a>(&'a self, identity: &'a Identity) -> Issuing<'a> {
        Box::pin(async move { self.authority.issue(identity, self.ttl) })
    }
}

fn serving_name(name: &str) -> Result<SanType, SignError> {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let bad = || SignError::Name(name.to_owned());
    rustls_pki_types::DnsName::try_from(name).map_err(|_not_dns| bad())?;
    let name = name.to_owned().try_into();
    Ok(SanType::DnsName(name.map_err(|_not_ascii| bad())?))
}

fn san_text(san: &SanType) -> String {
    match san {
        SanType::URI(name) | SanType::DnsName(name) | SanType::Rfc822Name(name) => {
            name.as_str().to_owned()
        }
        SanType::IpAddress(ip) => ip.to_string(),
        _ => "a name of another kind".to_owned(),
    }
}

/// 127 random bits: positive, and far from being guessed (CA/Browser Forum baseline asks for 64).
fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("roots", &self.roots)
            .field("intermediates", &self.intermediates.len())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthorityPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthorityPem")
    }
}

impl fmt::Debug for ServingCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingCert")
            .field("chain", &self.chain.len())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The clock of everything but tests.
#[must_use]
pub fn system_clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// Ten years of 365.25 days.
const ROOT_LIFE: Duration = Duration::from_secs(315_576_000);
/// Nodes whose clocks are behind trust a new root at once.
const ROOT_BACKDATE: Duration = Duration::from_secs(24 * 3600);
/// A peer whose clock is behind by less than this accepts a new leaf.
const LEAF_BACKDATE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
