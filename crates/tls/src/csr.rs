//! How a workload asks for a certificate: a fresh P-256 key and a CSR without a common name, with one critical URI SAN.

use model::identity::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A key or a CSR could not be made.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot make a key and a certificate request for {identity}")]
pub struct CsrError {
    /// For whom.
    pub identity: String,
    /// What the library said.
    #[source]
    pub source: rcgen::Error,
}

/// A new key (PKCS #8) and the CSR (PEM) that goes with it.
///
/// # Errors
/// The random source fails, or the identity cannot be written as an ASCII URI.
pub fn new_key_and_csr(identity: &Identity) -> Result<(PrivateKeyDer<'static>, String), CsrError> {
    generate(identity).map_err(|source| CsrError {
        identity: identity.to_string(),
        source,
    })
}

fn generate(identity: &Identity) -> Result<(PrivateKeyDer<'static>, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // An empty subject makes the SAN critical (RFC 5280 section 4.1.2.6).
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let request = params.serialize_request(&key)?.pem()?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok((PrivateKeyDer::Pkcs8(key), request))
}
