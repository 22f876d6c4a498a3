//! Servers, clients and configurations of these tests.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use l7::backend::{BackendRule, EndpointPort, Subset, TrafficPolicy};
use l7::route::{
    Action, Attachment, Backend, Forward, Match, Precedence, RouteRule, Treatment, WeightedBackend,
};
use l7::{ClusterKey, Endpoint, Kind, Origin, Resource, Rule, Service, Store};
use model::ServiceKey;
use model::service::{AppProtocol, ServicePort};
use proto::proxy_protocol::Header;
use runtime::metrics::Metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use waypoint::Limits;
use waypoint::active::Active;
use waypoint::program::{Core, Serving};
use waypoint::trace::Tracer;

pub(crate) type Body = BoxBody<Bytes, Infallible>;

pub(crate) const HOST: &str = "cart.shop.svc.cluster.local";
pub(crate) const VIP: &str = "10.96.0.7";

pub(crate) fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

pub(crate) fn nothing() -> Body {
    Empty::new().boxed()
}

/// A server that answers each request with what a function returns.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Requests that it has got.
    pub(crate) requests: Arc<AtomicUsize>,
    /// Connections that it has taken.
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Server {
    /// Speaks HTTP/1.1 and HTTP/2 with prior knowledge.
    pub(crate) async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        builder.http2().enable_connect_protocol();
        Self::start_as(builder, answer).await
    }

    /// The same, which speaks as this says.
    pub(crate) async fn start_as<F, R>(
        builder: hyper_util::server::conn::auto::Builder<TokioExecutor>,
        answer: F,
    ) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (requests, connections) = (Arc::clone(&this.requests), Arc::clone(&this.connections));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (requests, answer) = (Arc::clone(&requests), answer.clone());
                let builder = builder.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        requests.fetch_add(1, Ordering::SeqCst);
                        let answered = answer(request);
                        async move { Ok::<_, Infallible>(answered.await) }
                    });
                    let io = TokioIo::new(stream);
                    drop(builder.serve_connection_with_upgrades(io, service).await);
                });
            }
        });
        this
    }

    /// Answers everything with its name.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::start(move |_| async move { Response::new(text(name)) }).await
    }

    pub(crate) async fn status(status: u16) -> Self {
        Self::start(move |_| async move {
            let mut response = Response::new(text("failed"));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        })
        .await
    }

    pub(crate) fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// A waypoint that serves one service, `cart`, at [`VIP`] on port 80.
pub(crate) struct Mesh {
    store: Store,
    pub(crate) core: Core,
    pub(crate) metrics: Metrics,
    serving: Serving,
    ports: Vec<ServicePort>,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default(), 1)
    }

    pub(crate) fn with(limits: Limits, workers: usize) -> Self {
        let metrics = Metrics::new();
        let core = Core::new("shop/waypoint", &metrics);
        Self::of(core, metrics, limits, workers)
    }

    pub(crate) fn traced_by(tracer: Arc<Tracer>, metrics: Metrics) -> Self {
        let core = Core::new("shop/waypoint", &metrics).traced_by(tracer);
        Self::of(core, metrics, Limits::default(), 1)
    }

    fn of(core: Core, metrics: Metrics, limits: Limits, workers: usize) -> Self {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let serving = Serving::start(local, workers, core.clone(), limits).unwrap();
        let mut this = Self {
            store: Store::default(),
            core,
            metrics,
            serving,
            ports: Vec::new(),
        };
        this.port(80, AppProtocol::Http11);
        this
    }

    /// The service has this port too.
    pub(crate) fn port(&mut self, port: u16, app_protocol: AppProtocol) {
        self.ports.retain(|one| one.port != port);
        self.ports.push(ServicePort {
            port,
            target_port: 0,
            app_protocol,
        });
        let service = Service {
            key: key(),
            addresses: vec![VIP.parse().unwrap()],
            ports: self.ports.clone(),
            attached: true,
        };
        self.apply(Resource::Service(service));
    }

    pub(crate) fn apply(&mut self, resource: Resource) {
        self.store.apply(resource);
        self.core.newest.store(Active {
            l7: self.store.config(),
            ..Active::default()
        });
    }

    /// An endpoint of the service with a label `version`.
    pub(crate) fn endpoint(&mut self, name: &str, version: &str, address: SocketAddr) {
        self.endpoint_of(name, version, address, 80);
    }

    pub(crate) fn endpoint_of(
        &mut self,
        name: &str,
        version: &str,
        address: SocketAddr,
        port: u16,
    ) {
        self.endpoint_with(name, version, address, &[port]);
    }

    /// The same, which serves several ports of the service.
    pub(crate) fn endpoint_ports(&mut self, name: &str, address: SocketAddr, ports: &[u16]) {
        self.endpoint_with(name, "v1", address, ports);
    }

    fn endpoint_with(&mut self, name: &str, version: &str, address: SocketAddr, ports: &[u16]) {
        let endpoint = endpoint(name, version, address, ports);
        self.apply(Resource::Endpoint(endpoint));
    }

    /// Subsets by version, and how endpoints are used.
    pub(crate) fn backend(&mut self, versions: &[&str], policy: TrafficPolicy) {
        let subset = |version: &&str| {
            let labels = BTreeMap::from([(Arc::from("version"), Arc::from(*version))]);
            let subset = Subset {
                labels,
                ..Subset::default()
            };
            (Arc::from(*version), subset)
        };
        let rule = BackendRule {
            policy: Arc::new(policy),
            subsets: versions.iter().map(subset).collect(),
            ..BackendRule::default()
        };
        self.apply(Resource::Backend(key(), rule));
    }

    /// The rule of this index.
    pub(crate) fn route(
        &mut self,
        index: u32,
        matches: Vec<Match>,
        change: impl FnOnce(&mut Rule),
    ) {
        let rule = rule(index, matches, change);
        let name = format!("shop/cart/{index}");
        self.apply(Resource::Route(name.as_str().into(), rule));
    }

    /// A connection of `shop/front` to the service, as an agent hands it over.
    pub(crate) async fn dial(&self) -> TcpStream {
        self.dial_to(80).await
    }

    pub(crate) async fn dial_to(&self, port: u16) -> TcpStream {
        let vip: IpAddr = VIP.parse().unwrap();
        self.dial_as(Header {
            client: "10.244.1.3:40000".parse().unwrap(),
            dialled: (vip, port).into(),
            identity: Some("spiffe://cluster.local/ns/shop/sa/front".parse().unwrap()),
            service: Some(HOST.to_owned()),
        })
        .await
    }

    pub(crate) async fn dial_as(&self, header: Header) -> TcpStream {
        let mut stream = self.bare().await;
        stream.write_all(&header.to_bytes()).await.unwrap();
        stream
    }

    /// A connection on which nothing has been said.
    pub(crate) async fn bare(&self) -> TcpStream {
        TcpStream::connect(self.serving.address()).await.unwrap()
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, request: Request<Body>) -> Answered {
        let mut client = Client::http1(self.dial().await).await;
        client.send(request).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answered {
        self.ask(get(path)).await
    }

    pub(crate) fn page(&self) -> String {
        self.metrics.encode()
    }

    pub(crate) async fn finish(self, deadline: Duration) -> runtime::drain::DrainEnd {
        self.serving.finish(deadline).await
    }
}

