//! A controller in this process, with the cluster as its source.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use controller::app::Prepared;
use controller::options::Options;
use prost_types::{Struct, Value, value::Kind};
use proto::agent::NodeReport;
use proto::agent::node_service_client::NodeServiceClient;
use proto::istio::ca::IstioCertificateRequest;
use proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use runtime::admin::{Exposure, Server};
use serde_json::Value as Json;
use tempfile::TempDir;
use tests_cluster::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

/// A running controller.
pub(crate) struct Controller {
    address: SocketAddr,
    admin: SocketAddr,
    home: TempDir,
    client: Runtime,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Controller {
    /// Starts one for which pods of `agents` speak for their nodes.
    pub(crate) fn start(agents: &str) -> Result<Self> {
        Self::start_with(agents, &[])
    }

    /// The same with further flags.
    pub(crate) fn start_with(agents: &str, more: &[&str]) -> Result<Self> {
        let kubeconfig = std::env::var("KUBECONFIG").context("KUBECONFIG names no cluster")?;
        Self::start_by(&kubeconfig, agents, more)
    }

    /// The same, by another way to the API server.
    pub(crate) fn start_at(kubeconfig: &str, agents: &str) -> Result<Self> {
        Self::start_by(kubeconfig, agents, &[])
    }

    fn start_by(kubeconfig: &str, agents: &str, more: &[&str]) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let path = |name: &str| home.path().join(name).display().to_string();
        let (state, root) = (path("state"), path("root.pem"));
        let mut words = vec![
            "x",
            "--kubernetes",
            "--kubeconfig",
            kubeconfig,
            "--agent-accounts",
            agents,
            "--state-dir",
            &state,
            "--root-cert-out",
            &root,
        ];
        words.extend(more);
        let options = Options::try_parse_from(words)?;
        let prepared = Prepared::new(options)?;
        let server = Runtime::new()?;
        let (listener, admin) = server.block_on(async {
            let any = (Ipv4Addr::LOCALHOST, 0);
            let listener = TcpListener::bind(any).await?;
            let admin = Server::bind(any.into(), Exposure::Loopback).await?;
            anyhow::Ok((listener, admin))
        })?;
        let (address, admin_address) = (listener.local_addr()?, admin.local_addr());
        let (stop, stopped) = oneshot::channel::<()>();
        let wait = async move {
            // It also stops when nobody can tell it to any more.
            drop(stopped.await);
        };
        let thread = std::thread::spawn(move || {
            server.block_on(prepared.run_on(listener, admin, None, wait))
        });
        let controller = Self {
            address,
            admin: admin_address,
            home,
            client: Runtime::new()?,
            stop: Some(stop),
            thread: Some(thread),
        };
        eventually("the controller is ready", || {
            let page = controller.page("/healthz/ready")?;
            ensure!(
                !page.contains("not ready") && page.contains("ready"),
                "{page}"
            );
            Ok(())
        })?;
        Ok(controller)
    }

    pub(crate) fn page(&self, path: &str) -> Result<String> {
        self.client.block_on(async {
            let mut stream = TcpStream::connect(self.admin).await?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            let (_, body) = text
                .split_once("\r\n\r\n")
                .context("an answer has a body")?;
            Ok(body.to_owned())
        })
    }

    /// The workload of a pod as it is served; none where it is not.
    pub(crate) fn workload(&self, namespace: &str, name: &str) -> Result<Option<Json>> {
        let page: Json = serde_json::from_str(&self.page("/debug/config_dump")?)?;
        let wanted = format!("Kubernetes//Pod/{namespace}/{name}");
        let all = page["addresses"].as_array().context("there is a list")?;
        let found = all.iter().find(|resource| resource["name"] == *wanted);
        Ok(found.map(|resource| resource["resource"]["workload"].clone()))
    }

    /// Asks for a certificate, as the bearer of `token`.
    pub(crate) fn certify(
        &self,
        token: &str,
        identity: &str,
    ) -> Result<Result<Vec<String>, Status>> {
        let (_key, csr) = tls::csr::new_key_and_csr(&identity.parse()?)?;
        let value = Value {
            kind: Some(Kind::StringValue(identity.to_owned())),
        };
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: 0,
            metadata: Some(Struct {
                fields: [("ImpersonatedIdentity".to_owned(), value)].into(),
            }),
        });
        let bearer = format!("Bearer {token}").parse()?;
        request.metadata_mut().insert("authorization", bearer);
        self.client.block_on(async {
            let mut client = IstioCertificateServiceClient::new(self.channel().await?);
            let answer = client.create_certificate(request).await;
            Ok(answer.map(|answer| answer.into_inner().cert_chain))
        })
    }

    /// Says of a node what it holds captured, as the bearer of `token`.
    pub(crate) fn report(&self, token: &str, report: NodeReport) -> Result<()> {
        let mut request = Request::new(report);
        let bearer = format!("Bearer {token}").parse()?;
        request.metadata_mut().insert("authorization", bearer);
        self.client.block_on(async {
            let mut client = NodeServiceClient::new(self.channel().await?);
            client.report(request).await?;
            Ok(())
        })
    }

    async fn channel(&self) -> Result<Channel> {
        let root = std::fs::read_to_string(self.root())?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(root))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address))?;
        Ok(endpoint.tls_config(tls)?.connect().await?)
    }

    fn root(&self) -> PathBuf {
        self.home.path().join("root.pem")
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
        }
    }
}
