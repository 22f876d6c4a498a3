//! Who may be who in a cluster: its authorities, their certificates, and the configuration that clients find them in.
//!
//! Kubernetes reads a user's name from the common name of a certificate and its groups from the organisations
//! (<https://kubernetes.io/docs/setup/best-practices/certificates/>).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

/// An authority with its certificate. Its key stays in memory and in the directory that it was written to.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    certificate: String,
    key: String,
}

/// Whom a certificate names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subject<'a> {
    /// The user's name.
    pub(crate) name: &'a str,
    /// The user's group, or nothing.
    pub(crate) group: &'a str,
    /// Addresses and DNS names of a server; a certificate without any is a client's.
    pub(crate) names: &'a [String],
}

impl Authority {
    /// A new one.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished(name, "");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        limit(&mut params);
        let certificate = params.self_signed(&key)?.pem();
        let text = key.serialize_pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
            key: text,
        })
    }

    /// A key and a certificate for it, both made here.
    pub(crate) fn issue(&self, subject: &Subject<'_>) -> Result<Credentials> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(subject.names)?;
        params.distinguished_name = distinguished(subject.name, subject.group);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![if subject.names.is_empty() {
            ExtendedKeyUsagePurpose::ClientAuth
        } else {
            ExtendedKeyUsagePurpose::ServerAuth
        }];
        params.use_authority_key_identifier_extension = true;
        limit(&mut params);
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Credentials {
            certificate,
            key: key.serialize_pem(),
        })
    }

    /// Writes `NAME.crt`, for those who trust it.
    pub(crate) fn publish(&self, directory: &Path, name: &str) -> Result<()> {
        secret(&directory.join(format!("{name}.crt")), &self.certificate)
    }

    /// Writes `NAME.crt` and `NAME.key`, for who signs with it.
    pub(crate) fn entrust(&self, directory: &Path, name: &str) -> Result<()> {
        self.publish(directory, name)?;
        secret(&directory.join(format!("{name}.key")), &self.key)
    }

    /// How a client with these credentials finds the API server at `address`, which this authority has certified.
    pub(crate) fn kubeconfig(&self, address: &str, client: &Credentials) -> Value {
        let data = |pem: &str| STANDARD.encode(pem);
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "keelson", "cluster": {
                "server": address,
                "certificate-authority-data": data(&self.certificate),
            }}],
            "users": [{"name": "keelson", "user": {
                "client-certificate-data": data(&client.certificate),
                "client-key-data": data(&client.key),
            }}],
            "contexts": [{"name": "keelson", "context": {"cluster": "keelson", "user": "keelson"}}],
            "current-context": "keelson",
        })
    }
}

impl Credentials {
    /// Writes `NAME.crt` and `NAME.key`.
    pub(crate) fn write(&self, directory: &Path, name: &str) -> Result<()> {
        secret(&directory.join(format!("{name}.crt")), &self.certificate)?;
        secret(&directory.join(format!("{name}.key")), &self.key)
    }
}

/// A private and a public key without a certificate, as service accounts' tokens are signed by and proved with.
pub(crate) fn key_pair() -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// Writes a file that only its owner may read.
pub(crate) fn secret(path: &PathBuf, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

fn distinguished(name: &str, group: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    if !group.is_empty() {
        distinguished.push(DnType::OrganizationName, group);
    }
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// A cluster of this kind stands for hours; its clock is this machine's.
fn limit(params: &mut CertificateParams) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(365);
}
