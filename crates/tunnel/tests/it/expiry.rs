//! A tunnel takes no stream after one of its certificates has ended, whichever end's clock says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::support::{copying, echo, local, read_exactly, request, tcp_pair, until};
use model::Identity;
use tls::ca::Authority;
use tls::{Clock, SystemClock, TlsOptions, WorkloadCert};
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_local;
use tunnel::client::{self, OpenError};
use tunnel::server::{self, NextError, ServerTunnel};
use tunnel::{Settings, Tunnel};

const HOUR: Duration = Duration::from_secs(3600);

/// A clock that can be put forward.
#[derive(Clone, Debug, Default)]
struct Hand(Arc<AtomicU64>);

impl Hand {
    fn put_forward(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::Relaxed);
    }
}

impl Clock for Hand {
    fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// A tunnel between two whose certificates live for so long, and the clocks of both.
async fn ends(thin: bool, lives: [Duration; 2]) -> ([Hand; 2], Tunnel, ServerTunnel) {
    let authority = Authority::generate("test", Arc::new(SystemClock)).unwrap();
    let identity: Identity = "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap();
    let clocks = [Hand::default(), Hand::default()];
    let [near_cert, far_cert] = [0, 1].map(|side| {
        let svid = authority.issue(&identity, lives[side]).unwrap();
        let options = TlsOptions {
            clock: Arc::new(clocks[side].clone()),
            ..TlsOptions::default()
        };
        WorkloadCert::new(&svid, &options).unwrap()
    });
    let settings = Settings {
        thin,
        ..Settings::default()
    };
    let (near, far) = tcp_pair().await;
    let expected = [identity];
    let (tunnel, server) = tokio::join!(
        client::connect(near, &near_cert, &expected, settings),
        server::accept(far, &far_cert, settings),
    );
    let (tunnel, server) = (tunnel.unwrap(), server.unwrap());
    assert_eq!(tunnel.is_thin(), thin);
    (clocks, tunnel, server)
}

/// Serves with an echo, and passes on what else happens.
fn serve(mut server: ServerTunnel) -> tokio::sync::mpsc::UnboundedReceiver<NextError> {
    let (errors, happened) = tokio::sync::mpsc::unbounded_channel();
    spawn_local(async move {
        while let Some(next) = server.next().await {
            match next {
                Ok(incoming) => drop(spawn_local(echo(incoming))),
                Err(error) => errors.send(error).unwrap(),
            }
        }
    });
    happened
}

/// Every framing, with either certificate as the one that ends.
fn cases() -> impl Iterator<Item = (bool, [Duration; 2])> {
    let lives = [[HOUR, 24 * HOUR], [24 * HOUR, HOUR]];
    [true, false]
        .into_iter()
        .flat_map(move |thin| lives.map(|lives| (thin, lives)))
}

#[test]
fn a_client_opens_nothing_in_a_tunnel_after_the_end_of_a_certificate() {
    for (thin, lives) in cases() {
        local(async {
            let ([clock, _], tunnel, server) = ends(thin, lives).await;
            let mut happened = serve(server);
            let stream = tunnel.open(&request()).await.unwrap();
            let (mut app, leg) = tcp_pair().await;
            let _copy = copying(leg, stream);
            clock.put_forward(HOUR - Duration::from_secs(60));
            assert!(!tunnel.is_closed());
            clock.put_forward(Duration::from_secs(61));
            assert!(tunnel.is_closed());
            let refused = tunnel.open(&request()).await.unwrap_err();
            assert!(matches!(refused, OpenError::Retired), "{refused}");
            app.write_all(b"still here").await.unwrap();
            assert_eq!(read_exactly(&mut app, 10).await, b"still here");
            assert!(happened.try_recv().is_err());
        });
    }
}

#[test]
fn a_server_takes_nothing_in_a_tunnel_after_the_end_of_a_certificate() {
    for (thin, lives) in cases() {
        local(async {
            let ([_, clock], tunnel, server) = ends(thin, lives).await;
            let mut happened = serve(server);
            let stream = tunnel.open(&request()).await.unwrap();
            let (mut app, leg) = tcp_pair().await;
            let _copy = copying(leg, stream);
            clock.put_forward(HOUR - Duration::from_secs(60));
            drop(tunnel.open(&request()).await.unwrap());
            clock.put_forward(Duration::from_secs(61));
            let refused = tunnel.open(&request()).await.unwrap_err();
            assert!(matches!(refused, OpenError::Unprocessed(_)), "{refused}");
            let told = happened.recv().await;
            assert!(matches!(told, Some(NextError::Expired)), "{told:?}");
            until("the client is asked for another", || tunnel.is_closed()).await;
            app.write_all(b"still here").await.unwrap();
            assert_eq!(read_exactly(&mut app, 10).await, b"still here");
        });
    }
}
