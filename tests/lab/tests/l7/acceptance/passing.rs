//! Gateways that read no requests: TLS that passes by the name that it asks for, and connections by their port.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Lab, PodSpec, find_program};
use tests_lab::{Shared, talk};

use super::connections::{hello, until_greeted};
use super::stand::{OUTSIDE, apply, gateway, mesh, metrics, soon, with};

/// Whom Istio's objects are for, and the Gateway API's.
const ISTIOS: &str = "edge/gw-n1";
const OWN: &str = "edge/passing-n2";

static DOORS: Shared = Shared::new(stand_up);

fn stand_up() -> Result<Lab> {
    let lab = mesh(2, &[("default", false)])?;
    gateway(&lab, "istio: egressgateway")?;
    apply(&lab, GATEWAY)?;
    let program = find_program("keelson-lab-app")?;
    let program = program.to_string_lossy();
    for (name, node) in [("wiki", "n1"), ("db", "n2")] {
        let greeting = format!("{name}\n");
        let words = [
            &*program,
            "tcp-echo",
            "--port",
            "9000",
            "--greeting",
            &greeting,
        ];
        lab.create(&PodSpec::new("default", name, node).container("echo", &words))?;
        apply(
            &lab,
            &format!(
                "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: tcp, port: 9000}}]}}
"
            ),
        )?;
    }
    Ok(lab)
}

/// Who greets a client outside of the mesh at a port of a gateway.
fn greets(lab: &Lab, gateway: &str, port: u16, sent: &[u8]) -> Result<String> {
    let to = SocketAddr::new(lab.pod(gateway)?.v4()?.into(), port);
    let stream = talk::dial(&lab.pod(OUTSIDE)?, to, Duration::from_secs(5))?;
    until_greeted(stream, sent)
}

/// Y62 and Y63, with a service of the lab behind the name, and a database.
const ISTIO: &str = "apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: https-wikipedia-org-egress}
spec:
  selector: {istio: egressgateway}
  servers:
  - {port: {number: 443, name: https-wikipedia-org-egress-443, protocol: TLS}, hosts: [wikipedia.org], tls: {mode: PASSTHROUGH}}
  - {port: {number: 5432, name: db, protocol: TCP}, hosts: ['*']}
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: egress-wikipedia-org}
spec:
  hosts: [wikipedia.org]
  gateways: [https-wikipedia-org-egress]
  tls:
  - {match: [{port: 443, sniHosts: [wikipedia.org]}], route: [{destination: {host: wiki}}]}
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: db}
spec:
  hosts: ['*']
  gateways: [https-wikipedia-org-egress]
  tcp:
  - {match: [{port: 5432}], route: [{destination: {host: db}}]}
";

/// F44, F49, Y62, Y63: what TLS asks for by name passes to where the rule says, byte for byte, and no other name is served;
/// a port without names leads to one service; both are counted under the service that they lead to.
#[test]
fn tls_passes_a_gateway_of_istio_by_its_name_and_other_connections_by_their_port() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = DOORS.lab()?;
    with(lab, ISTIO, "", || {
        let named = hello("wikipedia.org")?;
        soon("TLS for wikipedia.org passes", || {
            let seen = greets(lab, ISTIOS, 443, &named)?;
            ensure!(seen == "wiki", "{seen}");
            Ok(())
        })?;
        soon("the database's port leads to it", || {
            let seen = greets(lab, ISTIOS, 5432, b"select")?;
            ensure!(seen == "db", "{seen}");
            Ok(())
        })?;
        for other in ["example.org", "www.wikipedia.org"] {
            let other = hello(other)?;
            ensure!(greets(lab, ISTIOS, 443, &other).is_err());
        }
        ensure!(greets(lab, ISTIOS, 443, b"GET / HTTP/1.1\r\n\r\n").is_err());
        soon("connections are counted by what they lead to", || {
            let page = metrics(lab, ISTIOS)?;
            let name = "istio_tcp_connections_opened_total";
            for service in ["wiki", "db"] {
                let host = format!("{service}.default.svc.cluster.local");
                let counted = page.sum(name, &[("destination_service", &*host)]);
                ensure!(counted >= 1.0, "{service}: {:?}", page.samples(name, &[]));
            }
            for sample in page.samples(name, &[]) {
                let service = sample.label("destination_service").unwrap_or_default();
                ensure!(!service.contains('|'), "{sample:?}");
            }
            Ok(())
        })
    })
}

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: passing, namespace: edge, annotations: {keelson.io/waypoint-nodes: n2}}
spec:
  gatewayClassName: keelson
  listeners:
  - {name: tls, port: 8443, protocol: TLS, tls: {mode: Passthrough}, allowedRoutes: {namespaces: {from: All}}}
  - {name: tcp, port: 5433, protocol: TCP, allowedRoutes: {namespaces: {from: All}}}
";

const ROUTES: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: wiki}
spec:
  parentRefs: [{name: passing, namespace: edge}]
  hostnames: ['*.wikipedia.org']
  rules: [{backendRefs: [{name: wiki, port: 9000}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: db}
spec:
  parentRefs: [{name: passing, namespace: edge, sectionName: tcp}]
  rules: [{backendRefs: [{name: db, port: 9000}]}]
";

/// Issue 12 B8: the same by TLSRoute and TCPRoute.
#[test]
fn tls_routes_and_tcp_routes_lead_connections_of_a_gateway() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = DOORS.lab()?;
    with(lab, ROUTES, "", || {
        let named = hello("en.wikipedia.org")?;
        soon("TLS passes by its TLSRoute", || {
            let seen = greets(lab, OWN, 8443, &named)?;
            ensure!(seen == "wiki", "{seen}");
            Ok(())
        })?;
        soon("a connection is led by its TCPRoute", || {
            let seen = greets(lab, OWN, 5433, b"x")?;
            ensure!(seen == "db", "{seen}");
            Ok(())
        })?;
        let other = hello("wikipedia.org")?;
        ensure!(greets(lab, OWN, 8443, &other).is_err());
        Ok(())
    })
}
