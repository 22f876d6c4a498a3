//! Foreign clients at a captured pod's HBONE port: what they present decides.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use lab::Pod;
use tests_lab::turn;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::api::{Ask, Caller};
use crate::authority::{Authority, Minted, Wish, client_config};
use crate::estate::{Estate, estate};
use crate::fixture::{at, refusals, spiffe};
use crate::hbone::{HBONE, Tunnel, inside};
use tests_lab::metrics::refused;

/// Whether a client that presents `own` gets a CONNECT through to the echo.
fn echoes(estate: &Estate, from: &Pod, own: Option<Minted>) -> Result<()> {
    let hbone = at(estate.server.v4()?, HBONE);
    let authority = estate.echo_at()?.to_string();
    let config = client_config(estate.authority.roots()?, own, &[b"h2"])?;
    inside(from, || async {
        let tunnel = Tunnel::dial(hbone, config).await?;
        let mut stream = tunnel.open(&authority).await?;
        stream.write(b"ping", true)?;
        let answer = stream.read_to_end().await?;
        if answer != b"ping" {
            bail!("the echo answered {answer:?}");
        }
        Ok(())
    })
}

/// F65, F69: each refusal has its own reason, in the list and in the metric of the server's agent.
#[test]
fn a_client_with_a_wrong_certificate_or_none_is_refused_with_that_reason() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let stranger = Authority::generate()?;
    let own = spiffe(&estate.foreign);
    let elsewhere = own.replace("cluster.local", "another.domain");
    let rows: [(&str, Option<Minted>); 6] = [
        ("no_certificate", None),
        ("unknown_root", Some(stranger.mint(&Wish::identity(&own))?)),
        (
            "expired",
            Some(estate.authority.mint(&Wish::expired(&own))?),
        ),
        (
            "not_yet_valid",
            Some(estate.authority.mint(&Wish::not_yet_valid(&own))?),
        ),
        (
            "other_trust_domain",
            Some(estate.authority.mint(&Wish::identity(&elsewhere))?),
        ),
        (
            "no_spiffe_id",
            Some(estate.authority.mint(&Wish::nobody())?),
        ),
    ];
    for (reason, own) in rows {
        let accepted = estate.echo.accepted();
        let counted = refused(estate.lab, "n2", reason)?;
        let outcome = echoes(&estate, &estate.foreign, own);
        assert!(outcome.is_err(), "{reason}: the CONNECT went through");
        lab::wait_until(
            &format!("{reason} is in the metric of n2"),
            crate::fixture::APPLIES,
            || Ok(refused(estate.lab, "n2", reason)? >= counted + 1.0),
        )?;
        let list = refusals(estate.lab, "n2")?;
        let newest = list
            .iter()
            .rev()
            .find(|refusal| refusal["reason"] == reason);
        let newest = newest.unwrap_or_else(|| panic!("{reason} is not in {list:#?}"));
        let from = newest["source"]["addr"].as_str().unwrap_or_default();
        let ip = estate.foreign_ip()?.to_string();
        assert!(from.starts_with(&ip), "{reason}: {newest} names the client");
        assert_eq!(estate.echo.accepted(), accepted, "{reason}");
    }
    Ok(())
}

/// The control of the test above: the same client with a valid certificate gets through, whether
/// the controller has issued it or somebody else who has the mesh's CA key.
#[test]
fn a_client_with_a_valid_certificate_of_the_mesh_is_served() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let own = spiffe(&estate.foreign);
    let caller = Caller::of_node(estate.lab, "n3")?;
    let issued = caller.create_certificate(&Ask::for_identity(&own))??;
    for own in [issued.minted()?, estate.foreign_certificate()?] {
        echoes(&estate, &estate.foreign, Some(own))?;
    }
    Ok(())
}

/// F65: the pod's own identity is what its HBONE port presents.
#[test]
fn a_captured_pod_presents_its_own_identity_and_a_chain_to_the_root() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    for pod in [&estate.server, &estate.other, &estate.client] {
        let own = Some(estate.foreign_certificate()?);
        let config = client_config(estate.authority.roots()?, own, &[b"h2"])?;
        let hbone = at(pod.v4()?, HBONE);
        // The configuration checks the chain.
        let chain = inside(&estate.foreign, || async move {
            Ok(Tunnel::dial(hbone, config).await?.chain)
        })?;
        let (_, leaf) = X509Certificate::from_der(chain.first().context("no certificate")?)?;
        let names = leaf.subject_alternative_name()?.context("no SAN")?;
        let expected = [GeneralName::URI(&spiffe(pod))].map(|name| name.to_string());
        let names: Vec<String> = names
            .value
            .general_names
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, expected);
    }
    Ok(())
}

#[test]
fn only_alpn_h2_is_spoken() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let hbone = at(estate.server.v4()?, HBONE);
    let dial = |alpn: &[&[u8]]| {
        let own = estate.foreign_certificate()?;
        let config = client_config(estate.authority.roots()?, Some(own), alpn)?;
        inside(&estate.foreign, || async {
            Ok(Tunnel::dial(hbone, config).await?.alpn)
        })
    };
    assert_eq!(dial(&[b"h2"])?.as_deref(), Some(&b"h2"[..]));
    assert_eq!(dial(&[b"http/1.1", b"h2"])?.as_deref(), Some(&b"h2"[..]));
    let other = dial(&[b"http/1.1"]);
    assert!(other.is_err(), "http/1.1 alone was accepted: {other:?}");
    Ok(())
}

/// OpenSSL is the client: what it cannot negotiate, nobody can.
#[test]
fn nothing_older_than_tls_1_3_is_spoken() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let hbone = at(estate.server.v4()?, HBONE).to_string();
    let version = |flag: &str| -> Result<String> {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-connect", &hbone, "-alpn", "h2", flag]);
        let output = estate.foreign.output(openssl)?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let new = version("-tls1_3")?;
    assert!(new.contains("TLSv1.3"), "{new}");
    assert!(
        new.contains("spiffe") || new.contains("BEGIN CERTIFICATE"),
        "{new}"
    );
    let old = version("-tls1_2")?;
    assert!(!old.contains("BEGIN CERTIFICATE"), "{old}");
    assert!(old.contains("alert"), "{old}");
    Ok(())
}
