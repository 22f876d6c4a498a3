//! A tunnel in the thin framing, which has no other carrier than TLS over TCP.

use std::sync::Arc;
use std::time::Duration;

use tls::{SystemClock, TlsOptions, WorkloadCert, ca::Authority};
use tunnel::client::{self, Driver};
use tunnel::server::{self, ServerTunnel};
use tunnel::{Settings, Tunnel};

use crate::support::tcp_pair;

pub(crate) type Server = ServerTunnel;

/// With the records that this program is about.
pub(crate) fn as_asked(settings: Settings) -> Settings {
    Settings {
        records: crate::RECORDS,
        ..settings
    }
}

/// Both ends of a tunnel, and what moves the bytes of the client's.
pub(crate) async fn ends(
    client: Settings,
    server: Settings,
) -> (Tunnel, Driver<tunnel::secure::ClientIo>, Server) {
    let authority = Authority::generate("test", Arc::new(SystemClock)).unwrap();
    let identity = "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap();
    let svid = authority
        .issue(&identity, Duration::from_secs(3600))
        .unwrap();
    let cert = WorkloadCert::new(&svid, &TlsOptions::default()).unwrap();
    let (near, far) = tcp_pair().await;
    let expected = [identity];
    let near = client::establish(near, &cert, &expected, as_asked(client));
    let far = server::accept(far, &cert, as_asked(server));
    let (near, far) = tokio::join!(near, far);
    let (tunnel, driver) = near.unwrap();
    assert!(tunnel.is_thin());
    (tunnel, driver, far.unwrap())
}
