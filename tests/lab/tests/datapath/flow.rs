//! What flows through a connection, and how it ends: every byte, every end, bounded buffers.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Pod, Process};
use socket2::SockRef;
use testkit::{Pattern, duplex, receive};

use crate::support::{
    Failures, PATIENCE, both_ends, dial, fresh_port, listen, patient, token, world,
};

/// Client and server: both captured near and far, and each kind of half.
const PAIRS: [(&str, &str); 5] = [
    ("mesh/a", "mesh/b"),
    ("mesh/a", "mesh/c"),
    ("mesh/a", "plain/r"),
    ("plain/p", "mesh/c"),
    ("plain/p", "plain/r"),
];

const MIB: u64 = 1 << 20;

/// `KEELSON_BULK_MIB` for all bulk tests, or what each of them takes by itself.
fn bulk_mib(default: u64) -> Result<u64> {
    match std::env::var("KEELSON_BULK_MIB") {
        Ok(text) => text.parse().context("KEELSON_BULK_MIB is a number"),
        Err(_) => Ok(default),
    }
}

/// Both directions at once, each with its own bytes.
fn check_bulk(client: &str, server: &str, default_mib: u64) -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod(client)?, world.pod(server)?);
    let length = bulk_mib(default_mib)? * MIB;
    let (near, far) = both_ends(&client, &server)?;
    std::thread::scope(|scope| {
        let served = scope.spawn(|| duplex(&far, (2, length), (1, length)));
        duplex(&near, (1, length), (2, length)).context("the client's end")?;
        served.join().unwrap().context("the server's end")
    })
}

#[test]
fn a_gibibyte_each_way_between_nodes_arrives_whole() -> Result<()> {
    check_bulk("mesh/a", "mesh/c", 1024)
}

#[test]
fn bulk_each_way_on_one_node_arrives_whole() -> Result<()> {
    check_bulk("mesh/a", "mesh/b", 256)
}

#[test]
fn bulk_each_way_between_a_captured_and_a_plain_pod_arrives_whole() -> Result<()> {
    check_bulk("mesh/a", "plain/r", 256)?;
    check_bulk("plain/p", "mesh/c", 256)
}

fn check_ends(check: impl Fn(TcpStream, TcpStream) -> Result<()>) -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let (near, far) = both_ends(&client, &server)?;
        let cell = format!("{} to {}", client.key(), server.key());
        failures.note(&cell, check(near, far));
    }
    failures.judge(&world)
}

/// `one` closes its half, hears everything that `other` says after that, and then the end.
fn check_half_close(mut one: TcpStream, mut other: TcpStream) -> Result<()> {
    let (first, later) = (token(), token());
    one.write_all(&first)?;
    one.shutdown(Shutdown::Write)?;
    let mut heard = Vec::new();
    other
        .read_to_end(&mut heard)
        .context("reading to the end of the closed half")?;
    ensure!(heard == first, "{heard:?} before the end");
    // More than all buffers hold, so that the open half must really flow.
    let length = 32 * MIB;
    std::thread::scope(|scope| -> Result<()> {
        let sending = scope.spawn(|| testkit::send(&other, 5, length));
        receive(&one, 5, length)?;
        sending.join().unwrap()
    })?;
    other.write_all(&later)?;
    other.shutdown(Shutdown::Write)?;
    let mut heard = Vec::new();
    one.read_to_end(&mut heard)
        .context("reading to the end of the open half")?;
    ensure!(heard == later, "{heard:?} at the end");
    Ok(())
}

#[test]
fn a_client_may_close_its_half_and_go_on_reading() -> Result<()> {
    check_ends(check_half_close)
}

#[test]
fn a_server_may_close_its_half_and_go_on_reading() -> Result<()> {
    check_ends(|near, far| check_half_close(far, near))
}

/// A close without data is an end, not a reset, on both sides.
#[test]
fn an_orderly_close_is_seen_as_an_end() -> Result<()> {
    let check = |one: TcpStream, mut other: TcpStream| {
        drop(one);
        let mut rest = Vec::new();
        other
            .read_to_end(&mut rest)
            .context("an end, not a reset")?;
        ensure!(rest.is_empty(), "{rest:?}");
        Ok(())
    };
    check_ends(check)?;
    check_ends(|near, far| check(far, near))
}

/// `one` resets; `other`, which reads, must hear of it and not of an orderly end.
fn check_reset(one: TcpStream, mut other: TcpStream) -> Result<()> {
    (&one).write_all(b"x")?;
    other.read_exact(&mut [0])?;
    SockRef::from(&one).set_linger(Some(Duration::ZERO))?;
    drop(one);
    match other.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => bail!("{other:?} instead of ECONNRESET"),
    }
}

#[test]
fn a_clients_reset_reaches_the_server() -> Result<()> {
    check_ends(check_reset)
}

#[test]
fn a_servers_reset_reaches_the_client() -> Result<()> {
    check_ends(|near, far| check_reset(far, near))
}

