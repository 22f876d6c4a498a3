//! Connections that the kernel leads here from pods of the same node, past the agent.
//!
//! The agent has a conversation with the waypoint ([`converse`]). It says which pod has which address, and hears which of the
//! waypoint's ports, its doors, is for which address and port of a service. At a door the client's address says who calls and
//! the port says what was dialled: the kernel lets nobody else through, and leads a pod there only after every worker knows
//! it. When the conversation ends, the doors are closed; the agent hands connections over as if there were none.

mod plan;
mod talk;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use model::Reason;
use proto::proxy_protocol::Header;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use self::plan::Plan;
pub(crate) use self::plan::{Doors, KnownCallers};
pub(crate) use self::talk::converse;
use crate::accept;
use crate::worker::Worker;

/// Keeps open on this worker what is planned, until the worker takes no more connections.
pub(crate) async fn keep(worker: Rc<Worker>) {
    let doors = Arc::clone(&worker.shared.doors);
    let mut plans = doors.plans();
    let applied = doors.join();
    let mut open: BTreeMap<u16, Door> = BTreeMap::new();
    loop {
        let plan = Arc::clone(&plans.borrow_and_update());
        // Who waits was let in while the earlier callers counted: an address may be another pod's by now.
        for door in open.values() {
            door.take_waiting(&worker);
        }
        worker.callers.replace(Arc::clone(&plan.callers));
        let failed = follow(&worker, &plan, &mut open);
        applied.follows(plan.version, failed);
        tokio::select! {
            changed = plans.changed() => if changed.is_err() {
                return;
            },
            () = worker.shared.closed() => {
                for door in open.values() {
                    door.take_waiting(&worker);
                }
                return;
            }
        }
    }
}

/// Opens and closes what is to be; gives the ports that cannot be opened.
fn follow(worker: &Rc<Worker>, plan: &Plan, open: &mut BTreeMap<u16, Door>) -> Vec<u16> {
    open.retain(|port, door| plan.doors.get(port) == Some(&door.service));
    let mut failed = Vec::new();
    for (port, service) in &plan.doors {
        if open.contains_key(port) {
            continue;
        }
        match Door::open(worker, *port, *service) {
            Ok(door) => {
                open.insert(*port, door);
            }
            Err(error) => {
                tracing::debug!(port, %error, "cannot listen for direct connections");
                failed.push(*port);
            }
        }
    }
    failed
}

/// A port on which connections to one address and port of a service are taken.
struct Door {
    listener: Rc<TcpListener>,
    service: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

impl Door {
    fn open(worker: &Rc<Worker>, port: u16, service: SocketAddr) -> io::Result<Self> {
        let all = match service {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        };
        let listener = Rc::new(TcpListener::from_std(accept::listen(all)?)?);
        let accepting = accept_at(Rc::clone(worker), Rc::clone(&listener), service);
        Ok(Self {
            listener,
            service,
            _accepting: AbortOnDropHandle::new(tokio::task::spawn_local(accepting)),
        })
    }

    /// Takes the connections that are established and were not taken yet. The kernel is asked: the runtime may not have
    /// heard of them.
    fn take_waiting(&self, worker: &Rc<Worker>) {
        let listener = SockRef::from(&*self.listener);
        while let Ok((stream, client)) = listener.accept() {
            let taken = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream.into()));
            if let (Ok(stream), Some(client)) = (taken, client.as_socket()) {
                take(worker, stream, client, self.service);
            }
        }
    }
}

async fn accept_at(worker: Rc<Worker>, listener: Rc<TcpListener>, service: SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => take(&worker, stream, client, service),
            Err(error) => {
                worker.shared.telemetry.recorder.metrics.accept_failed();
                tracing::warn!(%error, "cannot accept a direct connection");
                tokio::time::sleep(accept::PAUSE).await;
            }
        }
    }
}

/// Serves a connection to a service, if it is known who has the client's address.
fn take(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr, service: SocketAddr) {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    // This pod has an identity too; what is made to dial itself does not call by it.
    let own = stream.local_addr().map(|own| own.ip().to_canonical());
    let known = worker.callers.borrow().get(&client.ip()).cloned();
    let identity = known.filter(|_| own.is_ok_and(|own| own != client.ip()));
    let Some(identity) = identity else {
        tracing::debug!(%client, dialled = %service, "a direct connection of nobody that the agent has told of");
        return worker.shared.telemetry.refuse(Reason::CallerUnknown);
    };
    let header = Header {
        client,
        dialled: service,
        identity: Some(identity),
        service: None,
    };
    let serving = accept::proceed(Rc::clone(worker), stream, header, BytesMut::new());
    let drain = worker.shared.drain.clone();
    drain.spawn_local("connection", serving);
}
