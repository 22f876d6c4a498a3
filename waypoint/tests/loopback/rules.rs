//! What a rule says of headers, paths, faults, copies and retries, from end to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Response, StatusCode};
use l7::route::{
    Abort, Action, Fault, HeaderChanges, Mirror, PathRewrite, Redirect, Retries, RetryOn, Share,
    Substitution,
};
use model::service::AppProtocol;

use crate::support::{Client, Mesh, Server, cluster, get, nothing, text, to};

fn line(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (
        HeaderName::from_static(name),
        HeaderValue::from_static(value),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_removed_set_and_added_on_both_ways() {
    let server = Server::start(|request| async move {
        let said = |name: &str| {
            let values = request.headers().get_all(name).iter();
            let values = values.map(|value| value.to_str().unwrap().to_owned());
            values.collect::<Vec<_>>().join("|")
        };
        let names = ["x-gone", "x-set", "x-added", "x-backend"];
        let mut response = Response::new(text(names.map(said).join(" ")));
        for (name, value) in [("x-gone", "1"), ("x-set", "1"), ("x-added", "1")] {
            let (name, value) = line(name, value);
            response.headers_mut().insert(name, value);
        }
        response
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let changes = || HeaderChanges {
        remove: vec![HeaderName::from_static("x-gone")],
        set: vec![line("x-set", "2")],
        add: vec![line("x-added", "2")],
    };
    mesh.route(0, vec![], |rule| {
        let mut forward = to(&[(None, 1)]);
        for backend in &mut forward.backends {
            backend.request_headers = HeaderChanges {
                set: vec![line("x-backend", "b")],
                ..HeaderChanges::default()
            }
            .into();
        }
        rule.action = Action::Forward(forward);
        rule.request_headers = changes().into();
        rule.response_headers = changes().into();
    });
    let mut request = get("/");
    for name in ["x-gone", "x-set", "x-added"] {
        let (name, value) = line(name, "1");
        request.headers_mut().insert(name, value);
    }
    let answer = mesh.ask(request).await;
    assert_eq!(answer.body, " 2 1|2 b", "F37");
    assert!(!answer.headers.contains_key("x-gone"), "F37");
    let all = |name: &str| -> Vec<&HeaderValue> { answer.headers.get_all(name).iter().collect() };
    assert_eq!(all("x-set"), ["2"], "F37");
    assert_eq!(all("x-added"), ["1", "2"], "F37");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_rewritten_by_a_pattern_and_redirects_have_their_status() {
    let server =
        Server::start(|request| async move { Response::new(text(request.uri().to_string())) })
            .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let pattern = regex("^/service/([^/]+)(/.*)$");
    mesh.route(0, vec![], |rule| {
        let mut forward = to(&[(None, 1)]);
        let pattern = Substitution::new(&pattern, r"\2/instance/\1").unwrap();
        forward.rewrite.path = Some(PathRewrite::Regex {
            pattern: Box::new(pattern),
        });
        rule.action = Action::Forward(forward);
    });
    let answer = mesh.get("/service/foo/v1/api?x=1").await;
    assert_eq!(answer.body, "/v1/api/instance/foo?x=1", "F36");
    assert_eq!(mesh.get("/other").await.body, "/other", "F36");
    for status in [301, 302, 303, 307, 308] {
        mesh.route(0, vec![], |rule| {
            rule.action = Action::Redirect(Redirect {
                status: StatusCode::from_u16(status).unwrap(),
                host: Some("b.example".into()),
                ..Redirect::default()
            });
        });
        let answer = mesh.get("/a").await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.headers["location"], "http://b.example/a");
    }
}

fn regex(pattern: &str) -> l7::text::Regex {
    l7::text::Regex::new(pattern).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_of_grpc_is_a_status_of_grpc_and_a_share_is_kept() {
    let server = Server::named("x").await;
    let mut mesh = Mesh::new();
    mesh.port(83, AppProtocol::Grpc);
    mesh.endpoint_ports("a", server.address, &[80, 83]);
    mesh.route(0, vec![], |rule| {
        let abort = Some((Share::ALL, Abort::Grpc(8)));
        rule.fault = Some(Box::new(Fault { delay: None, abort }));
    });
    let mut client = Client::http2(mesh.dial_to(83).await).await;
    let request = http::Request::post("http://cart/shop.Cart/Get");
    let request = request.header("content-type", "application/grpc");
    let answer = client.send(request.body(nothing()).unwrap()).await.unwrap();
    assert_eq!(
        (answer.status, &answer.headers["grpc-status"]),
        (200, &HeaderValue::from(8)),
        "F63"
    );
    assert_eq!(server.count(), 0, "F63");
    mesh.route(0, vec![], |rule| {
        let abort = Abort::Http(StatusCode::IM_A_TEAPOT);
        let abort = Share::percent(25.0).map(|share| (share, abort));
        rule.fault = Some(Box::new(Fault { delay: None, abort }));
    });
    let mut client = Client::http1(mesh.dial().await).await;
    let mut aborted = 0;
    for _ in 0..1000 {
        let answer = client.send(get("/")).await.unwrap();
        aborted += usize::from(answer.status == 418);
    }
    // 25 % of 1,000 has a deviation of 14: five of them.
    assert!((180..=320).contains(&aborted), "F63: {aborted}");
    assert_eq!(server.count(), 1000 - aborted, "F63");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_is_mirrored_also_by_http2_and_the_copy_is_marked() {
    let (seen, mut told) = tokio::sync::mpsc::unbounded_channel();
    let copy = Server::start(move |request| {
        let host = request.headers().get("host").cloned();
        let host = host.map(|host| host.to_str().unwrap().to_owned());
        let authority = request.uri().authority().map(ToString::to_string);
        seen.send((request.version(), host, authority)).unwrap();
        async { Response::new(text("copy")) }
    })
    .await;
    let real = Server::named("real").await;
    let mut mesh = Mesh::new();
    mesh.port(80, AppProtocol::Http2);
    mesh.endpoint("a", "v1", real.address);
    mesh.endpoint("b", "v2", copy.address);
    mesh.backend(&["v1", "v2"], l7::TrafficPolicy::default());
    mesh.route(0, vec![], |rule| {
        let mut forward = to(&[(Some("v1"), 1)]);
        forward.mirrors = vec![Mirror {
            backend: cluster(Some("v2")),
            share: Share::percent(30.0).unwrap(),
        }];
        rule.action = Action::Forward(forward);
    });
    let mut client = Client::http1(mesh.dial().await).await;
    for _ in 0..1000 {
        assert_eq!(client.send(get("/")).await.unwrap().body, "real");
    }
    let (version, host, authority) = told.recv().await.unwrap();
    assert_eq!(version, http::Version::HTTP_2);
    assert_eq!(
        (host, authority.as_deref()),
        (None, Some("cart-shadow")),
        "F30"
    );
    tokio::time::sleep(Duration::from_millis(200)).await;
    let copies = copy.count();
    // 30 % of 1,000 has a deviation of 14.5: five of them.
    assert!((228..=372).contains(&copies), "F30: {copies}");
}

/// P58: retries of many requests at once are bounded, so that they do not double the load of what fails.
#[tokio::test(flavor = "multi_thread")]
async fn retries_at_once_are_bounded() {
    for (limit, most) in [(None, 10), (Some(3), 3)] {
        let (busy, highest) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (now, top) = (Arc::clone(&busy), Arc::clone(&highest));
        let server = Server::start(move |request| {
            let (now, top) = (Arc::clone(&now), Arc::clone(&top));
            let attempt = request.headers()["x-envoy-attempt-count"].clone();
            async move {
                let is_retry = attempt != "1";
                if is_retry {
                    let count = now.fetch_add(1, Ordering::SeqCst) + 1;
                    top.fetch_max(count, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                }
                let mut response = Response::new(text("failed"));
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response
            }
        })
        .await;
        let mut mesh = Mesh::new();
        mesh.endpoint("a", "v1", server.address);
        let limits = l7::backend::Limits {
            retries: limit,
            ..l7::backend::Limits::default()
        };
        mesh.backend(
            &[],
            l7::TrafficPolicy {
                limits: Some(limits),
                ..l7::TrafficPolicy::default()
            },
        );
        mesh.route(0, vec![], |rule| {
            let mut forward = to(&[(None, 1)]);
            forward.retries = Arc::new(Retries {
                attempts: 1,
                on: RetryOn {
                    server_error: true,
                    ..RetryOn::default()
                },
                ..Retries::default()
            });
            rule.action = Action::Forward(forward);
        });
        // A fifth of these is fewer than the ten that there may always be.
        let asking = (0..40).map(|_| mesh.get("/"));
        let answers = futures::future::join_all(asking).await;
        assert!(answers.iter().all(|answer| answer.status == 503));
        let seen = highest.load(Ordering::SeqCst);
        assert!((1..=most).contains(&seen), "P58: {seen}, at most {most}");
        assert!(server.count() <= 40 + 2 * most, "P58: {}", server.count());
    }
}
