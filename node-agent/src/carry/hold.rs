//! Connections that pods of the node open and whose SYNs wait here: each has its other half opened in its turn. Then
//! the SYN is put back, and the connection accepted with its other half ready, or its client is told why not.

#![expect(unsafe_code, reason = "descriptors are registered by promise")]

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use abi::{HeldKey, PUT_BACK};
use runtime::threads;
use tokio::io::{Interest, unix::AsyncFd};
use tokio_util::sync::CancellationToken;

use crate::{
    bpf::{HeldSyns, SynBuffer},
    carry::{
        openings::{Openings, WAITING},
        outbound::{self, Connected},
        syn::{self, Answer, Syn},
        thread::WorkerHandle,
        worker::Worker,
    },
    pod::budget::{Full, Permit},
    telemetry::record::Direction,
};

/// How often it is looked whether the client of a connection that is being opened still wants it.
const LOOK: Duration = Duration::from_millis(250);
/// How long what has been opened waits for its connection to be accepted, which it is at once unless its client
/// has gone.
const KEPT: Duration = Duration::from_secs(5);

/// What a worker holds.
pub(crate) struct Opener {
    syns: Arc<HeldSyns>,
    openings: RefCell<Openings<SocketAddr, Syn>>,
    opened: RefCell<HashMap<HeldKey, Opened>>,
    /// Ends the reading of a processor's earlier buffer.
    reading: RefCell<HashMap<u32, CancellationToken>>,
}

/// The other half of a connection, and the room for both.
pub(crate) struct Opened {
    pub(crate) connected: Box<Connected>,
    pub(crate) permit: Permit,
    since: Instant,
}

/// Has the SYNs that the kernel half holds come to these workers, each to the one that would accept its connection.
pub(crate) fn receive(syns: &HeldSyns, workers: &[WorkerHandle]) {
    let buffers = match syns.receive() {
        Ok(buffers) => buffers,
        Err(error) => {
            tracing::error!(%error, "cannot receive SYNs: connections are accepted before the far side is known");
            return;
        }
    };
    for buffer in buffers {
        let cpu = usize::try_from(buffer.cpu()).unwrap_or(0);
        // As the kernel half picks the worker of a processor.
        if let Some(worker) = cpu
            .checked_rem(workers.len())
            .and_then(|index| workers.get(index))
        {
            worker.receive(buffer);
        }
    }
}

impl Opener {
    pub(crate) fn new(syns: Arc<HeldSyns>) -> Self {
        Self {
            syns,
            openings: RefCell::default(),
            opened: RefCell::default(),
            reading: RefCell::default(),
        }
    }

    /// The other half of a connection that is accepted, if it has been opened.
    pub(crate) fn take(&self, pod: u32, client: SocketAddr, target: SocketAddr) -> Option<Opened> {
        let key = syn::key(pod, client, target);
        let opened = self.opened.borrow_mut().remove(&key)?;
        self.syns.forget(key);
        Some(opened)
    }

    /// Closes what nobody came for.
    pub(crate) fn tidy(&self) {
        let mut opened = self.opened.borrow_mut();
        let old: Vec<HeldKey> = opened
            .iter()
            .filter(|(_, opened)| opened.since.elapsed() >= KEPT)
            .map(|(key, _)| *key)
            .collect();
        for key in old {
            drop(opened.remove(&key));
            self.syns.forget(key);
        }
    }
}

impl Worker {
    /// Reads a processor's SYNs from now on, instead of those of its earlier buffer.
    pub(crate) fn receive(self: &Rc<Self>, buffer: SynBuffer) {
        let stop = CancellationToken::new();
        let before = self
            .opener
            .reading
            .borrow_mut()
            .insert(buffer.cpu(), stop.clone());
        if let Some(before) = before {
            before.cancel();
        }
        let reading = read(Rc::clone(self), buffer, stop);
        tokio::task::spawn_local(threads::task("syns", reading));
    }

    /// Has a connection wait for its turn.
    fn wait(self: &Rc<Self>, syn: Syn) {
        let Some(pod) = self.pod(syn.pod) else {
            // It has just been removed; when it asks again the kernel half knows that.
            return self.opener.syns.forget(syn.key());
        };
        let waits = self
            .opener
            .openings
            .borrow_mut()
            .wait(syn.pod, syn.target, syn);
        if let Err(syn) = waits {
            let full = Full::Opening { limit: WAITING };
            self.refuse_full(&pod, Direction::Outbound, (syn.client, syn.target), full);
            self.answer(&syn, Answer::Refused);
        }
    }

