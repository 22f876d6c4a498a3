//! What the CA signs, for whom, and what it refuses.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests_lab::turn;
use tonic::Code;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::api::{Ask, Caller};
use crate::estate::{Estate, estate};
use crate::fixture::{APPLIES, spiffe};

fn subject_names<'a>(leaf: &'a X509Certificate<'_>) -> Result<&'a [GeneralName<'a>]> {
    let names = leaf.subject_alternative_name()?;
    Ok(&names
        .context("no subject alternative name")?
        .value
        .general_names)
}

/// A39, F64, F65, F68.
#[test]
fn a_leaf_has_a_p256_key_one_uri_san_no_common_name_and_the_root_comes_last() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let identity = spiffe(&estate.foreign);
    let caller = Caller::of_node(estate.lab, "n3")?;
    for common_name in [None, Some("istio-ingress.example")] {
        let issued = caller.create_certificate(&Ask {
            common_name,
            ..Ask::for_identity(&identity)
        })??;
        assert!(
            issued.pem.len() >= 3,
            "leaf, intermediate, root: {}",
            issued.pem.len()
        );
        let chain = issued.chain()?;
        assert_eq!(chain.last(), Some(&estate.authority.root()));
        let (_, leaf) = X509Certificate::from_der(&chain[0])?;
        assert_eq!(subject_names(&leaf)?, [GeneralName::URI(&identity)]);
        assert_eq!(
            leaf.subject().iter_common_name().count(),
            0,
            "{}",
            leaf.subject()
        );
        assert!(!leaf.is_ca());
        let algorithm = &leaf.public_key().algorithm;
        assert_eq!(algorithm.algorithm, OID_KEY_TYPE_EC_PUBLIC_KEY);
        let curve = algorithm
            .parameters
            .as_ref()
            .context("no curve")?
            .as_oid()?;
        assert_eq!(curve, OID_EC_P256);
        let usage = leaf
            .extended_key_usage()?
            .context("no extended key usage")?;
        assert!(usage.value.client_auth && usage.value.server_auth);
        let critical = leaf
            .subject_alternative_name()?
            .is_some_and(|san| san.critical);
        assert!(
            critical,
            "without a subject the SAN is critical (RFC 5280 section 4.2.1.6)"
        );
        verify_with_openssl(&estate, &issued.pem)?;
    }
    Ok(())
}

/// A second opinion on the chain.
fn verify_with_openssl(estate: &Estate, pem: &[String]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("root"), estate.authority.root_pem())?;
    std::fs::write(path("chain"), pem[1..].concat())?;
    std::fs::write(path("leaf"), &pem[0])?;
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-CAfile"])
        .arg(path("root"))
        .arg("-untrusted")
        .args([path("chain"), path("leaf")])
        .output()?;
    assert!(output.status.success(), "{output:?}");
    Ok(())
}

/// A39, F66: what the agents hold, as their page tells.
#[test]
fn each_agent_holds_certificates_of_its_own_pods_only_with_one_san_each() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let expected = [
        ("n1", vec![spiffe(&estate.client)]),
        ("n2", vec![spiffe(&estate.other), spiffe(&estate.server)]),
    ];
    for (node, expected) in expected {
        let certs = estate.lab.agent_json(node, "/certs")?;
        let certs = certs.as_array().context("no list")?;
        let mut held = Vec::new();
        for cert in certs {
            let identity = cert["identity"].as_str().unwrap_or_default().to_owned();
            assert_eq!(
                cert["sans"],
                serde_json::json!([identity]),
                "{node}: {cert}"
            );
            let [from, until] = ["not_before", "not_after"].map(|field| cert[field].as_u64());
            assert!(
                from.context("no start")? < until.context("no end")?,
                "{cert}"
            );
            held.push(identity);
        }
        held.sort();
        assert_eq!(held, expected, "{node}");
    }
    Ok(())
}

