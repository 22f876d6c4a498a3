//! Routes, rewrites, redirects, faults, mirrors.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt as _;
use l7::route::{
    Abort, Action, Cors, DirectResponse, Fault, HeaderChanges, HeaderMatch, Match, Mirror,
    PathMatch, PathRewrite, Redirect, Share,
};
use l7::text::TextMatch;

use crate::support::{Mesh, Server, cluster, get, text, to};

fn prefix(path: &str) -> Vec<Match> {
    vec![Match {
        path: PathMatch::Prefix(path.into()),
        ..Match::default()
    }]
}

async fn two_versions() -> (Mesh, Server, Server) {
    let (one, two) = (Server::named("v1").await, Server::named("v2").await);
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", one.address);
    // Endpoints are known by their addresses.
    mesh.endpoint("b", "v2", two.address);
    mesh.backend(&["v1", "v2", "v3"], l7::TrafficPolicy::default());
    (mesh, one, two)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_rules_goes_to_its_endpoints_in_turn() {
    let (mesh, one, two) = two_versions().await;
    for _ in 0..10 {
        assert_eq!(mesh.get("/").await.status, 200, "F24");
    }
    assert_eq!((one.count(), two.count()), (5, 5), "F31, A12");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_prefix_leads_to_one_version_and_the_rest_to_another() {
    let (mut mesh, ..) = two_versions().await;
    mesh.route(0, prefix("/v1"), |rule| {
        rule.action = Action::Forward(to(&[(Some("v1"), 1)]));
    });
    mesh.route(1, vec![], |rule| {
        rule.action = Action::Forward(to(&[(Some("v2"), 1)]));
    });
    assert_eq!(mesh.get("/v1/x").await.body, "v1", "F17, A7");
    assert_eq!(mesh.get("/whatever").await.body, "v2", "F17, A7");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_leads_to_another_version() {
    let (mut mesh, ..) = two_versions().await;
    let android = HeaderMatch {
        name: HeaderName::from_static("device"),
        value: TextMatch::Exact("android".into()),
        negated: false,
    };
    let matches = vec![Match {
        headers: vec![android],
        ..Match::default()
    }];
    mesh.route(0, matches, |rule| {
        rule.action = Action::Forward(to(&[(Some("v2"), 1)]));
    });
    mesh.route(1, vec![], |rule| {
        rule.action = Action::Forward(to(&[(Some("v1"), 1)]));
    });
    let mut request = get("/");
    let value = HeaderValue::from_static("android");
    request.headers_mut().insert("device", value);
    assert_eq!(mesh.ask(request).await.body, "v2", "F19, A9");
    assert_eq!(mesh.get("/").await.body, "v1", "F19, A9");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rule_that_matches_is_404_and_the_server_sees_nothing() {
    let (mut mesh, one, two) = two_versions().await;
    mesh.route(0, prefix("/api"), |_| {});
    assert_eq!(mesh.get("/other").await.status, 404, "F24, A18");
    assert_eq!(one.count() + two.count(), 0, "F24, A18");
    assert!(
        mesh.page().contains("response_flags=\"NR\""),
        "{}",
        mesh.page()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_kept() {
    let (mut mesh, one, two) = two_versions().await;
    mesh.route(0, vec![], |rule| {
        rule.action = Action::Forward(to(&[(Some("v1"), 80), (Some("v2"), 20)]));
    });
    let mut client = crate::support::Client::http1(mesh.dial().await).await;
    let requests = 2000;
    for _ in 0..requests {
        client.send(get("/")).await.unwrap();
    }
    // A share of 20 % of 2,000 has a deviation of 18: five of them are exceeded once in 1.7 million runs.
    let canary = two.count();
    assert!((310..=490).contains(&canary), "F25, A14: {canary}");
    assert_eq!(one.count() + canary, requests);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subset_without_endpoints_is_an_error_and_never_another_subset() {
    let (mut mesh, one, two) = two_versions().await;
    mesh.route(0, vec![], |rule| {
        rule.action = Action::Forward(to(&[(Some("v3"), 1)]));
    });
    let answer = mesh.get("/").await;
    assert_eq!(
        (answer.status, &*answer.body),
        (503, "no healthy upstream"),
        "F27, A23"
    );
    assert_eq!(one.count() + two.count(), 0, "F27, A23");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_delays_and_an_abort_never_reaches_the_server() {
    let (mut mesh, one, two) = two_versions().await;
    mesh.route(0, prefix("/slow"), |rule| {
        let delay = Some((Share::ALL, Duration::from_millis(300)));
        rule.fault = Some(Box::new(Fault { delay, abort: None }));
    });
    mesh.route(1, prefix("/broken"), |rule| {
        let abort = Abort::Http(StatusCode::IM_A_TEAPOT);
        rule.fault = Some(Box::new(Fault {
            delay: None,
            abort: Some((Share::ALL, abort)),
        }));
    });
    let began = Instant::now();
    // More at once than there are threads: none is held.
    let slow = (0..32).map(|_| mesh.get("/slow"));
    for answer in futures::future::join_all(slow).await {
        assert_eq!(answer.status, 200, "F62, A26");
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300), "F62, A26: {took:?}");
    assert!(
        took < Duration::from_secs(3),
        "one after the other it would be 9.6 s: {took:?}"
    );
    let before = one.count() + two.count();
    let answer = mesh.get("/broken").await;
    assert_eq!(
        (answer.status, &*answer.body),
        (418, "fault filter abort"),
        "F63, A24"
    );
    assert_eq!(one.count() + two.count(), before, "F63, A24");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_gets_a_copy_and_its_answer_counts_for_nothing() {
    let (seen, mut told) = tokio::sync::mpsc::unbounded_channel();
    let copy = Server::start(move |request| {
        let seen = seen.clone();
        async move {
            let host = request.headers()["host"].to_str().unwrap().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            seen.send((host, body)).unwrap();
            let mut response = Response::new(text("copy"));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    })
    .await;
    let real = Server::named("real").await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", real.address);
    mesh.endpoint("b", "v2", copy.address);
    mesh.backend(&["v1", "v2"], l7::TrafficPolicy::default());
    mesh.route(0, vec![], |rule| {
        let mut forward = to(&[(Some("v1"), 1)]);
        forward.mirrors = vec![Mirror {
            backend: cluster(Some("v2")),
            share: Share::ALL,
        }];
        rule.action = Action::Forward(forward);
    });
    let request = get("/x").map(|_| text("the body"));
    let mut request = request;
    *request.method_mut() = http::Method::POST;
    let answer = mesh.ask(request).await;
    assert_eq!((answer.status, &*answer.body), (200, "real"), "F30, A16");
    let (host, body) = told.recv().await.unwrap();
    assert_eq!(
        (&*host, &body[..]),
        ("cart-shadow", &b"the body"[..]),
        "F30, A16"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rewrites_redirects_and_direct_answers() {
    let echo = Server::start(|request| async move {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        Response::new(text(format!("{host}{}", request.uri())))
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", echo.address);
    mesh.route(0, prefix("/old"), |rule| {
        let mut forward = to(&[(None, 1)]);
        forward.rewrite.path = Some(PathRewrite::Prefix("/new".into()));
        forward.rewrite.authority = Some("other.example".into());
        rule.action = Action::Forward(forward);
    });
    mesh.route(1, prefix("/gone"), |rule| {
        rule.action = Action::Redirect(Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            host: Some("elsewhere.example".into()),
            ..Redirect::default()
        });
    });
    mesh.route(2, prefix("/robots"), |rule| {
        rule.action = Action::Respond(DirectResponse {
            status: StatusCode::OK,
            body: Arc::from(&b"none"[..]),
        });
        let set = vec![(
            HeaderName::from_static("x-by"),
            HeaderValue::from_static("waypoint"),
        )];
        rule.response_headers = HeaderChanges {
            set,
            ..HeaderChanges::default()
        }
        .into();
    });
    let answer = mesh.get("/old/a?b=c").await;
    assert_eq!(answer.body, "other.example/new/a?b=c", "F36");
    let answer = mesh.get("/gone/a").await;
    let location = answer.headers["location"].to_str().unwrap();
    assert_eq!(
        (answer.status, location),
        (301, "http://elsewhere.example/gone/a")
    );
    let answer = mesh.get("/robots").await;
    assert_eq!(
        (&*answer.body, &answer.headers["x-by"]),
        ("none", &"waypoint".parse().unwrap())
    );
    assert_eq!(echo.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_is_told_who_calls_and_not_by_the_client() {
    let echo = Server::start(|request| async move {
        let lines = [
            "x-forwarded-client-cert",
            "x-forwarded-for",
            "x-envoy-attempt-count",
        ];
        let lines = lines.map(|name| {
            let values = request.headers().get_all(name).iter();
            values
                .map(|value| value.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
                .join("|")
        });
        let id = request.headers()["x-request-id"].len();
        Response::new(text(format!("{} {id}", lines.join(" "))))
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", echo.address);
    let mut request = get("/");
    for name in ["x-forwarded-client-cert", "x-envoy-attempt-count"] {
        let forged = HeaderValue::from_static("forged");
        request.headers_mut().insert(name, forged);
    }
    let answer = mesh.ask(request).await;
    let expected = "URI=spiffe://cluster.local/ns/shop/sa/front 10.244.1.3 1 36";
    assert_eq!(answer.body, expected, "F108");
}

/// A49, issue 12 B7: a preflight is answered here, with all that the rule says, and with nothing for another origin.
#[tokio::test]
async fn a_preflight_is_told_what_scripts_of_its_origin_may_do() {
    let (mut mesh, one, two) = two_versions().await;
    let names = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
    let cors = Cors {
        origins: vec![TextMatch::Exact("https://a.example".into())],
        methods: names(&["GET", "PUT"]),
        expose: names(&["x-one", "x-two"]),
        max_age: Some(Duration::from_secs(60)),
        ..Cors::default()
    };
    mesh.route(0, prefix("/"), |rule| rule.cors = Some(Box::new(cors)));
    let ask = |origin: &'static str| {
        let mut request = get("/");
        *request.method_mut() = http::Method::OPTIONS;
        let headers = request.headers_mut();
        headers.insert("origin", HeaderValue::from_static(origin));
        headers.insert(
            "access-control-request-method",
            HeaderValue::from_static("PUT"),
        );
        request
    };
    let answer = mesh.ask(ask("https://a.example")).await;
    let said = |name: &str| {
        answer
            .headers
            .get(name)
            .map(|value| value.to_str().unwrap())
    };
    assert_eq!(answer.status, 200);
    for (name, value) in [
        ("access-control-allow-origin", "https://a.example"),
        ("access-control-allow-methods", "GET,PUT"),
        ("access-control-expose-headers", "x-one,x-two"),
        ("access-control-max-age", "60"),
    ] {
        assert_eq!(said(name), Some(value), "{name}");
    }
    assert_eq!(said("access-control-allow-credentials"), None);
    let answer = mesh.ask(ask("https://b.example")).await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    assert_eq!((one.count(), two.count()), (0, 0));
}
