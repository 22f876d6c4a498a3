//! Ingresses of Kubernetes, served by a Gateway of class `keelson`.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests_cluster::{Namespace, SERVER, eventually, get, kubectl, kubectl_with, nodes, pod};

use crate::gateway::Certificate;
use crate::installed::{CONTROLLER, Installed, NAMESPACE};
use crate::kinds::{Kinds, until_said};
use crate::ordinary::doors::address;

/// Issue 12 B8: an Ingress of our class has the Gateway's addresses and is answered there, with TLS too; what is wrong with one is
/// an event of it; and what one writer has said is taken back by the next.
#[test]
#[ignore = "nightly"]
fn an_ingress_is_served_by_its_gateway_and_loses_its_addresses_when_it_goes_elsewhere() -> Result<()>
{
    let mesh = Installed::install()?;
    let _kinds = Kinds::apply()?;
    let (edge, shop) = (Namespace::create("edge")?, Namespace::create("shop")?);
    let class = Class::create(&edge)?;
    let label = ["label", "namespace", shop.name(), "keelson.io/mesh=enabled"];
    kubectl(&label)?;
    let all = nodes()?;
    let certificate = Certificate::make()?;
    edge.apply(&[door()])?;
    shop.apply(&[
        pod("server", Some(&all[1]), SERVER),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
               "spec": {"selector": {"app": "server"}, "ports": [{"name": "web", "port": 80, "targetPort": 8080}]}}),
        certificate.secret("cert"),
        web(&class.0),
        broken(&class.0),
    ])?;
    shop.wait_ready("server")?;
    let conditions = || Ok(edge.get(&["gateway", "door"])?["status"]["conditions"].clone());
    until_said(conditions, "Programmed", ("True", "Programmed"))?;
    let has = eventually("the Ingress has the Gateway's addresses", || {
        let gateway = edge.get(&["gateway", "door"])?;
        let value = gateway.pointer("/status/addresses/0/value").cloned();
        let own = addresses(&shop, "web")?;
        let ip = own.pointer("/0/ip").or(own.pointer("/0/hostname")).cloned();
        ensure!(value.is_some() && value == ip, "{value:?}, {own}");
        Ok(own)
    })?;
    println!("status.loadBalancer.ingress: {has}");

    let service = eventually("the Service has a port for TLS", || {
        let service = edge.get(&["service", "door-keelson"])?;
        port(&service, 443)?;
        Ok(service)
    })?;
    let (http, https) = (port(&service, 80)?, port(&service, 443)?);
    let to = address(&all[0])?;
    let ask = |host: &str, path: &str| {
        let ask =
            format!("curl -s -m 5 -w ' %{{http_code}}' -H 'Host: {host}' http://{to}:{http}{path}");
        mesh.on(&all[1], &ask)
    };
    let answered = |host: &str, path: &str, wanted: &str| {
        eventually(&format!("{host}{path} is {wanted}"), || {
            let answer = ask(host, path)?;
            ensure!(
                answer.ends_with(wanted) && (wanted == "200") == answer.starts_with("server "),
                "{answer}"
            );
            Ok(())
        })
    };
    answered("shop.example.com", "/cgi-bin/who", "200")?;
    answered("shop.example.com", "/elsewhere", "404")?;
    answered("other.example.com", "/cgi-bin/who", "404")?;
    answered("broken.example.com", "/cgi-bin/who", "503")?;
    let secure = certificate.ask(&to, https);
    eventually("HTTPS with the Ingress's certificate", || {
        let answer = mesh.on(&all[1], &secure)?;
        ensure!(answer.starts_with("server "), "{answer}");
        Ok(())
    })?;
    eventually("an event says what is wrong", || {
        let selector =
            "--field-selector=involvedObject.kind=Ingress,involvedObject.name=broken,type=Warning";
        let events = shop.kubectl(&[
            "get",
            "events",
            selector,
            "-o",
            "jsonpath={.items[*].message}",
        ])?;
        ensure!(events.contains("nobody"), "{events}");
        Ok(())
    })?;

    // Whoever wrote the status is gone when the Ingress goes to another class.
    let deployment = format!("deployment/{CONTROLLER}");
    let scale =
        |replicas: &str| kubectl(&["-n", NAMESPACE, "scale", &deployment, replicas]).map(drop);
    scale("--replicas=0")?;
    eventually("no controller runs", || {
        let label = format!("app.kubernetes.io/name={CONTROLLER}");
        let left = kubectl(&["-n", NAMESPACE, "get", "pods", "-l", &label, "-o", "name"])?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })?;
    ensure!(
        ask("shop.example.com", "/cgi-bin/who")?.ends_with("200"),
        "the gateway goes on"
    );
    let elsewhere = json!({"spec": {"ingressClassName": "another"}}).to_string();
    shop.kubectl(&["patch", "ingress", "web", "--type=merge", "-p", &elsewhere])?;
    ensure!(
        addresses(&shop, "web")? == has,
        "nobody has taken it back yet"
    );
    scale("--replicas=2")?;
    eventually("its addresses are taken back", || {
        let own = addresses(&shop, "web")?;
        ensure!(own.is_null(), "{own}\n{}", mesh.logs(CONTROLLER));
        Ok(())
    })?;
    ensure!(
        addresses(&shop, "broken")? == has,
        "that of our class keeps its own"
    );
    answered("shop.example.com", "/cgi-bin/who", "404")
}

