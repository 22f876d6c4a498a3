//! A gateway's ports where no requests are read: TLS that passes, and other connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use l7::listener::{Certificate, Listener, Reads, VirtualHost};
use l7::route::Match;
use l7::{HostPattern, Resource};
use model::ServiceKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::gateway::free;
use crate::support::{self, Mesh};

/// A server that sends back what it gets, and how many connections it has taken.
async fn echo() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            });
        }
    });
    (address, taken)
}

/// A listener that serves one host, whose connections go to the service.
async fn listen(mesh: &mut Mesh, reads: Reads, host: &str) -> SocketAddr {
    listen_with(mesh, reads, host, None).await
}

async fn listen_with(
    mesh: &mut Mesh,
    reads: Reads,
    host: &str,
    tls: Option<Vec<Certificate>>,
) -> SocketAddr {
    let port = free().await;
    let key = ServiceKey::new("edge", format!("gateway|{host}"));
    let listener = Listener {
        name: "door".into(),
        port,
        host: HostPattern::Any,
        tls,
        reads,
        client_roots: None,
        hosts: vec![VirtualHost {
            host: HostPattern::new(host),
            key: key.clone(),
        }],
    };
    mesh.apply(Resource::Listener("door".into(), listener));
    let service = l7::Service {
        key: key.clone(),
        addresses: Vec::new(),
        ports: Vec::new(),
        attached: true,
    };
    mesh.apply(Resource::Service(service));
    let matches = vec![Match {
        connection: Some(Box::default()),
        ..Match::default()
    }];
    let mut rule = support::rule(0, matches, |_| ());
    rule.attachments[0].service = key;
    mesh.apply(Resource::Route("rule".into(), rule));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    for _ in 0..100 {
        if TcpStream::connect(address).await.is_ok() {
            return address;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody listens on {address}");
}

/// What comes back of these bytes before the other side ends.
async fn back(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut got = vec![0; bytes.len()];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut got));
    match read.await.expect("it is answered or ended") {
        Ok(_) => got,
        Err(_ended) => Vec::new(),
    }
}

/// How a client begins TLS that asks for a name.
fn hello(name: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Issue 12 B8: no byte is changed, and a name that no host has leads nowhere, least of all to the gateway itself.
#[tokio::test]
async fn tls_passes_by_its_name_and_is_ended_where_no_host_has_it() {
    let (server, taken) = echo().await;
    let mut mesh = Mesh::new();
    mesh.endpoint("cart-1", "v1", server);
    let address = listen(&mut mesh, Reads::Names, "cart.example.com").await;
    let wanted = hello("cart.example.com");
    assert_eq!(back(address, &wanted).await, wanted);
    let before = taken.load(Ordering::Relaxed);
    for other in [hello("other.example.com"), b"GET / HTTP/1.1\r\n\r\n".into()] {
        assert!(back(address, &other).await.is_empty());
    }
    assert_eq!(taken.load(Ordering::Relaxed), before);
    // It takes connections as before.
    assert_eq!(back(address, &wanted).await, wanted);
}

#[tokio::test]
async fn a_port_where_nothing_is_read_leads_to_one_place() {
    let (server, _) = echo().await;
    let mut mesh = Mesh::new();
    mesh.endpoint("cart-1", "v1", server);
    let address = listen(&mut mesh, Reads::Nothing, "*").await;
    for bytes in [&b"select 1"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"] {
        assert_eq!(back(address, bytes).await, bytes);
    }
}

/// Issue 12 B8: TLS ends here, and what comes in it is carried as it is, whatever it is.
#[tokio::test]
async fn tls_ends_and_what_comes_in_it_is_carried() {
    let name = "db.example.com";
    let (server, taken) = echo().await;
    let mut mesh = Mesh::new();
    mesh.endpoint("db-1", "v1", server);
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let certificate = Certificate {
        chain: made.cert.pem().into_bytes(),
        key: made.signing_key.serialize_pem().into_bytes(),
    };
    let tls = Some(vec![certificate]);
    let address = listen_with(&mut mesh, Reads::Nothing, name, tls).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Who offers versions of HTTP is promised none: nobody here speaks it.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    for bytes in [
        &b"\x00\x00\x00\x08\x04\xd2\x16\x2f"[..],
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let stream = TcpStream::connect(address).await.unwrap();
        let shaken = connector.connect(name.try_into().unwrap(), stream);
        let mut stream = shaken.await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), None);
        stream.write_all(bytes).await.unwrap();
        let mut got = vec![0; bytes.len()];
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut got));
        read.await.expect("nothing comes").unwrap();
        assert_eq!(got, bytes);
        // The end of one side is told to the other, in order.
        stream.shutdown().await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut got));
        assert_eq!(ended.await.expect("it goes on").unwrap(), 0);
    }
    assert_eq!(taken.load(Ordering::Relaxed), 2);
    // Plain bytes are no handshake, and reach nobody.
    assert!(back(address, b"select 1").await.is_empty());
    assert_eq!(taken.load(Ordering::Relaxed), 2);
}
