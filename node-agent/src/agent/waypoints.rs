//! Conversations with the waypoints of this node: they hear who calls them by the kernel's direct path, and say where they
//! take such connections.
//!
//! A waypoint that does not know this conversation closes it. Then the agent carries what goes to it.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use proto::{
    convert::doors::{self, Doors},
    proxy_protocol::CONVERSATION,
};
use runtime::frames::Frames;
use tokio::{io::AsyncWriteExt as _, sync::watch};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    direct::{Callers, DirectHandle, Said, Wanted},
    host::describe,
    pod::{Pod, sock},
};

/// Has a conversation with each waypoint of the node as long as it is one.
pub(super) async fn converse(direct: DirectHandle) {
    let mut wanted = direct.waypoints();
    let mut open: BTreeMap<(u32, u16), AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        let now = wanted.borrow_and_update().waypoints.clone();
        let is_wanted = |key: &(u32, u16)| now.iter().any(|(pod, port)| *key == (pod.id, *port));
        open.retain(|key, _| {
            let stays = is_wanted(key);
            if !stays {
                direct.waypoint_said(key.0, None);
            }
            stays
        });
        for (pod, port) in now {
            open.entry((pod.id, port)).or_insert_with(|| {
                let keeping = keep(direct.clone(), pod, port);
                AbortOnDropHandle::new(tokio::task::spawn_local(keeping))
            });
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// Begins the conversation anew when it has ended.
async fn keep(direct: DirectHandle, pod: Arc<Pod>, port: u16) {
    let mut pause = SHORTEST_PAUSE;
    loop {
        let mut has_spoken = false;
        let end = with(&direct, &pod, port, &mut has_spoken).await;
        direct.waypoint_said(pod.id, None);
        if let Err(error) = end {
            tracing::debug!(pod = %pod.name, error = describe(&error), "no conversation with the waypoint");
        }
        if has_spoken {
            pause = SHORTEST_PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One conversation, to its end.
async fn with(
    direct: &DirectHandle,
    pod: &Pod,
    port: u16,
    has_spoken: &mut bool,
) -> io::Result<()> {
    let mut wanted = direct.waypoints();
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let mut stream = sock::dial(&pod.netns, to, DIAL_WITHIN).await?;
    stream.write_all(CONVERSATION).await?;
    let mut frames = Frames::new(doors::LONGEST);
    let mut told = Told::default();
    loop {
        if let Some(message) = told.next(&mut wanted) {
            frames.send(&mut stream, message).await?;
        }
        let message = tokio::select! {
            // The thread that says what is wanted ends with the agent.
            changed = wanted.changed() => match changed {
                Ok(()) => continue,
                Err(_ended) => return Ok(()),
            },
            message = frames.next(&mut stream) => message?,
        };
        let Some(message) = message else {
            return Ok(());
        };
        let doors = Doors::read(&message).map_err(io::Error::other)?;
        let callers = told.known(doors.callers)?;
        if !*has_spoken {
            *has_spoken = true;
            tracing::info!(pod = %pod.name, doors = doors.doors.len(), "the kernel leads pods of this node to the waypoint");
        }
        let doors = doors.doors;
        direct.waypoint_said(pod.id, Some(Said { callers, doors }));
    }
}

/// What a waypoint was told and may still go by.
#[derive(Default)]
struct Told {
    version: u64,
    sent: VecDeque<(u64, Arc<Callers>)>,
}

impl Told {
    /// What it is to be told now, if that is new.
    fn next(&mut self, wanted: &mut watch::Receiver<Wanted>) -> Option<Vec<u8>> {
        let callers = Arc::clone(&wanted.borrow_and_update().callers);
        if self.sent.back().is_some_and(|(_, last)| *last == callers) {
            return None;
        }
        self.version += 1;
        let message = doors::Callers {
            version: self.version,
            callers: (*callers).clone(),
        };
        self.sent.push_back((self.version, callers));
        Some(message.to_bytes())
    }

    /// Whom it knows that goes by this version.
    fn known(&mut self, version: u64) -> io::Result<Arc<Callers>> {
        if version == 0 {
            return Ok(Arc::default());
        }
        // What came before is not gone by any more.
        while self.sent.front().is_some_and(|(sent, _)| *sent < version) {
            self.sent.pop_front();
        }
        match self.sent.front() {
            Some((sent, callers)) if *sent == version => Ok(Arc::clone(callers)),
            _ => Err(io::Error::other("it goes by what it was not told")),
        }
    }
}

const DIAL_WITHIN: Duration = Duration::from_secs(2);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// A waypoint that starts is found within this time; until then the agent carries.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_known_as_what_was_sent_with_it() {
        let (wanting, mut wanted) = watch::channel(Wanted::default());
        let mut told = Told::default();
        assert!(
            told.next(&mut wanted).is_some(),
            "also that there is nobody"
        );
        assert!(told.next(&mut wanted).is_none(), "nothing new");
        let one: Callers = [(
            [10, 0, 0, 1].into(),
            "spiffe://c/ns/shop/sa/cart".parse().unwrap(),
        )]
        .into();
        let callers = Arc::new(one.clone());
        wanting.send_replace(Wanted {
            callers,
            ..Wanted::default()
        });
        assert!(told.next(&mut wanted).is_some());
        assert_eq!(*told.known(0).unwrap(), Callers::default());
        assert_eq!(*told.known(1).unwrap(), Callers::default());
        assert_eq!(*told.known(2).unwrap(), one);
        assert!(told.known(1).is_err(), "it does not go back");
        assert!(told.known(3).is_err(), "it was not told");
    }
}
