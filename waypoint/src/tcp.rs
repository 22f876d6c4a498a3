//! What is not HTTP passes as TCP, to an endpoint that policy lets the client reach: where a rule for connections says, or
//! to the service that was dialled.

mod hello;
mod open;

pub(crate) use self::hello::server_name;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use admin_api::{ConnectionEnd, Description, Direction};
use bytes::BytesMut;
use model::Ending;
use telemetry::{Closed, Party, Refusal, TcpLabels};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::io::InspectReader;

use self::open::{Opened, Refused, allowed, open};
use crate::balance::Candidate;
use crate::caller::{Caller, Known};
use crate::telemetry::{labels_of, security_of};
use crate::worker::Worker;

/// What a client's connection is carried by.
pub(crate) trait Carried: AsyncRead + AsyncWrite + Unpin {
    /// TCP under it.
    fn socket(&self) -> &TcpStream;
}

impl Carried for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

/// Carries a connection to an endpoint and back.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    caller: &Caller,
    mut client: TcpStream,
    mut before: BytesMut,
) {
    let name = asked_name(worker, caller, &mut client, &mut before).await;
    carry(worker, caller, (before, client), name).await;
}

/// The same of a connection of which it is known what TLS asks for on it.
pub(crate) async fn carry<S: Carried>(
    worker: &Rc<Worker>,
    caller: &Caller,
    (before, mut client): (BytesMut, S),
    name: Option<String>,
) {
    let active = worker.shared.newest.load();
    let known = caller.known(&active);
    let opened = match open(worker, &active, caller, &known, name.as_deref()).await {
        Ok(opened) => opened,
        Err(refused) => return refuse(worker, caller, &known, refused),
    };
    let Opened {
        mut endpoint,
        candidate,
        served,
        idle,
        life,
        _held,
    } = opened;
    let recorder = &worker.shared.telemetry.recorder;
    let asked = asked_of(caller, &known, served.as_ref());
    let labels = TcpLabels::from(labels_of(&known.party, &candidate.party, &asked));
    let began = Instant::now();
    let flow = recorder.metrics.open(&labels);
    let _active = candidate.state.begin();
    let (request, response) = (Cell::new(before.len() as u64), Cell::new(0));
    let moved = Cell::new(began);
    let count = |sum: &Cell<u64>, bytes: &[u8]| {
        sum.set(sum.get() + bytes.len() as u64);
        if idle.is_some() {
            moved.set(Instant::now());
        }
    };
    let copied = async {
        endpoint.write_all(&before).await?;
        // What TLS has not written yet.
        endpoint.flush().await?;
        let mut client = InspectReader::new(&mut client, |bytes| count(&request, bytes));
        let mut endpoint = InspectReader::new(&mut endpoint, |bytes| count(&response, bytes));
        tokio::io::copy_bidirectional(&mut client, &mut endpoint).await
    };
    let cut = tokio::select! {
        copied = copied => copied.err().map(|error| (None, error.to_string())),
        refusal = until_refused(worker, caller, &candidate) => {
            Some((Some(Ending::Policy), refusal.text))
        }
        () = worker.shared.drain.cut() => {
            Some((Some(Ending::Drain), "the waypoint stops".to_owned()))
        }
        () = after(life) => {
            Some((Some(Ending::Limit), "it has lasted for as long as it may".to_owned()))
        }
        () = silence(idle, &moved) => Some((Some(Ending::Limit), SILENT.to_owned())),
    };
    let (ending, error) = match cut {
        None => (Some(Ending::Clean), None),
        Some((ending, error)) => {
            // Neither side shall take what it has got for the whole. Where nothing moved there was none.
            if error != SILENT {
                reset_when_dropped(client.socket());
                reset_when_dropped(endpoint.socket());
            }
            ending.inspect(|ending| recorder.metrics.cut(*ending, 1));
            (ending, Some(error))
        }
    };
    flow.moved(request.get(), response.get());
    flow.close();
    let closed = Closed {
        request: request.get(),
        response: response.get(),
        age: began.elapsed(),
        ending,
        error,
    };
    let described = describe(worker, caller, &known, Some(&candidate), &asked);
    recorder.closed(&described, closed);
}

