//! What the ports of a pod become where the pod translates addresses (nft, iptables): what a stranger dialled whose
//! connection was translated, and what a port becomes that a peer in the mesh asks for.
//!
//! A connection that the agent makes inside a pod meets other rules than one that comes in (OUTPUT, and not PREROUTING).
//! So where nobody listens on the port that a peer asks for, the agent dials that port from the node, as a stranger would.
//! If the pod translates it, that connection arrives at the agent's own listener, and its address there is the answer. No
//! byte is sent in it, and it decides nothing: policy has been asked about the port that the peer named.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{Semaphore, SemaphorePermit, oneshot},
};
use tunnel::copy;

use crate::{
    host::{canonical, conntrack},
    pod::{Pod, sock},
};

/// How long dialling a pod of this node from the node may take.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// How many questions the agent asks by dialling a pod at once.
const ASKED_AT_ONCE: usize = 8;

/// Bounds what a pod's questions cost, so that whoever dials one pod without end takes no time from the others.
pub(crate) struct Turns {
    /// One walk of a pod over the kernel's table of connections at a time: the others of the pod wait for it here, and
    /// not among those that wait for the node's.
    walk: Semaphore,
    asking: Semaphore,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            walk: Semaphore::new(1),
            asking: Semaphore::new(ASKED_AT_ONCE),
        }
    }
}

/// What a client dialled whose connection arrived at `application` in a pod.
///
/// # Errors
/// When it cannot be known.
pub(crate) async fn dialled(
    walks: &Walks,
    pod: &Arc<Pod>,
    stream: &TcpStream,
    client: SocketAddr,
    application: SocketAddr,
) -> io::Result<SocketAddr> {
    if let Some(target) = sock::dialled(stream) {
        return Ok(canonical(target));
    }
    if !pod.netns.with(conntrack::is_used)? {
        return Ok(application);
    }
    // In another zone, or not tracked. The kernel walks its whole table.
    let _turn = walks.turn(&pod.turns).await;
    let asked = Arc::clone(pod);
    let look = move || asked.netns.with(|| conntrack::dialled(application, client));
    let found = tokio::task::spawn_blocking(look).await;
    let found = found.map_err(io::Error::other)???;
    Ok(found.map_or(application, canonical))
}

/// Walks over the kernel's table of connections: one at a time on the node, because each takes a processor for
/// milliseconds. Pods take turns.
pub(crate) struct Walks(Semaphore);

impl Default for Walks {
    fn default() -> Self {
        Self(Semaphore::new(1))
    }
}

impl Walks {
    /// Waits until the pod may walk; it may while the result lives.
    async fn turn<'a>(&'a self, pod: &'a Turns) -> [Option<SemaphorePermit<'a>>; 2] {
        // A semaphore serves those that wait in their order, and each pod has one that waits for the node's.
        let own = pod.walk.acquire().await.ok();
        [self.0.acquire().await.ok(), own]
    }
}

/// The agent's questions about ports that pods may translate.
#[derive(Default)]
pub(crate) struct Translations(Mutex<HashMap<Question, oneshot::Sender<SocketAddr>>>);

/// A pod, and the address from which the agent dials it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Question {
    pod: u32,
    caller: (IpAddr, u16),
}

impl Translations {
    /// What `target` becomes inside the pod; none where the pod does not translate it, or leads it to somebody
    /// behind it.
    pub(crate) async fn ask(&self, pod: &Pod, target: SocketAddr) -> Option<SocketAddr> {
        let _turn = pod.turns.asking.acquire().await.ok()?;
        let socket = caller(target).ok()?;
        let own = socket.local_addr().ok()?;
        let question = Question {
            pod: pod.id,
            caller: (own.ip(), own.port()),
        };
        let (sender, answer) = oneshot::channel();
        self.0.lock().insert(question, sender);
        let asked = Asked {
            all: self,
            question,
        };
        let asking = async {
            let stream = socket.connect(target).await.ok()?;
            Some((answer.await, stream))
        };
        let (found, stream) = tokio::time::timeout(ANSWERED_WITHIN, asking).await.ok()??;
        // Before the address may be another question's.
        drop(asked);
        copy::reset(stream);
        found.ok().filter(|found| *found != target)
    }

    /// Says where a connection to a pod arrived, if it is the agent itself that asks.
    pub(crate) fn answer(&self, pod: &Pod, client: SocketAddr, application: SocketAddr) -> bool {
        let question = Question {
            pod: pod.id,
            caller: (client.ip(), client.port()),
        };
        let asked = self.0.lock().remove(&question);
        // Who has given up does not need it.
        asked.is_some_and(|asked| asked.send(application).is_ok())
    }
}

/// A question that is forgotten with whoever asks it.
struct Asked<'a> {
    all: &'a Translations,
    question: Question,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.question);
    }
}

/// A socket of the node that has the address from which it will call `target`.
fn caller(target: SocketAddr) -> io::Result<TcpSocket> {
    let (any, socket): (IpAddr, _) = if target.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED.into(), TcpSocket::new_v4()?)
    } else {
        (Ipv6Addr::UNSPECIFIED.into(), TcpSocket::new_v6()?)
    };
    // Sends nothing: the kernel says which address it would send from.
    let route = UdpSocket::bind((any, 0))?;
    route.connect(target)?;
    let mut own = route.local_addr()?;
    own.set_port(0);
    socket.bind(own)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn a_pod_that_is_dialled_without_end_lets_others_have_their_turn() {
        let node: Arc<(Walks, [Turns; 2])> = Arc::default();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut walks = JoinSet::new();
        for pod in std::iter::repeat_n(0, 100).chain([1]) {
            let (node, order) = (Arc::clone(&node), Arc::clone(&order));
            walks.spawn(async move {
                let turn = node.0.turn(&node.1[pod]).await;
                assert!(turn.iter().all(Option::is_some));
                tokio::task::yield_now().await;
                order.lock().push(pod);
            });
        }
        walks.join_all().await;
        assert_eq!(order.lock().len(), 101);
        let turn = order.lock().iter().position(|pod| *pod == 1);
        assert!(turn.is_some_and(|turn| turn <= 2), "{turn:?}");
    }
}
