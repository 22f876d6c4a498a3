//! Connections that are older than their pod's capture: nobody was asked about them when they were opened.

#![expect(unsafe_code, reason = "no safe library sets TCP_FASTOPEN_CONNECT")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, Pod, PodSpec};
use socket2::{Domain, SockRef, Socket, Type};
use tests_lab::metrics::{decisions, metric};
use tests_lab::{mtls, namespace};

use crate::support::{
    APPLIES, PATIENCE, changing_world, evidence, fresh_port, listen, patient, token,
};

/// A pod on n1 in a namespace of its own that is not in the mesh yet.
fn pod(lab: &Lab, space: &str, policy: &str) -> Result<Pod> {
    lab.apply(&format!("{space}.yaml"), &(namespace(space, &[]) + policy))?;
    lab.create(&PodSpec::new(space, "pod", "n1"))
}

fn join(lab: &Lab, space: &str) -> Result<()> {
    lab.label_namespace(space, "keelson.io/mesh", Some("enabled"))?;
    let is_captured = || {
        let pods = lab.agent_pods("n1")?;
        let mut ours = pods.iter().filter(|pod| pod["namespace"] == space);
        ensure!(ours.any(|pod| pod["state"] == "captured"), "{pods:?}");
        Ok(())
    };
    testkit::eventually("the pod is captured", APPLIES, is_captured).with_context(|| evidence(lab))
}

/// Both ends of a connection, the client's first.
fn ends(client: &Pod, server: &Pod) -> Result<(TcpStream, TcpStream)> {
    let port = fresh_port();
    let listener: TcpListener = listen(server, port)?;
    let to = SocketAddr::new(server.v4()?.into(), port);
    let near = client.run(|| TcpStream::connect_timeout(&to, PATIENCE))??;
    let (far, _) = listener.accept()?;
    patient(&near)?;
    patient(&far)?;
    Ok((near, far))
}

/// Bytes go in both directions.
fn talk<'s>(mut near: &'s TcpStream, mut far: &'s TcpStream) -> Result<()> {
    let bytes = token();
    for _ in 0..2 {
        near.write_all(&bytes)?;
        let mut heard = vec![0; bytes.len()];
        far.read_exact(&mut heard)?;
        ensure!(heard == bytes, "{heard:?}");
        std::mem::swap(&mut near, &mut far);
    }
    Ok(())
}

/// Waits until both ends were told that the connection is over.
fn expect_cut(near: &TcpStream, far: &TcpStream) -> Result<()> {
    for mut end in [near, far] {
        end.set_read_timeout(Some(APPLIES))?;
        let kind = match end.read(&mut [0]) {
            Ok(bytes) => anyhow::bail!("{bytes} bytes instead of a reset"),
            Err(error) => error.kind(),
        };
        let cut = [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted];
        ensure!(cut.contains(&kind), "{kind:?} instead of a reset");
    }
    Ok(())
}

/// How an older connection is listed: by the address of the peer.
fn listed(lab: &Lab, peer: SocketAddr) -> Result<Option<serde_json::Value>> {
    let page = lab.agent_json("n1", "/connections")?;
    let all = page.as_array().context("no list")?;
    let peer = peer.to_string();
    let is_it = |one: &&serde_json::Value| {
        one["older_than_capture"] == true
            && (one["source"]["addr"] == peer || one["destination"]["addr"] == peer)
    };
    Ok(all.iter().find(is_it).cloned())
}

fn cuts(lab: &Lab) -> Result<f64> {
    let labels = [("reason", "older")];
    metric(lab, "n1", "keelson_connections_cut_total", &labels)
}

#[test]
fn older_connections_go_on_where_plain_is_allowed_until_policy_asks_for_more() -> Result<()> {
    let lab = changing_world()?;
    let (ours, other) = (pod(&lab, "elder", "")?, lab.pod("plain/r")?);
    let (caller, called) = ends(&other, &ours)?;
    let (calling, answering) = ends(&ours, &other)?;
    join(&lab, "elder")?;
    talk(&caller, &called).context("what the pod serves")?;
    talk(&calling, &answering).context("what the pod has opened")?;
    let inbound = listed(&lab, caller.local_addr()?)?.context("the one that it serves")?;
    ensure!(inbound["direction"] == "inbound", "{inbound}");
    ensure!(inbound["security"] == "none", "{inbound}");
    ensure!(inbound["request_bytes"].as_u64() > Some(0), "{inbound}");
    let outbound = listed(&lab, calling.peer_addr()?)?.context("the one that it has opened")?;
    ensure!(outbound["direction"] == "outbound", "{outbound}");
    let counted = cuts(&lab)?;
    lab.apply("elder-strict.yaml", &mtls("elder", "STRICT"))?;
    expect_cut(&caller, &called).with_context(|| evidence(&lab))?;
    // Whom it calls decides about that one.
    talk(&calling, &answering).context("what the pod has opened")?;
    ensure!(cuts(&lab)? == counted + 1.0, "the cut is not counted");
    drop((calling, answering));
    testkit::eventually("nothing older is listed", APPLIES, || {
        let page = lab.agent_json("n1", "/connections")?;
        let all = page.as_array().context("no list")?;
        let older = all.iter().find(|one| one["older_than_capture"] == true);
        ensure!(older.is_none(), "{older:?}");
        Ok(())
    })?;
    lab.delete("elder-strict.yaml")
}

