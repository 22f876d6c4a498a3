//! Times of requests: what a client of gRPC allows, and what ends an answer that streams.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use model::service::AppProtocol;

use crate::support::{Answered, Client, Mesh, Server, get, nothing, text};

async fn late() -> Server {
    Server::start(|_| async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Response::new(text("late"))
    })
    .await
}

/// A request of gRPC with this time.
async fn call(mesh: &Mesh, timeout: &str) -> Answered {
    let mut client = Client::http2(mesh.dial_to(83).await).await;
    let request = Request::builder()
        .method(Method::POST)
        .uri("http://cart/shop.Cart/Get")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", timeout);
    client.send(request.body(nothing()).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_when_its_client_or_the_rule_says() {
    let server = late().await;
    let mut mesh = Mesh::new();
    mesh.port(83, AppProtocol::Grpc);
    mesh.endpoint_of("a", "v1", server.address, 83);
    for (rule, client, within) in [
        (None, "200m", 200),
        (Some(4_000), "200m", 200),
        (Some(200), "4S", 200),
        (None, "0m", 0),
    ] {
        mesh.route(0, vec![], |written| {
            written.timeout = rule.map(Duration::from_millis);
            let mut forward = crate::support::to(&[(None, 1)]);
            for backend in &mut forward.backends {
                if let l7::route::Backend::Cluster(key) = &mut backend.backend {
                    key.port = 83;
                }
            }
            written.action = l7::route::Action::Forward(forward);
        });
        let began = Instant::now();
        let answer = call(&mesh, client).await;
        let took = began.elapsed();
        assert_eq!(
            (answer.status, &answer.headers["grpc-status"]),
            (200, &http::HeaderValue::from(4)),
            "DEADLINE_EXCEEDED, {rule:?} {client}"
        );
        let (least, most) = (Duration::from_millis(within), Duration::from_secs(3));
        assert!(least <= took && took < most, "{took:?}, {rule:?} {client}");
    }
    let page = mesh.page();
    assert!(page.contains("response_flags=\"UT\""), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_ends_an_answer_that_streams() {
    let server = Server::start(|_| async {
        let endless = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let frame = Frame::data(Bytes::from_static(b"tick"));
            Some((Ok::<_, Infallible>(frame), ()))
        });
        Response::new(StreamBody::new(endless).boxed())
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let timeout = Duration::from_millis(300);
    mesh.route(0, vec![], |rule| rule.timeout = Some(timeout));
    for http2 in [false, true] {
        let stream = mesh.dial().await;
        let mut client = match http2 {
            false => Client::http1(stream).await,
            true => Client::http2(stream).await,
        };
        let began = Instant::now();
        let request = match http2 {
            false => get("/"),
            true => Request::get("http://cart/").body(nothing()).unwrap(),
        };
        let mut body = client.head(request).await.unwrap().into_body();
        let reading = async {
            loop {
                match body.frame().await {
                    Some(Ok(_)) => {}
                    end => return end,
                }
            }
        };
        let end = tokio::time::timeout(Duration::from_secs(5), reading).await;
        let end = end.expect("it goes on");
        assert!(matches!(end, Some(Err(_))), "a clean end: {end:?}");
        assert!(began.elapsed() >= timeout, "F56, HTTP/2: {http2}");
    }
    let page = mesh.page();
    assert!(page.contains("response_flags=\"UT\""), "{page}");
}
