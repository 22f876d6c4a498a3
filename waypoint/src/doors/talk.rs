//! The conversation with the agent of the node.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use proto::convert::doors::{self, Callers, Doors};
use runtime::frames::Frames;
use tokio::net::TcpStream;

use super::plan::KnownCallers;
use crate::active::Active;
use crate::worker::Worker;

/// Has the conversation that an agent has begun; of two the later one counts. `before` has been read of it already.
pub(crate) async fn converse(worker: Rc<Worker>, mut stream: TcpStream, before: BytesMut) {
    let doors = &worker.shared.doors;
    let own = doors.begin();
    let end = tokio::select! {
        end = talk(&worker, own, &mut stream, before) => end,
        () = doors.superseded(own) => Ok(()),
    };
    doors.close(own);
    if let Err(error) = end {
        tracing::warn!(%error, "the agent of the node is not understood");
    }
}

async fn talk(
    worker: &Rc<Worker>,
    own: u64,
    stream: &mut TcpStream,
    before: BytesMut,
) -> io::Result<()> {
    let shared = &worker.shared;
    let mut frames = Frames::after(before, doors::LONGEST);
    let mut changes = shared.newest.changes();
    let (mut version, mut callers) = (0, KnownCallers::default());
    let mut told = None;
    loop {
        changes.mark_unchanged();
        let services = services(&shared.newest.load());
        let open = shared.doors.open(own, &callers, &services).await;
        let draining = shared.drain.is_draining();
        let says = Doors {
            callers: version,
            // Nobody is led here any more; who is on the way still finds its door open.
            doors: if draining { Default::default() } else { open },
        };
        if told.as_ref() != Some(&says) {
            frames.send(stream, says.to_bytes()).await?;
            told = Some(says);
        }
        tokio::select! {
            message = frames.next(stream) => {
                let Some(message) = message? else {
                    return Ok(());
                };
                let said = Callers::read(&message).map_err(io::Error::other)?;
                if said.version <= version {
                    return Err(io::Error::other("a version of the callers that does not grow"));
                }
                version = said.version;
                callers = Arc::new(said.callers);
            }
            changed = changes.changed() => if changed.is_err() {
                return Ok(());
            },
            () = shared.drain.draining(), if !draining => {}
        }
    }
}

/// The addresses and ports that clients may dial here.
fn services(active: &Active) -> BTreeSet<SocketAddr> {
    let attached = active.l7.services().filter(|service| service.attached);
    let all = attached.flat_map(|service| {
        let addresses = service.addresses.iter();
        addresses.flat_map(|address| {
            let ports = service.ports.iter();
            ports.map(|port| SocketAddr::new(address.to_canonical(), port.port))
        })
    });
    all.collect()
}
