//! Kept connections in an open loop: requests are due at a fixed rate, whatever the server does.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::closed::MAX_ERRORS;
use super::connection::{Connection, congestion};
use super::report::{LoadReport, Recorder};
use super::window::{Phase, Window};
use super::{Plan, message};

struct Client {
    connection: Connection,
    /// When the request under way was due, and those after it that wait for the connection.
    due: VecDeque<Instant>,
}

pub(super) fn run(plan: &Plan, connections: usize, rate: u32) -> Result<LoadReport> {
    if connections == 0 || rate == 0 {
        bail!("an open loop needs connections and a rate");
    }
    // Otherwise the kernel rounds our waits up by 50 us.
    nix::sys::prctl::set_timerslack(1)?;
    let request = message::request();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
    epoll.add(timer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
    let mut clients = (0..connections)
        .map(|index| open(plan, &epoll, index))
        .collect::<Result<Vec<_>>>()?;
    let mut report = LoadReport::default();
    if let Some(client) = clients.first() {
        report.congestion = congestion(client.connection.stream());
    }
    let mut recorder = Recorder::new()?;
    let mut window = Window::new(plan);
    let interval = Duration::from_secs(1) / rate;
    let start = Instant::now() + interval;
    let mut issued: u32 = 0;
    let mut events = [EpollEvent::empty(); 64];
    arm(&timer, start)?;
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::from(50u8))?;
        for event in events.iter().take(count) {
            if event.data() == TIMER {
                continue;
            }
            let index = usize::try_from(event.data())?;
            let client = clients
                .get_mut(index)
                .context("an event of no connection")?;
            match client.connection.receive() {
                Ok(false) => {}
                Ok(true) => {
                    if let Some(due) = client.due.pop_front() {
                        recorder.record(due.elapsed());
                    }
                    report.requests += 1;
                    if !client.due.is_empty() {
                        client.connection.send(&request)?;
                    }
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
        // All that is due by now, on the connections in turn.
        loop {
            let due = start + interval * issued;
            let now = Instant::now();
            if due > now {
                arm(&timer, due)?;
                break;
            }
            let turn = usize::try_from(issued)? % connections;
            issued += 1;
            let client = clients.get_mut(turn).context("no such connection")?;
            client.due.push_back(due);
            if client.due.len() == 1 {
                client.connection.send(&request)?;
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
    // Requests that are overdue and have no answer yet count with what they have waited.
    for due in clients.iter().flat_map(|client| &client.due) {
        recorder.record(due.elapsed());
    }
    (report.seconds, report.usage) = window.close();
    report.latency = recorder.quantiles();
    if report.requests == 0 {
        bail!("no request was answered");
    }
    Ok(report)
}

/// Makes the timer readable at `when`, or at once if that has passed.
fn arm(timer: &TimerFd, when: Instant) -> Result<()> {
    let wait = when.saturating_duration_since(Instant::now());
    let wait = wait.max(Duration::from_nanos(1));
    timer.set(
        Expiration::OneShot(TimeSpec::from_duration(wait)),
        TimerSetTimeFlags::empty(),
    )?;
    Ok(())
}

fn open(plan: &Plan, epoll: &Epoll, index: usize) -> Result<Client> {
    let connection = Connection::open(plan.server)?;
    let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(index)?);
    epoll.add(connection.stream().as_fd(), event)?;
    Ok(Client {
        connection,
        due: VecDeque::new(),
    })
}

const TIMER: u64 = u64::MAX;
