//! Policy with the identity of the client, about each request.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use l7::policy::{Action, Clause, Match, PathMatch, Policy, Rule, Scope};
use l7::text::TextMatch;
use l7::{Kind, Origin, Resource};
use proto::proxy_protocol::Header;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Client, HOST, Mesh, Server, get, nothing};

pub(crate) fn policy(name: &str, action: Action, matches: Match) -> Resource {
    let policy = Policy {
        origin: Origin {
            kind: Kind::AuthorizationPolicy,
            namespace: "shop".into(),
            name: name.into(),
            rule: 0,
            rule_name: None,
        },
        scope: Scope::Namespace("shop".into()),
        action,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![matches],
            }],
        }],
        unenforceable: None,
    };
    Resource::Policy(format!("shop/{name}").as_str().into(), policy)
}

fn methods(method: &str) -> Match {
    Match {
        methods: vec![TextMatch::Exact(method.into())],
        ..Match::default()
    }
}

fn paths(path: &str) -> Match {
    let text = TextMatch::Prefix(path.into());
    Match {
        paths: vec![PathMatch::Text(text)],
        ..Match::default()
    }
}

fn from_namespace(namespace: &str) -> Match {
    let connection = model::policy::Match {
        namespaces: vec![model::policy::StringMatch::Exact(namespace.into())],
        ..model::policy::Match::default()
    };
    Match {
        connection: Some(connection),
        ..Match::default()
    }
}

