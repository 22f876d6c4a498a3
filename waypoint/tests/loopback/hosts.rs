//! A host that is said twice: what is judged is what is served.

use http::{Request, Response};
use l7::Resource;
use l7::policy::{Action, Match};
use l7::route;
use l7::text::TextMatch;
use model::service::AppProtocol;
use tokio::net::TcpStream;

use crate::gateway;
use crate::policy::policy;
use crate::support::{Answered, Body, Client, Mesh, Server, exchange, nothing, text, to};

/// Answers with the host that it was asked for, by either version.
async fn echo() -> Server {
    Server::start(|request| async move {
        let host = request.headers().get("host");
        let host = host.map(|host| host.to_str().unwrap().to_owned());
        let authority = request.uri().authority().map(ToString::to_string);
        let said: Vec<String> = authority.into_iter().chain(host).collect();
        Response::new(text(said.join(" and ")))
    })
    .await
}

fn deny(host: &str) -> Resource {
    let hosts = vec![TextMatch::Exact(host.into())];
    let matches = Match {
        hosts,
        ..Match::default()
    };
    policy("no-host", Action::Deny, matches)
}

/// A request to one host, with another one in `Host`.
fn doubled(target: &str, host: &str) -> Request<Body> {
    let uri = format!("http://{target}/cart");
    let request = Request::builder().uri(uri).header("host", host);
    request.body(nothing()).unwrap()
}

async fn mesh() -> (Mesh, Server) {
    let server = echo().await;
    let mut mesh = Mesh::new();
    mesh.port(81, AppProtocol::Http2);
    mesh.endpoint_ports("a", server.address, &[80, 81]);
    (mesh, server)
}

/// By each version of the client, to an endpoint of each version.
async fn answers(mesh: &Mesh, target: &str, host: &str) -> Vec<Answered> {
    let mut answers = Vec::new();
    for port in [80, 81] {
        for http2 in [false, true] {
            let stream = mesh.dial_to(port).await;
            let mut client = match http2 {
                false => Client::http1(stream).await,
                true => Client::http2(stream).await,
            };
            answers.push(client.send(doubled(target, host)).await.unwrap());
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_is_judged_and_served_whatever_host_says() {
    let (mut mesh, server) = mesh().await;
    mesh.apply(deny("denied"));
    for answer in answers(&mesh, "cart", "denied").await {
        assert_eq!((answer.status, &*answer.body), (200, "cart"));
    }
    let before = server.count();
    for answer in answers(&mesh, "denied", "cart").await {
        assert_eq!(answer.status, 403);
    }
    assert_eq!(server.count(), before, "a denied host was served");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_does_not_stand_over_what_a_rule_writes() {
    let (mut mesh, _server) = mesh().await;
    mesh.route(0, vec![], |rule| {
        let mut forward = to(&[(None, 1)]);
        forward.rewrite.authority = Some("written.example".into());
        rule.action = route::Action::Forward(forward);
    });
    for answer in answers(&mesh, "cart", "other").await {
        assert_eq!((answer.status, &*answer.body), (200, "written.example"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_read_as_two_hosts_is_refused() {
    let (mut mesh, server) = mesh().await;
    mesh.apply(deny("denied"));
    for request in [
        "GET http://cart@denied/ HTTP/1.1\r\nhost: cart\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: cart@denied\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: cart, denied\r\nconnection: close\r\n\r\n",
    ] {
        let answer = exchange(mesh.dial().await, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request}: {answer}");
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_serves_the_virtual_host_of_the_target() {
    let server = echo().await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let hosts = ["cart.example.com", "other.example.com"];
    let address = gateway::listen(&mut mesh, &hosts, None).await;
    gateway::route(&mut mesh, "cart.example.com");
    for http2 in [false, true] {
        let ask = async |target: &str, host: &str| {
            let stream = TcpStream::connect(address).await.unwrap();
            let mut client = match http2 {
                false => Client::http1(stream).await,
                true => Client::http2(stream).await,
            };
            client.send(doubled(target, host)).await.unwrap()
        };
        let answer = ask("cart.example.com", "other.example.com").await;
        assert_eq!(
            (answer.status, &*answer.body),
            (200, "cart.example.com"),
            "HTTP/2: {http2}"
        );
        let answer = ask("other.example.com", "cart.example.com").await;
        // It has no rule, and so no endpoint.
        assert_eq!(answer.status, 503, "HTTP/2: {http2}");
    }
    assert_eq!(server.count(), 2);
}
