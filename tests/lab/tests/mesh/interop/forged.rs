//! What a client of the mesh says of where it comes from is not believed by a waypoint either.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, Pod, PodSpec, find_program};
use tests_lab::turn;

use crate::authority::client_config;
use crate::estate::{Estate, estate};
use crate::fixture::{APPLIES, at};
use crate::hbone::{HBONE, Stream, Tunnel, connect_request, inside};

/// A namespace whose pods are reached through a waypoint.
const GUARDED: &str = "apiVersion: v1
kind: Namespace
metadata: {name: guarded, labels: {keelson.io/mesh: enabled, istio.io/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: waypoint
  namespace: guarded
  labels: {istio.io/waypoint-for: all}
  annotations: {keelson.io/waypoint-nodes: n2}
spec:
  gatewayClassName: keelson-waypoint
  listeners:
  - {name: mesh, port: 15008, protocol: HBONE}
";

fn only_from(ip: IpAddr) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: only-from, namespace: guarded}}
spec:
  selector: {{matchLabels: {{app: vault}}}}
  rules:
  - from: [{{source: {{ipBlocks: [{ip}]}}}}]
    to: [{{operation: {{methods: [GET]}}}}]
"
    )
}

#[test]
fn a_forged_forwarded_or_baggage_passes_no_policy_on_addresses() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let lab = estate.lab;
    lab.apply("guarded.yaml", GUARDED)?;
    let checked = with_a_vault(lab).and_then(|vault| {
        let checked = forge(&estate, &vault);
        lab.delete_pod("guarded/vault")?;
        checked
    });
    lab.delete("only-from.yaml")?;
    lab.delete("guarded.yaml")?;
    checked
}

fn with_a_vault(lab: &Lab) -> Result<Pod> {
    let program = find_program("keelson-lab-app")?;
    let program = program.to_str().context("a path in UTF-8")?;
    let spec = PodSpec::new("guarded", "vault", "n2")
        .label("app", "vault")
        .container("server", &[program, "http-server", "--text", "vault"]);
    lab.create(&spec)
}

fn forge(estate: &Estate, vault: &Pod) -> Result<()> {
    let (own, allowed) = (estate.foreign_ip()?, IpAddr::from(estate.client.v4()?));
    let others = [
        ("forwarded", format!("for=\"{allowed}:4711\"")),
        ("forwarded", format!("for={allowed}")),
        ("forwarded", format!("for={own}, for={allowed}")),
        ("forwarded", format!("for={allowed};by={own};host=vault")),
        (
            "baggage",
            "k8s.namespace.name=shop,k8s.pod.name=client,service.name=client".to_owned(),
        ),
        ("x-forwarded-for", allowed.to_string()),
    ];
    let ask = |header: Option<&(&'static str, String)>| ask(estate, vault, header);
    // The tunnel itself works: the address that it has is allowed.
    estate.lab.apply("only-from.yaml", &only_from(own))?;
    testkit::eventually("its own address is allowed", 2 * APPLIES, || {
        let status = ask(None)?;
        ensure!(status == "200", "{status}");
        Ok(())
    })?;
    estate.lab.apply("only-from.yaml", &only_from(allowed))?;
    testkit::eventually("another one is allowed", APPLIES, || {
        let status = ask(None)?;
        ensure!(status == "403", "{status}");
        Ok(())
    })?;
    for other in &others {
        let status = ask(Some(other))?;
        ensure!(status == "403", "{other:?}: {status}");
    }
    Ok(())
}

/// The status of a GET through a tunnel to the waypoint. The header is sent with the CONNECT, and with the request in it.
fn ask(estate: &Estate, vault: &Pod, header: Option<&(&'static str, String)>) -> Result<String> {
    let own = estate.foreign_certificate()?;
    let config = client_config(estate.authority.roots()?, Some(own), &[b"h2"])?;
    let waypoint = at(estate.lab.pod("guarded/waypoint-n2")?.v4()?, HBONE);
    let to = at(vault.v4()?, 8080).to_string();
    let answer = inside(&estate.foreign, || async move {
        let tunnel = Tunnel::dial(waypoint, config).await?;
        let mut connect = connect_request(&to)?;
        let mut line = String::new();
        if let Some((name, value)) = header {
            connect.headers_mut().insert(*name, value.parse()?);
            line = format!("{name}: {value}\r\n");
        }
        let (status, _, send, receive) = tunnel.request(connect).await?;
        ensure!(status.is_success(), "CONNECT: {status}");
        let mut stream = Stream { send, receive };
        let request = format!("GET / HTTP/1.1\r\nhost: vault\r\n{line}connection: close\r\n\r\n");
        stream.write(request.as_bytes(), false)?;
        stream.read_to_end().await
    })?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1);
    Ok(status.with_context(|| format!("{answer:?}"))?.to_owned())
}
