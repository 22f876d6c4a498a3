//! Our judgement of peers in the shape that rustls asks for, on both sides of a handshake.

use std::fmt;
use std::sync::Arc;

use model::identity::TrustDomain;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::KeyUsage;

use crate::peer::{self, PeerError};
use crate::refusal;
use crate::roots::Roots;

/// Judges servers: chain, dates, a SPIFFE name. Whether it is the expected one is asked after the handshake
/// ([`peer::verify_expected`]), so that one configuration serves every destination.
pub(crate) struct Servers {
    pub(crate) roots: Roots,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

/// Judges clients: chain, dates, a SPIFFE name in our trust domain. A client without a certificate is refused.
pub(crate) struct Clients {
    pub(crate) roots: Roots,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        peer::verify_chain(
            leaf,
            intermediates,
            &self.roots,
            KeyUsage::server_auth(),
            &self.algorithms,
            now,
        )
        .map(|()| ServerCertVerified::assertion())
        .map_err(refuse)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(ONLY_TLS13.to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Clients {
    /// No hints: a workload has one certificate, and the names would only make the handshake longer.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        peer::verify_chain(
            leaf,
            intermediates,
            &self.roots,
            KeyUsage::client_auth(),
            &self.algorithms,
            now,
        )
        .and_then(|()| peer::identity_in(leaf, &self.trust_domain))
        .map(|_| ClientCertVerified::assertion())
        .map_err(refuse)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(ONLY_TLS13.to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn refuse(error: PeerError) -> Error {
    refusal::to_rustls(Arc::new(error))
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers")
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients")
            .field("roots", &self.roots)
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

/// rustls asks for a TLS 1.2 signature only if that version is enabled, which it is not.
const ONLY_TLS13: &str = "only TLS 1.3 is spoken here";