/// A reset while both sides have much in flight: nobody is left waiting.
#[test]
fn a_reset_in_full_flow_ends_the_other_side() -> Result<()> {
    let check = |one: TcpStream, other: TcpStream| -> Result<()> {
        std::thread::scope(|scope| {
            let flooding = scope.spawn(|| testkit::send(&other, 3, 1 << 40));
            receive(&one, 3, 8 * MIB)?;
            SockRef::from(&one).set_linger(Some(Duration::ZERO))?;
            drop(one);
            let error = flooding.join().unwrap().unwrap_err();
            let cause = error.root_cause().downcast_ref::<std::io::Error>();
            match cause.map(std::io::Error::kind) {
                Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Ok(()),
                _ => bail!("{error:#} instead of a reset"),
            }
        })
    };
    check_ends(check)?;
    check_ends(|near, far| check(far, near))
}

/// `writer` writes until nothing moves any more; then `reader` reads it all, in order.
fn check_stalled(writer: TcpStream, reader: TcpStream) -> Result<()> {
    writer.set_write_timeout(Some(STALLED))?;
    let (mut pattern, mut written) = (Pattern::new(9), 0);
    let mut chunk = vec![0; 64 << 10];
    // What a write that stops half way has not taken, for later.
    let mut rest = Vec::new();
    while rest.is_empty() {
        pattern.fill(&mut chunk);
        let mut left: &[u8] = &chunk;
        while !left.is_empty() {
            match (&writer).write(left) {
                Ok(taken) => {
                    written += taken as u64;
                    left = &left[taken..];
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    rest = left.to_vec();
                    break;
                }
                Err(error) => return Err(error).context("writing to one who does not read"),
            }
        }
        ensure!(
            written < BOUND,
            "{written} bytes taken that nobody has read"
        );
    }
    std::thread::scope(|scope| -> Result<()> {
        let reading = scope.spawn(|| receive(&reader, 9, written + rest.len() as u64));
        writer.set_write_timeout(Some(PATIENCE))?;
        (&writer).write_all(&rest)?;
        reading.join().unwrap()
    })
}

/// No byte within this time is a stop.
const STALLED: Duration = Duration::from_millis(1500);
const BOUND: u64 = 64 * MIB;

#[test]
fn a_server_that_never_reads_stops_its_client_within_bounds() -> Result<()> {
    check_ends(check_stalled)
}

#[test]
fn a_client_that_never_reads_stops_its_server_within_bounds() -> Result<()> {
    check_ends(|near, far| check_stalled(far, near))
}

/// Connections that are not read do not hold up another one between the same pods.
#[test]
fn a_stalled_connection_does_not_stall_its_neighbours() -> Result<()> {
    let world = world()?;
    for (client, server) in [("mesh/a", "mesh/b"), ("mesh/a", "mesh/c")] {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let mut stalled = Vec::new();
        for _ in 0..STALLING {
            let (near, far) = both_ends(&client, &server)?;
            near.set_write_timeout(Some(Duration::from_millis(200)))?;
            let zeros = vec![0; 1 << 20];
            while (&near).write_all(&zeros).is_ok() {}
            stalled.push((near, far));
        }
        let (near, far) = both_ends(&client, &server)?;
        std::thread::scope(|scope| {
            let served = scope.spawn(|| duplex(&far, (2, 32 * MIB), (1, 32 * MIB)));
            duplex(&near, (1, 32 * MIB), (2, 32 * MIB))?;
            served.join().unwrap()
        })
        .with_context(|| format!("{} to {}", client.key(), server.key()))?;
    }
    Ok(())
}

/// As many as would fill, each with its own share, whatever they have in common.
const STALLING: usize = 16;

/// The other side of a process that is killed sees an end or a reset, not silence.
fn check_ended(mut stream: &TcpStream) -> Result<()> {
    let start = Instant::now();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Ok(_) => {}
            Err(error) => return Err(error).context("waiting for the end"),
        }
        ensure!(start.elapsed() < PATIENCE, "it still talks");
    }
    Ok(())
}

fn app(pod: &Pod, args: &[&str]) -> Result<Process> {
    let mut command = Command::new("keelson-lab-app");
    command.args(args);
    pod.spawn(command)
}

#[test]
fn a_killed_servers_client_sees_the_end() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let mut process = app(&server, &["tcp-echo", "--port", &port.to_string()])?;
        let to = SocketAddr::new(server.v4()?.into(), port);
        let stream = testkit::eventually("the server serves", PATIENCE, || {
            let stream = dial(&client, to)?;
            crate::support::round_trip(&stream, &token())?;
            Ok(stream)
        })?;
        process.kill()?;
        failures.note(&client.key(), check_ended(&stream));
        let cell = format!("{} afterwards", client.key());
        failures.note(&cell, crate::support::expect_refused(&client, to));
    }
    failures.judge(&world)
}

#[test]
fn a_killed_clients_server_sees_the_end() -> Result<()> {
    let world = world()?;
    let mut failures = Failures::default();
    for (client, server) in PAIRS {
        let (client, server) = (world.pod(client)?, world.pod(server)?);
        let port = fresh_port();
        let listener = listen(&server, port)?;
        let to = SocketAddr::new(server.v4()?.into(), port);
        let mut process = app(&client, &["http-client", "--keep", &to.to_string()])?;
        let stream = accept(&listener)?;
        (&stream).read_exact(&mut [0; 16]).context("the request")?;
        process.kill()?;
        failures.note(&client.key(), check_ended(&stream));
    }
    failures.judge(&world)
}

/// Accepts within [`PATIENCE`].
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let (stream, _) = testkit::eventually("a client comes", PATIENCE, || Ok(listener.accept()?))?;
    stream.set_nonblocking(false)?;
    patient(&stream)?;
    Ok(stream)
}
