//! The workshop: two frontends at a gateway, two backends behind them, its rules from the Y rows of the requirements.

use std::process::Command;

use anyhow::{Result, ensure};
use lab::{Lab, PodSpec, find_program};
use tests_lab::Shared;

use super::stand::{OUTSIDE, apply, ask, door, gateway, mesh, soon, with};

static WORKSHOP: Shared = Shared::new(stand_up);

const V1: &str = "Hi Istio workshop from v1";
const V2: &str = "Hi Istio workshop from v2";

fn stand_up() -> Result<Lab> {
    let lab = mesh(2, &[("default", true)])?;
    gateway(&lab, "istio: ingressgateway")?;
    let program = find_program("keelson-lab-app")?;
    let program = program.to_string_lossy();
    for (name, port, text, node) in [
        ("frontend-app", 3000, V1, "n1"),
        ("frontendv2-app", 3000, V2, "n2"),
        ("backend-app", 80, V1, "n2"),
        ("backendv2-app", 80, V2, "n1"),
    ] {
        let service = format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: {port}, targetPort: 8080}}]}}
"
        );
        apply(&lab, &service)?;
        let words = [&*program, "http-server", "--text", text];
        let spec = PodSpec::new("default", name, node)
            .service_account(name)
            .container("app", &words);
        lab.create(&spec)?;
    }
    Ok(lab)
}

/// Y98.
const GATEWAY: &str = "apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: frontend-app-gateway}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]
";

/// Y99.
const BY_PATH: &str = "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: frontend-app}
spec:
  hosts: ['*']
  gateways: [frontend-app-gateway]
  http:
  - match: [{uri: {prefix: /v1}}]
    route: [{destination: {host: frontend-app, port: {number: 3000}}}]
  - route: [{destination: {host: frontendv2-app, port: {number: 3000}}}]
";

/// Y102.
const BY_DEVICE: &str = "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: frontend-app}
spec:
  hosts: ['*']
  gateways: [frontend-app-gateway]
  http:
  - match: [{headers: {device: {exact: android}}}]
    route: [{destination: {host: frontendv2-app, port: {number: 3000}}}]
  - route: [{destination: {host: frontend-app, port: {number: 3000}}}]
";

/// A7, F17: at the gateway a prefix leads to v1 and everything else to v2.
#[test]
fn a7_a_prefix_at_the_gateway_leads_to_v1_and_the_rest_to_v2() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = WORKSHOP.lab()?;
    let door = format!("{}:80", door(lab)?);
    let connect = format!("frontend.example.com:80:{door}");
    with(lab, GATEWAY, "", || {
        with(lab, BY_PATH, "", || {
            for (path, text) in [
                ("/v1", V1),
                ("/v1/x", V1),
                ("/whatever_you_put", V2),
                ("/", V2),
            ] {
                soon(&format!("{path} is {text}"), || {
                    let url = format!("http://frontend.example.com{path}");
                    let answer = ask(lab, OUTSIDE, &url, &["--connect-to", &connect])?;
                    ensure!(
                        answer.status == 200 && answer.body.contains(text),
                        "{answer:?}"
                    );
                    Ok(())
                })?;
            }
            Ok(())
        })
    })
}

/// A9, F19: at the gateway the header decides.
#[test]
fn a9_the_header_of_a_device_decides_at_the_gateway() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = WORKSHOP.lab()?;
    let url = format!("http://{}/", door(lab)?);
    with(lab, GATEWAY, "", || {
        with(lab, BY_DEVICE, "", || {
            for (header, text) in [("device: android", V2), ("device: other", V1), ("x: y", V1)] {
                soon(&format!("{header} is {text}"), || {
                    let answer = ask(lab, OUTSIDE, &url, &["--header", header])?;
                    ensure!(
                        answer.status == 200 && answer.body.contains(text),
                        "{answer:?}"
                    );
                    Ok(())
                })?;
            }
            Ok(())
        })
    })
}

/// Nobody may do anything.
const NOTHING: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nothing, namespace: default}
spec: {}
";

