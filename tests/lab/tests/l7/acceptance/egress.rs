//! What is outside of the mesh: declared by a ServiceEntry, closed otherwise, and by way of an egress gateway.
//!
//! The outside is the nodes' own network: no object of the mesh has these addresses. A server of names is there too, which
//! waypoints and gateways are told to ask.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, PodSpec};
use serde_json::Value;
use testkit::{Behaviour, HttpServer, Peer, dns};
use tests_lab::{Shared, namespace, talk};

use super::connections::{hello, until_greeted};
use super::stand::{APPLIES, apply, ask, mesh, soon, with};

static WORLD: Shared = Shared::new(stand_up);
/// What wikipedia.org gets, outside.
static WIKI: OnceLock<Peer> = OnceLock::new();
/// Lives as long as the lab.
static NAMES: Mutex<Vec<dns::Server>> = Mutex::new(Vec::new());

const CLIENT: &str = "default/client";
const WEATHER: &str = "http://api.openweathermap.org/weather";

fn stand_up() -> Result<Lab> {
    let lab = mesh(2, &[])?;
    let (near, far) = (lab.node("n1")?, lab.node("n2")?);
    let socket = near.run(|| UdpSocket::bind((near.v4(), 53)))??;
    let outside = far.v4();
    let names = dns::serve(socket, move |name| match name {
        "api.openweathermap.org" | "wikipedia.org" => dns::Answer::There(vec![outside], 5),
        _ => dns::Answer::Nowhere,
    })?;
    if let Ok(mut kept) = NAMES.lock() {
        kept.push(names);
    }
    let weather = far.run(|| TcpListener::bind((outside, 80)))??;
    std::thread::spawn(move || {
        HttpServer::serve(&weather, |request| {
            let host = request.header("host").unwrap_or_default();
            (200, format!("sunny at {host}{}", request.path).into_bytes())
        })
    });
    let wiki = far.run(|| TcpListener::bind((outside, 443)))??;
    let wiki = Peer::serve(wiki, Behaviour::GreetThenEcho(b"wiki\n".to_vec()))?;
    WIKI.set(wiki).ok().context("one lab at a time")?;
    let args = format!("--workers 1 --dns-server {}:53", near.v4());
    let labels = [
        ("keelson.io/mesh", "enabled"),
        ("istio.io/use-waypoint", "waypoint"),
    ];
    lab.apply("namespace-default.yaml", &namespace("default", &labels))?;
    let istio = namespace("istio-system", &[("keelson.io/mesh", "enabled")]);
    lab.apply("namespace-istio-system.yaml", &istio)?;
    for (namespace, name, class, labels, listener) in [
        (
            "default",
            "waypoint",
            "keelson-waypoint",
            "{}",
            "{name: mesh, port: 15008, protocol: HBONE}",
        ),
        (
            "istio-system",
            "egress",
            "keelson",
            "{istio: egressgateway}",
            "{name: own, port: 9999, protocol: HTTP}",
        ),
    ] {
        apply(
            &lab,
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: {name}
  namespace: {namespace}
  annotations: {{keelson.io/waypoint-nodes: n1, keelson.io/waypoint-args: '{args}'}}
spec:
  gatewayClassName: {class}
  infrastructure: {{labels: {labels}}}
  listeners: [{listener}]
"
            ),
        )?;
    }
    // As Istio's own chart has it.
    let service = "apiVersion: v1
kind: Service
metadata: {name: istio-egressgateway, namespace: istio-system, labels: {istio.io/use-waypoint: none}}
spec:
  clusterIP: 10.96.90.1
  clusterIPs: [10.96.90.1]
  selector: {istio: egressgateway}
  ports: [{name: tls, port: 443}]
";
    apply(&lab, service)?;
    lab.create(&PodSpec::new("default", "client", "n1"))?;
    Ok(lab)
}

