//! A peer that writes and reads the frames by hand, to do what an agent of ours would not.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tls::{SystemClock, TlsOptions, WorkloadCert, ca::Authority, server_name};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tunnel::server::ServerTunnel;
use tunnel::{Settings, Tunnel, client, server};

use crate::wire::as_asked;

pub(crate) const OPEN: u8 = 1;
pub(crate) const ANSWER: u8 = 2;
pub(crate) const DATA: u8 = 3;
pub(crate) const FIN: u8 = 4;
pub(crate) const RESET: u8 = 5;
pub(crate) const CREDIT: u8 = 6;
pub(crate) const AWAY: u8 = 7;
pub(crate) const PING: u8 = 8;
pub(crate) const PONG: u8 = 9;

/// One side of a tunnel.
pub(crate) struct Raw<IO>(pub(crate) IO);

pub(crate) type RawServer = Raw<tokio_rustls::server::TlsStream<TcpStream>>;
pub(crate) type RawClient = Raw<tokio_rustls::client::TlsStream<TcpStream>>;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Open {
    #[prost(string, tag = "1")]
    authority: String,
    #[prost(uint32, tag = "5")]
    window: u32,
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
        client::establish(near, &cert, &expected, as_asked(settings)),
        TlsAcceptor::from(cert.server()).accept(far),
    );
    let (tunnel, driver) = near.unwrap();
    assert!(tunnel.is_thin());
    let driver = spawn_local(driver).abort_handle();
    (tunnel, driver, Raw(far.unwrap()))
}

/// A server of ours at a client by hand.
pub(crate) async fn raw_client(
    (near, far): (TcpStream, TcpStream),
    settings: Settings,
) -> (RawClient, ServerTunnel) {
    let cert = cert();
    let (near, far) = tokio::join!(
        TlsConnector::from(cert.client()).connect(server_name(), near),
        server::accept(far, &cert, as_asked(settings)),
    );
    (Raw(near.unwrap()), far.unwrap())
}

pub(crate) fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
    frame[0] = kind;
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Raw<IO> {
    pub(crate) async fn try_send(&mut self, frames: &[u8]) -> std::io::Result<()> {
        self.0.write_all(frames).await?;
        self.0.flush().await
    }

    pub(crate) async fn send(&mut self, kind: u8, stream: u32, payload: &[u8]) {
        self.try_send(&frame(kind, stream, payload)).await.unwrap();
    }

    /// Asks for a connection as a client.
    pub(crate) async fn open(&mut self, stream: u32) {
        let open = Open {
            authority: "10.0.0.1:80".to_owned(),
            window: 1 << 20,
        };
        self.send(OPEN, stream, &open.encode_to_vec()).await;
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
        let head = timeout(Duration::from_secs(5), self.0.read_u64());
        let head = head.await.expect("a frame")?.to_be_bytes();
        let [kind, a, b, c, d, e, f, g] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await?;
        Ok(Frame {
            kind,
            stream: u32::from_be_bytes([d, e, f, g]),
            payload,
        })
    }

    /// The next frame of this kind; others are skipped.
    pub(crate) async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap();
            if frame.kind == kind {
                return frame;
            }
        }
    }
}
