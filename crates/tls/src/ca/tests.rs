//! What the authority signs, and which authorities it refuses to be.

use std::fs;
use std::path::Path;

use rcgen::{CertificateSigningRequest, PKCS_ECDSA_P384_SHA384};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;
use crate::clock::TokioClock;

const NAME: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const HOUR: Duration = Duration::from_secs(3600);

fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

fn authority() -> Authority {
    Authority::generate("cluster.local", system_clock()).unwrap()
}

fn request(shape: impl FnOnce(&mut CertificateParams)) -> String {
    request_with(&KeyPair::generate().unwrap(), shape)
        .pem()
        .unwrap()
}

fn request_with(
    key: &KeyPair,
    shape: impl FnOnce(&mut CertificateParams),
) -> CertificateSigningRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    shape(&mut params);
    params.serialize_request(key).unwrap()
}

#[test]
fn a_leaf_has_one_critical_uri_name_and_no_rights_beyond_tls() {
    let authority = authority();
    let (_key, csr) = csr::new_key_and_csr(&id(NAME)).unwrap();
    let chain = authority.sign(&csr, &id(NAME), HOUR).unwrap();
    assert_eq!(chain.len(), 2, "leaf, then roots");
    assert_eq!(chain[1], authority.roots().to_pem());
    let leaf = roots::certificates(&chain[0]).unwrap().remove(0);
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    assert!(leaf.subject().iter().next().is_none(), "no common name");
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(san.value.general_names, [GeneralName::URI(NAME)]);
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any);
    assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
    assert!(leaf.validity().not_before.timestamp() < leaf.validity().not_after.timestamp() - 3600);
    let again = authority.issue(&id(NAME), HOUR).unwrap().info();
    assert_ne!(again.serial, leaf.raw_serial_as_string().replace(':', ""));
    assert_eq!(again.sans, [NAME]);
}

/// A renewal at half of a leaf's life must not be due when it is issued.
#[test]
fn a_leaf_is_backdated_by_at_most_a_quarter_of_its_life() {
    let authority = authority();
    for seconds in [4, 20, 60, 600, 86_400] {
        let now = SystemTime::now();
        let ttl = Duration::from_secs(seconds);
        let info = authority.issue(&id(NAME), ttl).unwrap().info();
        let life = info.not_after.duration_since(info.not_before).unwrap();
        // X.509 counts whole seconds.
        let backdated = now.duration_since(info.not_before).unwrap_or_default();
        let backdated = backdated.saturating_sub(Duration::from_secs(1));
        assert!(
            backdated <= life / 4,
            "{seconds}: {backdated:?} of {life:?}"
        );
        assert!(backdated <= LEAF_BACKDATE, "{seconds}: {backdated:?}");
    }
}

#[test]
fn a_csr_has_no_common_name_and_one_critical_uri_name() {
    let (_key, csr) = csr::new_key_and_csr(&id(NAME)).unwrap();
    let parsed = CertificateSigningRequestParams::from_pem(&csr).unwrap();
    assert!(parsed.params.distinguished_name.iter().next().is_none());
    assert_eq!(
        parsed.params.subject_alt_names,
        [SanType::URI(NAME.try_into().unwrap())]
    );
    assert_eq!(parsed.public_key.algorithm(), &PKCS_ECDSA_P256_SHA256);
}

#[test]
fn a_request_without_names_gets_the_authorised_one() {
    let chain = authority().sign(&request(|_| {}), &id(NAME), HOUR).unwrap();
    let leaf = roots::certificates(&chain[0]).unwrap().remove(0);
    let leaf = webpki::EndEntityCert::try_from(&leaf).unwrap();
    assert_eq!(leaf.valid_uri_names().collect::<Vec<_>>(), [NAME]);
}

#[test]
fn bad_requests_are_refused() {
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let mut forged = request_with(&key, |_| {}).der().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    for (case, csr, part) in [
        ("no PEM", "junk".to_owned(), "cannot be read"),
        (
            "a wrong signature",
            roots::pem_block("CERTIFICATE REQUEST", &forged),
            "signature",
        ),
        (
            "another key",
            request_with(&p384, |_| {}).pem().unwrap(),
            "use ECDSA P-256",
        ),
        (
            "somebody else",
            request(|params| {
                params.subject_alt_names = vec![SanType::URI(
                    "spiffe://cluster.local/ns/shop/sa/db".try_into().unwrap(),
                )];
            }),
            "sa/db",
        ),
        (
            "a DNS name on top",
            request(|params| {
                params.subject_alt_names =
                    vec![SanType::DnsName("kubernetes.default".try_into().unwrap())];
            }),
            "kubernetes.default",
        ),
    ] {
        let error = authority.sign(&csr, &id(NAME), HOUR).unwrap_err();
        assert!(error.to_string().contains(part), "{case}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_outlives_the_authority() {
    let clock = Arc::new(TokioClock::starting_at(SystemTime::now()));
    let authority = Authority::generate("cluster.local", clock).unwrap();
    tokio::time::sleep(ROOT_LIFE - HOUR).await;
    let svid = authority.issue(&id(NAME), HOUR * 24).unwrap();
    assert_eq!(svid.not_after, authority.not_after());
    tokio::time::sleep(HOUR).await;
    let error = authority.issue(&id(NAME), HOUR).unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
}

#[test]
fn a_serving_certificate_has_dns_and_ip_names() {
    let authority = authority();
    let names = ["controller.keelson.svc", "10.0.0.1", "fd00::1"].map(str::to_owned);
    let serving = authority.serving_cert(&names, HOUR).unwrap();
    let (_, leaf) = X509Certificate::from_der(&serving.chain[0]).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(san.value.general_names.len(), 3);
    let error = authority
        .serving_cert(&["not a name".to_owned()], HOUR)
        .unwrap_err();
    assert!(error.to_string().contains("not a name"), "{error}");
}

/// An intermediate under `root`, as text, of any shape.
fn intermediate(root: &Authority, shape: impl FnOnce(&mut CertificateParams)) -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + HOUR).into();
    shape(&mut params);
    let certificate = params.signed_by(&key, &root.issuer).unwrap().pem();
    (certificate, key)
}