/// The address that the mesh has for a host, as the agents know it.
fn address_of(lab: &Lab, host: &str) -> Result<Ipv4Addr> {
    let mut found = None;
    soon(&format!("agents know {host}"), || {
        let dump = lab.agent_json("n1", "/config_dump")?;
        let services = dump["services"].as_array().context("services")?;
        let service = services.iter().find(|one| one.to_string().contains(host));
        let service = service.with_context(|| format!("no {host}"))?;
        found = addresses(service).into_iter().next();
        found.map(drop).with_context(|| service.to_string())
    })?;
    found.context("an address")
}

/// The IPv4 addresses in a value, wherever they are.
fn addresses(value: &Value) -> Vec<Ipv4Addr> {
    match value {
        Value::String(text) => text.parse().into_iter().collect(),
        Value::Array(all) => all.iter().flat_map(addresses).collect(),
        Value::Object(all) => all.values().flat_map(addresses).collect(),
        _ => Vec::new(),
    }
}

/// As the application's own resolver would have it.
fn resolved(host: &str, port: u16, address: impl Into<IpAddr>) -> [String; 2] {
    let address = address.into();
    ["--resolve".to_owned(), format!("{host}:{port}:{address}")]
}

fn as_args(both: &[String; 2]) -> [&str; 2] {
    [&both[0], &both[1]]
}

/// Y100.
const OPEN_WEATHER: &str = "apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {name: openweathermap}
spec: {hosts: [api.openweathermap.org], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
";

/// The namespace again, with its egress closed.
fn closed() -> String {
    namespace(
        "default",
        &[
            ("keelson.io/mesh", "enabled"),
            ("istio.io/use-waypoint", "waypoint"),
            ("keelson.io/egress", "closed"),
        ],
    )
}

fn open() -> String {
    closed().replace("closed", "open")
}

/// A54, F42, Y100: where egress is closed, nobody outside is reached but who is declared, by the waypoint, which looks its name
/// up; its rules hold there as for any service (F39).
#[test]
fn a54_closed_egress_refuses_until_a_service_entry_declares_the_host() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = WORLD.lab()?;
    let outside = resolved("api.openweathermap.org", 80, lab.node("n2")?.v4());
    let asks = |args: &[String; 2], status: u16| {
        soon(&format!("{args:?} is {status}"), || {
            let answer = ask(lab, CLIENT, WEATHER, &as_args(args))?;
            ensure!(answer.status == status, "{answer:?}");
            Ok(())
        })
    };
    asks(&outside, 200)?;
    lab.apply("namespace-default.yaml", &closed())?;
    let checked = (|| {
        asks(&outside, 0)?;
        let refusals = lab.agent_json("n1", "/refusals")?.to_string();
        ensure!(refusals.contains("egress_closed"), "{refusals}");
        with(lab, OPEN_WEATHER, "", || {
            let declared = address_of(lab, "api.openweathermap.org")?;
            let declared = resolved("api.openweathermap.org", 80, declared);
            asks(&declared, 200)?;
            let answer = ask(lab, CLIENT, WEATHER, &as_args(&declared))?;
            ensure!(
                answer.body == "sunny at api.openweathermap.org/weather",
                "{answer:?}"
            );
            // Rules are for it as for any service.
            let rule = "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: weather}
spec:
  hosts: [api.openweathermap.org]
  http:
  - {match: [{uri: {prefix: /weather}}], fault: {abort: {httpStatus: 555, percentage: 100}}, route: [{destination: {host: api.openweathermap.org}}]}
  - {route: [{destination: {host: api.openweathermap.org}}]}
";
            with(lab, rule, "", || asks(&declared, 555))?;
            asks(&declared, 200)?;
            // Who is not declared is not reached by what is.
            asks(&outside, 0)
        })
    })();
    lab.apply("namespace-default.yaml", &open())?;
    checked?;
    asks(&outside, 200)
}

