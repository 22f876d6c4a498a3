//! Gateways as the book has them: which hosts and paths are bound, the way to HTTPS, and clients with certificates.

use anyhow::{Result, ensure};
use lab::Lab;
use tests_lab::Shared;

use super::stand::{
    Answer, OUTSIDE, args, ask, deploy, door, gateway, gateway_named, mesh, pages, soon, with,
};

static DOORS: Shared = Shared::new(stand_up);

const HTTPBIN: &str = include_str!("../../../fixtures/book/chap-12/httpbin-svc-depl.yaml");

fn stand_up() -> Result<Lab> {
    let lab = mesh(2, &[("default", false)])?;
    gateway(&lab, "istio: ingressgateway, app: gateway-workloads")?;
    gateway_named(&lab, "gw2", "app: my-gateway-impl")?;
    pages(&lab, ("default", "foo"), (80, 8080), &[("v1", "n2")])?;
    deploy(&lab, HTTPBIN, |_| {
        ("n2", args("--ports 80 --service httpbin"))
    })?;
    Ok(lab)
}

fn is(lab: &Lab, url: &str, args: &[&str], status: u16) -> Result<Answer> {
    let mut last = None;
    soon(&format!("{url} {args:?} is {status}"), || {
        let answer = ask(lab, OUTSIDE, url, args)?;
        ensure!(answer.status == status, "{answer:?}");
        last = Some(answer);
        Ok(())
    })?;
    last.ok_or_else(|| anyhow::anyhow!("no answer"))
}

/// Y93 and Y94.
const HTTPBIN_AT_EDGE: &str = "apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: httpbin-gateway}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [httpbin.example.com]}]
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: httpbin}
spec:
  hosts: [httpbin.example.com]
  gateways: [httpbin-gateway]
  http:
  - match: [{uri: {prefix: /status}}, {uri: {prefix: /delay}}]
    route: [{destination: {port: {number: 8000}, host: httpbin}}]
";

/// A50, F47: by host and path httpbin answers, and other hosts and paths are not served.
#[test]
fn a50_httpbin_is_served_by_host_and_path_and_nothing_else() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = DOORS.lab()?;
    let door = door(lab)?;
    let at = |path: &str| format!("http://{door}{path}");
    with(lab, HTTPBIN_AT_EDGE, "", || {
        // As it is printed.
        is(
            lab,
            &at("/status/200"),
            &["--head", "-HHost:httpbin.example.com"],
            200,
        )?;
        let host = ["-HHost:httpbin.example.com"];
        is(lab, &at("/status/418"), &host, 418)?;
        let late = is(lab, &at("/delay/1"), &host, 200)?;
        ensure!(
            late.seconds >= 1.0 && late.says("/service") == "httpbin",
            "{late:?}"
        );
        for path in ["/", "/get", "/headers", "/x/status/200"] {
            is(lab, &at(path), &host, 404)?;
        }
        for other in [
            "httpbin.example.org",
            "example.com",
            "x.httpbin.example.com",
        ] {
            let header = format!("Host: {other}");
            is(lab, &at("/status/200"), &["--header", &header], 404)?;
        }
        Ok(())
    })
}

/// A key and a certificate that signs itself, in PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl Pair {
    fn new(name: &str) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()])?;
        Ok(Self {
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        })
    }

    /// Their files, for curl.
    fn files(&self, lab: &Lab, name: &str) -> Result<[String; 2]> {
        let mut paths = [String::new(), String::new()];
        for (path, (end, text)) in paths
            .iter_mut()
            .zip([("crt", &self.certificate), ("key", &self.key)])
        {
            let file = lab.run_dir().join(format!("{name}.{end}"));
            std::fs::write(&file, text)?;
            *path = file.to_string_lossy().into_owned();
        }
        Ok(paths)
    }
}

/// The Secret `foo-com` beside the gateway's pods (F51).
fn secret(entries: &[(&str, &str)]) -> String {
    let mut text = String::from(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: foo-com, namespace: edge}\nstringData:\n",
    );
    for (name, pem) in entries {
        text.push_str(&format!("  {name}: |\n"));
        for line in pem.lines() {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text
}

/// Y41 with a Secret in the place of files, and foo.com behind it.
fn https(mode: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {{name: foo-com-gateway}}
spec:
  selector: {{app: gateway-workloads}}
  servers:
  - hosts: [foo.com]
    port: {{number: 80, name: http, protocol: HTTP}}
    tls: {{httpsRedirect: true}}
  - hosts: [foo.com]
    port: {{number: 443, name: https, protocol: HTTPS}}
    tls: {{mode: {mode}, credentialName: foo-com}}
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {{name: foo-com}}
spec:
  hosts: [foo.com]
  gateways: [foo-com-gateway]
  http: [{{route: [{{destination: {{host: foo}}}}]}}]
"
    )
}