fn header(identity: Option<&str>) -> Header {
    Header {
        client: "10.244.1.3:40000".parse().unwrap(),
        dialled: "10.96.0.7:80".parse().unwrap(),
        identity: identity.map(|identity| identity.parse().unwrap()),
        service: Some(HOST.to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_is_allowed_and_others_are_not() {
    let server = Server::named("catalogue").await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    mesh.apply(policy("viewer", Action::Allow, methods("GET")));
    assert_eq!(mesh.get("/").await.status, 200, "A45");
    let mut request = get("/");
    *request.method_mut() = Method::POST;
    let answer = mesh.ask(request).await;
    assert_eq!(
        (answer.status, &*answer.body),
        (403, "RBAC: access denied"),
        "A45"
    );
    assert_eq!(server.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_path_passes_a_deny() {
    let server = Server::named("secret").await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    mesh.apply(policy("no-admin", Action::Deny, paths("/admin")));
    for path in [
        "/admin",
        "/admin/x",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/x/%2e%2e/admin",
        "/x%2f..%2fadmin",
    ] {
        assert_eq!(mesh.get(path).await.status, 403, "{path}");
    }
    assert_eq!(server.count(), 0);
    assert_eq!(mesh.get("/public").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_identity_of_the_client_counts_for_each_connection() {
    let server = Server::named("x").await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    mesh.apply(policy("front-only", Action::Allow, from_namespace("shop")));
    for (identity, status) in [
        (Some("spiffe://cluster.local/ns/shop/sa/front"), 200),
        (Some("spiffe://cluster.local/ns/other/sa/front"), 403),
        (None, 403),
    ] {
        let stream = mesh.dial_as(header(identity)).await;
        let mut client = Client::http1(stream).await;
        // Connections to endpoints are shared; whose request it is does not mix.
        for _ in 0..3 {
            let answer = client.send(get("/")).await.unwrap();
            assert_eq!(answer.status, status, "{identity:?}");
        }
    }
    assert_eq!(
        server.connections.load(std::sync::atomic::Ordering::SeqCst),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_deny_ends_a_running_websocket() {
    let server = Server::start(|mut request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut byte = [0];
            while io.read_exact(&mut byte).await.is_ok() {
                if io.write_all(&byte).await.is_err() {
                    return;
                }
            }
        });
        let response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
        response.body(nothing()).unwrap()
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let mut stream = mesh.dial().await;
    stream
        .write_all(
            b"GET /ws HTTP/1.1\r\nhost: cart\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    // What does not concern it leaves it alone.
    mesh.apply(policy("no-admin", Action::Deny, paths("/admin")));
    stream.write_all(b"y").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'y');
    mesh.apply(policy("no-sockets", Action::Deny, paths("/ws")));
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_u8()).await;
    assert!(ended.unwrap().is_err());
}

/// Nothing is said of a service to whom it is not for: not that it has no endpoint, not where else it is, and not what it
/// answers at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_endpoint_is_judged_before_it_is_answered() {
    use l7::route::{Action as Does, DirectResponse, PathMatch};
    let mut mesh = Mesh::new();
    let at = |path: &str| {
        vec![l7::route::Match {
            path: PathMatch::Prefix(path.into()),
            ..l7::route::Match::default()
        }]
    };
    mesh.route(0, at("/fixed"), |rule| {
        rule.action = Does::Respond(DirectResponse {
            status: StatusCode::OK,
            body: Arc::from(&b"fixed"[..]),
        });
    });
    mesh.route(1, at("/moved"), |rule| {
        rule.action = Does::Redirect(l7::route::Redirect {
            status: StatusCode::FOUND,
            ..l7::route::Redirect::default()
        });
    });
    mesh.route(2, at("/broken"), |rule| {
        rule.action = Does::Forward(crate::support::to(&[]));
    });
    mesh.route(3, at("/subset"), |rule| {
        rule.action = Does::Forward(crate::support::to(&[(Some("gone"), 1)]));
    });
    mesh.route(4, at("/empty"), |_| ());
    let answers = [
        ("/fixed", 200),
        ("/moved", 302),
        ("/broken", 500),
        ("/subset", 503),
        ("/empty", 503),
        ("/unknown", 404),
    ];
    for (path, status) in answers {
        assert_eq!(mesh.get(path).await.status, status, "{path}");
    }
    mesh.apply(policy("nobody", Action::Deny, from_namespace("shop")));
    for (path, _) in answers {
        let answer = mesh.get(path).await;
        let said = (answer.status, &*answer.body);
        assert_eq!(said, (403, "RBAC: access denied"), "{path}");
    }
    // Who is another one gets what there is.
    let other = "spiffe://cluster.local/ns/other/sa/front";
    let mut client = Client::http1(mesh.dial_as(header(Some(other))).await).await;
    for (path, status) in answers {
        let answer = client.send(get(path)).await.unwrap();
        assert_eq!(answer.status, status, "{path}");
    }
}

/// An endpoint that is not ready stands for the service in which policies by labels are asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_a_ready_endpoint_is_judged_by_the_one_that_it_has() {
    let mut mesh = Mesh::new();
    let address = "127.0.0.1:9".parse().unwrap();
    let mut endpoint = crate::support::endpoint("a", "v1", address, &[80]);
    for port in &mut endpoint.ports {
        port.ready = false;
    }
    mesh.apply(Resource::Endpoint(endpoint.clone()));
    assert_eq!(mesh.get("/").await.status, 503);
    endpoint.policies = vec!["shop/not-there".into()];
    mesh.apply(Resource::Endpoint(endpoint));
    assert_eq!(mesh.get("/").await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_has_not_arrived_denies() {
    let server = Server::named("x").await;
    let mut mesh = Mesh::new();
    mesh.apply(Resource::Endpoint(l7::Endpoint {
        uid: "Kubernetes//Pod/shop/a".into(),
        addresses: vec![server.address.ip()],
        hostname: None,
        identity: None,
        namespace: "shop".into(),
        labels: Arc::default(),
        node: "n1".into(),
        locality: l7::backend::Locality::default(),
        weight: 1,
        ports: vec![l7::backend::EndpointPort {
            service: crate::support::key(),
            port: 80,
            target: server.address.port(),
            ready: true,
        }],
        policies: vec!["shop/not-there".into()],
    }));
    assert_eq!(mesh.get("/").await.status, 403);
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_deny_ends_an_answer_that_streams() {
    use http_body_util::BodyExt as _;
    let server = Server::start(|_| async {
        let endless = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let frame = hyper::body::Frame::data(bytes::Bytes::from_static(b"tick"));
            Some((Ok::<_, std::convert::Infallible>(frame), ()))
        });
        Response::new(http_body_util::StreamBody::new(endless).boxed())
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    let mut client = Client::http1(mesh.dial().await).await;
    let mut body = client.head(get("/watch")).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    mesh.apply(policy("no-watch", Action::Deny, paths("/watch")));
    let ended = async { while let Some(Ok(_)) = body.frame().await {} };
    let ended = tokio::time::timeout(Duration::from_secs(5), ended).await;
    assert!(ended.is_ok(), "it goes on");
}

/// A DENY may come while a connection to an endpoint is being made: it ends that as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_deny_that_comes_while_a_connection_is_made_ends_it() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(socket.into()).unwrap();
    let address = listener.local_addr().unwrap();
    // Who comes after these waits until somebody accepts.
    let mut full = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(
        Duration::from_millis(200),
        tokio::net::TcpStream::connect(address),
    )
    .await
    {
        full.push(stream);
    }
    let mut mesh = Mesh::new();
    mesh.port(25, model::service::AppProtocol::Tcp);
    mesh.endpoint_of("a", "v1", address, 25);
    let mut client = mesh.dial_to(25).await;
    client.write_all(b"HELO\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    mesh.apply(policy("nobody", Action::Deny, from_namespace("shop")));
    let accepting = tokio::spawn(async move {
        let mut taken = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            taken.push(stream);
        }
    });
    let ended = tokio::time::timeout(Duration::from_secs(8), client.read_u8()).await;
    assert!(ended.expect("it goes on").is_err());
    accepting.abort();
    drop(full);
}

/// Also one whose answer has not begun, because it only streams to the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_deny_ends_a_request_that_streams() {
    use http_body_util::{BodyExt as _, StreamBody};
    let server = Server::start(|request| async move {
        drop(request.into_body().collect().await);
        Response::new(nothing())
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    for http2 in [false, true] {
        let stream = mesh.dial().await;
        let mut client = match http2 {
            false => Client::http1(stream).await,
            true => Client::http2(stream).await,
        };
        let endless = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let frame = hyper::body::Frame::data(bytes::Bytes::from_static(b"tick"));
            Some((Ok::<_, std::convert::Infallible>(frame), ()))
        });
        let request = http::Request::post("http://cart/upload").header("host", "cart");
        let request = request.body(StreamBody::new(endless).boxed()).unwrap();
        let asked = tokio::spawn(async move { client.head(request).await });
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert!(!asked.is_finished(), "HTTP/2: {http2}");
        mesh.apply(policy("no-upload", Action::Deny, paths("/upload")));
        let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
        let answer = answer.expect("it goes on").unwrap();
        // A reset may overtake the answer to a client that still sends.
        assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 403));
        mesh.apply(policy("no-upload", Action::Deny, paths("/other")));
    }
}