/// An endpoint of the service with a label `version`, which serves these ports of it.
pub(crate) fn endpoint(name: &str, version: &str, address: SocketAddr, ports: &[u16]) -> Endpoint {
    let labels = BTreeMap::from([(Arc::from("version"), Arc::from(version))]);
    let port = |port: &u16| EndpointPort {
        service: key(),
        port: *port,
        target: address.port(),
        ready: true,
    };
    Endpoint {
        uid: format!("Kubernetes//Pod/shop/{name}").as_str().into(),
        addresses: vec![address.ip()],
        hostname: None,
        identity: None,
        namespace: "shop".into(),
        labels: Arc::new(labels),
        node: "n1".into(),
        locality: l7::backend::Locality::default(),
        weight: 1,
        ports: ports.iter().map(port).collect(),
        policies: Vec::new(),
    }
}

/// A rule for the service, which sends to it.
pub(crate) fn rule(index: u32, matches: Vec<Match>, change: impl FnOnce(&mut Rule)) -> RouteRule {
    let mut rule = Rule::new(
        Origin {
            kind: Kind::VirtualService,
            namespace: "shop".into(),
            name: "cart".into(),
            rule: index,
            rule_name: None,
        },
        Treatment {
            action: Action::Forward(to(&[(None, 1)])),
            timeout: None,
            fault: None,
            cors: None,
            request_headers: l7::route::HeaderOperations::default(),
            response_headers: l7::route::HeaderOperations::default(),
        },
    );
    change(&mut rule);
    RouteRule {
        attachments: vec![Attachment {
            service: key(),
            port: None,
            client_namespace: None,
        }],
        precedence: Precedence::Listed("shop/cart".into()),
        matches,
        rule: Arc::new(rule),
    }
}

pub(crate) fn key() -> ServiceKey {
    ServiceKey {
        namespace: "shop".into(),
        hostname: HOST.into(),
    }
}

pub(crate) fn cluster(subset: Option<&str>) -> ClusterKey {
    ClusterKey {
        service: key(),
        port: 80,
        subset: subset.map(Arc::from),
    }
}

/// To subsets by weight.
pub(crate) fn to(subsets: &[(Option<&str>, u32)]) -> Forward {
    let backend = |(subset, weight): &(Option<&str>, u32)| WeightedBackend {
        backend: Backend::Cluster(cluster(*subset)),
        weight: *weight,
        request_headers: l7::route::HeaderOperations::default(),
        response_headers: l7::route::HeaderOperations::default(),
        authority: None,
    };
    Forward {
        backends: subsets.iter().map(backend).collect(),
        ..Forward::default()
    }
}

pub(crate) fn get(path: &str) -> Request<Body> {
    let request = Request::builder().uri(path).header("host", "cart");
    request.body(nothing()).unwrap()
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// A client on one connection.
pub(crate) enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

impl Client {
    pub(crate) async fn http1(stream: TcpStream) -> Self {
        let io = TokioIo::new(stream);
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self::Http1(sender)
    }

    pub(crate) async fn http2(stream: TcpStream) -> Self {
        let io = TokioIo::new(stream);
        let executor = TokioExecutor::new();
        let (sender, connection) = hyper::client::conn::http2::handshake(executor, io)
            .await
            .unwrap();
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    pub(crate) async fn head(
        &mut self,
        request: Request<Body>,
    ) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    pub(crate) async fn send(&mut self, request: Request<Body>) -> hyper::Result<Answered> {
        let (head, body) = self.head(request).await?.into_parts();
        let collected = body.collect().await?;
        Ok(Answered {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8(collected.to_bytes().to_vec()).unwrap(),
        })
    }
}

/// Writes bytes and reads until the other end closes.
pub(crate) async fn exchange(mut stream: TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8_lossy(&answer).into_owned()
}
