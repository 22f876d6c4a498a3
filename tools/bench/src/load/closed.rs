//! Kept connections in a closed loop: each sends its next request when it has its answer.

use std::os::fd::AsFd as _;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::connection::{Connection, congestion};
use super::report::{LoadReport, Recorder};
use super::window::{Phase, Window};
use super::{Plan, message};

struct Client {
    connection: Connection,
    sent: Instant,
}

pub(super) fn run(plan: &Plan, connections: usize) -> Result<LoadReport> {
    let request = message::request();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut clients = (0..connections)
        .map(|index| open(plan, &epoll, index))
        .collect::<Result<Vec<_>>>()?;
    let mut report = LoadReport::default();
    if let Some(client) = clients.first() {
        report.congestion = congestion(client.connection.stream());
    }
    let mut recorder = Recorder::new()?;
    let mut window = Window::new(plan);
    for client in &mut clients {
        client.sent = Instant::now();
        client.connection.send(&request)?;
    }
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::from(50u8))?;
        for event in events.iter().take(count) {
            let index = usize::try_from(event.data())?;
            let client = clients
                .get_mut(index)
                .context("an event of no connection")?;
            match client.connection.receive() {
                Ok(false) => {}
                Ok(true) => {
                    let now = Instant::now();
                    recorder.record(now - client.sent);
                    report.requests += 1;
                    client.sent = now;
                    client.connection.send(&request)?;
                }
                Err(error) => {
                    report.errors += 1;
                    if report.errors > MAX_ERRORS {
                        return Err(error.context("too many failures; this is the last"));
                    }
                    *client = open(plan, &epoll, index)?;
                    client.connection.send(&request)?;
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

fn open(plan: &Plan, epoll: &Epoll, index: usize) -> Result<Client> {
    let connection = Connection::open(plan.server)?;
    let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(index)?);
    epoll.add(connection.stream().as_fd(), event)?;
    Ok(Client {
        connection,
        sent: Instant::now(),
    })
}

pub(super) const MAX_ERRORS: u64 = 1000;
