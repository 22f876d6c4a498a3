//! Timeouts, retries, limits, ejection, connections that are closed while idle, draining.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Method, Response, StatusCode};
use l7::TrafficPolicy;
use l7::backend::{HashKey, Limits as ClusterLimits, LoadBalancer, Outliers};
use l7::route::{Action, Retries, RetryOn};
use model::service::AppProtocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use waypoint::Limits;

use crate::support::{Client, Mesh, Server, get, text, to};

fn retries(attempts: u32, on: RetryOn) -> Retries {
    Retries {
        attempts,
        on,
        ..Retries::default()
    }
}

fn any_5xx() -> RetryOn {
    RetryOn {
        server_error: true,
        ..RetryOn::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_is_504_at_its_timeout() {
    let server = Server::start(|_| async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Response::new(text("late"))
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    mesh.route(0, vec![], |rule| {
        rule.timeout = Some(Duration::from_millis(200))
    });
    let began = Instant::now();
    let answer = mesh.get("/").await;
    assert_eq!(
        (answer.status, &*answer.body),
        (504, "upstream request timeout"),
        "F56, A30"
    );
    assert!(began.elapsed() >= Duration::from_millis(200), "F56, A30");
    assert!(
        mesh.page().contains("response_flags=\"UT\""),
        "{}",
        mesh.page()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_goes_to_another_endpoint() {
    let (broken, well) = (Server::status(503).await, Server::named("well").await);
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", broken.address);
    mesh.endpoint("b", "v1", well.address);
    mesh.route(0, vec![], |rule| {
        let mut forward = to(&[(None, 1)]);
        forward.retries = retries(3, any_5xx()).into();
        rule.action = Action::Forward(forward);
    });
    for _ in 0..10 {
        let request = get("/").map(|_| text("a body to be sent again"));
        let answer = mesh.ask(request).await;
        assert_eq!((answer.status, &*answer.body), (200, "well"), "F57, A29");
    }
    assert_eq!(well.count(), 10);
    assert!(
        (1..=10).contains(&broken.count()),
        "each was tried there once at most"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_rule_an_answer_of_503_is_not_tried_again() {
    let broken = Server::status(503).await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", broken.address);
    assert_eq!(mesh.get("/").await.status, 503, "F58");
    assert_eq!(broken.count(), 1, "F58: the server may have done the work");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_not_there_is_tried_elsewhere_and_then_left_alone() {
    let well = Server::named("well").await;
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", gone);
    mesh.endpoint("b", "v1", well.address);
    for _ in 0..10 {
        assert_eq!(mesh.get("/").await.status, 200, "F58");
    }
    mesh.endpoint("b", "v1", gone);
    let answer = mesh.get("/").await;
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("connection failure"),
        "{}",
        answer.body
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_takes_too_long_is_tried_elsewhere() {
    let first = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |_| {
        let first = first.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if first {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            Response::new(text("well"))
        }
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    mesh.route(0, vec![], |rule| {
        let mut forward = to(&[(None, 1)]);
        forward.retries = retries(3, any_5xx()).into();
        forward.attempt_timeout = Some(Duration::from_millis(100));
        rule.action = Action::Forward(forward);
        rule.timeout = Some(Duration::from_secs(2));
    });
    let began = Instant::now();
    assert_eq!(mesh.get("/").await.body, "well", "F57, A29");
    assert!(began.elapsed() < Duration::from_secs(2), "F57, A29");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_closes_idle_connections_costs_no_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                let read = stream.read(&mut bytes).await.unwrap();
                assert!(read > 0);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell";
                stream.write_all(answer).await.unwrap();
                // Kept alive as far as the answer says, and closed all the same.
            });
        }
    });
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", address);
    let mut client = Client::http1(mesh.dial().await).await;
    for n in 0..200 {
        let answer = client.send(get("/")).await.unwrap();
        assert_eq!(answer.status, 200, "request {n}: {}", answer.body);
        if n % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Answers one request of each HTTP/2 connection, and then ends it: with GOAWAY before, or without a word.
async fn http2_that_ends(says_so: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let (_, mut answering) = connection.accept().await.unwrap().unwrap();
                answering.send_response(Response::new(()), true).unwrap();
                if says_so {
                    connection.graceful_shutdown();
                }
                // What is written goes out while it is polled.
                let polled = tokio::time::timeout(Duration::from_millis(30), connection.accept());
                drop(polled.await);
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_ends_its_http2_connections_is_connected_to_anew() {
    for says_so in [true, false] {
        let address = http2_that_ends(says_so).await;
        let mut mesh = Mesh::new();
        mesh.port(81, AppProtocol::Http2);
        mesh.endpoint_of("a", "v1", address, 81);
        let mut client = Client::http1(mesh.dial_to(81).await).await;
        for n in 0..5 {
            let asked = client.send(get("/"));
            let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
            let answer = answer.expect("an answer in time").unwrap();
            assert_eq!(answer.status, 200, "request {n}: {}", answer.body);
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_connections_hold_over_all_workers() {
    for workers in [1, 4] {
        let busy = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let (counted, highest) = (Arc::clone(&busy), Arc::clone(&most));
        let server = Server::start(move |_| {
            let (busy, most) = (Arc::clone(&counted), Arc::clone(&highest));
            async move {
                let now = busy.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
                busy.fetch_sub(1, Ordering::SeqCst);
                Response::new(text("x"))
            }
        })
        .await;
        let mut mesh = Mesh::with(Limits::default(), workers);
        mesh.endpoint("a", "v1", server.address);
        mesh.backend(
            &[],
            TrafficPolicy {
                limits: Some(ClusterLimits {
                    connections: Some(1),
                    pending: Some(1),
                    ..ClusterLimits::default()
                }),
                ..TrafficPolicy::default()
            },
        );
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let stream = mesh.dial().await;
            clients.spawn(async move {
                let mut client = Client::http1(stream).await;
                let mut statuses = Vec::new();
                for _ in 0..10 {
                    statuses.push(client.send(get("/")).await.unwrap().status);
                }
                statuses
            });
        }
        let statuses: Vec<u16> = clients.join_all().await.into_iter().flatten().collect();
        let of = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
        assert_eq!(of(200) + of(503), 40, "F59, A27: {statuses:?}");
        assert!(
            of(200) > 0 && of(503) > 0,
            "F59, A27, {workers} workers: {statuses:?}"
        );
        assert_eq!(most.load(Ordering::SeqCst), 1, "F59, {workers} workers");
    }
}

/// F59, F60, A27: what a limit refuses was never sent, so it is no error of the endpoint and ejects nobody.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_limit_refuses_ejects_nobody() {
    let server = Server::start(|_| async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        Response::new(text("x"))
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    mesh.backend(
        &[],
        TrafficPolicy {
            limits: Some(ClusterLimits {
                connections: Some(1),
                pending: Some(1),
                requests_per_connection: Some(1),
                ..ClusterLimits::default()
            }),
            outliers: Some(Outliers {
                server_errors: Some(1),
                base_time: Duration::from_secs(180),
                max_percent: 100,
                ..Outliers::default()
            }),
            ..TrafficPolicy::default()
        },
    );
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let stream = mesh.dial().await;
        clients.spawn(async move {
            let mut client = Client::http1(stream).await;
            let mut refused = 0;
            for _ in 0..10 {
                refused += usize::from(client.send(get("/")).await.unwrap().status == 503);
            }
            refused
        });
    }
    let refused: usize = clients.join_all().await.into_iter().sum();
    assert!(refused > 0, "nothing was refused, so nothing is shown");
    assert_eq!(mesh.core.ejections(), serde_json::json!([]));
    for _ in 0..10 {
        assert_eq!(mesh.get("/").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_in_a_row_eject_an_endpoint() {
    let (broken, well) = (Server::status(500).await, Server::named("well").await);
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", broken.address);
    mesh.endpoint("b", "v1", well.address);
    mesh.backend(
        &[],
        TrafficPolicy {
            outliers: Some(Outliers {
                base_time: Duration::from_secs(180),
                ..Outliers::default()
            }),
            ..TrafficPolicy::default()
        },
    );
    for _ in 0..30 {
        mesh.get("/").await;
    }
    assert_eq!(broken.count(), 5, "F60, A28: five errors, then none");
    assert_eq!(well.count(), 25);
    mesh.backend(&[], TrafficPolicy::default());
    for _ in 0..30 {
        mesh.get("/").await;
    }
    assert_eq!(broken.count(), 20, "F60: back with the rule gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_address_stays_with_one_endpoint() {
    let (one, two) = (Server::named("1").await, Server::named("2").await);
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", one.address);
    mesh.endpoint("b", "v1", two.address);
    mesh.backend(
        &[],
        TrafficPolicy {
            load_balancer: Some(LoadBalancer::Hash(HashKey::SourceIp)),
            ..TrafficPolicy::default()
        },
    );
    let first = mesh.get("/").await.body;
    for _ in 0..20 {
        assert_eq!(mesh.get("/").await.body, first, "F32, A31");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_is_given_and_brings_the_client_back() {
    let (one, two) = (Server::named("1").await, Server::named("2").await);
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", one.address);
    mesh.endpoint("b", "v1", two.address);
    let key = HashKey::Cookie {
        name: "user".into(),
        path: Some("/".into()),
        ttl: Some(Duration::from_secs(60)),
    };
    mesh.backend(
        &[],
        TrafficPolicy {
            load_balancer: Some(LoadBalancer::Hash(key)),
            ..TrafficPolicy::default()
        },
    );
    let answer = mesh.get("/").await;
    let cookie = answer.headers["set-cookie"].to_str().unwrap().to_owned();
    assert!(
        cookie.contains("Max-Age=60") && cookie.contains("Path=/"),
        "F32: {cookie}"
    );
    let pair = cookie.split(';').next().unwrap();
    for _ in 0..20 {
        let mut request = get("/");
        request
            .headers_mut()
            .insert("cookie", pair.parse().unwrap());
        let again = mesh.ask(request).await;
        assert_eq!(again.body, answer.body, "F32");
        assert!(!again.headers.contains_key("set-cookie"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_endpoint_wedges_nobody_who_goes_elsewhere() {
    // It takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let well = Server::named("well").await;
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http2);
    mesh.endpoint_of("a", "v1", silent.local_addr().unwrap(), 81);
    mesh.route(0, vec![], |rule| {
        rule.timeout = Some(Duration::from_millis(200))
    });
    let ask = async |mesh: &Mesh| {
        let mut client = Client::http1(mesh.dial().await).await;
        client.send(get("/")).await.unwrap().status
    };
    let cluster = |mesh: &mut Mesh, address| {
        mesh.endpoint("a", "v1", address);
    };
    cluster(&mut mesh, silent.local_addr().unwrap());
    assert_eq!(ask(&mesh).await, 504);
    cluster(&mut mesh, well.address);
    assert_eq!(ask(&mesh).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_loses_no_request() {
    let server = Server::start(|_| async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Response::new(text("well"))
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http2);
    mesh.endpoint("a", "v1", server.address);
    let mut kept = Client::http1(mesh.dial().await).await;
    assert_eq!(kept.send(get("/")).await.unwrap().status, 200);
    let mut running = Client::http1(mesh.dial().await).await;
    let running = tokio::spawn(async move { running.send(get("/")).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let finish = tokio::spawn(mesh.finish(Duration::from_secs(5)));
    tokio::time::sleep(Duration::from_millis(50)).await;
    // One that is open and idle may still be used once, and is told to end.
    let last = kept.send(get("/")).await.unwrap();
    assert_eq!(
        (last.status, &last.headers["connection"]),
        (200, &"close".parse().unwrap())
    );
    assert_eq!(running.await.unwrap().unwrap().status, 200);
    let end = finish.await.unwrap();
    assert_eq!(end, runtime::drain::DrainEnd::Complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_passes_and_is_not_kept() {
    let server = Server::start(|request| async move {
        use http_body_util::BodyExt as _;
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(text(bytes.len().to_string()))
    })
    .await;
    let broken = Server::start(|request| async move {
        use http_body_util::BodyExt as _;
        drop(request.into_body().collect().await);
        let mut response = Response::new(text("failed"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", broken.address);
    mesh.route(0, vec![], |rule| {
        let mut forward = to(&[(None, 1)]);
        forward.retries = retries(3, any_5xx()).into();
        rule.action = Action::Forward(forward);
    });
    let large = || {
        let mut request = get("/").map(|_| text(vec![b'x'; 1 << 20]));
        *request.method_mut() = Method::POST;
        request
    };
    let answer = mesh.ask(large()).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE.as_u16());
    assert_eq!(broken.count(), 1, "it cannot be sent again");
    mesh.endpoint("a", "v1", server.address);
    assert_eq!(mesh.ask(large()).await.body, (1 << 20).to_string());
}
