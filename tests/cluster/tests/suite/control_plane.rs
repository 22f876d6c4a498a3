//! The controller, in this process, with the cluster as its source.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser as _;
use controller::app::Prepared;
use controller::options::Options;
use prost_types::{Struct, Value, value::Kind};
use proto::istio::ca::IstioCertificateRequest;
use proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use runtime::admin::{Exposure, Server};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tests_cluster::{Namespace, SERVER, eventually, kubectl, pod};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

/// A running controller.
struct Controller {
    address: SocketAddr,
    admin: SocketAddr,
    home: TempDir,
    client: Runtime,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Controller {
    /// Starts one for which pods of `agents` speak for their nodes.
    fn start(agents: &str) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let path = |name: &str| home.path().join(name).display().to_string();
        let kubeconfig = std::env::var("KUBECONFIG").context("KUBECONFIG names no cluster")?;
        let options = Options::try_parse_from([
            "x",
            "--kubernetes",
            "--kubeconfig",
            &kubeconfig,
            "--agent-accounts",
            agents,
            "--state-dir",
            &path("state"),
            "--root-cert-out",
            &path("root.pem"),
        ])?;
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

    fn page(&self, path: &str) -> Result<String> {
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
    fn workload(&self, namespace: &str, name: &str) -> Result<Option<Json>> {
        let page: Json = serde_json::from_str(&self.page("/debug/config_dump")?)?;
        let wanted = format!("Kubernetes//Pod/{namespace}/{name}");
        let all = page["addresses"].as_array().context("there is a list")?;
        let found = all.iter().find(|resource| resource["name"] == *wanted);
        Ok(found.map(|resource| resource["resource"]["workload"].clone()))
    }

    /// Asks for a certificate, as the bearer of `token`.
    fn certify(&self, token: &str, identity: &str) -> Result<Result<Vec<String>, Status>> {
        let root = std::fs::read_to_string(self.root())?;
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
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(root))
                .domain_name("localhost");
            let endpoint = Endpoint::from_shared(format!("https://{}", self.address))?;
            let channel = endpoint.tls_config(tls)?.connect().await?;
            let mut client = IstioCertificateServiceClient::new(channel);
            let answer = client.create_certificate(request).await;
            Ok(answer.map(|answer| answer.into_inner().cert_chain))
        })
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

/// Pods, their addresses, services and their endings come from the API server as they are.
#[test]
fn the_controller_serves_what_the_cluster_has_and_takes_back_what_is_gone() -> Result<()> {
    let controller = Controller::start("keelson-system/keelson-node-agent")?;
    let namespace = Namespace::create("follow")?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    namespace.apply(&[pod("server", None, SERVER), service])?;
    namespace.wait_ready("server")?;
    let ips: Vec<String> = namespace
        .pod_ips("server")?
        .iter()
        .map(ToString::to_string)
        .collect();
    let name = namespace.name().to_owned();
    eventually("the pod is served as it is", || {
        let workload = controller
            .workload(&name, "server")?
            .context("it is not served")?;
        ensure!(workload["addresses"] == json!(ips), "{workload}");
        ensure!(workload["status"] == "Healthy", "{workload}");
        let service = format!("{name}/server.{name}.svc.cluster.local");
        let port = &workload["services"][&service][0];
        ensure!(
            port["service_port"] == 80 && port["target_port"] == 8080,
            "{workload}"
        );
        Ok(())
    })?;
    namespace.kubectl(&["delete", "pod", "server", "--wait=true"])?;
    eventually("the pod is taken back", || {
        match controller.workload(&name, "server")? {
            Some(workload) => bail!("{workload}"),
            None => Ok(()),
        }
    })
}

/// istio#41379: any pod that could get a token spoke for a node. Here an account that the settings name does, for the node
/// that the API server says its pod runs on, and everybody else for themselves.
#[test]
fn only_the_agents_account_speaks_for_a_node_and_no_token_of_others_is_taken() -> Result<()> {
    let namespace = Namespace::create("tokens")?;
    let name = namespace.name();
    for account in ["agent", "cart", "web"] {
        namespace.kubectl(&["create", "serviceaccount", account])?;
    }
    let with_account = |pod_name: &str, account: &str, node: Option<&str>| {
        let mut pod = pod(pod_name, node, "sleep 1000");
        pod["spec"]["serviceAccountName"] = json!(account);
        pod
    };
    let nodes = tests_cluster::nodes()?;
    let [here, there] = [nodes.first(), nodes.last()].map(|node| node.map(String::as_str));
    namespace.apply(&[
        with_account("agent", "agent", here),
        with_account("cart", "cart", here),
        with_account("web", "web", there),
    ])?;
    for pod in ["agent", "cart", "web"] {
        namespace.wait_ready(pod)?;
    }
    let controller = Controller::start(&format!("{name}/agent"))?;
    let token = |account: &str, audience: &str, bound: &[&str]| {
        let words = [&["create", "token", account, "--audience", audience], bound].concat();
        Ok::<_, anyhow::Error>(namespace.kubectl(&words)?.trim().to_owned())
    };
    let bound = |pod| ["--bound-object-kind", "Pod", "--bound-object-name", pod];
    let identity = |account: &str| format!("spiffe://cluster.local/ns/{name}/sa/{account}");
    let agent = token("agent", "keelson", &bound("agent"))?;
    let cart = token("cart", "keelson", &bound("cart"))?;

    let mine = controller.certify(&agent, &identity("cart"))?;
    ensure!(mine.is_ok(), "a pod of the agent's node: {mine:?}");
    let own = controller.certify(&cart, &identity("cart"))?;
    ensure!(own.is_ok(), "a pod for itself: {own:?}");

    let code = |token: &str, account: &str| {
        let asked = controller.certify(token, &identity(account))?;
        anyhow::Ok(asked.err().map(|status| status.code()))
    };
    if here != there {
        ensure!(
            code(&agent, "web")? == Some(Code::PermissionDenied),
            "a pod of another node"
        );
    }
    ensure!(
        code(&cart, "agent")? == Some(Code::PermissionDenied),
        "a neighbour's identity"
    );
    for (what, token) in [
        (
            "another audience",
            token("agent", "istio-ca", &bound("agent"))?,
        ),
        ("bound to no pod", token("agent", "keelson", &[])?),
        ("no token", "nonsense".to_owned()),
    ] {
        ensure!(
            code(&token, "cart")? == Some(Code::Unauthenticated),
            "{what}"
        );
    }

    // The pod goes, and its token with it.
    namespace.kubectl(&["delete", "pod", "agent", "--wait=true"])?;
    eventually("the token of a pod that is gone is nobody's", || {
        let code = code(&agent, "cart")?;
        ensure!(code == Some(Code::Unauthenticated), "{code:?}");
        Ok(())
    })?;
    kubectl(&["get", "namespace", name]).map(drop)
}
