//! Delta discovery over gRPC: drives one stream's state per client.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use model::Identity;
use proto::envoy::discovery::DeltaDiscoveryRequest;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};
use tracing::{debug, info, warn};

use super::auth::{Subscriber, caller, peer};
use super::codec::{RequestDecoder, Response, Responses};
use super::stream::{Meaning, Stream, Type, Viewer};
use super::{MAX_REQUEST, Services};
use crate::metrics::type_label;
use crate::pipeline::Published;

/// `envoy.service.discovery.v3.AggregatedDiscoveryService`, delta only, with a body of its own.
#[derive(Clone)]
pub struct DiscoveryServer {
    services: Services,
}

impl DiscoveryServer {
    /// Serves what `services` publish.
    pub fn new(services: Services) -> Self {
        Self { services }
    }
}

impl NamedService for DiscoveryServer {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<http::Request<Body>> for DiscoveryServer {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Boxed<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let services = self.services.clone();
        Box::pin(async move {
            if request.uri().path() != DELTA_PATH {
                let other = Status::unimplemented(
                    "only DeltaAggregatedResources is served; state-of-the-world discovery is not",
                );
                return Ok(other.into_http());
            }
            let answer = open(services, request).await;
            Ok(answer.unwrap_or_else(Status::into_http))
        })
    }
}