/// A51, F48, F49: on port 80 a 301 to https, on 443 the certificate of foo.com.
#[test]
fn a51_http_is_sent_to_https_where_the_certificate_is_presented() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = DOORS.lab()?;
    let door = door(lab)?;
    let server = Pair::new("foo.com")?;
    let [root, _] = server.files(lab, "foo-com")?;
    let resolve = ["--connect-to", &*format!("::{door}:")];
    let keys = secret(&[("tls.crt", &server.certificate), ("tls.key", &server.key)]);
    with(lab, &keys, "", || {
        with(lab, &https("SIMPLE"), "", || {
            let told = is(lab, "http://foo.com/a?b=c", &resolve, 301)?;
            ensure!(
                told.head.contains("location: https://foo.com/a?b=c"),
                "{told:?}"
            );
            // curl believes this root alone, and asks for the name.
            let args = [&resolve[..], &["--cacert", &root]].concat();
            let page = is(lab, "https://foo.com/", &args, 200)?;
            ensure!(page.says("/service") == "foo", "{page:?}");
            // By the redirect too.
            let follow = [&args[..], &["--location"]].concat();
            is(lab, "http://foo.com/", &follow, 200)?;
            is(lab, "https://bar.com/", &args, 0)?;
            Ok(())
        })
    })
}

/// A53, F49: with MUTUAL a client without a certificate, or with a stranger's, gets no handshake.
#[test]
fn a53_with_mutual_a_client_without_a_certificate_gets_no_handshake() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = DOORS.lab()?;
    let door = door(lab)?;
    let (server, client, stranger) = (Pair::new("foo.com")?, Pair::new("me")?, Pair::new("me")?);
    let [root, _] = server.files(lab, "foo-com")?;
    let [own, own_key] = client.files(lab, "client")?;
    let [other, other_key] = stranger.files(lab, "stranger")?;
    let connect = format!("::{door}:");
    let base = ["--connect-to", &connect, "--cacert", &root];
    let shown = [&base[..], &["--cert", &own, "--key", &own_key]].concat();
    let strange = [&base[..], &["--cert", &other, "--key", &other_key]].concat();
    let url = "https://foo.com/";
    let pair = [("tls.crt", &*server.certificate), ("tls.key", &*server.key)];
    with(lab, &https("MUTUAL"), "", || {
        // Without roots nobody can be believed, and nobody is.
        with(lab, &secret(&pair), "", || {
            is(lab, url, &shown, 0).map(drop)
        })?;
        let with_roots = [&pair[..], &[("ca.crt", &*client.certificate)]].concat();
        with(lab, &secret(&with_roots), "", || {
            let page = is(lab, url, &shown, 200)?;
            ensure!(page.says("/service") == "foo", "{page:?}");
            is(lab, url, &base, 0)?;
            is(lab, url, &strange, 0)?;
            // Plain HTTP is still told to come by HTTPS.
            is(lab, "http://foo.com/", &["--connect-to", &connect], 301)?;
            Ok(())
        })
    })
}

/// Y44a, and Y44b with the quotes that it lacks.
const TWO_GATEWAYS: &str = "apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: foo-gateway}
spec:
  selector: {app: my-gateway-impl}
  servers: [{hosts: [foo.com], port: {number: 80, name: http, protocol: HTTP}}]
---
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: wildcard-gateway}
spec:
  selector: {app: my-gateway-impl}
  servers: [{hosts: ['*.com'], port: {number: 80, name: http, protocol: HTTP}}]
";

/// A52, F37: only a host that a gateway exposes, and that a VirtualService bound to it claims, answers.
#[test]
fn a52_only_the_documented_bindings_answer() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = DOORS.lab()?;
    let url = format!("http://{}/", lab.pod("edge/gw2-n1")?.v4()?);
    let secret = "foo.super.secret.internal.name";
    let rules = |hosts: &str, gateways: &str| {
        format!(
            "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {{name: foo-default}}
spec:
  hosts: [{hosts}]
  gateways: [{gateways}]
  http: [{{route: [{{destination: {{host: foo.default.svc.cluster.local}}}}]}}]
"
        )
    };
    with(lab, TWO_GATEWAYS, "", || {
        for (row, hosts, gateways, open) in [
            ("Y45a", "foo.com", "foo-gateway", true),
            ("Y45c", secret, "foo-gateway, wildcard-gateway", false),
            ("Y45b", &*format!("foo.com, {secret}"), "foo-gateway", true),
            ("nothing", "bar.com", "foo-gateway", false),
            ("Y45d", "foo.com", "foo-gateway, wildcard-gateway", true),
        ] {
            with(lab, &rules(hosts, gateways), "", || {
                let foo = ["-HHost: foo.com"];
                let expected = if open { 200 } else { 404 };
                let answer = is(lab, &url, &foo, expected)?;
                ensure!(
                    !open || answer.says("/service") == "foo",
                    "{row}: {answer:?}"
                );
                for hidden in [secret, "bar.com", "x.foo.com"] {
                    let header = format!("-HHost: {hidden}");
                    let answer = ask(lab, OUTSIDE, &url, &[&header])?;
                    ensure!(answer.status == 404, "{row}: {hidden}: {answer:?}");
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}
