//! Connections that a captured pod takes as a waypoint: handed to it over the pod's own loopback, behind a header that
//! says who calls.
//!
//! Only who is inside of the pod's network namespace reaches that port, and of the mesh nobody but its agent is, so the
//! waypoint can believe what the header says.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use model::{
    Identity, MeshState, Reason, Workload,
    outbound::{Route, is_waypoint_for, is_waypoint_port},
};
use proto::proxy_protocol::Header;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::carry::outbound::own_workload;
use crate::{
    direct::loopback_port,
    pod::{Pod, sock},
    telemetry::record::Refusal,
};

/// The port on which the pod takes connections for a destination that is not its own, if it is the waypoint for that.
pub(super) fn port(state: &MeshState, pod: &Pod, target: SocketAddr) -> Option<u16> {
    let workload = state.workload(pod.workload.as_ref())?;
    loopback_port(workload).filter(|_| is_waypoint_for(state, workload, target))
}

/// Why nobody is let through to a port of the pod, where it is a waypoint that takes connections there that the kernel leads
/// to it: it would believe of such a connection what its address and port say.
pub(super) fn guarded(state: &MeshState, pod: &Pod, targets: [SocketAddr; 2]) -> Option<Refusal> {
    let port = targets.map(|target| target.port());
    let port = port.into_iter().find(|port| is_waypoint_port(*port))?;
    // Who is not known may be one.
    let workload = state.workload(pod.workload.as_ref());
    let guarded = workload.is_none_or(|workload| loopback_port(workload).is_some());
    guarded.then(|| Refusal {
        reason: Reason::WaypointPort,
        text: format!(
            "port {port} of a waypoint is for connections to the services behind it, by their addresses"
        ),
    })
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

/// What is told of a way that could not be gone: that the waypoint does not take the connection, where it is one. What
/// concerns the client or who is at the other end keeps its own word.
pub(super) fn named(refusal: Refusal, route: &Route) -> Refusal {
    let Some(waypoint) = &route.waypoint else {
        return refusal;
    };
    let is_unreachable = matches!(
        refusal.reason,
        Reason::ApplicationRefused
            | Reason::ApplicationTimeout
            | Reason::ApplicationUnreachable
            | Reason::ConnectionRefused
            | Reason::ConnectTimeout
            | Reason::Unreachable
            | Reason::ConnectFailed
            | Reason::HandshakeTimeout
            | Reason::H2HandshakeFailed
            | Reason::TunnelFailed
    );
    if !is_unreachable {
        return refusal;
    }
    Refusal {
        reason: Reason::WaypointUnreachable,
        text: format!(
            "waypoint {waypoint} does not take it ({}): {}",
            refusal.reason, refusal.text
        ),
    }
}

/// What is told where the waypoint of this pod does not take what its agent hands to it.
pub(super) fn down(pod: &Pod, port: u16, error: &io::Error) -> Refusal {
    Refusal {
        reason: Reason::WaypointUnreachable,
        text: format!(
            "the waypoint in pod {} does not take connections on port {port} of its loopback: {error}",
            pod.name
        ),
    }
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

#[cfg(test)]
mod tests {
    use model::{
        GatewayAddress, Reason, ServiceKey,
        address::GatewayDestination,
        outbound::{HBONE_PORT, Route, RouteKind},
    };

    use super::named;
    use crate::telemetry::record::Refusal;

    #[test]
    fn only_what_the_waypoint_did_is_called_unreachable() {
        let waypoint = GatewayAddress {
            destination: GatewayDestination::Hostname(ServiceKey::new("shop", "waypoint")),
            hbone_port: HBONE_PORT,
        };
        let route = |waypoint| Route {
            kind: RouteKind::Plain {
                dial: ([10, 0, 0, 1], 80).into(),
            },
            destination: None,
            service: None,
            waypoint,
        };
        let of = |reason, waypoint| {
            let text = "why".to_owned();
            named(Refusal { reason, text }, &route(waypoint))
        };
        let refused = of(Reason::ApplicationRefused, Some(waypoint.clone()));
        assert_eq!(refused.reason, Reason::WaypointUnreachable);
        assert!(
            refused.text.contains("application_refused"),
            "{}",
            refused.text
        );
        for reason in [Reason::CertificateMissing, Reason::DeniedByPeer] {
            assert_eq!(of(reason, Some(waypoint.clone())).reason, reason);
        }
        let without = of(Reason::ApplicationRefused, None);
        assert_eq!(without.reason, Reason::ApplicationRefused);
    }
}
