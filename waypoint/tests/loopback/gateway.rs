//! Clients that come in at a gateway: plain and by TLS, by host, with the answers that users know.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use l7::listener::{Certificate, Listener, Reads, VirtualHost};
use l7::route::{Match, PathMatch};
use l7::{HostPattern, Resource, Service};
use model::ServiceKey;
use model::service::{AppProtocol, ServicePort};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{self, Mesh, Server};

fn host_key(host: &str) -> ServiceKey {
    ServiceKey::new("edge", format!("http|{host}"))
}

/// A port that nobody listens on.
pub(crate) async fn free() -> u16 {
    let listener = TcpListener::bind("[::]:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// A listener for these hosts on a free port.
pub(crate) async fn listen(
    mesh: &mut Mesh,
    hosts: &[&str],
    tls: Option<Vec<Certificate>>,
) -> SocketAddr {
    let port = free().await;
    let served = hosts.iter().map(|host| {
        let service = Service {
            key: host_key(host),
            addresses: Vec::new(),
            ports: vec![ServicePort {
                port,
                target_port: 0,
                app_protocol: AppProtocol::Http11,
            }],
            attached: true,
        };
        mesh.apply(Resource::Service(service));
        VirtualHost {
            host: HostPattern::new(host),
            key: host_key(host),
        }
    });
    let hosts = served.collect();
    let listener = Listener {
        name: "http".into(),
        port,
        host: HostPattern::Any,
        tls,
        reads: Reads::Requests,
        client_roots: None,
        hosts,
    };
    mesh.apply(Resource::Listener("http".into(), listener));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    for _ in 0..100 {
        if TcpStream::connect(address).await.is_ok() {
            return address;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("nobody listens on {address}");
}

/// Rules of a host: what begins with `/cart` goes to the service.
pub(crate) fn route(mesh: &mut Mesh, host: &str) {
    let matches = vec![Match {
        path: PathMatch::Prefix("/cart".into()),
        ..Match::default()
    }];
    let mut rule = support::rule(0, matches, |_| ());
    for attachment in &mut rule.attachments {
        attachment.service = host_key(host);
    }
    mesh.apply(Resource::Route(
        format!("rule of {host}").as_str().into(),
        rule,
    ));
}

async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // A peer may end TLS without a word.
    match stream.read_to_end(&mut answer).await {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}

async fn plain(address: SocketAddr, host: &str, path: &str) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    ask(stream, host, path).await.unwrap()
}

#[tokio::test]
async fn hosts_and_paths_decide_and_what_nobody_serves_is_404() {
    let server = Server::start(|request| async move {
        let said = |name: &str| {
            let value = request.headers().get(name);
            value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
        };
        let text = format!("{} {}", said("x-forwarded-proto"), said("x-forwarded-for"));
        http::Response::new(support::text(text))
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("cart-1", "v1", server.address);
    let address = listen(&mut mesh, &["cart.example.com", "*.example.org"], None).await;
    route(&mut mesh, "cart.example.com");
    for (host, path, status) in [
        ("cart.example.com", "/cart/1", "200"),
        ("Cart.Example.com:8080", "/cart", "200"),
        ("cart.example.com", "/other", "404"),
        ("other.example.com", "/cart", "404"),
        ("example.org", "/cart", "404"),
        // A host without a rule has no endpoint.
        ("a.example.org", "/cart", "503"),
    ] {
        let answer = plain(address, host, path).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{host}{path}: {answer}"
        );
    }
    let answer = plain(address, "cart.example.com", "/cart").await;
    assert!(answer.ends_with("http 127.0.0.1"), "{answer}");
}

#[tokio::test]
async fn tls_ends_with_the_certificate_of_the_listener_and_a_new_one_counts_at_once() {
    let server = Server::named("cart").await;
    let mut mesh = Mesh::new();
    mesh.endpoint("cart-1", "v1", server.address);
    let name = "cart.example.com";
    let new = || {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let certificate = Certificate {
            chain: made.cert.pem().into_bytes(),
            key: made.signing_key.serialize_pem().into_bytes(),
        };
        (certificate, made.cert.der().clone())
    };
    let (first, trusted) = new();
    let address = listen(&mut mesh, &[name], Some(vec![first])).await;
    route(&mut mesh, name);
    let answer = secure(address, name, trusted.clone()).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("cart"),
        "{answer}"
    );
    // Who speaks no TLS is not answered.
    let stream = TcpStream::connect(address).await.unwrap();
    let answer = ask(stream, name, "/cart").await.unwrap_or_default();
    assert!(!answer.starts_with("HTTP/"), "{answer}");
    // Another certificate in its place.
    let (second, newly_trusted) = new();
    let listener = Listener {
        name: "http".into(),
        port: address.port(),
        host: HostPattern::Any,
        tls: Some(vec![second]),
        reads: Reads::Requests,
        client_roots: None,
        hosts: vec![VirtualHost {
            host: HostPattern::new(name),
            key: host_key(name),
        }],
    };
    mesh.apply(Resource::Listener("http".into(), listener));
    assert!(secure(address, name, trusted).await.is_err());
    let answer = secure(address, name, newly_trusted).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

async fn secure(
    address: SocketAddr,
    name: &'static str,
    trusted: rustls_pki_types::CertificateDer<'static>,
) -> io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await?;
    let stream = connector.connect(name.try_into().unwrap(), stream).await?;
    ask(stream, name, "/cart").await
}
