//! What reaches the peer of a TLS connection and when, with rustls' buffered API on the other side.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::connection::Connection;

type Ours = Connection<UnbufferedClientConnection>;
type Theirs = TlsStream<TcpStream>;

/// A connection of ours to a server of another make.
async fn pair() -> (Ours, Theirs) {
    pair_with(rustls::crypto::aws_lc_rs::default_provider()).await
}

async fn pair_with(provider: rustls::crypto::CryptoProvider) -> (Ours, Theirs) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["peer".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let provider = Arc::new(provider);
    let versions: &[_] = &[&rustls::version::TLS13];
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("peer").unwrap();
    let session = UnbufferedClientConnection::new(Arc::new(client), name).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accept = async {
        let (tcp, _peer) = listener.accept().await.unwrap();
        TlsAcceptor::from(Arc::new(server)).accept(tcp).await
    };
    let connect = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        Connection::handshake(tcp, session).await
    };
    let (ours, theirs) = tokio::join!(connect, accept);
    (ours.map_err(|(error, _)| error).unwrap(), theirs.unwrap())
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn bytes_arrive_in_order_whatever_the_sizes_of_writes_and_reads() {
    let (mut ours, mut theirs) = pair().await;
    let sent = pattern(3 << 20);
    for (write, read) in [
        (1, 7),
        (1000, 100_000),
        (16 << 10, 1),
        (70_000, 16 << 10),
        (1 << 20, 333),
    ] {
        let amount = sent.get(..(write * 300).min(sent.len())).unwrap();
        let there = async {
            for chunk in amount.chunks(write) {
                ours.write_all(chunk).await.unwrap();
            }
            ours.flush().await.unwrap();
        };
        let mut received = vec![0; amount.len()];
        let back = async {
            for chunk in received.chunks_mut(read) {
                theirs.read_exact(chunk).await.unwrap();
            }
        };
        tokio::join!(there, back);
        assert!(received == amount, "there, {write} and {read}");
        let there = async {
            for chunk in amount.chunks(write) {
                theirs.write_all(chunk).await.unwrap();
            }
            theirs.flush().await.unwrap();
        };
        let mut received = vec![0; amount.len()];
        let back = async {
            for chunk in received.chunks_mut(read) {
                ours.read_exact(chunk).await.unwrap();
            }
        };
        tokio::join!(there, back);
        assert!(received == amount, "back, {write} and {read}");
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_holds_the_writer_up() {
    let (mut ours, theirs) = pair().await;
    let chunk = pattern(64 << 10);
    let mut written = 0_usize;
    loop {
        let wrote =
            poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut ours).poll_write(cx, &chunk))).await;
        match wrote {
            Poll::Ready(Ok(bytes)) => written += bytes,
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Pending => break,
        }
        assert!(written < 64 << 20, "{written} bytes are waiting somewhere");
    }
    drop(theirs);
}

#[tokio::test]
async fn nothing_leaves_before_the_deferred_flush_and_then_all_in_one_record() {
    let (mut ours, mut theirs) = pair().await;
    let flush = ours.defer();
    for word in ["one ", "two ", "three"] {
        ours.write_all(word.as_bytes()).await.unwrap();
        ours.flush().await.unwrap();
    }
    let mut byte = [0; 1];
    let early = tokio::time::timeout(std::time::Duration::from_millis(50), theirs.read(&mut byte));
    assert!(early.await.is_err(), "something left early");
    poll_fn(|cx| {
        flush.poll(cx);
        Poll::Ready(())
    })
    .await;
    // A read gives at most one record.
    let mut words = [0; 64];
    let read = theirs.read(&mut words).await.unwrap();
    assert_eq!(words.get(..read).unwrap(), b"one two three");
}

