//! A tunnel in HBONE's HTTP/2, in memory.

use tokio::io::DuplexStream;
use tunnel::client::Driver;
use tunnel::server::ServerTunnel;
use tunnel::{Settings, Tunnel};

pub(crate) type Server = ServerTunnel<DuplexStream>;

/// Both ends of a tunnel, and what moves the bytes of the client's.
pub(crate) async fn ends(
    client: Settings,
    server: Settings,
) -> (Tunnel, Driver<DuplexStream>, Server) {
    let (near, far) = tokio::io::duplex(256 << 10);
    let near = tunnel::client::handshake(near, None, client);
    let far = tunnel::server::handshake(far, None, server);
    let (near, far) = tokio::join!(near, far);
    let (tunnel, driver) = near.unwrap();
    assert!(!tunnel.is_thin());
    (tunnel, driver, far.unwrap())
}
