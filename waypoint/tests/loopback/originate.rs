//! TLS to endpoints, as a `DestinationRule` asks for it (F45).

use std::sync::Arc;
use std::time::Duration;

use l7::TrafficPolicy;
use l7::backend::{Roots, TlsMode};
use model::service::AppProtocol;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::Mesh;

/// The name that was asked for, and whether HTTP/1.1 was agreed on.
type Asked = (Option<String>, bool);

/// A server of TLS with a certificate for a name.
struct Outside {
    address: std::net::SocketAddr,
    /// In PEM.
    root: String,
    /// What was asked for, by name, with the protocols that were offered.
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Outside {
    /// It answers requests with its name, and connections without a request with what they say.
    async fn start(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![made.cert.der().clone()],
                    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
                        made.signing_key.serialize_der(),
                    )),
                )
                .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            root: made.cert.pem(),
            asked: Arc::default(),
        };
        let asked = Arc::clone(&this.asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, asked) = (acceptor.clone(), Arc::clone(&asked));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let (_, session) = stream.get_ref();
                    let name = session.server_name().map(str::to_owned);
                    let is_http1 = session.alpn_protocol() == Some(b"http/1.1");
                    asked.lock().push((name, is_http1));
                    let mut read = [0; 4096];
                    while let Ok(length) = stream.read(&mut read).await {
                        if length == 0 {
                            break;
                        }
                        let said = read[..length].to_vec();
                        let answer = match said.starts_with(b"GET ") {
                            true => b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nover".to_vec(),
                            false => said,
                        };
                        stream.write_all(&answer).await.unwrap();
                        stream.flush().await.unwrap();
                    }
                });
            }
        });
        this
    }

    fn given(&self) -> Roots {
        Roots::Given(self.root.as_bytes().into())
    }
}

fn simple(sni: Option<&str>, names: &[&str], insecure: bool, roots: Roots) -> TrafficPolicy {
    TrafficPolicy {
        tls: Some(TlsMode::Simple {
            sni: sni.map(Into::into),
            names: names.iter().map(|name| Arc::from(*name)).collect(),
            insecure,
            roots,
        }),
        ..TrafficPolicy::default()
    }
}

/// F45: a server that proves the name gets the request, by TLS that asks for it; one that proves another name, or that no
/// root knows, gets nothing, and never in plain.
#[tokio::test]
async fn f45_tls_is_begun_with_who_proves_the_name_and_with_nobody_else() {
    let outside = Outside::start("api.example.com").await;
    let mut mesh = Mesh::new();
    mesh.endpoint("outside", "v1", outside.address);
    let name = "api.example.com";
    let nobody = || Roots::Given(Arc::new([]));
    for (policy, expected) in [
        (simple(Some(name), &[], false, outside.given()), 200),
        (
            simple(Some("x.com"), &[name, "y.com"], false, outside.given()),
            200,
        ),
        (simple(Some(name), &["y.com"], false, outside.given()), 503),
        // Without a name the service's own is asked for.
        (simple(None, &[], false, outside.given()), 503),
        (simple(Some(name), &[], false, nobody()), 503),
        (simple(Some("x.com"), &[], true, nobody()), 200),
        (
            TrafficPolicy {
                tls: Some(TlsMode::impossible()),
                ..TrafficPolicy::default()
            },
            503,
        ),
    ] {
        let before = outside.asked.lock().len();
        mesh.backend(&[], policy.clone());
        let answer = mesh.get("/").await;
        assert_eq!(answer.status, expected, "{policy:?}");
        if expected == 200 {
            assert_eq!(answer.body, "over", "{policy:?}");
            let asked = outside.asked.lock();
            let Some(TlsMode::Simple { sni: Some(sni), .. }) = &policy.tls else {
                panic!("{policy:?}");
            };
            assert_eq!(
                asked[before..],
                [(Some(sni.to_string()), true)],
                "{policy:?}"
            );
        }
        // Who could not be reached is left alone for a moment.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// F45: also for connections whose bytes nobody reads.
#[tokio::test]
async fn f45_a_connection_that_is_no_request_is_carried_in_tls_too() {
    let outside = Outside::start("db.example.com").await;
    let mut mesh = Mesh::new();
    mesh.port(975, AppProtocol::Tcp);
    mesh.endpoint_of("outside", "v1", outside.address, 975);
    mesh.backend(
        &[],
        simple(Some("db.example.com"), &[], false, outside.given()),
    );
    let mut stream = mesh.dial_to(975).await;
    stream.write_all(b"select").await.unwrap();
    let mut read = [0; 6];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"select");
    assert_eq!(
        *outside.asked.lock(),
        [(Some("db.example.com".to_owned()), false)]
    );
    mesh.backend(&[], simple(Some("y.com"), &[], false, outside.given()));
    let mut stream = mesh.dial_to(975).await;
    stream.write_all(b"select").await.unwrap();
    let ended = stream.read(&mut read).await;
    assert!(ended.is_err() || ended.is_ok_and(|length| length == 0));
}
