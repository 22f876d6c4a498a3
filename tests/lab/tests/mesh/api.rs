//! The controller's APIs, called by a stranger: messages written down by field number, no generated code.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::uri::PathAndQuery;
use lab::{Lab, Node};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::authority::Minted;
use crate::hbone::block_on;

/// `istio.workload.Address`.
pub(crate) const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// `istio.security.Authorization`.
pub(crate) const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
/// The pods of the asking node.
pub(crate) const NODE_POD: &str = "type.googleapis.com/keelson.agent.v1.NodePod";

/// `envoy.service.discovery.v3.DeltaDiscoveryRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeltaRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<NodeId>,
    #[prost(string, tag = "2")]
    pub(crate) type_url: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) subscribe: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(crate) unsubscribe: Vec<String>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) initial_resource_versions: BTreeMap<String, String>,
    #[prost(string, tag = "6")]
    pub(crate) response_nonce: String,
    #[prost(message, optional, tag = "7")]
    pub(crate) error_detail: Option<RpcStatus>,
}

/// `envoy.config.core.v3.Node`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeId {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeltaResponse {
    #[prost(message, repeated, tag = "2")]
    pub(crate) resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(crate) removed: Vec<String>,
}

/// `envoy.service.discovery.v3.Resource`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Resource {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) resource: Option<Any>,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Any {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

/// `istio.v1.auth.IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct CertificateRequest {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(int64, tag = "3")]
    validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<Struct>,
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