/// Opens a stream, if the caller is somebody.
async fn open(
    services: Services,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Status> {
    let request = Request::from_http(request);
    let (metadata, extensions) = (request.metadata(), request.extensions());
    let (node, viewer) = match caller(&*services.authenticator, metadata, extensions).await {
        Ok(Subscriber::Node(node)) if services.captures_only => {
            (Arc::clone(&node), Viewer::Captures(node))
        }
        Ok(Subscriber::Node(node)) => (Arc::clone(&node), Viewer::Node(node)),
        Ok(Subscriber::Workload { node, identity }) => {
            if let Some(waypoint) = waypoint(&services, &identity) {
                return Ok(serve(services, node, Viewer::Waypoint(waypoint), request));
            }
            services.metrics.unauthenticated.inc();
            warn!(peer = ?peer(extensions), node = &*node, %identity, "discovery refused: neither a node's agent nor a waypoint");
            let text = format!(
                "this token belongs to {identity}, which is no waypoint and is not told what a node's agent is"
            );
            return Err(Status::permission_denied(text));
        }
        Err(error) => {
            services.metrics.unauthenticated.inc();
            warn!(peer = ?peer(extensions), %error, "discovery refused");
            return Err(error.into());
        }
    };
    Ok(serve(services, node, viewer, request))
}

/// The waypoint that has this identity.
fn waypoint(services: &Services, identity: &Identity) -> Option<Arc<str>> {
    let published = services.published.borrow();
    let snapshot = &published.snapshot;
    snapshot
        .waypoint_of(&identity.namespace, &identity.service_account)
        .map(Arc::clone)
}

fn serve(
    services: Services,
    node: Arc<str>,
    viewer: Viewer,
    request: Request<Body>,
) -> http::Response<Body> {
    let (out, responses) = mpsc::channel(RESPONSES);
    let connection = Connection::open(services, node, viewer, out);
    let body = request.into_inner();
    let requests = Streaming::new_request(RequestDecoder, body, None, Some(MAX_REQUEST));
    tokio::spawn(connection.run(requests));
    let mut answer = http::Response::new(Body::new(Responses::new(responses)));
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    answer
}

/// One open stream; closing is counted however it ends.
struct Connection {
    services: Services,
    node: Arc<str>,
    id: u64,
    stream: Stream,
    out: mpsc::Sender<Response>,
    /// When what is on the way was read from the source.
    sent: Arc<Published>,
    /// The generation that the client took last, by type.
    taken: BTreeMap<Type, u64>,
}

impl Connection {
    fn open(
        services: Services,
        node: Arc<str>,
        viewer: Viewer,
        out: mpsc::Sender<Response>,
    ) -> Self {
        let mut status = services.status.lock();
        let id = status.open(Arc::clone(&node));
        let stream = Stream::new(viewer);
        // Who has no part in the order of capture is not waited for from the beginning.
        status.knows(id, stream.knows());
        drop(status);
        services.metrics.connected_nodes.inc();
        info!(node = &*node, stream = id, "discovery stream opened");
        let sent = services.published.borrow().clone();
        Self {
            services,
            node,
            id,
            stream,
            out,
            sent,
            taken: BTreeMap::new(),
        }
    }

    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut published = self.services.published.clone();
        let stopping = self.services.stopping.clone();
        let mut push_at: Option<Instant> = None;
        loop {
            let due = push_at.unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => {
                        self.request(request);
                        push_at.get_or_insert_with(|| Instant::now() + COALESCE);
                    }
                    Ok(None) => return,
                    Err(error) => {
                        debug!(node = &*self.node, %error, "discovery stream broke");
                        return;
                    }
                },
                changed = published.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    push_at.get_or_insert_with(|| Instant::now() + COALESCE);
                }
                () = sleep_until(due), if push_at.is_some() => {
                    push_at = None;
                    let now = published.borrow_and_update().clone();
                    if self.push(now).await.is_err() {
                        return;
                    }
                }
                () = self.out.closed() => return,
                () = stopping.cancelled() => return,
            }
        }
    }

    async fn push(&mut self, now: Arc<Published>) -> Result<(), ()> {
        while let Some(response) = self.stream.next(&now.snapshot) {
            debug!(
                node = &*self.node,
                type_url = response.type_url,
                resources = response.resources.len(),
                removed = response.removed.len(),
                "push"
            );
            let (url, generation) = (response.type_url, response.generation);
            self.services
                .status
                .lock()
                .note(self.id, url, |status| status.sent = generation);
            self.services
                .metrics
                .pushes
                .get_or_create(&type_label(url))
                .inc();
            self.out.send(response).await.map_err(|_closed| ())?;
        }
        let knows = self.stream.knows();
        self.services.status.lock().knows(self.id, knows);
        self.sent = now;
        Ok(())
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) {
        if let Some(node) = &request.node {
            self.services.status.lock().name(self.id, &node.id);
        }
        match self.stream.request(request) {
            Meaning::Subscription => {}
            Meaning::Ack(kind, generation) => self.acked(kind, generation),
            Meaning::Nack(kind, generation, message) => {
                warn!(
                    node = &*self.node,
                    type_url = kind.url(),
                    generation,
                    message,
                    "the client refused configuration (NACK)"
                );
                self.services
                    .metrics
                    .nacks
                    .get_or_create(&type_label(kind.url()))
                    .inc();
                self.services
                    .status
                    .lock()
                    .note(self.id, kind.url(), |status| status.nack = Some(message));
            }
            Meaning::UnknownType(url) => {
                warn!(
                    node = &*self.node,
                    type_url = url,
                    "the client asks for a type that is not served; ignored"
                );
            }
        }
    }

    fn acked(&mut self, kind: Type, generation: u64) {
        self.services
            .metrics
            .acks
            .get_or_create(&type_label(kind.url()))
            .inc();
        self.services
            .status
            .lock()
            .note(self.id, kind.url(), |status| {
                status.acked = generation;
                status.nack = None;
            });
        // What a stream begins with was not waited for since the source changed.
        let before = self.taken.insert(kind, generation);
        let is_change = before.is_some_and(|before| before < generation);
        if is_change && generation == self.sent.snapshot.generation {
            self.services
                .metrics
                .convergence
                .observe(self.sent.read_at.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.services.status.lock().close(self.id);
        self.services.metrics.connected_nodes.dec();
        info!(
            node = &*self.node,
            stream = self.id,
            "discovery stream closed"
        );
    }
}

const DELTA_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Changes and subscriptions that come within this time go out together.
const COALESCE: Duration = Duration::from_millis(3);
/// Only a value for a timer that is switched off.
const IDLE: Duration = Duration::from_secs(3600);
/// Responses that wait for the transport; the stream has at most one per type.
const RESPONSES: usize = 4;
