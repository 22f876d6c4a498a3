//! The steps (a) to (e).

use std::fs;
use std::io::{self, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lab::Pod;
use serde_json::Value;
use testkit::{read_response, write_request};

use crate::demo::{CHANGE, Demo};
use crate::shell::{detail, good, heading, root};

/// A connection that was opened in step (a) and is used again in step (b).
pub(super) struct Kept {
    stream: TcpStream,
}

impl Kept {
    fn open(client: &Pod, server: SocketAddr) -> Result<Self> {
        let stream = client.run(|| connect(server))??;
        Ok(Self { stream })
    }

    fn ask(&self, question: &str) -> Result<()> {
        write_request(&self.stream, "server", "/", question.as_bytes())?;
        let response = read_response(&mut BufReader::new(&self.stream))?;
        ensure!(
            response.body == question.as_bytes(),
            "the answer is not the question sent"
        );
        Ok(())
    }
}

/// (a) Without the label an HTTP call between nodes is readable on the link.
pub(super) fn plain(demo: &Demo) -> Result<Kept> {
    heading("(a) Before the mesh: HTTP between nodes is readable");
    let client = demo.lab.pod("shop/client")?;
    demo.link.clear();
    let calls = call_both_versions(&client)?;
    good(&format!("shop/client called http://server {calls}"));
    detail(&format!("an answer: {}", call(&client, server_v2(demo)?)?));
    ensure!(
        demo.link.contains(GREETING)?,
        "the greeting was not seen on the link: is the capture blind?"
    );
    good(&format!(
        "the capture of the link reads {:?}",
        String::from_utf8_lossy(GREETING)
    ));
    let kept = Kept::open(&client, server_v2(demo)?)?;
    kept.ask("asked before")?;
    good("a connection is open and stays open");
    Ok(kept)
}

/// (b) The label makes the same call unreadable, and cuts nothing.
pub(super) fn joins(demo: &Demo, kept: Kept) -> Result<()> {
    heading("(b) The namespace joins the mesh: same call, encrypted");
    let client = demo.lab.pod("shop/client")?;
    let server = server_v2(demo)?;
    demo.lab
        .label_namespace("shop", MESH_LABEL, Some("enabled"))?;
    good(&format!(
        "namespace shop has the label {MESH_LABEL}=enabled"
    ));
    let labelled = Instant::now();
    lab::wait_until("calls between nodes are encrypted", CHANGE, || {
        demo.link.clear();
        call(&client, server)?;
        Ok(!demo.link.contains(GREETING)?)
    })?;
    good(&format!(
        "encrypted after {} ms",
        labelled.elapsed().as_millis()
    ));

    demo.link.clear();
    let calls = call_both_versions(&client)?;
    good(&format!("shop/client called http://server {calls}"));
    ensure!(
        !demo.link.contains(GREETING)?,
        "the greeting is readable on the link"
    );
    ensure!(
        demo.link.counts().lost == 0,
        "the capture lost frames and proves nothing"
    );
    let tunnel = demo.link.count_port(TCP, HBONE);
    ensure!(tunnel > 0, "nothing went through the tunnel's port {HBONE}");
    let plain = demo.link.count_port(TCP, server.port());
    good(&format!(
        "the capture of the link cannot read it: {tunnel} packets of the tunnel (port {HBONE}), \
         {plain} to or from port {}, {} frames in all",
        server.port(),
        demo.link.counts().frames
    ));
    kept.ask("asked after")
        .context("the connection from before the label")?;
    good("the connection from before still works (in the clear, until it is closed)");
    Ok(())
}

/// (c) STRICT: a pod outside the mesh is refused with a reset, a mesh pod is not.
pub(super) fn strict(demo: &Demo) -> Result<()> {
    heading("(c) PeerAuthentication STRICT: no connections from outside the mesh");
    let visitor = demo.lab.pod("outside/visitor")?;
    let server = server_v2(demo)?;
    call(&visitor, server).context("under PERMISSIVE a visitor is let in")?;
    good("before: outside/visitor gets an answer (PERMISSIVE is the default)");
    apply(demo, "strict.yaml")?;
    lab::wait_until("the visitor is refused", CHANGE, || {
        Ok(call(&visitor, server).is_err())
    })?;

    demo.link.clear();
    let error = refusal(&visitor, server)?;
    let own: IpAddr = visitor.v4()?.into();
    let resets = demo.link.count(|packet| {
        packet.is_reset() && packet.source == server.ip() && packet.destination == own
    });
    ensure!(
        resets > 0,
        "no reset from {} was seen on the link",
        server.ip()
    );
    good(&format!("outside/visitor is refused: {error}"));
    good(&format!(
        "the capture of the link saw the reset from {}",
        server.ip()
    ));
    let by_service = refusal(&visitor, SERVICE_VIP)?;
    good(&format!("also through the service's address: {by_service}"));
    let client = demo.lab.pod("shop/client")?;
    let calls = call_both_versions(&client)?;
    good(&format!(
        "shop/client is not: it called http://server {calls}"
    ));
    Ok(())
}

/// (d) A policy denies one service account, whose agent tells why.
pub(super) fn denied(demo: &Demo) -> Result<()> {
    heading("(d) AuthorizationPolicy: one service account is denied");
    let batch = demo.lab.pod("shop/batch")?;
    let server = server_v2(demo)?;
    call(&batch, server).context("before the policy")?;
    good("before: shop/batch (service account batch) gets an answer");
    apply(demo, "deny-batch.yaml")?;
    lab::wait_until("shop/batch is refused", CHANGE, || {
        Ok(call(&batch, server).is_err())
    })?;
    let error = refusal(&batch, server)?;
    good(&format!("shop/batch is refused: {error}"));

    let mut told = None;
    lab::wait_until("the client's agent tells the reason", CHANGE, || {
        told = find_text(&demo.lab.agent_json("n1", "/refusals")?, POLICY);
        Ok(told.is_some())
    })?;
    good("the reason, from /refusals of the agent on the client's node:");
    detail(&told.unwrap_or_default());
    let log = demo.lab.agent_log("n1");
    let line = log.lines().rev().find(|line| line.contains(POLICY));
    good("and from that agent's log:");
    detail(line.ok_or_else(|| anyhow!("the agent's log does not name {POLICY}"))?);

    let client = demo.lab.pod("shop/client")?;
    let calls = call_both_versions(&client)?;
    good(&format!(
        "shop/client (service account client) is not: it called http://server {calls}"
    ));
    Ok(())
}

/// (e) Without the label, traffic is plain again.
pub(super) fn leaves(demo: &Demo) -> Result<()> {
    heading("(e) The namespace leaves the mesh: plain again");
    let client = demo.lab.pod("shop/client")?;
    let server = server_v2(demo)?;
    demo.lab.label_namespace("shop", MESH_LABEL, None)?;
    let unlabelled = Instant::now();
    lab::wait_until("calls between nodes are readable", CHANGE, || {
        demo.link.clear();
        call(&client, server)?;
        demo.link.contains(GREETING)
    })?;
    good(&format!(
        "the label is gone; readable after {} ms",
        unlabelled.elapsed().as_millis()
    ));
    demo.link.clear();
    let calls = call_both_versions(&client)?;
    let tunnel = demo
        .link
        .count(|packet| packet.is_syn() && packet.destination_port == HBONE);
    ensure!(
        demo.link.contains(GREETING)?,
        "the greeting is not readable on the link"
    );
    ensure!(
        tunnel == 0,
        "{tunnel} new connections to the tunnel's port {HBONE}"
    );
    good(&format!(
        "shop/client called http://server {calls}, readable on the link, no tunnel opened"
    ));
    call(&demo.lab.pod("outside/visitor")?, server)
        .context("the visitor, after the mesh has gone")?;
    good("outside/visitor is let in again: nothing of the mesh is left in the pods");
    Ok(())
}

fn server_v2(demo: &Demo) -> Result<SocketAddr> {
    Ok((demo.lab.pod("shop/server-v2")?.v4()?, 8080).into())
}

fn apply(demo: &Demo, policy: &str) -> Result<()> {
    let path = root()?.join("deploy/lab/policies").join(policy);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    demo.lab.apply(policy, &text)?;
    good(&format!("applied deploy/lab/policies/{policy}"));
    Ok(())
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One HTTP call on a connection of its own, from inside the pod.
fn call(pod: &Pod, server: SocketAddr) -> Result<String> {
    let called = pod.run(|| -> Result<String> {
        let stream = connect(server).context("connecting")?;
        write_request(&stream, "server", "/", b"")?;
        let response = read_response(&mut BufReader::new(&stream))?;
        ensure!(response.status == 200, "status {}", response.status);
        Ok(String::from_utf8_lossy(&response.body).trim().to_owned())
    })?;
    called.with_context(|| format!("{} calls {server}", pod.key()))
}

/// Calls the service until both of its pods have answered, one on each node.
fn call_both_versions(pod: &Pod) -> Result<String> {
    let (mut v1, mut v2) = (0, 0);
    for _ in 0..100 {
        let answer = call(pod, SERVICE_VIP)?;
        v1 += u32::from(answer.contains("from v1"));
        v2 += u32::from(answer.contains("from v2"));
        if v1 >= 3 && v2 >= 3 {
            return Ok(format!(
                "{} times: {v1} answers from node n1, {v2} from n2",
                v1 + v2
            ));
        }
    }
    bail!(
        "of 100 calls {v1} were answered on n1 and {v2} on n2, where both have one of the two endpoints"
    );
}

/// The error of a call that a reset must end.
fn refusal(pod: &Pod, server: SocketAddr) -> Result<String> {
    let Err(error) = call(pod, server) else {
        bail!("{} got an answer from {server}", pod.key());
    };
    let cause = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<io::Error>());
    let kind = cause.map(io::Error::kind);
    let reset = matches!(
        kind,
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused)
    );
    ensure!(reset, "not ended by a reset: {error:#}");
    Ok(error.root_cause().to_string())
}

/// The newest field of a page that has `part` in it.
fn find_text(page: &Value, part: &str) -> Option<String> {
    match page {
        Value::String(text) => text.contains(part).then(|| text.clone()),
        Value::Array(items) => items.iter().rev().find_map(|item| find_text(item, part)),
        Value::Object(fields) => fields.values().find_map(|field| find_text(field, part)),
        _ => None,
    }
}

const GREETING: &[u8] = b"Hi Istio workshop from v2";
const MESH_LABEL: &str = "keelson.io/mesh";
const POLICY: &str = "deny-batch";
const SERVICE_VIP: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 20)), 80);
const HBONE: u16 = 15008;
const TCP: u8 = 6;
const PATIENCE: Duration = Duration::from_secs(3);
