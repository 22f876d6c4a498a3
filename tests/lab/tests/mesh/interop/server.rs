//! A foreign HBONE server in a pod's place: what a captured client's agent asks of it.

use anyhow::{Context as _, Result};
use http::{Method, StatusCode, Version};
use tests_lab::turn;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::authority::server_config;
use crate::estate::{Estate, estate};
use crate::fixture::{Ended, at, call, connect, exchange, refusals, spiffe};
use crate::hbone::{Seen, Server};

fn server(estate: &Estate, answer: StatusCode) -> Result<Server> {
    let config = server_config(estate.authority.roots()?, estate.foreign_certificate()?)?;
    Server::start(&estate.foreign, estate.foreign_ip()?, config, answer)
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: foreign, namespace: shop}
spec:
  clusterIP: 10.96.0.77
  clusterIPs: [10.96.0.77]
  selector: {app: foreign}
  ports: [{name: tcp, port: 80, targetPort: 8080}]
";

fn header<'a>(seen: &'a Seen, name: &str) -> Result<&'a str> {
    let value = seen.request.headers().get(name);
    Ok(value
        .with_context(|| format!("no {name} in {seen:?}"))?
        .to_str()?)
}

/// Section 1.2 of the facts, item by item.
#[test]
fn the_request_is_a_plain_connect_to_pod_ip_and_target_port() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    estate.announce_foreign(true)?;
    let server = server(&estate, StatusCode::OK)?;
    let ip = estate.foreign_ip()?;
    let open = connect(&estate.client, at(ip, 8080))?;
    assert_eq!(
        exchange(&open, b"through a foreign server"),
        Ended::Answered
    );
    let seen = server.take_seen();
    let [seen] = &seen[..] else {
        panic!("one connection, one request: {seen:?}");
    };
    assert_eq!(seen.request.method(), Method::CONNECT);
    assert_eq!(seen.request.version(), Version::HTTP_2);
    let uri = seen.request.uri();
    assert_eq!(
        uri.authority().map(|authority| authority.as_str()),
        Some(&*format!("{ip}:8080"))
    );
    assert_eq!(uri.scheme(), None, ":scheme");
    assert_eq!(uri.path_and_query(), None, ":path");
    assert!(
        seen.request
            .extensions()
            .get::<h2::ext::Protocol>()
            .is_none(),
        "extended CONNECT"
    );
    assert_eq!(seen.alpn.as_deref(), Some(&b"h2"[..]));
    assert_eq!(
        seen.from.ip(),
        estate.client.v4()?,
        "the tunnel comes from the pod itself"
    );
    let forwarded = header(seen, "forwarded")?;
    let source = format!("for=\"{}\"", open.local_addr()?);
    assert!(
        forwarded.contains(&source),
        "{forwarded:?} instead of {source}"
    );
    let baggage = header(seen, "baggage")?;
    for entry in [
        "k8s.cluster.name=Kubernetes",
        "k8s.namespace.name=shop",
        "service.name=client",
    ] {
        assert!(
            baggage.split(',').any(|given| given.trim() == entry),
            "{entry} in {baggage:?}"
        );
    }
    let traceparent = header(seen, "traceparent")?;
    let fields: Vec<&str> = traceparent.split('-').collect();
    let lengths: Vec<usize> = fields.iter().map(|field| field.len()).collect();
    assert_eq!(lengths, [2, 32, 16, 2], "{traceparent}");
    assert_eq!(fields[0], "00");
    drop(open);
    estate.announce_foreign(false)
}

/// The client proves the pod's identity, not the node's.
#[test]
fn the_tunnels_certificate_is_the_pods_own() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    estate.announce_foreign(true)?;
    let server = server(&estate, StatusCode::OK)?;
    assert_eq!(
        call(&estate.client, at(estate.foreign_ip()?, 8080))?,
        Ended::Answered
    );
    let seen = server.take_seen();
    let leaf = seen[0].client.first().context("no certificate")?;
    let (_, leaf) = X509Certificate::from_der(leaf)?;
    let names = leaf.subject_alternative_name()?.context("no SAN")?;
    let names: Vec<String> = names
        .value
        .general_names
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, [format!("URI({})", spiffe(&estate.client))]);
    estate.announce_foreign(false)
}

/// A call of a Service goes to the chosen pod; the Service's name travels in `forwarded`.
#[test]
fn a_service_is_resolved_before_the_tunnel_and_named_in_forwarded() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    estate.announce_foreign(true)?;
    let server = server(&estate, StatusCode::OK)?;
    let ended = estate.with_manifest(SERVICE, "foreign.shop.svc.cluster.local", || {
        call(&estate.client, "10.96.0.77:80".parse()?)
    })?;
    let seen = server.take_seen();
    assert_eq!(ended, Ended::Answered);
    let authority = seen[0].request.uri().to_string();
    assert_eq!(authority, format!("{}:8080", estate.foreign_ip()?));
    let forwarded = header(&seen[0], "forwarded")?;
    assert!(
        forwarded.contains("host=foreign.shop.svc.cluster.local"),
        "{forwarded}"
    );
    estate.announce_foreign(false)
}

#[test]
fn several_connections_share_one_tunnel() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    estate.announce_foreign(true)?;
    let server = server(&estate, StatusCode::OK)?;
    let to = at(estate.foreign_ip()?, 8080);
    let open: Result<Vec<_>> = (0..10).map(|_| connect(&estate.client, to)).collect();
    for stream in &open? {
        assert_eq!(exchange(stream, b"one of ten"), Ended::Answered);
    }
    assert_eq!(server.take_seen().len(), 10);
    assert_eq!(server.tunnels(), 1);
    estate.announce_foreign(false)
}

/// Any status but 200 is a refusal, and the reset is explained at the client's agent.
#[test]
fn whatever_is_not_200_refuses_the_connection_with_its_status_as_the_reason() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    estate.announce_foreign(true)?;
    let to = at(estate.foreign_ip()?, 8080);
    for status in [400, 401, 403, 404, 429, 500, 503, 204, 301] {
        let server = server(&estate, StatusCode::from_u16(status)?)?;
        let ended = call(&estate.client, to)?;
        assert_eq!(ended, Ended::Refused, "{status}");
        assert!(
            !server.take_seen().is_empty(),
            "{status}: the request never came"
        );
        let list = refusals(estate.lab, "n1")?;
        let newest = list.last().context("no refusal")?.to_string();
        assert!(newest.contains(&status.to_string()), "{status}: {newest}");
    }
    estate.announce_foreign(false)
}
