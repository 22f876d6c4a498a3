//! Meshes that tests share, and what every test does in them: serve, call, look at an agent.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use lab::{Lab, Pod, PodSpec};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use testkit::{Behaviour, Peer};
use tests_lab::talk;
pub(crate) use tests_lab::talk::{Ended, echo, serve};

/// How long a change of a manifest may take until a connection notices it.
pub(crate) const APPLIES: Duration = Duration::from_secs(10);
/// How long one call may take before it counts as hung.
pub(crate) const CALL: Duration = Duration::from_secs(5);

/// What [`call`] says.
pub(crate) const PING: &[u8] = b"ping over a new connection";

/// A namespace whose pods are captured.
pub(crate) fn mesh_namespace(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{keelson.io/mesh: enabled}}}}\n"
    )
}

/// A namespace whose pods are left alone.
pub(crate) fn plain_namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

/// A pod whose service account has its own name.
pub(crate) fn pod(namespace: &str, name: &str, node: &str) -> PodSpec {
    PodSpec::new(namespace, name, node).service_account(name)
}

/// An application whose queue is full: who dials it is neither taken nor refused until it is served.
pub(crate) struct Busy {
    port: u16,
    listener: TcpListener,
    _queued: TcpStream,
}

impl Busy {
    /// Listens on all addresses of a pod.
    pub(crate) fn new(pod: &Pod, port: u16) -> Result<Self> {
        pod.run(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_only_v6(false)?;
            socket.bind(&at(std::net::Ipv6Addr::UNSPECIFIED, port).into())?;
            socket.listen(0)?;
            Ok(Self {
                port,
                listener: socket.into(),
                // The queue of a backlog of 0 takes one.
                _queued: TcpStream::connect_timeout(&at([127, 0, 0, 1], port), CALL)?,
            })
        })?
    }

    /// Waits until a socket of the pod has sent the application so many SYNs over IPv4 again.
    pub(crate) fn wait_dialled(&self, from: &Pod, again: u32) -> Result<()> {
        // Remote address and state SYN_SENT, as proc(5) writes them; the third field after them counts.
        let wanted = format!(":{:04X} 02 ", self.port);
        testkit::eventually("the application is dialled", 4 * APPLIES, || {
            let sockets = from.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))??;
            let socket = sockets.lines().find_map(|line| line.split_once(&wanted));
            let (_, rest) = socket.with_context(|| sockets.clone())?;
            let sent = rest.split(' ').nth(2).context("no such field")?;
            ensure!(
                u32::from_str_radix(sent, 16)? >= again,
                "{sent} times again"
            );
            Ok(())
        })
    }

    /// Takes what is in the queue and what comes.
    pub(crate) fn serve(self) -> Result<Peer> {
        Peer::serve(self.listener, Behaviour::Echo)
    }
}

/// Opens a connection from a pod; its reads and writes end after [`CALL`].
pub(crate) fn connect(from: &Pod, to: SocketAddr) -> Result<TcpStream> {
    talk::dial(from, to, CALL)
}

/// Sends some bytes over a new connection to an echo.
pub(crate) fn call(from: &Pod, to: SocketAddr) -> Result<Ended> {
    from.run(|| call_here(to, PING))
}

/// As [`call`], from the namespace of the calling thread.
pub(crate) fn call_here(to: SocketAddr, message: &[u8]) -> Ended {
    talk::call_here(to, message, CALL).or_refused()
}

/// Makes a call that must be refused, and returns the client's address. A refusal may be there
/// before `connect` returns, so the address is taken before.
pub(crate) fn refused_call(from: &Pod, to: SocketAddr) -> Result<SocketAddr> {
    let own = from.ips().iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
    let own = *own.context("no address of that family")?;
    let attempt = || -> Result<(SocketAddr, Ended)> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.bind(&SocketAddr::new(own, 0).into())?;
        let local = socket.local_addr()?.as_socket().context("no IP address")?;
        let ended = match socket.connect_timeout(&to.into(), CALL) {
            Ok(()) => exchange(&socket.into(), PING),
            Err(error) => Ended::by(error.kind()).or_refused(),
        };
        Ok((local, ended))
    };
    let (local, ended) = from.run(attempt)??;
    ensure!(ended == Ended::Refused, "{} to {to}: {ended}", from.key());
    Ok(local)
}

/// What a scoped thread returned; a panic of it is an error.
pub(crate) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> Result<T> {
    thread
        .join()
        .map_err(|panic| anyhow!("a thread panicked: {panic:?}"))
}

/// Sends some bytes over an open connection to an echo.
pub(crate) fn exchange(stream: &TcpStream, message: &[u8]) -> Ended {
    talk::exchange(stream, message, CALL).or_refused()
}

/// Waits until calls end as they should, and then makes sure of it once more.
pub(crate) fn wait_for(from: &Pod, to: SocketAddr, expected: Ended) -> Result<()> {
    let what = format!("calls of {} to {to} end {expected}", from.key());
    testkit::eventually(&what, APPLIES, || {
        let ended = call(from, to)?;
        ensure!(ended == expected, "the last one ended {ended}");
        Ok(())
    })?;
    let again = call(from, to)?;
    ensure!(again == expected, "{what}, and then one ended {again}");
    Ok(())
}

/// Whether a page of a node's agent holds this text.
pub(crate) fn agent_holds(lab: &Lab, node: &str, path: &str, text: &str) -> Result<bool> {
    Ok(lab.agent_get(node, path)?.contains(text))
}

/// Waits until the configuration of a node's agent holds a text, or holds it no more.
pub(crate) fn wait_configured(lab: &Lab, node: &str, text: &str, there: bool) -> Result<()> {
    let what = format!("the agent of {node} knows of {text:?}: {there}");
    lab::wait_until(&what, APPLIES, || {
        Ok(agent_holds(lab, node, "/config_dump", text)? == there)
    })
}

/// The refusals that an agent remembers, the newest last or first as it gives them.
pub(crate) fn refusals(lab: &Lab, node: &str) -> Result<Vec<Value>> {
    let page = lab.agent_json(node, "/refusals")?;
    let list = page.as_array().or_else(|| page.get("refusals")?.as_array());
    list.cloned()
        .with_context(|| format!("/refusals of {node} holds no list: {page}"))
}

/// Waits for a refusal of which some fields hold all these texts, in whatever fields they stand.
pub(crate) fn wait_refusal(lab: &Lab, node: &str, texts: &[&str]) -> Result<Value> {
    wait_refusal_of(lab, node, texts, || Ok(()))
}

/// The same, of calls that are made again until one is told of. Who has been refused often just before is told of four
/// times a second only, and a test cannot know what was before it.
pub(crate) fn wait_refusal_of(
    lab: &Lab,
    node: &str,
    texts: &[&str],
    again: impl Fn() -> Result<()>,
) -> Result<Value> {
    let what = format!("a refusal on {node} that holds {texts:?}");
    testkit::eventually(&what, APPLIES, || {
        again()?;
        let all = refusals(lab, node)?;
        let found = all.iter().find(|refusal| {
            let text = refusal.to_string();
            texts.iter().all(|wanted| text.contains(wanted))
        });
        let newest: Vec<String> = all.iter().rev().take(3).map(Value::to_string).collect();
        found
            .cloned()
            .with_context(|| format!("the last are {}", newest.join("\n")))
    })
}

/// `address:port`.
pub(crate) fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

/// The SPIFFE id of a pod in the default trust domain.
pub(crate) fn spiffe(pod: &Pod) -> String {
    format!(
        "spiffe://cluster.local/ns/{}/sa/{}",
        pod.namespace(),
        pod.service_account()
    )
}