/// `google.protobuf.Struct` with string values.
#[derive(Clone, PartialEq, prost::Message)]
struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`, a string.
#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, optional, tag = "3")]
    string: Option<String>,
}

/// `keelson.agent.v1.NodeReport`.
#[derive(Clone, PartialEq, prost::Message)]
struct NodeReport {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(string, repeated, tag = "2")]
    captured: Vec<String>,
    #[prost(string, tag = "3")]
    agent_version: String,
    #[prost(uint32, tag = "4")]
    abi_version: u32,
}

/// `keelson.agent.v1.NodeReportAck`.
#[derive(Clone, PartialEq, prost::Message)]
struct NodeReportAck {}

/// Who calls: from which node, with which token.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    node: Node,
    controller: SocketAddr,
    root: String,
    token: Option<String>,
}

/// One answer of the CA, and the key that was certified.
#[derive(Debug)]
pub(crate) struct Issued {
    /// As sent, one PEM text each.
    pub(crate) pem: Vec<String>,
    key: KeyPair,
}

impl Issued {
    /// As it would be presented in TLS; the root is left out.
    pub(crate) fn minted(&self) -> Result<Minted> {
        let mut chain = self.chain()?;
        chain.pop();
        Ok(Minted {
            chain,
            key: PrivatePkcs8KeyDer::from(self.key.serialize_der()).into(),
        })
    }

    /// All certificates, leaf first, root last.
    pub(crate) fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        let text = self.pem.concat();
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        Ok(chain?)
    }
}

/// What to ask the CA for.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    /// `ImpersonatedIdentity`.
    pub(crate) identity: &'a str,
    /// The URI SAN in the CSR.
    pub(crate) csr_san: &'a str,
    /// A common name in the CSR.
    pub(crate) common_name: Option<&'a str>,
    /// Wanted seconds of life.
    pub(crate) seconds: i64,
}

impl<'a> Ask<'a> {
    pub(crate) fn for_identity(identity: &'a str) -> Self {
        Self {
            identity,
            csr_san: identity,
            common_name: None,
            seconds: 86_400,
        }
    }
}

impl Caller {
    /// With the token of the node that it calls from.
    pub(crate) fn of_node(lab: &Lab, node: &str) -> Result<Self> {
        let token = std::fs::read_to_string(lab.token_file(node)?)?;
        Self::with_token(lab, node, Some(&token))
    }

    /// With any token, or none.
    pub(crate) fn with_token(lab: &Lab, node: &str, token: Option<&str>) -> Result<Self> {
        Ok(Self {
            node: lab.node(node)?,
            controller: lab.controller_address()?,
            root: std::fs::read_to_string(lab.root_cert())?,
            token: token.map(str::to_owned),
        })
    }

    /// `istio.v1.auth.IstioCertificateService/CreateCertificate`; the inner error is the CA's answer.
    pub(crate) fn create_certificate(&self, ask: &Ask<'_>) -> Result<Result<Issued, Status>> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = ask.common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names = vec![SanType::URI(ask.csr_san.try_into()?)];
        let impersonated = Value {
            string: Some(ask.identity.to_owned()),
        };
        let message = CertificateRequest {
            csr: params.serialize_request(&key)?.pem()?,
            validity_duration: ask.seconds,
            metadata: Some(Struct {
                fields: [("ImpersonatedIdentity".to_owned(), impersonated)].into(),
            }),
        };
        let answer: Result<CertificateResponse, Status> = self.unary(message, CREATE)?;
        Ok(answer.map(|answer| Issued {
            pem: answer.cert_chain,
            key,
        }))
    }

    /// `keelson.agent.v1.NodeService/Report`, as the agent of `node`.
    pub(crate) fn report(&self, node: &str, captured: &[String]) -> Result<Result<(), Status>> {
        let message = NodeReport {
            node: node.to_owned(),
            captured: captured.to_vec(),
            agent_version: "foreign".to_owned(),
            abi_version: 1,
        };
        let answer: Result<NodeReportAck, Status> = self.unary(message, REPORT)?;
        Ok(answer.map(|_| ()))
    }

    fn unary<Q, A>(&self, message: Q, path: &'static str) -> Result<Result<A, Status>>
    where
        Q: prost::Message + Default + Send + 'static,
        A: prost::Message + Default + Send + 'static,
    {
        self.node.run(|| {
            block_on(async {
                let mut grpc = tonic::client::Grpc::new(self.channel().await?);
                grpc.ready().await?;
                let path = PathAndQuery::from_static(path);
                let request = self.authorised(message)?;
                let answer = grpc.unary(request, path, ProstCodec::<Q, A>::default());
                Ok(answer.await.map(tonic::Response::into_inner))
            })
        })?
    }

    /// Runs a conversation on a fresh ADS stream, from inside the node.
    pub(crate) fn converse<T, F>(&self, talk: impl FnOnce(Ads) -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
    {
        self.node.run(|| {
            block_on(async {
                let ads = self.stream().await?;
                let ads = ads.map_err(|status| anyhow::anyhow!("no stream: {status}"))?;
                talk(ads).await
            })
        })?
    }

    /// Whether a stream is opened at all, and answers; the inner error is the server's.
    pub(crate) fn try_stream(&self) -> Result<Result<(), Status>> {
        self.node.run(|| {
            block_on(async {
                let mut ads = match self.stream().await? {
                    Ok(ads) => ads,
                    Err(status) => return Ok(Err(status)),
                };
                ads.send(Ads::wildcard(ADDRESS)).await?;
                Ok(ads.answers.message().await.map(|_| ()))
            })
        })?
    }

    async fn stream(&self) -> Result<Result<Ads, Status>> {
        let (requests, queue) = mpsc::channel(16);
        let mut grpc = tonic::client::Grpc::new(self.channel().await?);
        grpc.ready().await?;
        let request = self.authorised(ReceiverStream::new(queue))?;
        let path = PathAndQuery::from_static(DELTA);
        let codec = ProstCodec::<DeltaRequest, DeltaResponse>::default();
        let answer = grpc.streaming(request, path, codec).await;
        Ok(answer.map(|answer| Ads {
            requests,
            answers: answer.into_inner(),
        }))
    }

    async fn channel(&self) -> Result<Channel> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.root))
            .domain_name(self.controller.ip().to_string());
        let endpoint = Endpoint::from_shared(format!("https://{}", self.controller))?;
        let endpoint = endpoint.tls_config(tls)?;
        endpoint.connect().await.context("connecting")
    }

    fn authorised<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let value = format!("Bearer {}", token.trim()).parse()?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// One delta ADS stream.
pub(crate) struct Ads {
    requests: mpsc::Sender<DeltaRequest>,
    answers: Streaming<DeltaResponse>,
}

impl Ads {
    /// The first request of a type: everything.
    pub(crate) fn wildcard(type_url: &str) -> DeltaRequest {
        DeltaRequest {
            node: Some(NodeId {
                id: "ztunnel~1.1.1.1~foreign.test~test.svc.cluster.local".to_owned(),
            }),
            type_url: type_url.to_owned(),
            ..DeltaRequest::default()
        }
    }

    pub(crate) async fn send(&self, request: DeltaRequest) -> Result<()> {
        Ok(self.requests.send(request).await?)
    }

    pub(crate) async fn ack(&self, response: &DeltaResponse) -> Result<()> {
        self.send(DeltaRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaRequest::default()
        })
        .await
    }

    pub(crate) async fn nack(&self, response: &DeltaResponse, message: &str) -> Result<()> {
        self.send(DeltaRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(RpcStatus {
                code: 3,
                message: message.to_owned(),
            }),
            ..DeltaRequest::default()
        })
        .await
    }

    /// The next response, which must come within ten seconds.
    pub(crate) async fn next(&mut self) -> Result<DeltaResponse> {
        match self.next_within(Duration::from_secs(10)).await? {
            Some(response) => Ok(response),
            None => bail!("no response within ten seconds"),
        }
    }

    /// The next response, or `None` where none comes in time.
    pub(crate) async fn next_within(&mut self, time: Duration) -> Result<Option<DeltaResponse>> {
        match tokio::time::timeout(time, self.answers.message()).await {
            Err(_) => Ok(None),
            Ok(answer) => Ok(Some(
                answer?.context("the controller has ended the stream")?,
            )),
        }
    }

    /// Subscribes to everything of a type and returns the first response, acknowledged.
    pub(crate) async fn all(&mut self, type_url: &str) -> Result<DeltaResponse> {
        self.send(Self::wildcard(type_url)).await?;
        let response = self.next().await?;
        self.ack(&response).await?;
        Ok(response)
    }
}

const DELTA: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CREATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
const REPORT: &str = "/keelson.agent.v1.NodeService/Report";
