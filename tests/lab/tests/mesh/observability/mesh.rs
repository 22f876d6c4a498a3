//! The mesh that the tests of telemetry look at; its agents log JSON.

use std::net::SocketAddr;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow};
use lab::{AgentOptions, ControllerOptions, Lab, Pod};
use serde_json::Value;
use testkit::Peer;
use tests_lab::{Shared, service};

use crate::fixture::{
    APPLIES, Ended, connect, echo, exchange, mesh_namespace, plain_namespace, pod, wait_configured,
    wait_for,
};

/// Handles on what is in it.
pub(super) struct Mesh {
    pub(super) lab: &'static Lab,
    /// Captured, node n1, version v2.
    pub(super) client: Pod,
    /// Captured, node n1; denied by an AuthorizationPolicy `no-thieves`.
    pub(super) thief: Pod,
    /// Outside the mesh, node n1.
    pub(super) stranger: Pod,
    /// Captured, node n2, version v1, with an echo on 8080 behind the Service `catalogue`.
    pub(super) server: Pod,
}

/// The Service `catalogue` of the namespace `sock-shop`.
pub(super) const CATALOGUE: &str = "10.96.0.80:80";

/// The mesh; the first who asks makes it. Take a turn first.
pub(super) fn mesh() -> Result<Mesh> {
    let lab = LAB.lab()?;
    let echo = ECHO.get_or_init(|| {
        let server = lab
            .pod("sock-shop/catalogue")
            .map_err(|error| error.to_string())?;
        echo(&server, 8080).map_err(|error| format!("{error:#}"))
    });
    echo.as_ref().map_err(|error| anyhow!("{error}"))?;
    let mesh = Mesh {
        lab,
        client: lab.pod("sock-shop/front-end")?,
        thief: lab.pod("sock-shop/thief")?,
        stranger: lab.pod("out/stranger")?,
        server: lab.pod("sock-shop/catalogue")?,
    };
    wait_for(&mesh.client, CATALOGUE.parse()?, Ended::Answered)?;
    lab::wait_until("connections are encrypted", APPLIES, || mesh.is_encrypted())?;
    Ok(mesh)
}

impl Mesh {
    /// Until the client's node has heard that the server is captured, it is answered in the clear.
    fn is_encrypted(&self) -> Result<bool> {
        let stream = connect(&self.client, CATALOGUE.parse()?)?;
        exchange(&stream, b"are we alone?");
        let source = stream.local_addr()?.to_string();
        let page = self.lab.agent_json("n1", "/connections")?;
        let list = page.as_array().context("no list")?;
        let mut all = list.iter().map(Value::to_string);
        Ok(all.any(|one| one.contains(&source) && one.contains("mutual_tls")))
    }

    /// The echo's own address.
    pub(super) fn server_at(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.server.v4()?.into(), 8080))
    }

    /// The access log's lines on a node that speak of this client address.
    pub(super) fn access_lines(&self, node: &str, source: SocketAddr) -> Result<Vec<Value>> {
        let log = self.lab.agent_log(node);
        let source = source.to_string();
        let lines = log.lines().filter(|line| line.contains(&source));
        let parsed: Result<Vec<Value>, _> = lines.map(serde_json::from_str).collect();
        parsed.context("the log is not JSON")
    }

    /// Waits until there is a line about this client, and returns all there are a little later.
    pub(super) fn wait_access_lines(&self, node: &str, source: SocketAddr) -> Result<Vec<Value>> {
        lab::wait_until(
            &format!("{node} logs the connection of {source}"),
            APPLIES,
            || Ok(!self.access_lines(node, source)?.is_empty()),
        )?;
        std::thread::sleep(std::time::Duration::from_millis(100));
        self.access_lines(node, source)
    }
}

/// A field of a JSON log line, wherever the format puts an event's fields.
pub(super) fn field<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    line.get(name).or_else(|| line.get("fields")?.get(name))
}

fn make() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    let objects = [
        mesh_namespace("sock-shop"),
        plain_namespace("out"),
        service("sock-shop", "catalogue", 80, &[("TCP", 80, 8080)]),
        POLICY.to_owned(),
    ];
    lab.apply("objects.yaml", &objects.join("---\n"))?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in ["n1", "n2"] {
        let options = AgentOptions {
            args: ["--log-format", "json"].map(str::to_owned).to_vec(),
            ..AgentOptions::default()
        };
        lab.start_agent(node, &options)?;
    }
    lab.create(&pod("sock-shop", "front-end", "n1").label("version", "v2"))?;
    lab.create(&pod("sock-shop", "thief", "n1"))?;
    lab.create(&pod("out", "stranger", "n1"))?;
    let server = pod("sock-shop", "catalogue", "n2").label("version", "v1");
    lab.create(&server.probed(&[8080]))?;
    wait_configured(&lab, "n2", "sock-shop/no-thieves", true)?;
    Ok(lab)
}

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-thieves, namespace: sock-shop}
spec: {action: DENY, rules: [{from: [{source: {serviceAccounts: [thief]}}]}]}
";
static LAB: Shared = Shared::new(make);
static ECHO: OnceLock<Result<Peer, String>> = OnceLock::new();
