//! Socket options that decide where TCP goes: for an application in the mesh they are refused or have no effect
//! where they would lead a connection past the agent; for others they are the kernel's.

#![expect(unsafe_code, reason = "no safe library sets arbitrary options")]

use std::io::Error;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::Pod;
use socket2::{Domain, Socket, Type};
use tests_lab::metrics::decisions;

use crate::support::{
    APPLIES, Failures, PATIENCE, addresses, dial, echo, expect_echo, expect_refused, fresh_port,
    link, patient, round_trip, token, world,
};

/// What a call is to come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Right {
    /// `EPERM`.
    Refused,
    /// Success.
    Taken,
}

use Right::{Refused, Taken};

const SOL_SOCKET: i32 = 1;
const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
const SOL_TCP: i32 = 6;

struct Case {
    name: &'static str,
    option: (i32, i32),
    value: Vec<u8>,
    /// Before and after `connect` in a captured pod.
    right: [Right; 2],
    /// Of sockets of this family only.
    only: Option<Domain>,
}

fn case(name: &'static str, option: (i32, i32), value: &[u8], right: [Right; 2]) -> Case {
    Case {
        name,
        option,
        value: value.to_vec(),
        right,
        only: None,
    }
}

/// Every option that can change where TCP goes, with a value that would, and some that cannot.
fn cases(interface: u32, hop: Ipv6Addr) -> Vec<Case> {
    let header = routing_header(hop);
    let mut packed = Vec::new();
    // `struct cmsghdr` with a routing header.
    packed.extend_from_slice(&(16 + header.len()).to_ne_bytes());
    packed.extend_from_slice(&SOL_IPV6.to_ne_bytes());
    packed.extend_from_slice(&57_i32.to_ne_bytes());
    packed.extend_from_slice(&header);
    let mut long = b"cubic".to_vec();
    long.resize(8192, 0);
    let v6 = |case: Case| Case {
        only: Some(Domain::IPV6),
        ..case
    };
    let v4 = |case: Case| Case {
        only: Some(Domain::IPV4),
        ..case
    };
    vec![
        case("SO_BINDTODEVICE", (SOL_SOCKET, 25), b"eth0\0", [Taken; 2]),
        case(
            "SO_BINDTOIFINDEX",
            (SOL_SOCKET, 62),
            &interface.to_ne_bytes(),
            [Taken; 2],
        ),
        case(
            "SO_MARK",
            (SOL_SOCKET, 36),
            &7_u32.to_ne_bytes(),
            [Taken; 2],
        ),
        case(
            "SO_DONTROUTE",
            (SOL_SOCKET, 5),
            &1_u32.to_ne_bytes(),
            [Taken; 2],
        ),
        v6(case("IPV6_RTHDR", (SOL_IPV6, 57), &header, [Refused; 2])),
        v6(case("IPV6_RTHDR, none", (SOL_IPV6, 57), &[], [Taken; 2])),
        v6(case(
            "IPV6_2292PKTOPTIONS",
            (SOL_IPV6, 6),
            &packed,
            [Refused; 2],
        )),
        v6(case(
            "IPV6_XFRM_POLICY",
            (SOL_IPV6, 35),
            &[0; 168],
            [Refused; 2],
        )),
        v4(case(
            "IP_OPTIONS, loose route",
            (SOL_IP, 4),
            &[131, 7, 4, 10, 244, 2, 1, 0],
            [Refused; 2],
        )),
        v4(case(
            "IP_OPTIONS, strict route",
            (SOL_IP, 4),
            &[1, 137, 7, 4, 10, 244, 2, 1],
            [Refused; 2],
        )),
        v4(case("IP_OPTIONS, none", (SOL_IP, 4), &[], [Taken; 2])),
        v4(case(
            "IP_XFRM_POLICY",
            (SOL_IP, 17),
            &[0; 168],
            [Refused; 2],
        )),
        // Longer than what the kernel shows to a program.
        case("TCP_CONGESTION", (SOL_TCP, 13), &long, [Taken; 2]),
    ]
}

/// A segment routing header (RFC 8754) with one segment.
fn routing_header(hop: Ipv6Addr) -> Vec<u8> {
    let mut header = vec![0, 2, 4, 0, 0, 0, 0, 0];
    header.extend_from_slice(&hop.octets());
    header
}