fn write(directory: &Path, certificate: &str, key: &str, chain: &str, roots: &str) {
    for (name, text) in [
        ("ca-cert.pem", certificate),
        ("ca-key.pem", key),
        ("cert-chain.pem", chain),
        ("root-cert.pem", roots),
    ] {
        fs::write(directory.join(name), text).unwrap();
    }
}

#[test]
fn a_cacerts_directory_with_an_intermediate_issues_chains_that_peers_accept() {
    let root = authority();
    let (certificate, key) = intermediate(&root, |_| {});
    let roots = root.roots().to_pem();
    let directory = tempfile::tempdir().unwrap();
    for chain in [
        certificate.clone(),
        format!("{certificate}{roots}"),
        String::new(),
    ] {
        write(
            directory.path(),
            &certificate,
            &key.serialize_pem(),
            &chain,
            &roots,
        );
        let authority = Authority::load(directory.path(), system_clock()).unwrap();
        let svid = authority.issue(&id(NAME), HOUR).unwrap();
        assert_eq!(svid.chain.len(), 2, "leaf and intermediate");
        let (_key, csr) = csr::new_key_and_csr(&id(NAME)).unwrap();
        let answer = authority.sign(&csr, &id(NAME), HOUR).unwrap();
        assert_eq!(answer[1..], [certificate.clone(), roots.clone()]);
    }
}

#[test]
fn an_authority_that_cannot_work_is_refused_by_file() {
    let root = authority();
    let stranger = authority();
    let roots = root.roots().to_pem();
    let strangers = stranger.roots().to_pem();
    let (good, key) = intermediate(&root, |_| {});
    let key = key.serialize_pem();
    let (old, old_key) = intermediate(&root, |params| {
        params.not_after = (SystemTime::now() - Duration::from_secs(60)).into();
    });
    let (early, early_key) = intermediate(&root, |params| {
        params.not_before = (SystemTime::now() + Duration::from_secs(600)).into();
    });
    let (leaf, leaf_key) = intermediate(&root, |params| params.is_ca = IsCa::ExplicitNoCa);
    let (mute, mute_key) = intermediate(&root, |params| {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    });
    for (case, certificate, key, roots, parts) in [
        (
            "mismatch",
            &good,
            &old_key.serialize_pem(),
            &roots,
            ["ca-key.pem", "ca-cert.pem"],
        ),
        (
            "expired",
            &old,
            &old_key.serialize_pem(),
            &roots,
            ["ca-cert.pem", "expired"],
        ),
        (
            "early",
            &early,
            &early_key.serialize_pem(),
            &roots,
            ["ca-cert.pem", "becomes valid"],
        ),
        (
            "no CA",
            &leaf,
            &leaf_key.serialize_pem(),
            &roots,
            ["ca-cert.pem", "not a CA"],
        ),
        (
            "no signing",
            &mute,
            &mute_key.serialize_pem(),
            &roots,
            ["ca-cert.pem", "keyCertSign"],
        ),
        (
            "another root",
            &good,
            &key,
            &strangers,
            ["root-cert.pem", "do not lead"],
        ),
        (
            "no roots",
            &good,
            &key,
            &String::new(),
            ["root-cert.pem", "roots"],
        ),
        (
            "no key",
            &good,
            &"x".to_owned(),
            &roots,
            ["ca-key.pem", "private key"],
        ),
        (
            "no certificate",
            &"x".to_owned(),
            &key,
            &roots,
            ["ca-cert.pem", "CERTIFICATE"],
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), certificate, key, certificate, roots);
        let error = Authority::load(directory.path(), system_clock()).unwrap_err();
        for part in parts {
            assert!(error.to_string().contains(part), "{case}: {error}");
        }
    }
    let empty = tempfile::tempdir().unwrap();
    let error = Authority::load(empty.path(), system_clock()).unwrap_err();
    assert!(error.to_string().contains("ca-cert.pem"), "{error}");
}

#[test]
fn a_generated_root_is_the_same_after_a_restart() {
    let first = authority();
    let second = Authority::from_pem(&first.to_pem(), system_clock()).unwrap();
    assert_eq!(first.roots(), second.roots());
    assert_eq!(first.to_pem().key, second.to_pem().key);
    assert!(first.not_after() > SystemTime::now() + Duration::from_secs(9 * 365 * 86_400));
}