#[tokio::test]
async fn a_peer_that_closes_without_saying_so_is_a_truncation() {
    let (mut ours, mut theirs) = pair().await;
    theirs.write_all(b"half").await.unwrap();
    theirs.flush().await.unwrap();
    let (tcp, _session) = theirs.into_inner();
    drop(tcp);
    let mut all = Vec::new();
    let error = ours.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(all, b"half");
}

#[tokio::test]
async fn both_sides_can_say_that_nothing_follows() {
    let (mut ours, mut theirs) = pair().await;
    theirs.write_all(b"last words").await.unwrap();
    theirs.shutdown().await.unwrap();
    let mut all = Vec::new();
    ours.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"last words");
    ours.write_all(b"mine too").await.unwrap();
    ours.shutdown().await.unwrap();
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"mine too");
}

#[tokio::test]
async fn a_record_that_was_tampered_with_ends_the_connection() {
    let (mut ours, theirs) = pair().await;
    let (mut tcp, _session) = theirs.into_inner();
    let mut record = vec![23, 3, 3, 0, 32];
    record.extend([7; 32]);
    tcp.write_all(&record).await.unwrap();
    let error = ours.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn what_came_before_a_broken_record_is_delivered() {
    let (mut ours, theirs) = pair().await;
    let (mut tcp, mut session) = theirs.into_inner();
    let good = pattern(40_000);
    std::io::Write::write_all(&mut session.writer(), &good).unwrap();
    let mut records = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut records).unwrap();
    }
    records.extend([23, 3, 3, 0, 32]);
    records.extend([7; 32]);
    // In one piece, so that one read finds all of it.
    tcp.write_all(&records).await.unwrap();
    let mut all = Vec::new();
    let error = ours.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert!(all == good, "{} bytes of {}", all.len(), good.len());
}

#[tokio::test]
async fn a_peer_may_change_its_keys() {
    let (mut ours, mut theirs) = pair().await;
    let (_, session) = theirs.get_mut();
    session.refresh_traffic_keys().unwrap();
    theirs.write_all(b"under new keys").await.unwrap();
    theirs.flush().await.unwrap();
    let mut words = [0; 14];
    ours.read_exact(&mut words).await.unwrap();
    assert_eq!(&words, b"under new keys");
    // Ours changed too, because the peer asked for it.
    ours.write_all(b"and back").await.unwrap();
    ours.flush().await.unwrap();
    let mut words = [0; 8];
    theirs.read_exact(&mut words).await.unwrap();
    assert_eq!(&words, b"and back");
}

/// Long transfers change keys: AES-GCM protects 2^24 records with one (RFC 8446 section 5.5).
#[tokio::test]
async fn keys_change_in_the_middle_of_a_transfer_in_both_directions() {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let suite = suite.tls13().unwrap();
    let common = rustls::crypto::CipherSuiteCommon {
        suite: suite.common.suite,
        hash_provider: suite.common.hash_provider,
        confidentiality_limit: 20,
    };
    let short = rustls::Tls13CipherSuite {
        common,
        hkdf_provider: suite.hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: None,
    };
    let provider = rustls::crypto::CryptoProvider {
        cipher_suites: vec![rustls::SupportedCipherSuite::Tls13(Box::leak(Box::new(
            short,
        )))],
        ..rustls::crypto::aws_lc_rs::default_provider()
    };
    let (mut ours, mut theirs) = pair_with(provider).await;
    let sent = pattern(50_000);
    for round in 0..100 {
        let there = async {
            ours.write_all(&sent).await.unwrap();
            ours.flush().await.unwrap();
        };
        let mut received = vec![0; sent.len()];
        tokio::join!(there, async {
            theirs.read_exact(&mut received).await.unwrap();
        });
        assert!(received == sent, "there, {round}");
        let there = async {
            theirs.write_all(&sent).await.unwrap();
            theirs.flush().await.unwrap();
        };
        let mut received = vec![0; sent.len()];
        tokio::join!(there, async {
            ours.read_exact(&mut received).await.unwrap();
        });
        assert!(received == sent, "back, {round}");
    }
}
