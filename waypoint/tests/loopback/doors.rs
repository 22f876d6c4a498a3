//! Connections that the kernel leads to a waypoint, and the conversation that says who calls and for what.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use model::Identity;
use proto::convert::doors::{Callers, Doors, LONGEST};
use proto::proxy_protocol::CONVERSATION;
use runtime::frames::Frames;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use waypoint::Limits;

use crate::support::{Client, Mesh, Server, VIP, exchange, get};

/// All waypoints of these tests are on one host, where two would share the ports of their doors.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
const WITHIN: Duration = Duration::from_secs(10);

/// The agent's side of a conversation.
struct Agent {
    stream: TcpStream,
    frames: Frames,
    version: u64,
}

impl Agent {
    async fn begin(mesh: &Mesh) -> Self {
        let mut stream = mesh.bare().await;
        stream.write_all(CONVERSATION).await.unwrap();
        Self {
            stream,
            frames: Frames::new(LONGEST),
            version: 0,
        }
    }

    /// What the waypoint says next; `None` when it has ended the conversation.
    async fn hears(&mut self) -> Option<Doors> {
        let next = self.frames.next(&mut self.stream);
        let message = tokio::time::timeout(WITHIN, next).await.unwrap().unwrap()?;
        Some(Doors::read(&message).unwrap())
    }

    async fn says(&mut self, version: u64, callers: &[(&str, &str)]) {
        let callers: HashMap<_, Identity> = callers
            .iter()
            .map(|(address, account)| {
                let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}");
                (address.parse().unwrap(), identity.parse().unwrap())
            })
            .collect();
        let message = Callers { version, callers }.to_bytes();
        self.frames.send(&mut self.stream, message).await.unwrap();
    }

    /// Says who calls, and waits until every worker goes by it; gives the door of the service's port.
    async fn tells(&mut self, callers: &[(&str, &str)]) -> SocketAddr {
        self.version += 1;
        self.says(self.version, callers).await;
        loop {
            let doors = self.hears().await.expect("the conversation goes on");
            if doors.callers == self.version {
                let service = (VIP.parse::<std::net::IpAddr>().unwrap(), 80).into();
                return (Ipv4Addr::LOCALHOST, doors.doors[&service]).into();
            }
        }
    }
}

async fn shop(workers: usize) -> (Mesh, Server) {
    let mut mesh = Mesh::with(Limits::default(), workers);
    let server = Server::named("cart").await;
    mesh.endpoint("a", "v1", server.address);
    (mesh, server)
}

/// A connection from 127.0.0.2.
async fn dial(door: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 2], 0).into())?;
    socket.connect(door).await
}

/// The status of an answer to a new connection; none where it is closed or refused.
async fn status(door: SocketAddr) -> Option<u16> {
    let stream = dial(door).await.ok()?;
    let answer = exchange(stream, b"GET / HTTP/1.0\r\nhost: cart\r\n\r\n").await;
    answer.split(' ').nth(1)?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_told_of_is_served_at_the_door_and_nobody_else() {
    let _turn = TURN.lock().await;
    let (mesh, _server) = shop(2).await;
    let mut agent = Agent::begin(&mesh).await;
    let door = agent.tells(&[("10.244.1.3", "front")]).await;
    assert!(door.port() >= 61_440, "{door}");
    for _ in 0..8 {
        assert_eq!(status(door).await, None, "loopback is not told of");
    }
    assert!(
        mesh.page().contains("reason=\"caller_unknown\""),
        "{}",
        mesh.page()
    );
    assert_eq!(
        agent.tells(&[("127.0.0.2", "front")]).await,
        door,
        "the door stays"
    );
    for _ in 0..8 {
        assert_eq!(status(door).await, Some(200));
    }
    agent.tells(&[]).await;
    for _ in 0..8 {
        assert_eq!(status(door).await, None, "it is not told of any more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waypoint_that_is_made_to_dial_itself_is_nobody() {
    let _turn = TURN.lock().await;
    let (mesh, _server) = shop(1).await;
    let mut agent = Agent::begin(&mesh).await;
    let door = agent.tells(&[("127.0.0.1", "waypoint")]).await;
    let stream = TcpStream::connect(door).await.unwrap();
    let answer = exchange(stream, b"GET / HTTP/1.0\r\nhost: cart\r\n\r\n").await;
    assert_eq!(answer, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_the_conversation_and_a_door_does_not() {
    let _turn = TURN.lock().await;
    let (mesh, _server) = shop(1).await;
    let mut agent = Agent::begin(&mesh).await;
    let door = agent.tells(&[("127.0.0.2", "front")]).await;
    let stream = dial(door).await.unwrap();
    let mut client = Client::http1(stream).await;
    assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    drop(agent);
    let closed = async {
        while status(door).await.is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WITHIN, closed).await.unwrap();
    assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    // Another agent begins anew.
    let mut agent = Agent::begin(&mesh).await;
    let door = agent.tells(&[("127.0.0.2", "front")]).await;
    assert_eq!(status(door).await, Some(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_later_of_two_conversations_counts() {
    let _turn = TURN.lock().await;
    let (mesh, _server) = shop(2).await;
    let mut old = Agent::begin(&mesh).await;
    old.tells(&[("127.0.0.2", "front")]).await;
    let mut new = Agent::begin(&mesh).await;
    let door = new.tells(&[("127.0.0.2", "back")]).await;
    while old.hears().await.is_some() {}
    assert_eq!(
        status(door).await,
        Some(200),
        "the end of the old one changes nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waypoint_that_ends_has_nobody_led_to_it() {
    let _turn = TURN.lock().await;
    let (mesh, _server) = shop(1).await;
    let mut agent = Agent::begin(&mesh).await;
    let door = agent.tells(&[("127.0.0.2", "front")]).await;
    let ending = tokio::spawn(mesh.finish(Duration::from_secs(5)));
    let doors = agent.hears().await.expect("it says so");
    assert!(doors.doors.is_empty(), "{doors:?}");
    assert_eq!(status(door).await, Some(200), "who is on the way is served");
    let _end = ending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_ends_the_conversation() {
    let _turn = TURN.lock().await;
    let (mesh, _server) = shop(1).await;
    let mut agent = Agent::begin(&mesh).await;
    agent.tells(&[("127.0.0.2", "front")]).await;
    agent.says(1, &[("127.0.0.2", "back")]).await;
    while agent.hears().await.is_some() {}
    let mut agent = Agent::begin(&mesh).await;
    let none = vec![0xff; 3];
    agent.frames.send(&mut agent.stream, none).await.unwrap();
    while agent.hears().await.is_some() {}
    assert_eq!(mesh.get("/").await.status, 200, "the rest goes on");
}
