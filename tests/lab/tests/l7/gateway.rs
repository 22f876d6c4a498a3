//! Clients outside of the mesh, and the gateway by which they come in.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, PodSpec, find_program};
use tests_lab::{Shared, namespace};

use crate::fixture::{APPLIES, curl, gets, with};
use crate::shown::asked;

/// The lab of these tests: a gateway on n1, the product page on n2, a client that is not in the mesh.
static EDGE: Shared = Shared::new(edge);

/// Bookinfo's own manifest.
const BOOKINFO: &str = include_str!("../../fixtures/bookinfo/networking/bookinfo-gateway.yaml");

fn edge() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).nodes(2).build()?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in ["n1", "n2"] {
        lab.start_agent(node, &AgentOptions::default())?;
    }
    for (name, labels) in [
        ("default", &[("keelson.io/mesh", "enabled")][..]),
        ("edge", &[("keelson.io/mesh", "enabled")]),
        ("outside", &[]),
    ] {
        lab.apply(&format!("namespace-{name}.yaml"), &namespace(name, labels))?;
    }
    lab.apply("page.yaml", PAGE)?;
    let server = find_program("keelson-lab-app")?;
    let server = server.to_string_lossy();
    let page = PodSpec::new("default", "productpage", "n2").container(
        "server",
        &[&*server, "http-server", "--port", "9080", "--text", "page"],
    );
    lab.create(&page)?;
    lab.create(&PodSpec::new("outside", "plain", "n2"))?;
    lab.apply("gateway.yaml", GATEWAY)?;
    Ok(lab)
}

const PAGE: &str = "apiVersion: v1
kind: Service
metadata: {name: productpage, namespace: default}
spec:
  clusterIP: 10.96.0.60
  clusterIPs: [10.96.0.60]
  selector: {app: productpage}
  ports:
  - {name: http, port: 9080}
";

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: edge, annotations: {keelson.io/waypoint-nodes: n1}}
spec:
  gatewayClassName: keelson
  infrastructure: {labels: {istio: ingressgateway}}
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: '*.example.com', allowedRoutes: {namespaces: {from: All}}}
  - name: https
    port: 443
    protocol: HTTPS
    hostname: page.example.com
    tls: {certificateRefs: [{name: cert}]}
    allowedRoutes: {namespaces: {from: All}}
";

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: page, namespace: default}
spec:
  parentRefs: [{name: gw, namespace: edge}]
  hostnames: [page.example.com]
  rules:
  - matches: [{path: {type: PathPrefix, value: /shown}}]
    backendRefs: [{name: productpage, port: 9080}]
";

fn address(lab: &Lab) -> Result<Ipv4Addr> {
    lab.pod("edge/gw-n1")?.v4()
}

const PLAIN: &str = "outside/plain";

/// Asks with this Host and no other.
fn host(name: &str) -> [String; 2] {
    ["--header".to_owned(), format!("Host: {name}")]
}

fn as_args(host: &[String; 2]) -> [&str; 2] {
    [&host[0], &host[1]]
}

#[test]
fn a_client_outside_reaches_by_host_and_path_what_a_route_says_and_nothing_else() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = EDGE.lab()?;
    let gateway = address(lab)?;
    with(lab, "route.yaml", ROUTE, || {
        let page = host("page.example.com");
        gets(
            lab,
            PLAIN,
            &format!("http://{gateway}/shown"),
            &as_args(&page),
            200,
        )?;
        let other = host("other.example.com");
        for (path, host) in [("/hidden", &page), ("/shown", &other)] {
            let url = format!("http://{gateway}{path}");
            gets(lab, PLAIN, &url, &as_args(host), 404)?;
        }
        let url = format!("http://{gateway}/shown");
        let answer = curl(lab, PLAIN, &url, &as_args(&page))?;
        ensure!(answer.body.contains(&gateway.to_string()), "{answer:?}");
        Ok(())
    })?;
    // Without the route: 404 again.
    let page = host("page.example.com");
    gets(
        lab,
        PLAIN,
        &format!("http://{gateway}/shown"),
        &as_args(&page),
        404,
    )
}

#[test]
fn bookinfos_own_gateway_serves_the_product_page() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = EDGE.lab()?;
    let gateway = address(lab)?;
    with(lab, "bookinfo-gateway.yaml", BOOKINFO, || {
        for (path, status) in [("/productpage", 200), ("/static/a", 200), ("/", 404)] {
            gets(
                lab,
                PLAIN,
                &format!("http://{gateway}:8080{path}"),
                &[],
                status,
            )?;
        }
        Ok(())
    })
}

#[test]
fn f55_the_listeners_of_a_gateway_are_shown_with_their_hosts() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = EDGE.lab()?;
    let files = [ROUTE, BOOKINFO].join("\n---\n");
    with(lab, "shown.yaml", &files, || {
        testkit::eventually("the hosts are shown", APPLIES, || {
            let all = asked(lab, "listener", "edge/gw-n1")?;
            for (port, host, served) in
                [(80, "*.example.com", "page.example.com"), (8080, "*", "*")]
            {
                let found = all.iter().find(|one| one["port"] == port);
                let found = found.with_context(|| format!("no {port}: {all:?}"))?;
                ensure!(found["host"] == host && found["tls"] == false, "{found}");
                ensure!(found["hosts"] == serde_json::json!([served]), "{found}");
            }
            // Its Secret is not there.
            ensure!(all.iter().all(|one| one["port"] != 443), "{all:?}");
            let routes = asked(lab, "route", "edge/gw-n1")?;
            for object in [
                "HTTPRoute default/page rule 0",
                "VirtualService default/bookinfo rule 0",
            ] {
                let found = routes.iter().any(|one| one["object"] == object);
                ensure!(found, "no {object}: {routes:?}");
            }
            Ok(())
        })
    })
}

#[test]
fn tls_ends_at_the_gateway_once_its_secret_is_there() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = EDGE.lab()?;
    let gateway = address(lab)?;
    let name = "page.example.com";
    let made = rcgen::generate_simple_self_signed([name.to_owned()])?;
    let root = lab.run_dir().join("edge-root.pem");
    std::fs::write(&root, made.cert.pem())?;
    let indent = |pem: String| {
        pem.lines()
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
    };
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: cert, namespace: edge}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        indent(made.cert.pem()),
        indent(made.signing_key.serialize_pem()),
    );
    let resolve = format!("{name}:443:{gateway}");
    let root = root.to_string_lossy().into_owned();
    let args = [
        "--header",
        "Host: page.example.com",
        "--resolve",
        &resolve,
        "--cacert",
        &root,
    ];
    let url = format!("https://{name}/shown");
    with(lab, "route.yaml", ROUTE, || {
        gets(lab, PLAIN, &url, &args, 0)?;
        with(lab, "secret.yaml", &secret, || {
            gets(lab, PLAIN, &url, &args, 200)
        })?;
        gets(lab, PLAIN, &url, &args, 0)
    })
}
