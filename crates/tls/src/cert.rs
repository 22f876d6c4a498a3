//! A workload's certificate ready for use: one server and one client configuration of rustls, built once per SVID.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use model::identity::Identity;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig, version};
use rustls_pki_types::ServerName;

use crate::clock::{Clock, RustlsTime, SystemClock};
use crate::svid::{Svid, SvidInfo};
use crate::verifier::{Clients, Servers};

/// How the configurations of a certificate are built.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// Whether tunnels to a server seen before skip the certificate exchange.
    ///
    /// Off. A resumed handshake carries no certificates: the peer that [`crate::verify_expected`] judges, and its
    /// dates, would be those of an earlier handshake. Turning it on makes set-up of repeated tunnels cheaper and
    /// delays the effect of an expired or withdrawn peer certificate by the life of a ticket.
    pub resumption: bool,
    /// What time certificates are judged by.
    pub clock: Arc<dyn Clock>,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            resumption: false,
            clock: Arc::new(SystemClock),
        }
    }
}

/// The two sides' configurations of one SVID. Shared as `Arc`; replaced as a whole when the SVID is renewed.
#[derive(Debug)]
pub struct WorkloadCert {
    info: SvidInfo,
    clock: Arc<dyn Clock>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl WorkloadCert {
    /// Builds both configurations.
    ///
    /// # Errors
    /// rustls cannot use the key or the chain.
    pub fn new(svid: &Svid, options: &TlsOptions) -> Result<Self, rustls::Error> {
        let provider = Arc::new(provider());
        Ok(Self {
            info: svid.info(),
            clock: Arc::clone(&options.clock),
            server: Arc::new(server_config(svid, options, Arc::clone(&provider))?),
            client: Arc::new(client_config(svid, options, provider)?),
        })
    }

    /// Whom it names.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.info.identity
    }

    /// What may be shown of it.
    #[must_use]
    pub fn info(&self) -> &SvidInfo {
        &self.info
    }

    /// What its dates are compared with.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// For accepting: a client certificate of our trust domain is required.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For connecting, with [`server_name`]: the caller checks the expected identity after the handshake.
    #[must_use]
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// As [`Self::server`], for somebody who makes the records itself: sessions give their keys away.
    #[must_use]
    pub fn server_with_keys(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.server);
        config.enable_secret_extraction = true;
        Arc::new(config)
    }

    /// As [`Self::client`], for somebody who makes the records itself: sessions give their keys away.
    #[must_use]
    pub fn client_with_keys(&self) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.client);
        config.enable_secret_extraction = true;
        Arc::new(config)
    }

    /// As [`Self::server`], for HBONE only.
    #[must_use]
    pub fn hbone_server(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.server);
        config.alpn_protocols = vec![HBONE.to_vec()];
        Arc::new(config)
    }

    /// As [`Self::client`], for HBONE only.
    #[must_use]
    pub fn hbone_client(&self) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.client);
        config.alpn_protocols = vec![HBONE.to_vec()];
        Arc::new(config)
    }
}

/// The name to give to a TLS client: none. Peers choose their certificate by address, and SNI is not sent.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// aws-lc-rs with the two AES-GCM suites of TLS 1.3, the shorter key first: both are always offered, and bulk pays
/// per byte.
pub(crate) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ],
        ..aws_lc_rs::default_provider()
    }
}

fn server_config(
    svid: &Svid,
    options: &TlsOptions,
    provider: Arc<CryptoProvider>,
) -> Result<ServerConfig, rustls::Error> {
    let clients = Clients {
        roots: svid.roots.clone(),
        trust_domain: svid.identity.trust_domain.clone(),
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ServerConfig::builder_with_details(provider, time(options))
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(Arc::new(clients))
        .with_single_cert(svid.chain.clone(), svid.key.clone_key())?;
    config.alpn_protocols = vec![THIN.to_vec(), HBONE.to_vec()];
    if !options.resumption {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

fn client_config(
    svid: &Svid,
    options: &TlsOptions,
    provider: Arc<CryptoProvider>,
) -> Result<ClientConfig, rustls::Error> {
    let servers = Servers {
        roots: svid.roots.clone(),
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_details(provider, time(options))
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(servers))
        .with_client_auth_cert(svid.chain.clone(), svid.key.clone_key())?;
    config.alpn_protocols = vec![THIN.to_vec(), HBONE.to_vec()];
    config.enable_sni = false;
    if !options.resumption {
        config.resumption = Resumption::disabled();
    }
    Ok(config)
}

fn time(options: &TlsOptions) -> Arc<RustlsTime> {
    Arc::new(RustlsTime(Arc::clone(&options.clock)))
}

/// HBONE is HTTP/2 over TLS: what every mesh of this kind speaks.
pub const HBONE: &[u8] = b"h2";

/// What two agents of ours prefer (RFC 7301): the same requests and bytes in a thinner framing.
pub const THIN: &[u8] = b"keelson/1";

#[cfg(test)]
mod tests;
