//! Admission as an API server asks: by HTTP/1.1 alone (`k8s.io/apiserver`, pkg/util/webhook/client.go).

use std::net::Ipv4Addr;
use std::sync::Arc;

use compile::index::MeshConfig;
use controller::metrics::Metrics;
use controller::serve::admission;
use controller::serve::tls::ServingCertificates;
use controller::signer::Signer;
use runtime::metrics::Metrics as Registry;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tls::ca::{Authority, system_clock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

#[tokio::test]
async fn a_review_that_comes_by_http_1_is_answered() {
    let authority = Authority::generate("cluster.local", system_clock()).expect("a root");
    let mut roots = RootCertStore::empty();
    for root in authority.roots().certificates() {
        roots.add(root.clone()).expect("a root");
    }
    let names = vec!["localhost".to_owned()];
    let certificates = ServingCertificates::new(Signer::new(authority), names).expect("issued");
    let any = (Ipv4Addr::LOCALHOST, 0);
    let listener = TcpListener::bind(any).await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let metrics = Registry::new().register(Metrics::register);
    let (_settings, mesh) = watch::channel(MeshConfig::default());
    let known = admission::Known { mesh, viewer: None };
    let served = admission::serve(listener, certificates, known, metrics);
    let _server = tokio::spawn(served);

    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(address).await.expect("connects");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .expect("the server speaks HTTP/1.1");
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "operation": "CREATE",
            "kind": {"group": "security.istio.io", "version": "v1", "kind": "AuthorizationPolicy"},
            "object": {
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "p", "namespace": "shop"}, "spec": {"rules": [{"form": []}]},
            },
        },
    })
    .to_string();
    let request = format!(
        "POST /admit HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{review}",
        review.len()
    );
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("reads");
    let (_, body) = text.split_once("\r\n\r\n").expect("a body");
    let answer: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(answer["response"]["uid"], "u");
    assert_eq!(answer["response"]["allowed"], false, "{answer}");
}
