//! Real handshakes between two configurations, over a pipe in memory: who is accepted, who is refused, and with which
//! reason on each side.

use std::io;
use std::time::{Duration, SystemTime};

use model::identity::TrustDomain;
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::ca::{Authority, AuthorityPem, system_clock};
use crate::peer::{PeerError, peer_identity, valid_until, verify_expected};
use crate::refusal::{TlsFailure, classify_io};
use crate::roots::Roots;

type Client = client::TlsStream<DuplexStream>;
type Server = server::TlsStream<DuplexStream>;

/// A clock that stands still.
#[derive(Debug)]
struct Stopped(SystemTime);

impl Clock for Stopped {
    fn now(&self) -> SystemTime {
        self.0
    }
}

fn at(offset: i64) -> Arc<dyn Clock> {
    let distance = Duration::from_secs(offset.unsigned_abs());
    let now = SystemTime::now();
    Arc::new(Stopped(if offset < 0 {
        now - distance
    } else {
        now + distance
    }))
}

fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

fn authority() -> Authority {
    Authority::generate("cluster.local", system_clock()).unwrap()
}

fn again(authority: &Authority, clock: Arc<dyn Clock>) -> Authority {
    Authority::from_pem(&authority.to_pem(), clock).unwrap()
}

fn workload(authority: &Authority, identity: &str) -> WorkloadCert {
    let svid = authority
        .issue(&id(identity), Duration::from_secs(3600))
        .unwrap();
    WorkloadCert::new(&svid, &TlsOptions::default()).unwrap()
}

/// A certificate of any shape under `authority`'s root, bypassing the checks of [`Svid::new`].
fn odd(authority: &Authority, shape: impl FnOnce(&mut CertificateParams)) -> WorkloadCert {
    let AuthorityPem { certificate, key } = authority.to_pem();
    let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(60)).into();
    shape(&mut params);
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let svid = Svid {
        identity: id(SERVER),
        chain: vec![leaf.into()],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        roots: authority.roots().clone(),
        not_before: params.not_before.into(),
        not_after: params.not_after.into(),
        obtained: SystemTime::now(),
    };
    WorkloadCert::new(&svid, &TlsOptions::default()).unwrap()
}

fn names(params: &mut CertificateParams, uris: &[&str]) {
    params.subject_alt_names = uris
        .iter()
        .map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap()))
        .collect();
}

/// Both sides' results, after one byte each way so that refusals that arrive late are seen.
async fn shake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (io::Result<Client>, io::Result<Server>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connect = async {
        let mut stream = TlsConnector::from(client)
            .connect(server_name(), near)
            .await?;
        stream.write_all(b"a").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.read_u8().await?;
        stream.write_all(b"b").await?;
        stream.flush().await?;
        Ok(stream)
    };
    tokio::join!(connect, accept)
}

async fn codes(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> [String; 2] {
    let (near, far) = shake(client, server).await;
    [code(near), code(far)]
}

fn code<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => classify_io(&error).reason().as_str().to_owned(),
    }
}

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/db";
const FOREIGN: &str = "spiffe://other.example/ns/shop/sa/cart";

