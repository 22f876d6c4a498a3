//! A certificate authority that the tests hold the key of: the mesh signs with it, and so do strangers.
//!
//! As in most real meshes, what signs is an intermediate below a root that is kept elsewhere.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::verifier::{AcceptAnyName, RequireClient};

/// A root, an intermediate below it, and the keys of both.
pub(crate) struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate shall say.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    uris: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// A certificate with its key.
#[derive(Debug)]
pub(crate) struct Minted {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Wish {
    /// One URI SAN, valid for an hour around now.
    pub(crate) fn identity(uri: &str) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![uri.to_owned()],
            not_before: now - Duration::from_secs(1800),
            not_after: now + Duration::from_secs(1800),
        }
    }

    /// As [`Wish::identity`], but it ended a minute ago.
    pub(crate) fn expired(uri: &str) -> Self {
        Self {
            not_after: SystemTime::now() - Duration::from_secs(60),
            ..Self::identity(uri)
        }
    }

    /// As [`Wish::identity`], but it begins in ten minutes.
    pub(crate) fn not_yet_valid(uri: &str) -> Self {
        Self {
            not_before: SystemTime::now() + Duration::from_secs(600),
            ..Self::identity(uri)
        }
    }

    /// A certificate that names nobody.
    pub(crate) fn nobody() -> Self {
        Self {
            uris: Vec::new(),
            ..Self::identity("")
        }
    }
}

impl Authority {
    pub(crate) fn generate() -> Result<Self> {
        let root = CertifiedIssuer::self_signed(ca_params("lab root"), KeyPair::generate()?)?;
        let intermediate =
            CertifiedIssuer::signed_by(ca_params("lab mesh CA"), KeyPair::generate()?, &root)?;
        Ok(Self { root, intermediate })
    }

    /// The files of a `cacerts` secret: what Istio calls a plugged-in CA.
    pub(crate) fn write_cacerts(&self, folder: &Path) -> Result<()> {
        let chain = [self.intermediate.pem(), self.root.pem()].concat();
        for (name, text) in [
            ("ca-cert.pem", self.intermediate.pem()),
            ("ca-key.pem", self.intermediate.key().serialize_pem()),
            ("root-cert.pem", self.root.pem()),
            ("cert-chain.pem", chain),
        ] {
            std::fs::write(folder.join(name), text).with_context(|| format!("writing {name}"))?;
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    pub(crate) fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// Signs whatever is wished.
    pub(crate) fn mint(&self, wish: &Wish) -> Result<Minted> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for uri in &wish.uris {
            let uri = uri.as_str().try_into()?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.not_before = wish.not_before.into();
        params.not_after = wish.not_after.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.intermediate)?;
        Ok(Minted {
            chain: vec![leaf.der().clone(), self.intermediate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// Trusts only this root.
    pub(crate) fn roots(&self) -> Result<Arc<RootCertStore>> {
        roots(&self.root())
    }
}

/// Trusts only this certificate.
pub(crate) fn roots(root: &CertificateDer<'static>) -> Result<Arc<RootCertStore>> {
    let mut store = RootCertStore::empty();
    store.add(root.clone())?;
    Ok(Arc::new(store))
}

/// A TLS 1.3 client as the facts describe it; without a certificate it presents none.
pub(crate) fn client_config(
    roots: Arc<RootCertStore>,
    own: Option<Minted>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(AcceptAnyName::new(roots, provider())?);
    let mut config = match own {
        Some(own) => builder.with_client_auth_cert(own.chain, own.key)?,
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = false;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A TLS 1.3 server as the facts describe it: it wants a client certificate of this root.
pub(crate) fn server_config(roots: Arc<RootCertStore>, own: Minted) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(RequireClient::verifier(roots, provider())?)
        .with_single_cert(own.chain, own.key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - Duration::from_secs(86_400)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(10 * 86_400)).into();
    params
}
