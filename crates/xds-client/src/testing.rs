//! A controller for tests: a real TLS server on loopback that does what the test says.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::agent::node_service_server::{NodeService, NodeServiceServer};
use proto::agent::{NodeReport, NodeReportAck};
use proto::envoy::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use proto::istio::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use proto::istio::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tls::ca::{Authority, system_clock};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::controller::Controller;

/// What outlives a restart of the controller: root, token, address.
pub(crate) struct Site {
    pub(crate) authority: Arc<Authority>,
    pub(crate) directory: tempfile::TempDir,
    address: SocketAddr,
}

/// One run of the controller. Dropping it ends the run and every connection.
pub(crate) struct Running {
    pub(crate) streams: mpsc::UnboundedReceiver<Stream>,
    pub(crate) calls: Arc<Calls>,
    stop: Option<oneshot::Sender<()>>,
}

/// A configuration stream as the controller sees it.
pub(crate) struct Stream {
    pub(crate) token: String,
    pub(crate) cluster: String,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

/// What the unary calls answer, and what they were asked.
#[derive(Default)]
pub(crate) struct Calls {
    pub(crate) certificates: Mutex<Vec<(String, IstioCertificateRequest)>>,
    pub(crate) reports: Mutex<Vec<NodeReport>>,
    pub(crate) answer: Mutex<Answer>,
}

/// What CreateCertificate and Report do.
#[derive(Clone, Default)]
pub(crate) enum Answer {
    /// What they are asked.
    #[default]
    Good,
    /// This chain, whatever is asked.
    Chain(Vec<String>),
    /// This refusal.
    Refuse(Status),
}

impl Site {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::generate("test", system_clock()).unwrap());
        fs::write(
            directory.path().join("root.pem"),
            authority.roots().to_pem(),
        )
        .unwrap();
        fs::write(directory.path().join("token"), "secret-1\n").unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self {
            authority,
            directory,
            address: free.local_addr().unwrap(),
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn controller(&self) -> Controller {
        Controller::new(
            format!("https://{}", self.address),
            self.file("root.pem"),
            self.file("token"),
        )
    }

    pub(crate) async fn run(&self) -> Running {
        let serving = self
            .authority
            .serving_cert(&["127.0.0.1".to_owned()], Duration::from_secs(600))
            .unwrap();
        let identity = Identity::from_pem(serving.chain_pem(), serving.key_pem());
        let listener = TcpListener::bind(self.address).await.unwrap();
        let (opened, streams) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let calls = Arc::new(Calls::default());
        let service = Fake {
            opened,
            calls: Arc::clone(&calls),
            authority: Arc::clone(&self.authority),
        };
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(AggregatedDiscoveryServiceServer::new(service.clone()))
            .add_service(IstioCertificateServiceServer::new(service.clone()))
            .add_service(NodeServiceServer::new(service))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
                drop(stopped.await);
            });
        tokio::spawn(server);
        Running {
            streams,
            calls,
            stop: Some(stop),
        }
    }
}

impl Running {
    pub(crate) async fn stream(&mut self) -> Stream {
        soon(self.streams.recv()).await.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

impl Stream {
    pub(crate) async fn request(&mut self) -> DeltaDiscoveryRequest {
        soon(self.requests.message()).await.unwrap().unwrap()
    }

    /// The initial requests of this many types.
    pub(crate) async fn requests(&mut self, count: usize) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for _ in 0..count {
            requests.push(self.request().await);
        }
        requests
    }

    pub(crate) async fn send(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).await.unwrap();
    }

    pub(crate) async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }
}

/// A response with resources `name=content`, whose versions are their contents.
pub(crate) fn response(
    type_url: &str,
    nonce: &str,
    resources: &[&str],
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources: resources
            .iter()
            .map(|text| resource(type_url, text))
            .collect(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

pub(crate) fn resource(type_url: &str, text: &str) -> Resource {
    let (name, content) = text.split_once('=').unwrap();
    Resource {
        name: name.to_owned(),
        version: content.to_owned(),
        resource: Some(prost_types::Any {
            type_url: type_url.to_owned(),
            value: content.as_bytes().to_vec(),
        }),
        ..Resource::default()
    }
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("it should have happened by now")
}

#[derive(Clone)]
struct Fake {
    opened: mpsc::UnboundedSender<Stream>,
    calls: Arc<Calls>,
    authority: Arc<Authority>,
}

fn header<T>(request: &Request<T>, name: &str) -> String {
    let value = request.metadata().get(name);
    value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Fake {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(16);
        let stream = Stream {
            token: header(&request, "authorization"),
            cluster: header(&request, "clusterid"),
            requests: request.into_inner(),
            responses,
        };
        drop(self.opened.send(stream));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Fake {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let token = header(&request, "authorization");
        let asked = request.into_inner();
        let identity = impersonated(&asked).parse().unwrap();
        let ttl = Duration::from_secs(asked.validity_duration.try_into().unwrap());
        let answer = self.calls.answer.lock().unwrap().clone();
        let chain = match answer {
            Answer::Good => self.authority.sign(&asked.csr, &identity, ttl).unwrap(),
            Answer::Chain(chain) => chain,
            Answer::Refuse(status) => return Err(status),
        };
        self.calls.certificates.lock().unwrap().push((token, asked));
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: chain,
        }))
    }
}

fn impersonated(request: &IstioCertificateRequest) -> String {
    let metadata = request.metadata.as_ref().unwrap();
    match &metadata.fields["ImpersonatedIdentity"].kind {
        Some(prost_types::value::Kind::StringValue(name)) => name.clone(),
        other => panic!("{other:?}"),
    }
}

#[tonic::async_trait]
impl NodeService for Fake {
    async fn report(
        &self,
        request: Request<NodeReport>,
    ) -> Result<Response<NodeReportAck>, Status> {
        let answer = self.calls.answer.lock().unwrap().clone();
        if let Answer::Refuse(status) = answer {
            return Err(status);
        }
        self.calls
            .reports
            .lock()
            .unwrap()
            .push(request.into_inner());
        Ok(Response::new(NodeReportAck::default()))
    }
}