const FRONTEND_TO_V2: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: frontend-to-backendv2, namespace: default}
spec:
  selector: {matchLabels: {app: backendv2-app}}
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/frontend-app]}}]}]
";

/// A43, A44, F81, F82: with authorization on and no policy the frontend is told so; then it may call one of two backends.
#[test]
fn a43_a44_the_frontend_is_denied_and_then_allowed_one_of_two_backends() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = WORKSHOP.lab()?;
    let says = |from: &str, backend: &str, status: u16, text: &str| {
        soon(&format!("{from} at {backend}: {text}"), || {
            let url = format!("http://{backend}/");
            let answer = ask(lab, &format!("default/{from}"), &url, &[])?;
            ensure!(answer.status == status, "{answer:?}");
            ensure!(answer.body.contains(text), "{answer:?}");
            Ok(())
        })
    };
    says("frontend-app", "backend-app", 200, V1)?;
    with(lab, NOTHING, "", || {
        let denied = "RBAC: access denied";
        says("frontend-app", "backend-app", 403, denied)?;
        says("frontend-app", "backendv2-app", 403, denied)?;
        with(lab, FRONTEND_TO_V2, "", || {
            says("frontend-app", "backendv2-app", 200, V2)?;
            says("frontend-app", "backend-app", 403, denied)?;
            says("frontendv2-app", "backendv2-app", 403, denied)
        })
    })?;
    says("frontend-app", "backend-app", 200, V1)
}

/// Fault of gateways: the server behind a gateway sees the gateway's own identity, whatever client is at the door: under
/// STRICT, and with a policy that lets in the gateway alone (F86).
#[test]
fn the_server_behind_a_gateway_sees_the_gateways_own_identity() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = WORKSHOP.lab()?;
    let url = format!("http://{}/v1", door(lab)?);
    let program = find_program("keelson-lab-app")?;
    let program = program.to_string_lossy();
    lab.apply(
        "namespace-vault.yaml",
        &tests_lab::namespace("vault", &[("keelson.io/mesh", "enabled")]),
    )?;
    let vault = PodSpec::new("vault", "vault", "n2")
        .container("app", &[&*program, "http-server", "--text", "the vault"]);
    let pod = lab.create(&vault)?.v4()?;
    let rules = "apiVersion: v1
kind: Service
metadata: {name: vault, namespace: vault}
spec: {selector: {app: vault}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: vault}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: the-gateway-alone, namespace: vault}
spec: {rules: [{from: [{source: {principals: [PRINCIPAL]}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vault, namespace: vault}
spec:
  hosts: ['*']
  gateways: [default/frontend-app-gateway]
  http: [{route: [{destination: {host: vault}}]}]
";
    let of = |principal: &str| rules.replace("PRINCIPAL", principal);
    let own = "cluster.local/ns/edge/sa/gw";
    with(lab, GATEWAY, "", || {
        with(lab, &of(own), "", || {
            soon("the gateway is let in", || {
                let answer = ask(lab, OUTSIDE, &url, &[])?;
                ensure!(answer.status == 200, "{answer:?}");
                ensure!(answer.body.contains("the vault"), "{answer:?}");
                Ok(())
            })?;
            // Neither the client itself nor another member of the mesh.
            for from in [OUTSIDE, "default/frontend-app"] {
                soon(&format!("{from} is refused"), || {
                    let mut curl = Command::new("curl");
                    curl.args(["--silent", "--max-time", "5"]);
                    curl.arg(format!("http://{pod}:8080/"));
                    let output = lab.pod(from)?.output(curl)?;
                    ensure!(!output.status.success(), "{from}: {output:?}");
                    Ok(())
                })?;
            }
            // With another principal the gateway is refused like anybody else.
            apply(lab, &of("cluster.local/ns/edge/sa/other"))?;
            soon("the gateway is refused", || {
                let answer = ask(lab, OUTSIDE, &url, &[])?;
                ensure!(answer.status == 503, "{answer:?}");
                Ok(())
            })
        })
    })?;
    lab.delete_pod("vault/vault")
}
