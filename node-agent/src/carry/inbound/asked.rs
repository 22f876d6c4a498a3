//! What a client asks of a pod, and what shows who asks.

use std::{net::SocketAddr, sync::Arc};

use model::{Identity, MeshState, Security, Workload};
use proto::proxy_protocol::Header;
use telemetry::{Party, PartyLabels, Reporter, TcpLabels, Text};
use tunnel::server::Incoming;

use super::reserved;
use crate::{
    carry::waypoint,
    host::canonical,
    pod::Pod,
    telemetry::record::{Authority, ConnectionEnd, Description, Direction},
};

/// What a client asks of the pod.
pub(super) struct Asked {
    pub(super) client: SocketAddr,
    pub(super) keep_port: bool,
    pub(super) target: SocketAddr,
    /// What that is inside the pod, which may translate addresses.
    pub(super) application: SocketAddr,
    pub(super) source: Option<Identity>,
    pub(super) proof: Proof,
    pub(super) service: Option<String>,
    /// The pod is the waypoint of what is asked for, and takes connections with a header on this port of its loopback.
    pub(super) handed: Option<u16>,
}

/// What shows who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// Nothing: policy sees no identity.
    Nothing,
    /// The certificate of a tunnel.
    Certificate,
    /// The kernel's note of a socket of this node.
    Socket,
}

impl Proof {
    pub(super) fn security(self) -> Security {
        match self {
            Self::Nothing => Security::None,
            Self::Certificate => Security::MutualTls,
            Self::Socket => Security::SameNode,
        }
    }
}

impl Asked {
    /// What somebody asks who has not shown who it is.
    pub(super) fn by_nobody(client: SocketAddr, target: SocketAddr) -> Self {
        Self {
            client,
            keep_port: false,
            target,
            application: target,
            source: None,
            proof: Proof::Nothing,
            service: None,
            handed: None,
        }
    }

    /// What a waypoint is told.
    pub(super) fn header(&self) -> Header {
        Header {
            client: self.client,
            dialled: self.target,
            identity: self.source.clone(),
            service: self.service.clone(),
        }
    }

    pub(super) fn authority(&self) -> Authority {
        Authority {
            source: self.source.clone(),
            source_ip: self.client.ip(),
            destination: self.target,
        }
    }
}

/// Reads a request: its target must be the pod that the tunnel ends in, whatever the peer says.
pub(super) fn asked(
    state: &MeshState,
    pod: &Pod,
    tunnel_peer: SocketAddr,
    source: Option<Identity>,
    incoming: &Incoming,
) -> Result<Asked, String> {
    let target = incoming.authority.address().map(canonical).ok_or_else(|| {
        "the target must be the pod's address and port; host names are for gateways".to_owned()
    })?;
    let handed = if pod.has_address(target.ip()) {
        None
    } else {
        let port = waypoint::port(state, pod, target)
            .ok_or_else(|| format!("{} is not an address of pod {}", target.ip(), pod.name))?;
        Some(port)
    };
    if let Some(text) = reserved(target) {
        return Err(text);
    }
    // The address of the client is the tunnel's own peer, which is authenticated; only the port is
    // taken from what the peer says, so that the application sees the real one.
    let said = incoming
        .forwarded
        .as_ref()
        .and_then(tunnel::forwarded::Forwarded::client_address)
        .map(canonical);
    let said = said.filter(|said| said.ip() == tunnel_peer.ip() && said.port() != 0);
    let service = incoming
        .forwarded
        .as_ref()
        .and_then(|forwarded| forwarded.host.clone());
    Ok(Asked {
        client: said.unwrap_or(tunnel_peer),
        keep_port: said.is_some(),
        target,
        application: target,
        proof: source
            .as_ref()
            .map_or(Proof::Nothing, |_| Proof::Certificate),
        source,
        service,
        handed,
    })
}

/// The connection for the log and the page, and its labels.
pub(super) fn describe(
    pod: &Pod,
    asked: &Asked,
    from: Option<&Workload>,
    own: Option<&Workload>,
    service: Option<&model::Service>,
) -> (Description, TcpLabels) {
    let security = asked.proof.security();
    let description = Description {
        direction: Direction::Inbound,
        pod: pod.name.to_string(),
        source: ConnectionEnd {
            addr: Some(asked.client),
            workload: from.map(|w| Arc::clone(&w.name)),
            namespace: from.map(|w| Arc::clone(&w.namespace)),
            identity: asked.source.as_ref().map(Identity::to_string),
        },
        destination: ConnectionEnd {
            addr: Some(asked.target),
            workload: own.map(|w| Arc::clone(&w.name)),
            namespace: own.map(|w| Arc::clone(&w.namespace)),
            identity: Some(pod.identity.to_string()),
        },
        service: service.map(|service| service.hostname.to_string()),
        security,
        tunnel: None,
    };
    let proved = asked.source.as_ref();
    let labels = PartyLabels::new(
        Reporter::Destination,
        Party::new(from, Text::principal(proved)),
        Party::new(own, Text::principal(proved.map(|_| &pod.identity))),
        service.into(),
        security,
    );
    (description, labels.into())
}