fn set(socket: &impl AsRawFd, (level, name): (i32, i32), value: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(value.len()).map_err(Error::other)?;
    // SAFETY: the value outlives the call and is as long as is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Error::last_os_error())
    }
}

fn judge(case: &Case, right: Right, went: std::io::Result<()>) -> Result<()> {
    let is = match &went {
        Ok(()) => Taken,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Refused,
        Err(_) => {
            went?;
            return Ok(());
        }
    };
    ensure!(is == right, "{}: {is:?} instead of {right:?}", case.name);
    Ok(())
}

/// Sets an option before or after connecting, and talks to the echo at `to`.
fn converse(case: &Case, right: Right, before: bool, to: SocketAddr, bytes: &[u8]) -> Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if before {
        judge(case, right, set(&socket, case.option, &case.value)).context("before connect")?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    if !before {
        judge(case, right, set(&socket, case.option, &case.value)).context("after connect")?;
    }
    let carried = socket.mark()?;
    ensure!(
        carried & 0xffff_ff00 == 0x4b45_4c00,
        "its mark is {carried:#x}"
    );
    let stream: TcpStream = socket.into();
    patient(&stream)?;
    round_trip(&stream, bytes)
}

fn interface(pod: &Pod) -> Result<u32> {
    let index = pod.run(|| nix::net::if_::if_nametoindex("eth0"))?;
    index.context("the index of eth0")
}

#[test]
fn no_option_leads_a_carried_connection_past_the_agent() -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let cases = cases(interface(&client)?, world.pod("plain/r")?.v6()?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    let (ignored, refused) = (
        decisions(&world, "n1", "option_ignored")?,
        decisions(&world, "n1", "option_refused")?,
    );
    let mut failures = Failures::default();
    for case in &cases {
        for to in addresses(&server, port) {
            if case
                .only
                .is_some_and(|only| only != Domain::for_address(to))
            {
                continue;
            }
            for (before, right) in [true, false].into_iter().zip(case.right) {
                let (link, bytes) = (link(&world)?, token());
                let went = client.run(|| converse(case, right, before, to, &bytes))?;
                let went = went.and_then(|()| {
                    ensure!(!link.contains(&bytes)?, "readable on the link");
                    Ok(())
                });
                failures.note(&format!("{} before={before} to {to}", case.name), went);
            }
        }
    }
    let ignored = decisions(&world, "n1", "option_ignored")? - ignored;
    let refused = decisions(&world, "n1", "option_refused")? - refused;
    // Three options, once for each family, on connected sockets; six options before and after.
    let counted = (ignored, refused) == (6.0, 12.0);
    let counted = counted
        .then_some(())
        .context(format!("{ignored} and {refused}"));
    failures.note("without effect and refused, as counted", counted);
    failures.judge(&world)
}

/// What is not carried is steered no less: a pod's connection to itself.
#[test]
fn a_routing_header_leads_no_connection_to_itself_out_of_a_pod() -> Result<()> {
    let world = world()?;
    let (client, hop) = (world.pod("mesh/a")?, world.pod("plain/r")?.v6()?);
    let (port, bytes) = (fresh_port(), token());
    let _echo = echo(&client, port)?;
    let link = link(&world)?;
    for own in [client.v6()?, Ipv6Addr::LOCALHOST] {
        let to = SocketAddr::new(own.into(), port);
        let went = client.run(|| -> Result<()> {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            let set = set(&socket, (SOL_IPV6, 57), &routing_header(hop));
            let error = set.err().context("the header is taken")?;
            ensure!(error.raw_os_error() == Some(libc::EPERM), "{error}");
            socket.connect_timeout(&to.into(), PATIENCE)?;
            let stream: TcpStream = socket.into();
            patient(&stream)?;
            round_trip(&stream, &bytes)
        })?;
        went.with_context(|| to.to_string())?;
    }
    ensure!(!link.contains(&bytes)?, "readable on the link");
    Ok(())
}

