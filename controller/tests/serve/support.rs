//! A controller in this process, and clients for it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use controller::app::Prepared;
use controller::options::Options;
use proto::agent::NodeReport;
use proto::agent::node_service_client::NodeServiceClient;
use proto::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use runtime::admin::{Exposure, Server};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};

/// The folders of a controller, which outlive it.
pub(crate) struct Home {
    dir: TempDir,
}

/// A running controller.
pub(crate) struct Controller {
    address: SocketAddr,
    admin: SocketAddr,
    root: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("manifests")).expect("a folder");
        std::fs::write(
            dir.path().join("tokens"),
            "# token node\ntoken-1 n1\ntoken-2 n2\ntoken-cart n1 spiffe://cluster.local/ns/shop/sa/cart\n\
             token-wp n1 spiffe://cluster.local/ns/shop/sa/wp\n",
        )
        .expect("writes");
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join("manifests").join(name), text).expect("writes");
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join("manifests").join(name)).expect("removes");
    }

    pub(crate) fn options(&self, more: &[&str]) -> Options {
        let path = |name: &str| self.path().join(name).display().to_string();
        let mut line = vec!["x".to_owned()];
        for (flag, name) in [
            ("--manifests", "manifests"),
            ("--node-tokens", "tokens"),
            ("--state-dir", "state"),
            ("--root-cert-out", "root.pem"),
        ] {
            line.extend([flag.to_owned(), path(name)]);
        }
        line.extend(more.iter().map(ToString::to_string));
        Options::try_parse_from(line).expect("parses")
    }

    pub(crate) async fn start(&self, more: &[&str]) -> Controller {
        let prepared = Prepared::new(self.options(more)).expect("starts");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("binds");
        let admin = Server::bind((Ipv4Addr::LOCALHOST, 0).into(), Exposure::Loopback)
            .await
            .expect("binds");
        let (address, admin_address) = (listener.local_addr().expect("bound"), admin.local_addr());
        let (stop, stopped) = oneshot::channel::<()>();
        let wait = async move {
            let _dropped = stopped.await;
        };
        let task = tokio::spawn(prepared.run_on(listener, admin, None, wait));
        let root = std::fs::read_to_string(self.path().join("root.pem"))
            .expect("written before anything is served");
        let controller = Controller {
            address,
            admin: admin_address,
            root,
            stop,
            task,
        };
        controller
            .until(
                "ready",
                |page| page.contains("ready\n") && !page.contains("not ready"),
                "/healthz/ready",
            )
            .await;
        controller
    }
}

impl Controller {
    pub(crate) async fn stop(self) {
        self.stop.send(()).expect("runs");
        timeout(DEADLINE, self.task)
            .await
            .expect("stops in time")
            .expect("no panic")
            .expect("no error");
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A TLS connection over which nothing is said.
    pub(crate) async fn handshake(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.root.as_bytes()) {
            roots.add(root.expect("PEM")).expect("a root");
        }
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let tcp = TcpStream::connect(self.address).await.expect("connects");
        let name = "localhost".try_into().expect("a name");
        connector.connect(name, tcp).await.expect("a handshake")
    }

    pub(crate) async fn channel(&self) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.root))
            .domain_name("localhost");
        let endpoint =
            Endpoint::from_shared(format!("https://{}", self.address)).expect("an address");
        endpoint
            .tls_config(tls)
            .expect("a root")
            .connect()
            .await
            .expect("connects")
    }

    pub(crate) async fn discovery(&self, token: &str) -> Discovery {
        self.try_discovery(token).await.expect("accepted")
    }

    pub(crate) async fn try_discovery(&self, token: &str) -> Result<Discovery, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let request = bearer(ReceiverStream::new(receiver), token);
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await)
            .max_decoding_message_size(64 << 20);
        let responses = client
            .delta_aggregated_resources(request)
            .await?
            .into_inner();
        Ok(Discovery {
            requests,
            responses,
        })
    }

    pub(crate) async fn ca(&self) -> IstioCertificateServiceClient<Channel> {
        IstioCertificateServiceClient::new(self.channel().await)
    }

    pub(crate) async fn report(
        &self,
        token: &str,
        node: &str,
        captured: &[&str],
    ) -> Result<(), Status> {
        let captured = captured.iter().map(ToString::to_string).collect();
        let report = NodeReport {
            node: node.into(),
            captured,
            agent_version: "test".into(),
            abi_version: 1,
            ..NodeReport::default()
        };
        NodeServiceClient::new(self.channel().await)
            .report(bearer(report, token))
            .await
            .map(drop)
    }

    pub(crate) async fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.expect("connects");
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("reads");
        text
    }

    /// Reads a page until it says what is waited for.
    pub(crate) async fn until(&self, what: &str, reached: impl Fn(&str) -> bool, path: &str) {
        let wait = async {
            while !reached(&self.page(path).await) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(DEADLINE, wait).await.is_err() {
            panic!("never {what}: {}", self.page(path).await);
        }
    }
}

/// A discovery stream.
pub(crate) struct Discovery {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Discovery {
    pub(crate) async fn subscribe(&self, type_url: &str) {
        self.send(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            ..Default::default()
        })
        .await;
    }

    pub(crate) async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests
            .send(request)
            .await
            .expect("the stream is open");
    }

    /// The next response, not acknowledged.
    pub(crate) async fn receive(&mut self) -> DeltaDiscoveryResponse {
        let message = timeout(DEADLINE, self.responses.message())
            .await
            .expect("a response in time");
        message.expect("no error").expect("the stream is open")
    }

    /// Whether nothing comes for a moment.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        timeout(QUIET, self.responses.message()).await.is_err()
    }

    pub(crate) async fn ack(&self, response: &DeltaDiscoveryResponse) {
        let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
        self.send(DeltaDiscoveryRequest {
            type_url,
            response_nonce,
            ..Default::default()
        })
        .await;
    }

    /// The next response, acknowledged, as `Type +new -gone`.
    pub(crate) async fn take(&mut self) -> String {
        let response = self.receive().await;
        self.ack(&response).await;
        line(&response)
    }

    /// Takes responses until one has this line.
    pub(crate) async fn take_until(&mut self, wanted: &str) {
        while self.take().await != wanted {}
    }
}

pub(crate) fn line(response: &DeltaDiscoveryResponse) -> String {
    let kind = response.type_url.rsplit('.').next().unwrap_or_default();
    let new = response
        .resources
        .iter()
        .map(|resource| format!(" +{}", resource.name));
    let gone = response
        .removed_resources
        .iter()
        .map(|name| format!(" -{name}"));
    format!("{kind}{}", new.chain(gone).collect::<String>())
}

pub(crate) fn bearer<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "authorization",
        format!("Bearer {token}").parse().expect("ascii"),
    );
    request
}

/// A mesh of two pods on two nodes, and a third pod whose identity is on neither.
pub(crate) const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {keelson.io/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: a}, annotations: {keelson.io/pod-ips: 10.244.1.10}}
spec: {nodeName: n1, serviceAccountName: cart}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: shop, labels: {app: b}, annotations: {keelson.io/pod-ips: 10.244.2.10}}
spec: {nodeName: n2, serviceAccountName: web}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guard, namespace: shop}
spec: {rules: [{}]}
";
pub(crate) const A: &str = "Kubernetes//Pod/shop/a";
pub(crate) const B: &str = "Kubernetes//Pod/shop/b";

const DEADLINE: Duration = Duration::from_secs(20);
/// Longer than everything that the controller waits for before it sends.
const QUIET: Duration = Duration::from_millis(200);
