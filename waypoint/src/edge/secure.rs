//! Certificates of listeners, made ready for handshakes. Each listener's are read once, until it changes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use l7::Listener;
use l7::listener::{Certificate, Reads};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// What a worker has ready.
#[derive(Debug, Default)]
pub(crate) struct Secured(RefCell<HashMap<(u16, Arc<str>), Ready>>);

type Ready = (Arc<Listener>, Arc<ServerConfig>);

/// Why a listener's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("a certificate cannot be read")]
    Pem(#[from] rustls_pki_types::pem::Error),
    #[error("a certificate cannot be used")]
    Tls(#[from] rustls::Error),
    #[error("the roots of clients cannot be used")]
    Roots(#[from] VerifierBuilderError),
    #[error("there is no certificate")]
    None,
}

impl Secured {
    /// What a handshake with a listener needs.
    ///
    /// # Errors
    /// None of its certificates can be used.
    pub(crate) fn of(&self, listener: &Arc<Listener>) -> Result<Arc<ServerConfig>, Unusable> {
        let name = (listener.port, Arc::clone(&listener.name));
        let mut ready = self.0.borrow_mut();
        if let Some((known, config)) = ready.get(&name)
            && Arc::ptr_eq(known, listener)
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(config(listener)?);
        ready.insert(name, (Arc::clone(listener), Arc::clone(&config)));
        Ok(config)
    }
}

fn config(listener: &Listener) -> Result<ServerConfig, Unusable> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let keys = listener.tls.iter().flatten();
    let keys = keys.map(|one| certified(one, &provider).map(Arc::new));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        return Err(Unusable::None);
    }
    let builder: ConfigBuilder<ServerConfig, WantsVerifier> =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match &listener.client_roots {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for root in CertificateDer::pem_slice_iter(pem) {
                roots.add(root?)?;
            }
            let provider = Arc::clone(builder.crypto_provider());
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(Certificates(keys)));
    if listener.reads == Reads::Requests {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    Ok(config)
}

fn certified(one: &Certificate, provider: &CryptoProvider) -> Result<CertifiedKey, Unusable> {
    let chain = CertificateDer::pem_slice_iter(&one.chain).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&one.key)?;
    Ok(CertifiedKey::from_der(chain, key, provider)?)
}

/// Of several certificates the first whose kind of key the client takes.
#[derive(Debug)]
struct Certificates(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let fits = |one: &&Arc<CertifiedKey>| one.key.choose_scheme(schemes).is_some();
        self.0.iter().find(fits).cloned()
    }
}