#[tokio::test]
async fn two_workloads_agree_on_tls13_h2_and_each_other() {
    let authority = authority();
    let (client, server) = (workload(&authority, CLIENT), workload(&authority, SERVER));
    let (near, far) = shake(client.client(), server.server()).await;
    let (near, far) = (near.unwrap(), far.unwrap());
    let (_, near) = near.get_ref();
    let (_, far) = far.get_ref();
    assert_eq!(
        near.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    assert_eq!(near.alpn_protocol(), Some(THIN));
    assert_eq!(far.server_name(), None, "SNI is not sent");
    assert_eq!(near.handshake_kind(), Some(rustls::HandshakeKind::Full));
    assert_eq!(
        verify_expected(near.peer_certificates().unwrap(), &[id(CLIENT), id(SERVER)]),
        Ok(id(SERVER))
    );
    let trust_domain = TrustDomain::default();
    assert_eq!(
        peer_identity(far.peer_certificates().unwrap(), &trust_domain),
        Ok(id(CLIENT))
    );
}

#[tokio::test]
async fn another_identity_than_the_expected_one_is_refused_after_the_handshake() {
    let authority = authority();
    let (client, server) = (workload(&authority, CLIENT), workload(&authority, SERVER));
    let (near, _far) = shake(client.client(), server.server()).await;
    let near = near.unwrap();
    let chain = near.get_ref().1.peer_certificates().unwrap();
    for expected in [vec![id(CLIENT)], vec![]] {
        let error = verify_expected(chain, &expected).unwrap_err();
        assert_eq!(error.reason().as_str(), "unexpected_identity");
        assert!(error.to_string().contains(SERVER), "{error}");
    }
    assert_eq!(
        verify_expected(&[], &[id(SERVER)]),
        Err(PeerError::NoCertificate)
    );
    let junk = CertificateDer::from(b"junk".to_vec());
    let error = verify_expected(&[junk], &[id(SERVER)]).unwrap_err();
    assert_eq!(error.reason().as_str(), "malformed");
}

#[tokio::test]
async fn every_refusal_of_a_client_has_its_reason_on_both_sides() {
    let ours = authority();
    let namesake = authority();
    let server = workload(&ours, SERVER);
    let hour_ago = again(&ours, at(-7200));
    let ahead = again(&ours, at(7200));
    for (case, client, near, far) in [
        (
            "a root of the same name",
            workload(&namesake, CLIENT),
            "unknown_root",
            "tls_io",
        ),
        (
            "expired",
            workload(&hour_ago, CLIENT),
            "refused_by_peer_not_in_date",
            "expired",
        ),
        (
            "not yet valid",
            workload(&ahead, CLIENT),
            "refused_by_peer_not_in_date",
            "not_yet_valid",
        ),
        (
            "other trust domain",
            workload(&ours, FOREIGN),
            "refused_by_peer_identity",
            "other_trust_domain",
        ),
        (
            "no name",
            odd(&ours, |_| {}),
            "refused_by_peer_identity",
            "no_spiffe_id",
        ),
        (
            "a name of another shape",
            odd(&ours, |params| {
                names(params, &["spiffe://cluster.local/db"])
            }),
            "refused_by_peer_identity",
            "no_spiffe_id",
        ),
        (
            "two identities",
            odd(&ours, |params| names(params, &[CLIENT, SERVER])),
            "refused_by_peer_identity",
            "many_names",
        ),
        (
            "an identity and another name",
            odd(&ours, |params| names(params, &["https://x", CLIENT])),
            "refused_by_peer_identity",
            "many_names",
        ),
        (
            "for servers only",
            odd(&ours, |params| {
                names(params, &[CLIENT]);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            "refused_by_peer_wrong_purpose",
            "wrong_purpose",
        ),
        (
            "a CA",
            odd(&ours, |params| {
                names(params, &[CLIENT]);
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            }),
            "refused_by_peer_wrong_purpose",
            "wrong_purpose",
        ),
    ] {
        let [near_code, far_code] = codes(client.client(), server.server()).await;
        if case.starts_with("a root") {
            // The client judges first. Let it trust the server, so that the server has its say.
            assert_eq!(near_code, near, "{case}");
            let client = trusting(&namesake, ours.roots(), CLIENT);
            let pair = codes(client.client(), server.server()).await;
            assert_eq!(
                pair,
                ["refused_by_peer_unknown_root", "unknown_root"],
                "{case}"
            );
            continue;
        }
        assert_eq!(
            [near_code.as_str(), far_code.as_str()],
            [near, far],
            "{case}"
        );
    }
}

/// A certificate of one authority whose owner trusts the roots of another.
fn trusting(authority: &Authority, roots: &Roots, identity: &str) -> WorkloadCert {
    let mut svid = authority
        .issue(&id(identity), Duration::from_secs(3600))
        .unwrap();
    svid.roots = roots.clone();
    WorkloadCert::new(&svid, &TlsOptions::default()).unwrap()
}

#[tokio::test]
async fn every_refusal_of_a_server_has_its_reason_on_both_sides() {
    let ours = authority();
    let namesake = authority();
    let client = workload(&ours, CLIENT);
    for (case, server, near, far) in [
        (
            "a root of the same name",
            trusting(&namesake, ours.roots(), SERVER),
            "unknown_root",
            "refused_by_peer_unknown_root",
        ),
        (
            "expired",
            workload(&again(&ours, at(-7200)), SERVER),
            "expired",
            "refused_by_peer_not_in_date",
        ),
        (
            "not yet valid",
            workload(&again(&ours, at(7200)), SERVER),
            "not_yet_valid",
            "refused_by_peer_not_in_date",
        ),
        (
            "no name",
            odd(&ours, |_| {}),
            "no_spiffe_id",
            "refused_by_peer_identity",
        ),
        (
            "two identities",
            odd(&ours, |params| names(params, &[SERVER, FOREIGN])),
            "many_names",
            "refused_by_peer_identity",
        ),
        (
            "for clients only",
            odd(&ours, |params| {
                names(params, &[SERVER]);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
            "wrong_purpose",
            "refused_by_peer_wrong_purpose",
        ),
    ] {
        let pair = codes(client.client(), server.server()).await;
        assert_eq!(pair, [near, far], "{case}");
    }
}

#[tokio::test]
async fn a_leaf_without_key_usages_and_one_with_names_of_other_kinds_are_accepted() {
    let ours = authority();
    let plain = odd(&ours, |params| names(params, &[SERVER]));
    let dns = odd(&ours, |params| {
        names(params, &[SERVER]);
        let name = rcgen::SanType::DnsName("db.shop".try_into().unwrap());
        params.subject_alt_names.push(name);
    });
    for server in [plain, dns] {
        let (near, far) = shake(server.client(), server.server()).await;
        let near = near.unwrap();
        let chain = near.get_ref().1.peer_certificates().unwrap();
        assert_eq!(verify_expected(chain, &[id(SERVER)]), Ok(id(SERVER)));
        let far = far.unwrap();
        let chain = far.get_ref().1.peer_certificates().unwrap();
        assert_eq!(
            peer_identity(chain, &TrustDomain::default()),
            Ok(id(SERVER))
        );
    }
}

#[test]
fn a_chain_ends_with_the_first_of_its_certificates() {
    let ours = authority();
    let leaf = |seconds| {
        let life = Duration::from_secs(seconds);
        let svid = ours.issue(&id(SERVER), life).unwrap();
        (svid.chain[0].clone(), svid.not_after)
    };
    let ((long, late), (short, early)) = (leaf(3600), leaf(60));
    let junk = CertificateDer::from(b"junk".to_vec());
    assert_eq!(valid_until(std::slice::from_ref(&long)), Ok(late));
    assert_eq!(valid_until(&[long.clone(), short.clone()]), Ok(early));
    assert_eq!(valid_until(&[short, long.clone(), junk.clone()]), Ok(early));
    assert_eq!(
        valid_until(&[junk, long]).unwrap_err().reason().as_str(),
        "malformed"
    );
    assert_eq!(valid_until(&[]), Err(PeerError::NoCertificate));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ours = authority();
    let server = workload(&ours, SERVER);
    let mut nobody = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Servers {
            roots: ours.roots().clone(),
            algorithms: provider().signature_verification_algorithms,
        }))
        .with_no_client_auth();
    nobody.alpn_protocols = vec![HBONE.to_vec()];
    let pair = codes(Arc::new(nobody), server.server()).await;
    assert_eq!(pair, ["refused_by_peer_no_certificate", "no_certificate"]);
}

#[tokio::test]
async fn other_suites_and_protocols_are_refused() {
    let ours = authority();
    let (client, server) = (workload(&ours, CLIENT), workload(&ours, SERVER));
    let mut http1 = ClientConfig::clone(&client.client());
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    let pair = codes(Arc::new(http1), server.server()).await;
    assert_eq!(pair, ["refused_by_peer_alpn", "tls_protocol"]);

    let chacha = CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
        ..aws_lc_rs::default_provider()
    };
    let svid = ours.issue(&id(CLIENT), Duration::from_secs(60)).unwrap();
    let chacha = client_config(&svid, &TlsOptions::default(), Arc::new(chacha)).unwrap();
    let pair = codes(Arc::new(chacha), server.server()).await;
    assert_eq!(pair, ["refused_by_peer_version", "tls_protocol"]);
}

#[tokio::test]
async fn a_peer_that_closes_or_talks_plaintext_is_no_refusal() {
    let ours = authority();
    let client = workload(&ours, CLIENT);
    for (bytes, code) in [
        (b"".as_slice(), "tls_io"),
        (b"HTTP/1.1 400\r\n", "tls_protocol"),
    ] {
        let (near, mut far) = tokio::io::duplex(4096);
        far.write_all(bytes).await.unwrap();
        far.shutdown().await.unwrap();
        let connector = TlsConnector::from(client.client());
        let error = connector.connect(server_name(), near).await.unwrap_err();
        assert_eq!(classify_io(&error).reason().as_str(), code);
    }
}

#[tokio::test]
async fn resumption_is_off_unless_asked_for() {
    let ours = authority();
    for (resumption, second) in [
        (false, rustls::HandshakeKind::Full),
        (true, rustls::HandshakeKind::Resumed),
    ] {
        let options = TlsOptions {
            resumption,
            ..TlsOptions::default()
        };
        let cert = |identity: &str| {
            let svid = ours.issue(&id(identity), Duration::from_secs(60)).unwrap();
            WorkloadCert::new(&svid, &options).unwrap()
        };
        let (client, server) = (cert(CLIENT), cert(SERVER));
        shake(client.client(), server.server()).await.0.unwrap();
        let (near, _) = shake(client.client(), server.server()).await;
        assert_eq!(near.unwrap().get_ref().1.handshake_kind(), Some(second));
    }
}

#[test]
fn a_failure_reads_as_a_sentence() {
    let other = PeerError::OtherTrustDomain {
        expected: TrustDomain::default(),
        got: id(FOREIGN),
    };
    let failure = TlsFailure::Peer(other);
    assert_eq!(
        failure.to_string(),
        "the peer is spiffe://other.example/ns/shop/sa/cart, which is not in our trust domain cluster.local"
    );
}
