//! Connections that a captured pod takes as a waypoint: handed to it over the pod's own loopback, behind a header that
//! says who calls.
//!
//! Only who is inside of the pod's network namespace reaches that port, and of the mesh nobody but its agent is, so the
//! waypoint can believe what the header says.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use model::{
    Identity, MeshState, Reason, Workload, outbound::is_waypoint_for, workload::ApplicationProtocol,
};
use proto::proxy_protocol::Header;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::carry::outbound::own_workload;
use crate::{
    pod::{Pod, sock},
    telemetry::record::Refusal,
};

/// The port on which the pod takes connections for a destination that is not its own, if it is the waypoint for that.
pub(super) fn port(state: &MeshState, pod: &Pod, target: SocketAddr) -> Option<u16> {
    let workload = state.workload(pod.workload.as_ref())?;
    let tunnel = workload.application_tunnel?;
    let speaks = tunnel.protocol == ApplicationProtocol::Proxy;
    tunnel
        .port
        .filter(|_| speaks && is_waypoint_for(state, workload, target))
}

/// Lets a client through to the waypoint that has shown who it is: about everything else the waypoint decides.
pub(super) fn admit<'s>(
    state: &'s MeshState,
    pod: &Pod,
    client: Option<&Identity>,
) -> Result<&'s Workload, Refusal> {
    let workload = own_workload(state, pod)?;
    if client.is_none() {
        return Err(Refusal {
            reason: Reason::PolicyDeny,
            text: "a waypoint takes connections from clients with an identity only".to_owned(),
        });
    }
    Ok(workload)
}

/// Connects to the waypoint and tells it who calls.
pub(super) async fn hand_over(
    pod: &Pod,
    port: u16,
    header: &Header,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let mut stream = sock::dial(&pod.netns, to, timeout).await?;
    stream.write_all(&header.to_bytes()).await?;
    Ok(stream)
}
