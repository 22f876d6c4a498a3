//! A connection per request, several at once. Latency is from the SYN to the complete answer.

use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, Socket, Type};

use super::closed::MAX_ERRORS;
use super::connection::{Connection, congestion};
use super::report::{LoadReport, Recorder};
use super::window::{Phase, Window};
use super::{Plan, message};

struct Client {
    connection: Connection,
    start: Instant,
    asked: bool,
}

pub(super) fn run(plan: &Plan, clients: usize) -> Result<LoadReport> {
    let request = message::request();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    // Somebody answers at all: otherwise this would be a loop of refusals.
    let mut first = Connection::open(plan.server)?;
    first.exchange(&request)?;
    let mut report = LoadReport {
        congestion: congestion(first.stream()),
        ..LoadReport::default()
    };
    drop(first);
    let mut clients = (0..clients)
        .map(|index| open(plan, &epoll, index))
        .collect::<Result<Vec<_>>>()?;
    let mut recorder = Recorder::new()?;
    let mut window = Window::new(plan);
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::from(50u8))?;
        for event in events.iter().take(count) {
            let index = usize::try_from(event.data())?;
            let client = clients
                .get_mut(index)
                .context("an event of no connection")?;
            match client.step(&epoll, index, &request) {
                Ok(false) => {}
                Ok(true) => {
                    recorder.record(client.start.elapsed());
                    report.requests += 1;
                    *client = open(plan, &epoll, index)?;
                }
                Err(error) => {
                    report.errors += 1;
                    if report.errors > MAX_ERRORS {
                        return Err(error.context("too many failures; this is the last"));
                    }
                    *client = open(plan, &epoll, index)?;
                }
            }
        }
        match window.phase(Instant::now()) {
            Phase::Early | Phase::Open => {}
            Phase::Opens => {
                recorder.clear();
                (report.requests, report.errors) = (0, 0);
            }
            Phase::Closed => break,
        }
    }
    (report.seconds, report.usage) = window.close();
    report.latency = recorder.quantiles();
    if report.requests == 0 {
        bail!("no request was answered");
    }
    Ok(report)
}

impl Client {
    /// Sends the request once the connection stands, then awaits the answer.
    fn step(&mut self, epoll: &Epoll, index: usize, request: &[u8]) -> Result<bool> {
        if self.asked {
            return self.connection.receive();
        }
        if let Some(error) = self.connection.stream().take_error()? {
            return Err(error).context("connecting");
        }
        self.connection.send(request)?;
        self.asked = true;
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(index)?);
        epoll.modify(self.connection.stream().as_fd(), &mut event)?;
        Ok(false)
    }
}

fn open(plan: &Plan, epoll: &Epoll, index: usize) -> Result<Client> {
    let start = Instant::now();
    let socket = Socket::new(
        Domain::for_address(plan.server),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&plan.server.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc_einprogress()) => {}
        Err(error) => return Err(error).with_context(|| format!("connecting to {}", plan.server)),
    }
    let connection = Connection::new(TcpStream::from(socket));
    let event = EpollEvent::new(EpollFlags::EPOLLOUT, u64::try_from(index)?);
    epoll.add(connection.stream().as_fd(), event)?;
    Ok(Client {
        connection,
        start,
        asked: false,
    })
}

fn libc_einprogress() -> i32 {
    nix::errno::Errno::EINPROGRESS as i32
}