/// What TLS asks for on a connection, where a rule may ask for it.
async fn asked_name(
    worker: &Worker,
    caller: &Caller,
    client: &mut TcpStream,
    before: &mut BytesMut,
) -> Option<String> {
    let active = worker.shared.newest.load();
    let known = caller.known(&active);
    let destination = known.dialled.as_destination();
    let matters = active
        .l7
        .asks_for_names(caller.as_client(&known), destination);
    drop(active);
    if !matters {
        return None;
    }
    server_name(client, before, worker.shared.limits.detect_timeout).await
}

/// Resolves after a time; without one it never does.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Resolves when nothing has moved for so long.
async fn silence(idle: Option<Duration>, moved: &Cell<Instant>) {
    let Some(idle) = idle else {
        return std::future::pending().await;
    };
    loop {
        let at = moved.get() + idle;
        if at <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(at).await;
    }
}

fn reset_when_dropped(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "a connection that was cut is closed in order");
    }
}

/// Resolves when policy refuses the connection.
async fn until_refused(worker: &Rc<Worker>, caller: &Caller, candidate: &Candidate) -> Refusal {
    let mut changes = worker.shared.newest.changes();
    loop {
        // Policy may have changed while the connection was being made: it is asked before anything is waited for.
        let active = worker.shared.newest.load();
        let known = caller.known(&active);
        if let Err(refusal) = allowed(&active, caller, &known, candidate) {
            return refusal;
        }
        drop(active);
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn refuse(worker: &Worker, caller: &Caller, known: &Known, Refused(flag, refusal): Refused) {
    let asked = asked_of(caller, known, None);
    let mut labels = TcpLabels::from(labels_of(&known.party, &Party::default(), &asked));
    if let Some(flag) = flag {
        labels.response_flags = flag.as_str().into();
    }
    let described = describe(worker, caller, known, None, &asked);
    let recorder = &worker.shared.telemetry.recorder;
    recorder.refuse(&described, &labels, refusal);
}

/// The service that is told of: what was dialled, or, since that is a gateway itself at the edge, what it leads to.
fn asked_of(
    caller: &Caller,
    known: &Known,
    served: Option<&Rc<telemetry::Asked>>,
) -> Rc<telemetry::Asked> {
    match (&caller.edge, served) {
        (None, _) => Rc::clone(&known.asked),
        (Some(_), None) => Rc::default(),
        (Some(_), Some(served)) => Rc::clone(served),
    }
}

/// The connection, for the log and the page of refusals. Its destination is the endpoint, if one was chosen.
fn describe(
    worker: &Worker,
    caller: &Caller,
    known: &Known,
    candidate: Option<&Candidate>,
    asked: &telemetry::Asked,
) -> Description {
    let end = |addr: SocketAddr, party: Option<&Party>| ConnectionEnd {
        addr: Some(addr),
        workload: party.and_then(|party| party.workload.shared()),
        namespace: party.and_then(|party| party.namespace.shared()),
        identity: party.and_then(|party| party.principal.known().map(str::to_owned)),
    };
    let destination = candidate.map_or_else(
        || end(caller.dialled, None),
        |one| end(one.member.address, Some(&one.party)),
    );
    Description {
        direction: Direction::Waypoint,
        pod: worker.shared.pod.to_string(),
        source: end(caller.client, Some(&known.party)),
        destination,
        service: asked.hostname.known().map(str::to_owned),
        security: security_of(&known.party),
        tunnel: None,
    }
}

/// Why a connection ends on which nothing moves.
const SILENT: &str = "nothing has moved for as long as it may be silent";
