//! CONNECT, connections that are asked to move on, and endpoints that fall silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use l7::policy::{Action, Match};
use l7::text::TextMatch;
use model::service::AppProtocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use waypoint::Limits;

use crate::policy::policy;
use crate::support::{Client, Mesh, Server, get, nothing, text};

/// Says to whom it was asked to connect, and sends back what comes.
async fn proxy() -> Server {
    Server::start(|mut request: Request<hyper::body::Incoming>| async move {
        assert_eq!(*request.method(), Method::CONNECT);
        let target = request.uri().to_string();
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            io.write_all(format!("{target}\n").as_bytes())
                .await
                .unwrap();
            let (mut read, mut write) = tokio::io::split(io);
            drop(tokio::io::copy(&mut read, &mut write).await);
        });
        Response::new(nothing())
    })
    .await
}

fn connect(target: &str) -> Request<crate::support::Body> {
    let request = Request::builder().method(Method::CONNECT).uri(target);
    request.header("host", "other").body(nothing()).unwrap()
}

/// Both versions of the client, each to an endpoint of either version.
#[tokio::test(flavor = "multi_thread")]
async fn connect_is_carried_both_ways_and_judged_by_its_target() {
    let server = proxy().await;
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http2);
    mesh.endpoint_ports("a", server.address, &[80, 81]);
    let denied = Match {
        hosts: vec![TextMatch::Exact("denied".into())],
        ..Match::default()
    };
    mesh.apply(policy("no-host", Action::Deny, denied));
    for (port, http2) in [(80, false), (80, true), (81, false), (81, true)] {
        let what = format!("port {port}, HTTP/2: {http2}");
        let stream = mesh.dial_to(port).await;
        let mut client = match http2 {
            false => Client::http1(stream).await,
            true => Client::http2(stream).await,
        };
        let refused = client.head(connect("denied:443")).await.unwrap();
        assert_eq!(refused.status(), 403, "{what}");
        drop(refused);
        let stream = mesh.dial_to(port).await;
        let mut client = match http2 {
            false => Client::http1(stream).await,
            true => Client::http2(stream).await,
        };
        let asked = client.head(connect("cart:443"));
        let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
        let answer = answer.expect(&what).unwrap();
        assert_eq!(answer.status(), 200, "{what}");
        let mut io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        let mut greeting = [0; 9];
        io.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"cart:443\n", "{what}");
        io.write_all(b"ping").await.unwrap();
        let mut echoed = [0; 4];
        let read = tokio::time::timeout(Duration::from_secs(5), io.read_exact(&mut echoed));
        read.await.expect(&what).unwrap();
        assert_eq!(&echoed, b"ping", "{what}");
    }
}

/// B2: load spreads anew because clients of HTTP/2 are asked to connect anew; no request is lost by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http2_is_asked_to_move_on_and_loses_nothing() {
    let server = Server::start(|_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Response::new(text("x"))
    })
    .await;
    let limits = Limits {
        http2_age: Duration::from_millis(300),
        ..Limits::default()
    };
    let mut mesh = Mesh::with(limits, 1);
    mesh.endpoint("a", "v1", server.address);
    let began = Instant::now();
    let (mut connections, mut answered) = (0, 0);
    while began.elapsed() < Duration::from_secs(2) {
        let Client::Http2(mut sender) = Client::http2(mesh.dial().await).await else {
            unreachable!()
        };
        connections += 1;
        while sender.ready().await.is_ok() {
            let request = Request::get("http://cart/").body(nothing()).unwrap();
            match sender.try_send_request(request).await {
                Ok(answer) => {
                    assert_eq!(answer.status(), 200);
                    answered += 1;
                }
                // It was not sent: the connection had been told of its end.
                Err(error) if error.message().is_some() => break,
                Err(error) => panic!("a request was lost: {error:?}"),
            }
        }
    }
    assert!(
        (4..=12).contains(&connections),
        "{connections} in 2 s of 0.3 s each"
    );
    assert_eq!(server.count(), answered);
    assert!(answered > 50, "{answered}");
}

/// Carries bytes to a server. As many connections as `dead` says, from the first on, fall silent, and do not end.
async fn wire(server: std::net::SocketAddr, dead: Arc<AtomicUsize>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut taken = 0;
        while let Ok((near, _)) = listener.accept().await {
            taken += 1;
            let far = TcpStream::connect(server).await.unwrap();
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            for (mut from, mut to) in [(near_in, far_out), (far_in, near_out)] {
                let dead = Arc::clone(&dead);
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    loop {
                        let read = from.read(&mut bytes).await.unwrap_or(0);
                        if dead.load(Ordering::SeqCst) >= taken || read == 0 {
                            break;
                        }
                        to.write_all(&bytes[..read]).await.unwrap();
                    }
                    std::future::pending::<()>().await;
                    drop((from, to));
                });
            }
        }
    });
    address
}

/// C: an endpoint whose machine is gone says nothing at all. Pings find it within 20 s; what may be repeated is, on another
/// connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_of_http2_is_noticed_by_pings() {
    let server = Server::named("well").await;
    let dead = Arc::<AtomicUsize>::default();
    let address = wire(server.address, Arc::clone(&dead)).await;
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http2);
    mesh.endpoint_of("a", "v1", address, 81);
    let mut client = Client::http1(mesh.dial_to(81).await).await;
    assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    dead.store(1, Ordering::SeqCst);
    for _ in 0..2 {
        let asked = tokio::time::timeout(Duration::from_secs(30), client.send(get("/")));
        let answer = asked.await.expect("nobody has noticed").unwrap();
        assert_eq!((answer.status, &*answer.body), (200, "well"));
    }
    let connections = server.connections.load(Ordering::SeqCst);
    assert_eq!(connections, 2, "the dead one, and one in its place");
}
