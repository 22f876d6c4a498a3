//! Limits of a `DestinationRule`: how many streams a connection has, how long it lives, and what of it holds for connections
//! that are not read as HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::Response;
use l7::Resource;
use l7::TrafficPolicy;
use l7::backend::{BackendRule, HashKey, Limits, LoadBalancer, Outliers, Upgrade};
use model::service::AppProtocol;
use proto::proxy_protocol::Header;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Client, Mesh, Server, VIP, get, key, nothing, text};

fn limited(limits: Limits) -> TrafficPolicy {
    TrafficPolicy {
        limits: Some(limits),
        ..TrafficPolicy::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_as_many_streams_as_is_said() {
    let server = Server::start(|_| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Response::new(text("x"))
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http2);
    mesh.endpoint_of("a", "v1", server.address, 81);
    for (streams, connections) in [(None, 1), (Some(2), 4)] {
        let before = server.connections.load(Ordering::SeqCst);
        mesh.backend(
            &[],
            limited(Limits {
                streams_per_connection: streams,
                // Connections of before are no longer used.
                connection_life: Some(Duration::from_millis(900)),
                ..Limits::default()
            }),
        );
        let asking = (0..8).map(async |_| {
            let mut client = Client::http1(mesh.dial_to(81).await).await;
            client.send(get("/")).await.unwrap().status
        });
        let statuses = futures::future::join_all(asking).await;
        assert_eq!(statuses, [200; 8]);
        let opened = server.connections.load(Ordering::SeqCst) - before;
        assert_eq!(opened, connections, "F59: 8 requests, {streams:?} streams");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_takes_requests_for_as_long_as_is_said() {
    for port in [80, 81] {
        let server = Server::named("x").await;
        let mut mesh = Mesh::new();
        mesh.port(81, AppProtocol::Http2);
        mesh.endpoint_ports("a", server.address, &[port]);
        let life = Duration::from_millis(150);
        mesh.backend(
            &[],
            limited(Limits {
                connection_life: Some(life),
                ..Limits::default()
            }),
        );
        let mut client = Client::http1(mesh.dial_to(port).await).await;
        let began = Instant::now();
        let mut requests = 0;
        while began.elapsed() < 4 * life {
            assert_eq!(client.send(get("/")).await.unwrap().status, 200);
            requests += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let connections = server.connections.load(Ordering::SeqCst);
        assert!(
            (2..=6).contains(&connections) && connections < requests,
            "F59: {connections} connections for {requests} requests by port {port}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_as_many_requests_as_is_said() {
    for port in [80, 81] {
        for (most, connections) in [(None, 1), (Some(0), 1), (Some(1), 12), (Some(4), 3)] {
            let server = Server::named("x").await;
            let mut mesh = Mesh::new();
            mesh.port(81, AppProtocol::Http2);
            mesh.endpoint_ports("a", server.address, &[port]);
            mesh.backend(
                &[],
                limited(Limits {
                    requests_per_connection: most,
                    ..Limits::default()
                }),
            );
            let mut client = Client::http1(mesh.dial_to(port).await).await;
            for _ in 0..12 {
                assert_eq!(client.send(get("/")).await.unwrap().status, 200);
            }
            let opened = server.connections.load(Ordering::SeqCst);
            let what = format!("F59: port {port}, maxRequestsPerConnection {most:?}");
            assert_eq!(opened, connections, "{what}");
        }
    }
}

/// What the endpoint is asked by, for a client of either version.
#[tokio::test(flavor = "multi_thread")]
async fn a_rule_says_which_version_an_endpoint_is_asked_by() {
    let server =
        Server::start(
            |request| async move { Response::new(text(format!("{:?}", request.version()))) },
        )
        .await;
    let (old, new) = ("HTTP/1.1", "HTTP/2.0");
    for (declared, upgrade, from_http1, from_http2) in [
        (AppProtocol::Http11, Upgrade::Unsaid, old, old),
        (AppProtocol::Http11, Upgrade::Always, new, new),
        (AppProtocol::Http11, Upgrade::AsClient, old, new),
        (AppProtocol::Unknown, Upgrade::Unsaid, old, new),
        (AppProtocol::Unknown, Upgrade::Always, new, new),
        (AppProtocol::Unknown, Upgrade::Never, old, new),
        (AppProtocol::Http11, Upgrade::Never, old, old),
        // What the port declares is what its endpoints speak.
        (AppProtocol::Http2, Upgrade::Never, new, new),
    ] {
        let mut mesh = Mesh::new();
        mesh.port(81, declared);
        mesh.endpoint_of("a", "v1", server.address, 81);
        mesh.backend(
            &[],
            limited(Limits {
                upgrade,
                ..Limits::default()
            }),
        );
        let what = format!("h2UpgradePolicy: {declared:?} {upgrade:?}");
        let mut client = Client::http1(mesh.dial_to(81).await).await;
        let answer = client.send(get("/")).await.unwrap();
        assert_eq!((answer.status, &*answer.body), (200, from_http1), "{what}");
        let mut client = Client::http2(mesh.dial_to(81).await).await;
        let request = http::Request::get("http://cart/").body(nothing()).unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!((answer.status, &*answer.body), (200, from_http2), "{what}");
    }
}

/// A server that says its name to each connection and then sends back what it gets.
async fn greets(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(name.as_bytes()).await.unwrap();
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            });
        }
    });
    address
}

const TCP: u16 = 25;

fn tcp() -> Mesh {
    let mut mesh = Mesh::new();
    mesh.port(TCP, AppProtocol::Tcp);
    mesh
}

/// A connection of this client.
async fn dial(mesh: &Mesh, client: [u8; 4]) -> TcpStream {
    mesh.dial_as(Header {
        client: SocketAddr::from((client, 40000)),
        dialled: (VIP.parse::<std::net::IpAddr>().unwrap(), TCP).into(),
        identity: None,
        service: None,
    })
    .await
}

async fn greeting(mesh: &Mesh, client: [u8; 4]) -> u8 {
    dial(mesh, client).await.read_u8().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_address_stay_with_one_endpoint() {
    let mut mesh = tcp();
    mesh.endpoint_of("a", "v1", greets("1").await, TCP);
    mesh.endpoint_of("b", "v1", greets("2").await, TCP);
    mesh.backend(
        &[],
        TrafficPolicy {
            load_balancer: Some(LoadBalancer::Hash(HashKey::SourceIp)),
            ..TrafficPolicy::default()
        },
    );
    let mut seen = std::collections::BTreeSet::new();
    for client in 1..=20 {
        let client = [10, 244, 1, client];
        let first = greeting(&mesh, client).await;
        seen.insert(first);
        for _ in 0..5 {
            assert_eq!(greeting(&mesh, client).await, first, "F32, A31: {client:?}");
        }
    }
    assert_eq!(seen.len(), 2, "clients are spread");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_takes_no_connection_is_ejected() {
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mut mesh = tcp();
    mesh.endpoint_of("a", "v1", gone, TCP);
    mesh.endpoint_of("b", "v1", greets("2").await, TCP);
    mesh.backend(
        &[],
        TrafficPolicy {
            outliers: Some(Outliers {
                server_errors: Some(1),
                base_time: Duration::from_secs(180),
                ..Outliers::default()
            }),
            ..TrafficPolicy::default()
        },
    );
    for _ in 0..4 {
        assert_eq!(greeting(&mesh, [10, 244, 1, 3]).await, b'2', "F60");
    }
    let ejections = mesh.core.ejections();
    assert_eq!(ejections[0]["cause"], "errors", "F60: {ejections}");
    assert_eq!(ejections[0]["endpoint"], gone.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_silent_or_old_ends() {
    let time = Duration::from_millis(300);
    for (limits, silent_only) in [
        (
            Limits {
                idle_timeout: Some(time),
                ..Limits::default()
            },
            true,
        ),
        (
            Limits {
                connection_life: Some(time),
                ..Limits::default()
            },
            false,
        ),
    ] {
        let mut mesh = tcp();
        mesh.endpoint_of("a", "v1", greets("1").await, TCP);
        mesh.backend(&[], limited(limits));
        let mut stream = dial(&mesh, [10, 244, 1, 3]).await;
        assert_eq!(stream.read_u8().await.unwrap(), b'1');
        let talk = async {
            let began = Instant::now();
            while began.elapsed() < 3 * time {
                stream.write_all(b"x").await?;
                stream.read_u8().await?;
                tokio::time::sleep(time / 10).await;
            }
            Ok::<_, std::io::Error>(())
        };
        let talked = talk.await;
        assert_eq!(talked.is_ok(), silent_only, "F59: {talked:?}");
        let began = Instant::now();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_u8()).await;
        assert!(ended.expect("it goes on").is_err(), "F59");
        assert!(!silent_only || began.elapsed() >= time / 2, "F59");
    }
}

/// `portLevelSettings` stand in the place of the whole policy for their port, and for no other.
#[tokio::test(flavor = "multi_thread")]
async fn settings_of_a_port_hold_for_that_port() {
    let server = Server::start(|_| async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Response::new(text("x"))
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http11);
    mesh.endpoint_ports("a", server.address, &[80, 81]);
    let most = |requests| {
        Arc::new(limited(Limits {
            requests: Some(requests),
            ..Limits::default()
        }))
    };
    let rule = BackendRule {
        policy: most(100),
        ports: [(81, most(1))].into(),
        ..BackendRule::default()
    };
    mesh.apply(Resource::Backend(key(), rule));
    for (port, refused) in [(80, 0), (81, 3)] {
        let asking = (0..4).map(async |_| {
            let mut client = Client::http1(mesh.dial_to(port).await).await;
            client.send(get("/")).await.unwrap().status
        });
        let statuses = futures::future::join_all(asking).await;
        let overflown = statuses.iter().filter(|status| **status == 503).count();
        assert_eq!(overflown, refused, "F59, port {port}: {statuses:?}");
    }
}

/// A server of gRPC answers 200 to everything: what is wrong stands in the status of gRPC.
#[tokio::test(flavor = "multi_thread")]
async fn errors_of_grpc_eject_an_endpoint() {
    for (status, ejects) in [("14", true), ("13", true), ("5", false)] {
        let broken = Server::start(move |_| async move {
            let mut response = Response::new(text(""));
            let headers = response.headers_mut();
            headers.insert("content-type", "application/grpc".parse().unwrap());
            headers.insert("grpc-status", status.parse().unwrap());
            response
        })
        .await;
        let well = Server::named("well").await;
        let mut mesh = Mesh::new();
        mesh.endpoint("a", "v1", broken.address);
        mesh.endpoint("b", "v1", well.address);
        let outliers = Outliers {
            base_time: Duration::from_secs(180),
            ..Outliers::default()
        };
        mesh.backend(
            &[],
            TrafficPolicy {
                outliers: Some(outliers),
                ..TrafficPolicy::default()
            },
        );
        for _ in 0..30 {
            mesh.get("/").await;
        }
        let expected = if ejects { 5 } else { 15 };
        assert_eq!(broken.count(), expected, "F60, status {status}");
    }
}
