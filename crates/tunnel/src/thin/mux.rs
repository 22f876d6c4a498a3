//! What the driver of a tunnel and its streams share: the table of streams and what is to be said.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use h2::Reason;
use prost::Message;

use super::frame::{HEAD, Kind, head};
use super::message::{Answer, Open};
use super::stream::{Gone, Stream, ThinStream};
use crate::client::Lost;
use crate::secure::FLIGHT;

/// Bytes that may wait to be encrypted before streams wait instead.
const ENOUGH: usize = FLIGHT;

/// Bytes that are read from an application at once, to which the head comes.
pub(super) const READ: usize = ENOUGH - HEAD;

/// Bytes that wait to be encrypted although streams wait: answers to a peer that asks and asks and
/// does not read.
const FLOOD: usize = 1 << 20;

/// Buffers that a thread keeps for the tunnels that have something to say.
const SPARE: usize = 2;

thread_local! {
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// See the module. It belongs to one thread.
pub(crate) struct Mux {
    out: RefCell<Vec<u8>>,
    /// Bytes in `out` that are not data.
    frames: Cell<usize>,
    pub(super) streams: RefCell<HashMap<u32, Rc<Stream>>>,
    driver: RefCell<Option<Waker>>,
    /// The driver will look anyway.
    looking: Cell<bool>,
    /// Streams that wait for room, in the order in which they get it.
    blocked: RefCell<VecDeque<(u32, Waker)>>,
    /// No new streams: the peer said so to a client, or we said so to the peer.
    pub(super) away: Cell<bool>,
    /// The peer knows that we said so.
    pub(super) away_heard: Cell<bool>,
    /// The peer has not answered a ping in time: nothing new is asked of it.
    pub(super) silent: Cell<bool>,
    lost: RefCell<Option<Lost>>,
    /// Who may still open streams: a client's tunnel without any closes when it has no streams.
    handles: Cell<usize>,
    /// The last stream's number.
    pub(super) last: Cell<u32>,
    /// Requests that nobody has looked at.
    pub(super) requests: RefCell<VecDeque<(Open, Rc<Stream>)>>,
    /// Bytes of a stream that the peer may send at first.
    pub(super) window: u32,
    /// Streams that the server allows, as far as is known.
    pub(super) most: Cell<u32>,
    /// The peer has answered a ping.
    pub(super) pong: Cell<bool>,
}

/// The right to open streams in a tunnel.
pub(crate) struct Handle(Rc<Mux>);

impl Mux {
    pub(super) fn new(window: u32) -> Rc<Self> {
        Rc::new(Self {
            out: RefCell::default(),
            frames: Cell::new(0),
            streams: RefCell::default(),
            driver: RefCell::default(),
            looking: Cell::new(false),
            blocked: RefCell::default(),
            away: Cell::new(false),
            away_heard: Cell::new(false),
            silent: Cell::new(false),
            lost: RefCell::default(),
            handles: Cell::new(0),
            last: Cell::new(0),
            requests: RefCell::default(),
            window,
            most: Cell::new(u32::MAX),
            pong: Cell::new(false),
        })
    }

    /// Whether nothing can be asked in a client's tunnel any more.
    pub(super) fn is_unused(&self) -> bool {
        self.streams.borrow().is_empty() && (self.handles.get() == 0 || self.away.get())
    }

    /// Whether a server has nothing to do, and nothing to expect, in the tunnel.
    pub(super) fn is_idle_for_ever(&self) -> bool {
        self.away_heard.get()
            && self.streams.borrow().is_empty()
            && self.requests.borrow().is_empty()
    }

    /// Why it is over, once it is.
    pub(super) fn lost(&self) -> Option<Lost> {
        self.lost.borrow().clone()
    }

    /// The tunnel is over, and everything in it.
    pub(super) fn end(&self, lost: &Lost) {
        self.lost.borrow_mut().get_or_insert_with(|| lost.clone());
        self.away.set(true);
        self.requests.take();
        for stream in self.streams.take().into_values() {
            stream.state().end(Gone::Lost(lost.clone()));
        }
        self.out.take();
        self.unblock();
    }

    /// The server refused a stream: what is open is what it allows, until an answer says otherwise.
    /// At least one, or nobody would ask again.
    pub(super) fn refused(&self) {
        let open = u32::try_from(self.streams.borrow().len()).unwrap_or(u32::MAX);
        self.most.set(self.most.get().min(open).max(1));
    }

    pub(super) fn stream(&self, id: u32) -> Option<Rc<Stream>> {
        self.streams.borrow().get(&id).map(Rc::clone)
    }

    pub(super) fn forget(&self, id: u32) {
        self.leave(id);
        let mut streams = self.streams.borrow_mut();
        streams.remove(&id);
        if streams.is_empty() {
            drop(streams);
            self.wake();
        }
    }

    /// The driver looks after this thread's other tasks have had their turn, and sends what they
    /// all said at once.
    fn wake(&self) {
        if !self.looking.replace(true)
            && let Some(driver) = &*self.driver.borrow()
        {
            driver.wake_by_ref();
        }
    }

    /// The driver looks now. It will look again when it is woken after [`Self::looked`].
    pub(super) fn look(&self, cx: &Context<'_>) {
        self.looking.set(true);
        let mut driver = self.driver.borrow_mut();
        if !driver
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *driver = Some(cx.waker().clone());
        }
    }

    pub(super) fn looked(&self) {
        self.looking.set(false);
    }

    /// Says a frame that is not data, if there is still somebody to say it to.
    pub(super) fn say(&self, kind: Kind, stream: u32, payload: &[u8]) {
        if self.lost.borrow().is_some() {
            return;
        }
        let mut out = self.out.borrow_mut();
        take_spare(&mut out);
        out.extend_from_slice(&head(kind, payload.len(), stream));
        out.extend_from_slice(payload);
        drop(out);
        self.frames.set(self.frames.get() + HEAD + payload.len());
        self.wake();
    }

    pub(super) fn say_credit(&self, stream: u32, bytes: u32) {
        self.say(Kind::Credit, stream, &bytes.to_be_bytes());
    }

    pub(super) fn say_reset(&self, stream: u32, reason: Reason) {
        self.say(Kind::Reset, stream, &u32::from(reason).to_be_bytes());
    }

    pub(super) fn say_answer(&self, stream: u32, answer: &Answer) {
        self.say(Kind::Answer, stream, &answer.encode_to_vec());
    }

    /// Whether bytes of this stream may be said now; if not, the caller is woken when they may. One
    /// that has filled the room goes behind those that wait.
    pub(super) fn poll_room(&self, stream: u32, cx: &Context<'_>) -> Poll<()> {
        let mut blocked = self.blocked.borrow_mut();
        let is_next = blocked.front().is_none_or(|(next, _)| *next == stream);
        if is_next && self.has_room() {
            blocked.pop_front();
            wake_next(&mut blocked);
            return Poll::Ready(());
        }
        match blocked.iter_mut().find(|(waiting, _)| *waiting == stream) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => blocked.push_back((stream, cx.waker().clone())),
        }
        Poll::Pending
    }

    /// Whether there is room for more bytes of connections.
    pub(super) fn has_room(&self) -> bool {
        self.out.borrow().len() < ENOUGH
    }

    /// A stream that has ended does not hold up those behind it.
    fn leave(&self, stream: u32) {
        let mut blocked = self.blocked.borrow_mut();
        blocked.retain(|(waiting, _)| *waiting != stream);
        wake_next(&mut blocked);
    }

    /// Says bytes of a connection, which `read` puts behind what is there; at most `limit`.
    pub(super) fn say_data(
        &self,
        stream: u32,
        limit: usize,
        read: impl FnOnce(&mut Vec<u8>, usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let limit = limit.min(READ);
        let mut out = self.out.borrow_mut();
        take_spare(&mut out);
        out.reserve(HEAD + limit);
        let begin = out.len();
        out.extend_from_slice(&[0; HEAD]);
        let result = read(&mut out, limit);
        match result {
            Ok(length @ 1..) => {
                if let Some(room) = out.get_mut(begin..begin + HEAD) {
                    room.copy_from_slice(&head(Kind::Data, length, stream));
                }
                drop(out);
                self.wake();
            }
            _ => {
                out.truncate(begin);
                if begin == 0 {
                    put_spare(&mut out);
                }
            }
        }
        result
    }

    /// What was said; [`Self::encrypted`] takes the buffer back.
    pub(super) fn said(&self) -> Vec<u8> {
        self.frames.set(0);
        self.out.take()
    }

    /// What was said has become records.
    pub(super) fn encrypted(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        put_spare(&mut buffer);
        self.unblock();
    }

    pub(super) fn has_said(&self) -> bool {
        !self.out.borrow().is_empty()
    }

    /// Whether the peer makes us answer more than it takes.
    pub(super) fn is_flooded(&self) -> bool {
        self.frames.get() > FLOOD
    }

    /// There is room: for the first that waits, and as many of the others as it leaves some.
    fn unblock(&self) {
        for (_, waker) in &*self.blocked.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Opens a stream as a client. `None` when the tunnel opens no more.
    pub(super) fn open(self: &Rc<Self>, mut request: Open) -> Option<ThinStream> {
        if self.away.get() {
            return None;
        }
        let Some(id) = self.last.get().checked_add(1) else {
            // The numbers are used up: the pool makes another tunnel.
            self.away.set(true);
            return None;
        };
        self.last.set(id);
        let stream = Stream::new(id, self.window, 0);
        self.streams.borrow_mut().insert(id, Rc::clone(&stream));
        request.window = self.window;
        self.say(Kind::Open, id, &request.encode_to_vec());
        Some(ThinStream::new(Rc::clone(self), stream, Reason::CANCEL))
    }
}

/// The next stream may not have been woken, or not after it became the next.
fn wake_next(blocked: &mut VecDeque<(u32, Waker)>) {
    match blocked.front() {
        Some((_, waker)) => waker.wake_by_ref(),
        // A tunnel in which nobody waits holds no memory for it.
        None => *blocked = VecDeque::new(),
    }
}

/// An empty buffer becomes one that was used before and is still in the cache.
fn take_spare(out: &mut Vec<u8>) {
    if out.capacity() == 0
        && let Some(spare) = SPARES.with_borrow_mut(Vec::pop)
    {
        *out = spare;
    }
}

/// A tunnel that has nothing to say holds no memory.
fn put_spare(out: &mut Vec<u8>) {
    let spare = std::mem::take(out);
    SPARES.with_borrow_mut(|spares| {
        if spares.len() < SPARE && spare.capacity() <= 4 * ENOUGH {
            spares.push(spare);
        }
    });
}

impl Handle {
    pub(super) fn new(mux: &Rc<Mux>) -> Self {
        mux.handles.set(mux.handles.get() + 1);
        Self(Rc::clone(mux))
    }

    /// Opens a stream; `None` when the tunnel opens no more.
    pub(crate) fn open(&self, request: Open) -> Option<ThinStream> {
        self.0.open(request)
    }

    /// Whether the tunnel opens no more streams.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.away.get() || self.0.silent.get()
    }

    /// Streams that the peer lets us have open, as far as it has said.
    pub(crate) fn most(&self) -> usize {
        usize::try_from(self.0.most.get()).unwrap_or(usize::MAX)
    }

    /// Why the tunnel is over, once it is.
    pub(crate) fn lost(&self) -> Option<Lost> {
        self.0.lost()
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let left = self.0.handles.get() - 1;
        self.0.handles.set(left);
        if left == 0 {
            self.0.wake();
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::super::frame::{Parser, Part};
    use super::*;

    /// Says messages of this length whenever there is room.
    async fn talk(mux: Rc<Mux>, stream: u32, length: usize) {
        loop {
            poll_fn(|cx| mux.poll_room(stream, cx)).await;
            let said = mux.say_data(stream, length, |buffer, length| {
                buffer.resize(buffer.len() + length, 0);
                Ok(length)
            });
            assert_eq!(said.unwrap(), length);
        }
    }

    /// Streams whose data is in what was said.
    fn heard(said: &[u8]) -> Vec<u32> {
        let mut parser = Parser::default();
        let mut rest = said;
        let mut heard = Vec::new();
        while let Some(part) = parser.next(&mut rest).unwrap() {
            if let Part::Data { stream, .. } = part {
                heard.push(stream);
            }
        }
        heard
    }

    #[test]
    fn a_tunnel_whose_numbers_are_used_up_opens_no_more() {
        let mux = Mux::new(0);
        let handle = Handle::new(&mux);
        mux.last.set(u32::MAX - 1);
        let last = handle.open(Open::default());
        assert!(last.is_some() && !handle.is_closed());
        assert!(handle.open(Open::default()).is_none());
        // The pool makes another, and this one ends with its streams.
        assert!(handle.is_closed() && handle.lost().is_none());
        assert!(!mux.is_unused());
        drop(last);
        assert!(mux.is_unused());
    }

    #[test]
    fn streams_take_turns() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let mux = Mux::new(0);
            for stream in [1, 2, 3] {
                spawn_local(talk(Rc::clone(&mux), stream, READ));
            }
            // Each says what fills the room; one says little each time.
            spawn_local(talk(Rc::clone(&mux), 4, 100));
            let mut counts = [0; 5];
            for _ in 0..1000 {
                yield_now().await;
                if !mux.has_said() {
                    continue;
                }
                let said = mux.said();
                for stream in heard(&said) {
                    counts[stream as usize] += 1;
                }
                mux.encrypted(said);
            }
            let most = counts[1..4].iter().max().unwrap();
            assert!(
                counts[1..].iter().all(|count| count + 3 >= *most),
                "{counts:?}"
            );
            assert!(*most > 100, "{counts:?}");
        });
    }
}