/// Y61 to Y64, as they are printed, but for the port of the rule, which is printed `ports`.
const WIKIPEDIA: &str = "apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {name: https-wikipedia-org}
spec:
  hosts: [wikipedia.org]
  ports: [{number: 443, name: https, protocol: HTTPS}]
  location: MESH_EXTERNAL
  resolution: DNS
  endpoints: [{address: istio-egressgateway.istio-system.svc.cluster.local, ports: {http: 443}}]
---
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: https-wikipedia-org-egress}
spec:
  selector: {istio: egressgateway}
  servers:
  - {port: {number: 443, name: https-wikipedia-org-egress-443, protocol: TLS}, hosts: [wikipedia.org], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: egress-wikipedia-org}
spec:
  hosts: [wikipedia.org]
  gateways: [https-wikipedia-org-egress]
  tls:
  - {match: [{port: 443, sniHosts: [wikipedia.org]}], route: [{destination: {host: egress-wikipedia-org}}]}
---
apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {name: egress-https-wikipedia-org}
spec:
  hosts: [egress-wikipedia-org]
  ports: [{number: 443, name: https, protocol: HTTPS}]
  location: MESH_EXTERNAL
  resolution: DNS
  endpoints: [{address: wikipedia.org, ports: {http: 443}}]
";

/// A55, F44, Y61 to Y64: what a pod sends to wikipedia.org leaves from the egress gateway alone, byte for byte.
#[test]
fn a55_tls_leaves_from_the_egress_gateway_alone() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = WORLD.lab()?;
    lab.apply("namespace-default.yaml", &closed())?;
    let checked = with(lab, WIKIPEDIA, "", || {
        let address = address_of(lab, "\"wikipedia.org\"")?;
        let to = SocketAddr::from((address, 443));
        let named = hello("wikipedia.org")?;
        let greeted = |sent: &[u8]| {
            let stream = talk::dial(&lab.pod(CLIENT)?, to, Duration::from_secs(5))?;
            until_greeted(stream, sent)
        };
        soon("wikipedia.org is reached", || {
            let seen = greeted(&named)?;
            ensure!(seen == "wiki", "{seen}");
            Ok(())
        })?;
        let wiki = WIKI.get().context("it serves")?;
        let gateway = IpAddr::from(lab.pod("istio-system/egress-n1")?.v4()?);
        let from: Vec<IpAddr> = wiki
            .clients()
            .iter()
            .map(|one| one.ip().to_canonical())
            .collect();
        ensure!(
            !from.is_empty() && from.iter().all(|one| *one == gateway),
            "{from:?}"
        );
        // Another name has no way out, and the pod itself has none.
        ensure!(greeted(&hello("example.org")?).is_err());
        let outside = SocketAddr::from((lab.node("n2")?.v4(), 443));
        ensure!(talk::dial(&lab.pod(CLIENT)?, outside, APPLIES).is_err());
        Ok(())
    });
    lab.apply("namespace-default.yaml", &open())?;
    checked
}

/// F39, Y23: endpoints with addresses need no waypoint: agents know them.
#[test]
fn f39_a_static_entry_is_reached_without_a_waypoint() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = WORLD.lab()?;
    let outside = lab.node("n2")?.v4();
    let entry = format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {{name: http-server, labels: {{istio.io/use-waypoint: none}}}}
spec:
  hosts: [some.domain.com]
  ports: [{{number: 8080, name: http, protocol: http}}]
  resolution: STATIC
  endpoints: [{{address: {outside}, ports: {{http: 80}}}}]
"
    );
    with(lab, &entry, "", || {
        let declared = address_of(lab, "some.domain.com")?;
        let args = resolved("some.domain.com", 8080, declared);
        soon("it answers", || {
            let answer = ask(
                lab,
                CLIENT,
                "http://some.domain.com:8080/x",
                &as_args(&args),
            )?;
            ensure!(answer.status == 200, "{answer:?}");
            ensure!(
                answer.body == "sunny at some.domain.com:8080/x",
                "{answer:?}"
            );
            Ok(())
        })
    })
}
