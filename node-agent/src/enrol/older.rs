//! Connections that are older than their pod's capture: found when it is captured. Those that are established go
//! on, are listed and asked about; a SYN that has not been answered is given a moment, and sent no second time.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{capture::Context, entry::Entry};
use crate::host::describe;
use crate::{
    host::sock_diag::{Ender, TCP_SYN_SENT},
    pod::{
        Pod,
        older::{self, Older},
    },
    telemetry::record::Direction,
};

/// How long an answer to a SYN that left before capture is waited for: less than it takes until the kernel
/// sends a SYN again (1 s, RFC 6298), more than most networks need.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);

/// Connections that a pod was opening when it was captured, and when to look at them again.
pub(super) struct Opening {
    sockets: Vec<Older>,
    look_at: Instant,
}

impl Opening {
    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.look_at
    }
}

/// Finds the older connections of a pod that has been captured just now, before anybody hears of it.
pub(super) fn find(context: &Context<'_>, entry: &mut Entry, pod: &Arc<Pod>) -> io::Result<()> {
    let own = &pod.addresses;
    let all = entry.netns.run(|| older::list(own))??;
    let (opening, open): (Vec<Older>, Vec<Older>) = all
        .into_iter()
        .partition(|older| older.found.state == TCP_SYN_SENT);
    let is_due = |older: &Older| matches!(older.found.sends_again, Some(at) if at <= ANSWER_WITHIN);
    let (due, opening): (Vec<Older>, Vec<Older>) = opening.into_iter().partition(is_due);
    list(context, entry, &opening);
    list(context, entry, &open);
    let ended = end(entry, &due)?;
    context.direct.older(Arc::clone(pod), open, ended);
    entry.opening = (!opening.is_empty()).then(|| Opening {
        sockets: opening,
        look_at: Instant::now() + ANSWER_WITHIN,
    });
    Ok(())
}

/// Finds the connections that an earlier agent found, as far as they are still there.
pub(super) fn find_again(
    context: &Context<'_>,
    entry: &mut Entry,
    pod: &Arc<Pod>,
) -> io::Result<()> {
    let known = context.kernel.older().of(entry.id);
    if known.is_empty() {
        return Ok(());
    }
    let own = &pod.addresses;
    let mut there = entry.netns.run(|| older::list(own))??;
    there.retain(|older| known.contains(&older.flow()));
    context.direct.older(Arc::clone(pod), there, Vec::new());
    Ok(())
}

/// Looks again at what the pod was opening: what is established by now is as old as the rest, what still waits
/// for an answer is ended. A socket that has sent no SYN is asked about when it does.
pub(super) fn look_again(context: &Context<'_>, entry: &mut Entry) {
    let (Some(opening), Some(pod)) = (entry.opening.take(), entry.pod.clone()) else {
        return;
    };
    if let Err(error) = settle(context, entry, &pod, &opening.sockets) {
        tracing::warn!(pod = %entry.sandbox.pod, %error, "cannot look at the connections that the pod was opening");
        entry.opening = Some(Opening {
            look_at: Instant::now() + ANSWER_WITHIN,
            ..opening
        });
    }
}

fn settle(
    context: &Context<'_>,
    entry: &Entry,
    pod: &Arc<Pod>,
    opening: &[Older],
) -> io::Result<()> {
    let own = &pod.addresses;
    let now = entry.netns.run(|| older::list(own))??;
    let (mut open, mut waiting) = (Vec::new(), Vec::new());
    for before in opening {
        match now.iter().find(|older| older.found.is_same(&before.found)) {
            Some(older) if older.found.state != TCP_SYN_SENT => open.push(Older {
                direction: Direction::Outbound,
                ..older.clone()
            }),
            Some(older) if older.found.sends_again.is_some() => waiting.push(older.clone()),
            // Deferred still; marked since; or gone.
            Some(_) | None => context.kernel.older().remove(before.flow()),
        }
    }
    let ended = end(entry, &waiting)?;
    for older in &waiting {
        context.kernel.older().remove(older.flow());
    }
    context.direct.older(Arc::clone(pod), open, ended);
    Ok(())
}

/// Lists connections in the kernel.
fn list(context: &Context<'_>, entry: &Entry, connections: &[Older]) {
    let mut kernel = context.kernel.older();
    for older in connections {
        if let Err(error) = kernel.add(entry.id, older.flow()) {
            tracing::warn!(pod = %entry.sandbox.pod, remote = %older.found.remote, error = describe(&error), "an older connection of the pod cannot be listed");
            return;
        }
    }
}

/// Ends connections that the pod is opening. Gives those that were there still.
fn end(entry: &Entry, connections: &[Older]) -> io::Result<Vec<(SocketAddr, SocketAddr)>> {
    if connections.is_empty() {
        return Ok(Vec::new());
    }
    let end = || {
        let mut ender = Ender::new()?;
        let mut ended = Vec::new();
        for found in connections.iter().map(|older| &older.found) {
            if older::end(&mut ender, found)? {
                ended.push((found.local, found.remote));
            }
        }
        io::Result::Ok(ended)
    };
    entry.netns.run(end)?
}
