//! A peer that writes and reads the frames by hand, to do what an agent of ours would not.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tls::{SystemClock, TlsOptions, WorkloadCert, ca::Authority};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, spawn_local};
use tokio_rustls::TlsAcceptor;
use tunnel::{Settings, Tunnel, client};

pub(crate) const OPEN: u8 = 1;
pub(crate) const ANSWER: u8 = 2;
pub(crate) const DATA: u8 = 3;
pub(crate) const FIN: u8 = 4;
pub(crate) const PING: u8 = 8;

/// One side of a tunnel.
pub(crate) struct Raw<IO>(pub(crate) IO);

pub(crate) type RawServer = Raw<tokio_rustls::server::TlsStream<TcpStream>>;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Answer {
    #[prost(uint32, tag = "1")]
    status: u32,
    #[prost(uint32, tag = "4")]
    window: u32,
}

fn cert() -> WorkloadCert {
    let authority = Authority::generate("test", Arc::new(SystemClock)).unwrap();
    let identity = "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap();
    let svid = authority
        .issue(&identity, Duration::from_secs(3600))
        .unwrap();
    WorkloadCert::new(&svid, &TlsOptions::default()).unwrap()
}

/// A client of ours, and what kills it, at a server by hand.
pub(crate) async fn raw_server(
    (near, far): (TcpStream, TcpStream),
    settings: Settings,
) -> (Tunnel, AbortHandle, RawServer) {
    let cert = cert();
    let expected = [cert.identity().clone()];
    let (near, far) = tokio::join!(
        client::establish(near, &cert, &expected, settings),
        TlsAcceptor::from(cert.server()).accept(far),
    );
    let (tunnel, driver) = near.unwrap();
    assert!(tunnel.is_thin());
    let driver = spawn_local(driver).abort_handle();
    (tunnel, driver, Raw(far.unwrap()))
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Raw<IO> {
    pub(crate) async fn send(&mut self, kind: u8, stream: u32, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
        frame[0] = kind;
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// Says yes as a server.
    pub(crate) async fn accept(&mut self, stream: u32, window: u32) {
        let answer = Answer {
            status: 200,
            window,
        };
        self.send(ANSWER, stream, &answer.encode_to_vec()).await;
    }

    pub(crate) async fn next(&mut self) -> std::io::Result<Frame> {
        let head = self.0.read_u64().await?.to_be_bytes();
        let [kind, a, b, c, d, e, f, g] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await?;
        Ok(Frame {
            kind,
            stream: u32::from_be_bytes([d, e, f, g]),
            payload,
        })
    }
}