/// F68: the node's token decides which identities its agent may have.
#[test]
fn an_identity_of_another_nodes_pod_is_refused_and_logged() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let caller = Caller::of_node(estate.lab, "n3")?;
    let asker = ["n3".to_owned(), estate.lab.node("n3")?.v4().to_string()];
    let server = spiffe(&estate.server);
    let invented = "spiffe://cluster.local/ns/shop/sa/nobody";
    let elsewhere = spiffe(&estate.foreign).replace("cluster.local", "another.domain");
    for identity in [
        server.as_str(),
        invented,
        &elsewhere,
        "cluster.local/ns/shop/sa/foreign",
    ] {
        let mark = estate.lab.controller_log().len();
        let refused = caller.create_certificate(&Ask::for_identity(identity))?;
        let status = refused
            .err()
            .unwrap_or_else(|| panic!("{identity} was issued"));
        let codes = [
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::InvalidArgument,
        ];
        assert!(codes.contains(&status.code()), "{identity}: {status}");
        let what = format!("the controller logs the refusal of {identity} ({status})");
        testkit::eventually(&what, APPLIES, || {
            let log = estate.lab.controller_log();
            let new = log[mark..].to_owned();
            let told = new.lines().any(|line| {
                line.contains(identity) && asker.iter().any(|name| line.contains(name))
            });
            ensure!(told, "it logged: {new}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_request_that_names_another_identity_than_it_asks_for_gets_none() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let [own, other] = [spiffe(&estate.foreign), spiffe(&estate.server)];
    let caller = Caller::of_node(estate.lab, "n3")?;
    let answer = caller.create_certificate(&Ask {
        csr_san: &other,
        ..Ask::for_identity(&own)
    })?;
    if let Ok(issued) = answer {
        // A CA may ignore what a request names, but then it must sign what was allowed.
        let chain = issued.chain()?;
        let (_, leaf) = X509Certificate::from_der(&chain[0])?;
        assert_eq!(subject_names(&leaf)?, [GeneralName::URI(&own)]);
    }
    Ok(())
}

#[test]
fn nobody_gets_anything_without_a_nodes_token() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let identity = spiffe(&estate.foreign);
    for token in [None, Some(""), Some("0123456789abcdef0123456789abcdef")] {
        let caller = Caller::with_token(estate.lab, "n3", token)?;
        let certificate = caller.create_certificate(&Ask::for_identity(&identity))?;
        let stream = caller.try_stream()?;
        let report = caller.report("n3", &[])?;
        let codes = [
            certificate.err().map(|status| status.code()),
            stream.err().map(|status| status.code()),
            report.err().map(|status| status.code()),
        ];
        assert_eq!(
            codes,
            [Some(Code::Unauthenticated); 3],
            "with token {token:?}"
        );
    }
    Ok(())
}

#[test]
fn an_agent_reports_for_its_own_node_only() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let caller = Caller::of_node(estate.lab, "n3")?;
    let refused = caller.report("n2", &[])?;
    assert!(refused.is_err(), "n3 spoke for n2");
    Ok(())
}

/// F67: nobody gets a longer life than the mesh allows, and everybody the shorter one they ask for.
#[test]
fn a_certificate_lives_as_long_as_asked_but_no_longer_than_allowed() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let identity = spiffe(&estate.foreign);
    let caller = Caller::of_node(estate.lab, "n3")?;
    let day = 86_400;
    for (asked, allowed) in [(600, 600), (10 * 365 * day, day)] {
        let issued = caller.create_certificate(&Ask {
            seconds: asked,
            ..Ask::for_identity(&identity)
        })??;
        let chain = issued.chain()?;
        let (_, leaf) = X509Certificate::from_der(&chain[0])?;
        let left = leaf
            .validity()
            .time_to_expiration()
            .context("it has expired")?;
        let left = Duration::try_from(left)?.as_secs();
        let allowed = u64::try_from(allowed)?;
        assert!(
            left <= allowed && left + 60 > allowed,
            "asked {asked}: {left} s are left"
        );
    }
    Ok(())
}