#[test]
fn under_strict_what_a_pod_serves_ends_with_its_capture() -> Result<()> {
    let lab = changing_world()?;
    let ours = pod(&lab, "elder-strict", &mtls("elder-strict", "STRICT"))?;
    let other = lab.pod("plain/q")?;
    let (caller, called) = ends(&other, &ours)?;
    let (calling, answering) = ends(&ours, &other)?;
    join(&lab, "elder-strict")?;
    expect_cut(&caller, &called).with_context(|| evidence(&lab))?;
    talk(&calling, &answering)
}

/// A new agent knows them still.
#[test]
fn the_next_agent_asks_about_older_connections_too() -> Result<()> {
    let lab = changing_world()?;
    let (ours, other) = (pod(&lab, "elder-kept", "")?, lab.pod("plain/r")?);
    let (caller, called) = ends(&other, &ours)?;
    join(&lab, "elder-kept")?;
    talk(&caller, &called)?;
    lab.kill_agent("n1")?;
    lab.start_agent("n1", &lab::AgentOptions::default())?;
    testkit::eventually("the connection is listed", APPLIES, || {
        listed(&lab, caller.local_addr()?)?
            .context("it is not")
            .map(drop)
    })?;
    talk(&caller, &called)?;
    lab.apply("elder-kept-strict.yaml", &mtls("elder-kept", "STRICT"))?;
    expect_cut(&caller, &called).with_context(|| evidence(&lab))?;
    lab.delete("elder-kept-strict.yaml")
}

/// `connect` was called before, the SYN leaves with the first bytes.
#[test]
fn a_syn_that_leaves_after_capture_goes_to_the_agent() -> Result<()> {
    const TCP_FASTOPEN: i32 = 23;
    const TCP_FASTOPEN_CONNECT: i32 = 30;
    const MSG_FASTOPEN: i32 = 0x2000_0000;
    let lab = changing_world()?;
    let (ours, other) = (pod(&lab, "elder-late", "")?, lab.pod("plain/r")?);
    let port = fresh_port();
    other.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3"))??;
    let listener = listen(&other, port)?;
    set_tcp(&listener, TCP_FASTOPEN, 16)?;
    let _echo = testkit::Peer::serve(listener, testkit::Behaviour::Echo)?;
    let to = SocketAddr::new(other.v4()?.into(), port);
    let open = || -> Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        set_tcp(&socket, TCP_FASTOPEN_CONNECT, 1)?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    };
    // With a cookie the SYN waits for the first bytes.
    ours.run(|| -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.send_to_with_flags(b"cookie", &to.into(), MSG_FASTOPEN)?;
        let mut stream: TcpStream = socket.into();
        patient(&stream)?;
        stream.read_exact(&mut [0; 6])?;
        Ok(())
    })??;
    let deferred = ours.run(open)??;
    patient(&deferred)?;
    let eth0 = ours.capture()?;
    join(&lab, "elder-late")?;
    let syns = eth0.syns_from(ours.v4()?.into());
    ensure!(syns == 0, "the SYN did not wait");
    let (late, bytes) = (decisions(&lab, "n1", "outbound_late")?, token());
    crate::support::round_trip(&deferred, &bytes).with_context(|| evidence(&lab))?;
    ensure!(
        decisions(&lab, "n1", "outbound_late")? > late,
        "not counted"
    );
    let mark = SockRef::from(&deferred).mark()?;
    ensure!(mark & 0xffff_ff00 == 0x4b45_4c00, "its mark is {mark:#x}");
    let carried = lab.agent_json("n1", "/connections")?;
    let carried = carried.as_array().context("no list")?.iter().any(|one| {
        one["direction"] == "outbound"
            && one["destination"]["addr"] == to.to_string()
            && one["older_than_capture"].is_null()
    });
    ensure!(carried, "nobody carries it");
    Ok(())
}

/// A SYN that nobody has answered by then is sent no second time.
#[test]
fn what_a_pod_was_opening_in_vain_ends_with_its_capture() -> Result<()> {
    let lab = changing_world()?;
    let (ours, other) = (pod(&lab, "elder-syn", "")?, lab.pod("plain/r")?);
    let port = fresh_port();
    // A queue of one that is full: what else comes is dropped.
    let _full = other.run(|| -> Result<(Socket, TcpStream)> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
        socket.listen(0)?;
        let queued =
            TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), PATIENCE)?;
        Ok((socket, queued))
    })??;
    let to = SocketAddr::new(other.v4()?.into(), port);
    let opening = ours.run(|| -> Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let started = socket.connect(&to.into());
        let error = started.err().context("connected at once")?;
        ensure!(error.raw_os_error() == Some(libc::EINPROGRESS), "{error}");
        Ok(socket)
    })??;
    let counted = cuts(&lab)?;
    join(&lab, "elder-syn")?;
    testkit::eventually("the attempt is over", APPLIES, || {
        let error = opening.take_error()?.context("it goes on")?;
        ensure!(error.kind() == ErrorKind::ConnectionAborted, "{error}");
        Ok(())
    })
    .with_context(|| evidence(&lab))?;
    ensure!(cuts(&lab)? > counted, "not counted");
    Ok(())
}

fn set_tcp(socket: &impl AsRawFd, option: i32, value: i32) -> Result<()> {
    // SAFETY: the value outlives the call and its size is given.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), 6, option, (&raw const value).cast(), 4) };
    ensure!(
        result == 0,
        "option {option}: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