/// A class of ours, named after the namespace of its Gateway. It belongs to no namespace, so it is removed by itself.
struct Class(String);

impl Class {
    fn create(edge: &Namespace) -> Result<Self> {
        let class = Self(edge.name().to_owned());
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": class.0},
            "spec": {"controller": "keelson.io/ingress-controller",
                     "parameters": {"apiGroup": "gateway.networking.k8s.io", "kind": "Gateway", "name": "door",
                                    "namespace": edge.name(), "scope": "Namespace"}},
        });
        kubectl_with(&["apply", "-f", "-"], &object.to_string())?;
        Ok(class)
    }
}

impl Drop for Class {
    fn drop(&mut self) {
        // A test that fails has its own message.
        drop(kubectl(&["delete", "ingressclass", &self.0]));
    }
}

fn door() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "door", "annotations": {"networking.istio.io/service-type": "NodePort"}},
        "spec": {"gatewayClassName": "keelson", "listeners": [
            {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}},
        ]},
    })
}

fn ingress(name: &str, class: &str, host: &str, service: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name},
        "spec": {
            "ingressClassName": class,
            "rules": [{"host": host, "http": {"paths": [
                {"path": "/cgi-bin", "pathType": "Prefix",
                 "backend": {"service": {"name": service, "port": {"name": "web"}}}},
            ]}}],
        },
    })
}

fn web(class: &str) -> Value {
    let mut web = ingress("web", class, "shop.example.com", "server");
    web["spec"]["tls"] = json!([{"hosts": ["shop.example.com"], "secretName": "cert"}]);
    web
}

fn broken(class: &str) -> Value {
    ingress("broken", class, "broken.example.com", "nobody")
}

fn addresses(namespace: &Namespace, name: &str) -> Result<Value> {
    let ingress = get(&["-n", namespace.name(), "ingress", name])?;
    let addresses = ingress.pointer("/status/loadBalancer/ingress");
    Ok(addresses.cloned().unwrap_or_default())
}

/// The port of the nodes that leads to a port of a Service.
fn port(service: &Value, of: u64) -> Result<u64> {
    let ports = service["spec"]["ports"].as_array().context("ports")?;
    let one = ports.iter().find(|one| one["port"] == of);
    let port = one.and_then(|one| one["nodePort"].as_u64());
    port.with_context(|| format!("no port {of} in {service}"))
}