    /// Opens what may be opened.
    fn open_next(self: &Rc<Self>) {
        loop {
            let next = self.opener.openings.borrow_mut().next();
            let Some((_, _, syn)) = next else {
                return;
            };
            let worker = Rc::clone(self);
            self.serving.spawn_local(async move {
                let turn = Turn {
                    worker,
                    pod: syn.pod,
                    target: syn.target,
                };
                Box::pin(open(&turn.worker, syn)).await;
                let worker = Rc::clone(&turn.worker);
                drop(turn);
                worker.open_next();
            });
        }
    }

    /// Tells a client why it cannot have its connection.
    fn answer(&self, syn: &Syn, answer: Answer) {
        // It has gone, or another agent opens its connection by now.
        if !self.opener.syns.is_waiting(syn.key(), syn.attempt()) {
            return;
        }
        // Before the answer: its client may try again with the same port at once.
        self.opener.syns.forget(syn.key());
        let Some(packet) = syn.answer(answer) else {
            return;
        };
        if let Err(error) = self.send(syn, &packet, syn.client) {
            tracing::debug!(client = %syn.client, %error, "cannot answer a SYN");
        }
    }

    fn send(&self, syn: &Syn, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        let sockets = self.raw_sockets(syn.pod).ok_or(io::ErrorKind::NotFound)?;
        sockets.send(packet, to.ip(), syn.mark | PUT_BACK)
    }
}

/// A connection is being opened for as long as this lives.
struct Turn {
    worker: Rc<Worker>,
    pod: u32,
    target: SocketAddr,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let openings = &self.worker.opener.openings;
        openings.borrow_mut().done(self.pod, self.target);
    }
}

/// Reads SYNs until there are others to be read instead.
async fn read(worker: Rc<Worker>, buffer: SynBuffer, stop: CancellationToken) {
    // SAFETY: the buffer holds its descriptor open until it is dropped, and so do we.
    let events = unsafe { AsyncFd::register_with_interest(buffer, Interest::READABLE) };
    let mut events = match events {
        Ok(events) => events,
        Err(error) => {
            tracing::error!(
                error = crate::host::describe(&error),
                "cannot wait for SYNs"
            );
            return;
        }
    };
    loop {
        let ready = tokio::select! {
            ready = events.readable_mut() => ready,
            () = stop.cancelled() => return,
        };
        let Ok(mut ready) = ready else {
            return;
        };
        // Before it is read: what comes later makes it ready again.
        ready.clear_ready();
        let mut syns = Vec::new();
        ready
            .get_inner_mut()
            .read(|event| syns.extend(Syn::read(event)));
        for syn in syns {
            worker.wait(syn);
        }
        worker.open_next();
    }
}

/// Opens the other half of a connection and puts its SYN back, or answers it.
async fn open(worker: &Rc<Worker>, syn: Syn) {
    let key = syn.key();
    let Some(pod) = worker.pod(syn.pod) else {
        return worker.opener.syns.forget(key);
    };
    // It may have waited for long.
    if !worker.opener.syns.is_waiting(key, syn.attempt()) {
        return;
    }
    let ends = (syn.client, syn.target);
    let Ok(permit) = worker.admit(&pod, Direction::Outbound, ends) else {
        return worker.answer(&syn, Answer::Refused);
    };
    let drawn = syn.mark & abi::DRAWN != 0;
    let connecting = outbound::connect(worker, &pod, syn.client, syn.target, drawn);
    let connected = tokio::select! {
        connected = connecting => connected,
        () = given_up(&worker.opener.syns, key, syn.attempt()) => return,
    };
    match connected {
        Ok(connected) => put_back(
            worker,
            &syn,
            Opened {
                connected: Box::new(connected),
                permit,
                since: Instant::now(),
            },
        ),
        Err(failure) => {
            let answer = failure.answer;
            failure.tell(&worker.shared.recorder);
            worker.answer(&syn, answer);
        }
    }
}

fn put_back(worker: &Rc<Worker>, syn: &Syn, opened: Opened) {
    let key = syn.key();
    if !worker.opener.syns.is_waiting(key, syn.attempt()) {
        return;
    }
    let opener = &worker.opener;
    // An earlier one with the same ports has no client any more.
    drop(opener.opened.borrow_mut().insert(key, opened));
    if let Err(error) = worker.send(syn, &syn.again(), syn.target) {
        tracing::warn!(client = %syn.client, target = %syn.target, %error, "cannot put a SYN back; it is held when it is sent again");
        drop(opener.opened.borrow_mut().remove(&key));
        opener.syns.forget(key);
    }
}

/// Returns when nobody waits for the connection any more.
async fn given_up(syns: &HeldSyns, key: HeldKey, attempt: (u32, u32)) {
    loop {
        tokio::time::sleep(LOOK).await;
        if !syns.is_waiting(key, attempt) {
            return;
        }
    }
}
