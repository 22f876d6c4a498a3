//! Kubernetes Ingress: manifests as users have them, and curl from outside of the mesh through the gateway of their class.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, PodSpec, find_program};
use tests_lab::{Shared, namespace};

use crate::fixture::{APPLIES, curl, with};

/// The lab of these tests: a gateway on n1; `one`, `two` and `rest` on n2; a client that is not in the mesh.
static WEB: Shared = Shared::new(web);

fn web() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).nodes(2).build()?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in ["n1", "n2"] {
        lab.start_agent(node, &AgentOptions::default())?;
    }
    for (name, labels) in [
        ("shop", &[("keelson.io/mesh", "enabled")][..]),
        ("edge", &[("keelson.io/mesh", "enabled")]),
        ("outside", &[]),
    ] {
        lab.apply(&format!("namespace-{name}.yaml"), &namespace(name, labels))?;
    }
    let server = find_program("keelson-lab-app")?;
    let server = server.to_string_lossy();
    for (last, name) in (70..).zip(["one", "two", "rest"]) {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  clusterIP: 10.96.0.{last}\n  clusterIPs: [10.96.0.{last}]\n  selector: {{app: {name}}}\n  ports: [{{name: http, port: 80, targetPort: 8080}}]\n"
        );
        lab.apply(&format!("service-{name}.yaml"), &service)?;
        let text = format!("this is {name}");
        let pod = PodSpec::new("shop", name, "n2")
            .label("app", name)
            .container("server", &[&*server, "http-server", "--text", &text]);
        lab.create(&pod)?;
    }
    lab.create(&PodSpec::new("outside", "plain", "n2"))?;
    lab.apply("gateway.yaml", GATEWAY)?;
    lab.apply("class.yaml", CLASS)?;
    Ok(lab)
}

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: edge, annotations: {keelson.io/waypoint-nodes: n1}}
spec:
  gatewayClassName: keelson
  listeners:
  - {name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
";

const CLASS: &str = "apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata:
  name: keelson
  annotations: {ingressclass.kubernetes.io/is-default-class: 'true'}
spec:
  controller: keelson.io/ingress-controller
  parameters:
    apiGroup: gateway.networking.k8s.io
    kind: Gateway
    scope: Namespace
    namespace: edge
    name: web
";

const INGRESS: &str = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop, namespace: shop}
spec:
  ingressClassName: keelson
  defaultBackend: {service: {name: rest, port: {number: 80}}}
  tls:
  - {hosts: [shop.example.com, '*.wild.example.com'], secretName: shop-cert}
  rules:
  - host: shop.example.com
    http:
      paths:
      - {path: /one, pathType: Prefix, backend: {service: {name: one, port: {number: 80}}}}
      - {path: /one/exact, pathType: Exact, backend: {service: {name: two, port: {name: http}}}}
  - host: '*.wild.example.com'
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: two, port: {number: 80}}}}
";

/// It names no class.
const ANOTHER: &str = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: another, namespace: shop}
spec:
  rules:
  - host: shop.example.com
    http:
      paths:
      - {path: /two, pathType: ImplementationSpecific, backend: {service: {name: two, port: {number: 80}}}}
";

const PLAIN: &str = "outside/plain";

/// Waits until this host and path is answered by the service of that name.
fn comes(lab: &Lab, gateway: Ipv4Addr, host: &str, path: &str, service: &str) -> Result<()> {
    let header = format!("Host: {host}");
    let url = format!("http://{gateway}{path}");
    testkit::eventually(&format!("{host}{path} is {service}"), APPLIES, || {
        let answer = curl(lab, PLAIN, &url, &["--header", &header])?;
        ensure!(answer.status == 200, "{answer:?}");
        ensure!(
            answer.body.contains(&format!("this is {service}")),
            "{answer:?}"
        );
        Ok(())
    })
}

/// F47 by Kubernetes' own API: hosts, paths, wildcards and the default backend, over several objects.
#[test]
fn a_client_outside_comes_by_host_and_path_to_what_ingresses_say() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = WEB.lab()?;
    let gateway = lab.pod("edge/web-n1")?.v4()?;
    let both = [INGRESS, ANOTHER].join("---\n");
    with(lab, "ingress.yaml", &both, || {
        for (host, path, service) in [
            ("shop.example.com", "/one", "one"),
            ("shop.example.com", "/one/", "one"),
            ("shop.example.com", "/one/more", "one"),
            ("shop.example.com", "/one/exact", "two"),
            ("shop.example.com", "/one/exact/", "one"),
            ("shop.example.com", "/onemore", "rest"),
            ("shop.example.com", "/two/x", "two"),
            ("shop.example.com", "/", "rest"),
            ("a.wild.example.com", "/", "two"),
            ("b.a.wild.example.com", "/", "rest"),
            ("wild.example.com", "/", "rest"),
            ("elsewhere.example.org", "/one", "rest"),
        ] {
            comes(lab, gateway, host, path, service)?;
        }
        Ok(())
    })?;
    // Without them: nothing is served.
    testkit::eventually("404", APPLIES, || {
        let answer = curl(lab, PLAIN, &format!("http://{gateway}/"), &[])?;
        ensure!(answer.status == 404, "{answer:?}");
        Ok(())
    })
}

/// F51: TLS by the Secret of the Ingress's own namespace, as soon as it is there, and never by another's.
#[test]
fn tls_ends_with_the_ingresses_own_secret() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = WEB.lab()?;
    let gateway = lab.pod("edge/web-n1")?.v4()?;
    let hosts = ["shop.example.com", "a.wild.example.com"];
    let made = rcgen::generate_simple_self_signed(hosts.map(str::to_owned))?;
    let root = lab.run_dir().join("ingress-root.pem");
    std::fs::write(&root, made.cert.pem())?;
    let root = root.to_string_lossy().into_owned();
    let indent = |pem: String| {
        pem.lines()
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
    };
    let secret = |namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: shop-cert, namespace: {namespace}}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
            indent(made.cert.pem()),
            indent(made.signing_key.serialize_pem()),
        )
    };
    let ask = |host: &str| {
        let resolve = format!("{host}:443:{gateway}");
        let (header, url) = (format!("Host: {host}"), format!("https://{host}/one"));
        curl(
            lab,
            PLAIN,
            &url,
            &[
                "--header",
                &header,
                "--resolve",
                &resolve,
                "--cacert",
                &root,
            ],
        )
    };
    with(lab, "ingress.yaml", INGRESS, || {
        comes(lab, gateway, "shop.example.com", "/one", "one")?;
        // One of the gateway's namespace is not meant.
        with(lab, "foreign.yaml", &secret("edge"), || {
            let answer = ask("shop.example.com")?;
            ensure!(answer.status == 0, "{answer:?}");
            Ok(())
        })?;
        with(lab, "secret.yaml", &secret("shop"), || {
            for (host, service) in hosts.iter().zip(["one", "two"]) {
                testkit::eventually("HTTPS", APPLIES, || {
                    let answer = ask(host)?;
                    ensure!(answer.status == 200, "{answer:?}");
                    ensure!(
                        answer.body.contains(&format!("this is {service}")),
                        "{answer:?}"
                    );
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        testkit::eventually("no TLS without the Secret", APPLIES, || {
            let answer = ask("shop.example.com")?;
            ensure!(answer.status == 0, "{answer:?}");
            Ok(())
        })
    })
}