/// Pods outside the mesh set what the kernel lets them set, and so does what is no TCP.
#[test]
fn options_of_others_are_the_kernels() -> Result<()> {
    let world = world()?;
    let (plain, captured) = (world.pod("plain/p")?, world.pod("mesh/a")?);
    let header = routing_header(world.pod("plain/r")?.v6()?);
    plain
        .run(|| -> Result<()> {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            set(&socket, (SOL_IPV6, 57), &header)?;
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            set(&socket, (SOL_IP, 4), &[131, 7, 4, 10, 244, 2, 1, 0])?;
            Ok(())
        })?
        .context("a pod outside the mesh")?;
    captured
        .run(|| -> Result<()> {
            let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
            set(&socket, (SOL_IPV6, 57), &header)?;
            Ok(())
        })?
        .context("a socket of UDP")
}

#[test]
fn tcp_to_a_link_local_address_is_refused_and_neighbours_are_found() -> Result<()> {
    let world = world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let index = interface(&client)?;
    let port = fresh_port();
    let _far = echo(&server, port)?;
    let _own = echo(&client, port)?;
    let scoped = |ip: Ipv6Addr| SocketAddr::from(SocketAddrV6::new(ip, port, 0, index));
    let refused = decisions(&world, "n1", "outbound_link_local")?;
    expect_refused(&client, scoped("fe80::1".parse()?))?;
    ensure!(
        decisions(&world, "n1", "outbound_link_local")? > refused,
        "not counted"
    );
    // Without a neighbour the kernel has to ask for one.
    for arguments in [
        ["-4", "neigh", "flush", "dev", "eth0"],
        ["-6", "neigh", "flush", "dev", "eth0"],
    ] {
        let mut command = Command::new("ip");
        command.args(arguments);
        let output = client.output(command)?;
        ensure!(output.status.success(), "{output:?}");
    }
    for to in addresses(&server, port) {
        expect_echo(&client, to)?;
    }
    // A pod reaches itself by every address that it has.
    let mut command = Command::new("ip");
    command.args(["-6", "-br", "addr", "show", "dev", "eth0", "scope", "link"]);
    let shown = String::from_utf8(client.output(command)?.stdout)?;
    let own = shown
        .split_whitespace()
        .find(|word| word.starts_with("fe80"));
    let own = own.and_then(|word| word.split('/').next());
    let own: Ipv6Addr = own.with_context(|| shown.clone())?.parse()?;
    expect_echo(&client, scoped(own)).context("its own link-local address")
}

/// An address that is not the pod's may be bound without any capability; the log says nothing of it.
#[test]
fn a_foreign_source_address_is_not_logged() -> Result<()> {
    const FOREIGN: [&str; 2] = ["203.0.113.7", "2001:db8::7"];
    let world = world()?;
    let (client, server) = (world.pod("mesh/a")?, world.pod("mesh/c")?);
    let port = fresh_port();
    let _echo = echo(&server, port)?;
    // IP_TRANSPARENT and IPV6_FREEBIND: with IP_FREEBIND alone the kernel finds no route.
    let options = [(SOL_IP, 19), (SOL_IPV6, 78)];
    for ((to, foreign), option) in addresses(&server, port)
        .into_iter()
        .zip(FOREIGN)
        .zip(options)
    {
        let from = SocketAddr::new(foreign.parse()?, 0);
        let went = client.run(|| -> Result<()> {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            set(&socket, option, &1_u32.to_ne_bytes())?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            Ok(())
        })?;
        went.with_context(|| format!("from {from} to {to}"))?;
        let (ip, line) = (to.ip(), format!("dst.addr={to}"));
        testkit::eventually(
            &format!("the connection to {ip} is logged"),
            APPLIES,
            || {
                ensure!(world.agent_log("n1").contains(&line), "no {line}");
                Ok(())
            },
        )?;
    }
    for node in ["n1", "n2"] {
        let log = world.agent_log(node);
        let named = log
            .lines()
            .find(|line| FOREIGN.iter().any(|foreign| line.contains(foreign)));
        ensure!(named.is_none(), "{node}: {named:?}");
    }
    let refusals = world.agent_get("n1", "/refusals")?;
    ensure!(
        !FOREIGN.iter().any(|foreign| refusals.contains(foreign)),
        "{refusals}"
    );
    // The pod's own connections go on.
    round_trip(&dial(&client, addresses(&server, port)[0])?, &token())
}
