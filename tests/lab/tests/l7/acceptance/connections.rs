//! Connections that are not HTTP: `tcp` and `tls` of a VirtualService.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Lab, PodSpec, find_program};
use tests_lab::{Shared, talk};

use super::stand::{apply, mesh, soon, tally, with};

static DATABASES: Shared = Shared::new(stand_up);

const CLIENT: &str = "default/client";
const NEAR: &str = "10.96.70.1";
const FAR: &str = "10.96.71.1";

/// Two names for one API, since a Service has one address; what they select must never be reached. The namespaces are
/// those of the book.
fn stand_up() -> Result<Lab> {
    let lab = mesh(2, &[("default", true), ("test", false), ("prod", false)])?;
    lab.create(&PodSpec::new("default", "client", "n1"))?;
    for (name, ip) in [("near", NEAR), ("far", FAR)] {
        apply(
            &lab,
            &format!(
                "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  clusterIP: {ip}
  clusterIPs: [{ip}]
  selector: {{app: decoy}}
  ports: [{{name: tcp-db, port: 9090}}, {{name: tls-api, port: 9443}}]
"
            ),
        )?;
    }
    let program = find_program("keelson-lab-app")?;
    let program = program.to_string_lossy();
    for (namespace, name, pod, port, node) in [
        ("default", "decoy", "decoy", 9090, "n1"),
        ("test", "database", "database", 9090, "n1"),
        ("prod", "database", "database", 9090, "n2"),
        ("prod", "example", "example", 9443, "n2"),
        ("prod", "canary", "canary-v1", 9090, "n1"),
        ("prod", "canary", "canary-v2", 9090, "n2"),
    ] {
        let (greeting, port) = (format!("{pod}.{namespace}\n"), port.to_string());
        let words = [
            &*program,
            "tcp-echo",
            "--port",
            &port,
            "--greeting",
            &greeting,
        ];
        let version = pod.rsplit('-').next().unwrap_or_default();
        let spec = PodSpec::new(namespace, pod, node)
            .label("app", name)
            .label("version", version)
            .container("echo", &words);
        lab.create(&spec)?;
        apply(
            &lab,
            &format!(
                "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: tcp, port: {port}}}]}}
"
            ),
        )?;
    }
    let subsets = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: canary, namespace: prod}
spec:
  host: canary
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
";
    apply(&lab, subsets)?;
    Ok(lab)
}

/// Who greets on a connection from the client to an address, after which everything that is sent comes back.
fn greets(lab: &Lab, address: &str, port: u16, sent: &[u8]) -> Result<String> {
    let to = SocketAddr::new(address.parse::<IpAddr>()?, port);
    let stream = talk::dial(&lab.pod(CLIENT)?, to, Duration::from_secs(5))?;
    until_greeted(stream, sent)
}

/// Who greets on a connection, after which everything that is sent comes back.
pub(super) fn until_greeted(mut stream: impl Read + Write, sent: &[u8]) -> Result<String> {
    stream.write_all(sent)?;
    let mut text = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        text.extend(byte);
    }
    let mut echoed = vec![0; sent.len()];
    stream.read_exact(&mut echoed)?;
    ensure!(echoed == sent, "what was sent has changed");
    Ok(String::from_utf8(text)?.trim().to_owned())
}

/// Waits until an address is served by this one.
fn leads_to(lab: &Lab, at: (&str, u16), sent: &[u8], expected: &str) -> Result<()> {
    soon(&format!("{at:?} leads to {expected}"), || {
        let seen = greets(lab, at.0, at.1, sent)?;
        ensure!(seen == expected, "{seen}");
        Ok(())
    })
}

/// How a client begins TLS that asks for a name.
pub(super) fn hello(name: &str) -> Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned())?;
    let mut client = rustls::ClientConnection::new(Arc::new(config), name)?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes)?;
    Ok(bytes)
}

/// Y48. `api.company.com` is two Services, and the range is one of theirs.
const RULES: &str = "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: dev-api-server}
spec:
  hosts: [near, far]
  tcp:
  - match: [{port: 9090, destinationSubnets: [10.96.70.0/24]}]
    route: [{destination: {host: database.test.svc.cluster.local}}]
  - match: [{port: 9090}]
    route: [{destination: {host: database.prod.svc.cluster.local}}]
  tls:
  - match: [{sniHosts: [example.api.company.com]}]
    route: [{destination: {host: example.prod.svc.cluster.local}}]
";

/// A21, F22: the address that is dialled chooses the database, and the name that TLS asks for the server.
#[test]
fn a21_address_and_name_choose_where_a_connection_goes() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = DATABASES.lab()?;
    with(lab, RULES, "", || {
        leads_to(lab, (NEAR, 9090), b"x", "database.test")?;
        leads_to(lab, (FAR, 9090), b"x", "database.prod")?;
        let named = hello("example.api.company.com")?;
        for address in [NEAR, FAR] {
            leads_to(lab, (address, 9443), &named, "example.prod")?;
        }
        // By the name on the database's port too, as it goes before what asks for none.
        leads_to(lab, (FAR, 9090), &named, "example.prod")?;
        leads_to(
            lab,
            (FAR, 9090),
            &hello("other.api.company.com")?,
            "database.prod",
        )?;
        // F24: what no rule is for ends, and reaches nobody.
        for sent in [hello("other.api.company.com")?, b"no TLS".to_vec()] {
            let seen = greets(lab, FAR, 9443, &sent);
            ensure!(seen.is_err(), "{seen:?}");
        }
        Ok(())
    })?;
    // Without the rules they are Services like any other.
    leads_to(lab, (NEAR, 9090), b"x", "decoy.default")
}

/// F25, Y51: connections are split by weight between subsets.
#[test]
fn connections_are_split_by_weight() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = DATABASES.lab()?;
    let rules = "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: dev-api-server}
spec:
  hosts: [near]
  tcp:
  - route:
    - {destination: {host: canary.prod.svc.cluster.local, subset: v2}, weight: 5}
    - {destination: {host: canary.prod.svc.cluster.local, subset: v1}, weight: 95}
";
    with(lab, rules, "", || {
        soon("the canary answers", || {
            let seen = greets(lab, NEAR, 9090, b"x")?;
            ensure!(seen.starts_with("canary"), "{seen}");
            Ok(())
        })?;
        let seen = (0..300).map(|_| greets(lab, NEAR, 9090, b"x"));
        let seen = tally(seen.collect::<Result<Vec<_>>>()?);
        let second = seen.get("canary-v2.prod").copied().unwrap_or_default();
        // Of 300 draws of a twentieth 15 are expected with a deviation of 3.8: none once in five million runs, more than 36
        // once in a million.
        assert!((1..=36).contains(&second), "{seen:?}");
        assert_eq!(seen.get("canary-v1.prod").copied(), Some(300 - second));
        Ok(())
    })
}
