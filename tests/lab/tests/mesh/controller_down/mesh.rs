//! A mesh whose controller and agents the tests stop and start; each test finds all of them running.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, ensure};
use lab::{AgentOptions, Capture, ControllerOptions, Lab, Packet, Pod};
use testkit::Peer;
use tests_lab::Shared;

use crate::fixture::{
    APPLIES, Ended, PING, at, call, echo, mesh_namespace, plain_namespace, pod, wait_configured,
    wait_for,
};

/// Handles on what is in it.
pub(super) struct Mesh {
    pub(super) lab: &'static Lab,
    /// Captured, node n1; let in.
    pub(super) cart: Pod,
    /// Captured, node n1; denied by [`POLICY`].
    pub(super) thief: Pod,
    /// Outside the mesh, node n1; refused by STRICT.
    pub(super) stranger: Pod,
    /// Captured, node n2, with an echo on 8080.
    pub(super) server: Pod,
}

/// The mesh with all of its programs running; the first who asks makes it. Take a turn first.
pub(super) fn mesh() -> Result<Mesh> {
    let lab = LAB.lab()?;
    let echo = ECHO.get_or_init(|| {
        let server = lab.pod("shop/server").map_err(|error| error.to_string())?;
        echo(&server, 8080).map_err(|error| format!("{error:#}"))
    });
    echo.as_ref().map_err(|error| anyhow!("{error}"))?;
    let mesh = Mesh {
        lab,
        cart: lab.pod("shop/cart")?,
        thief: lab.pod("shop/thief")?,
        stranger: lab.pod("out/stranger")?,
        server: lab.pod("shop/server")?,
    };
    mesh.restore()?;
    Ok(mesh)
}

impl Mesh {
    /// `server` on its port 8080.
    pub(super) fn to(&self) -> Result<SocketAddr> {
        Ok(at(self.server.v4()?, 8080))
    }

    /// Starts what a failed test may have left stopped, and puts the policies back.
    fn restore(&self) -> Result<()> {
        if self.lab.controller_pid().is_none() {
            start_controller(self.lab)?;
        }
        for node in ["n1", "n2"] {
            if self.lab.agent_pid(node).is_none() {
                self.lab.start_agent(node, &AgentOptions::default())?;
            }
        }
        self.lab.apply(POLICY_FILE, POLICY)?;
        for node in ["n1", "n2"] {
            wait_configured(self.lab, node, "shop/no-thieves", true)?;
            wait_configured(self.lab, node, "shop/everybody", false)?;
        }
        wait_for(&self.cart, self.to()?, Ended::Answered)?;
        wait_for(&self.stranger, self.to()?, Ended::Refused)
    }

    /// Everything that this mesh promises, over new connections.
    pub(super) fn check(&self, when: &str) -> Result<()> {
        let to = self.to()?;
        for (client, expected) in [
            (&self.cart, Ended::Answered),
            (&self.thief, Ended::Refused),
            (&self.stranger, Ended::Refused),
        ] {
            let ended = call(client, to)?;
            ensure!(
                ended == expected,
                "{when}: {} {ended}; {}",
                client.key(),
                self.last_words()
            );
        }
        Ok(())
    }

    /// The ends of the agents' logs, for a failure that is to be understood.
    pub(super) fn last_words(&self) -> String {
        let tail = |log: String| {
            let skip = log.lines().count().saturating_sub(6);
            log.lines().skip(skip).collect::<Vec<_>>().join("\n")
        };
        let [first, second] = ["n1", "n2"].map(|node| tail(self.lab.agent_log(node)));
        format!("n1 logged\n{first}\nand n2\n{second}")
    }

    /// Waits until the whole promise holds; if it does not, tells what the agents last logged.
    pub(super) fn wait_check(&self, when: &str) -> Result<()> {
        let served = wait_for(&self.cart, self.to()?, Ended::Answered);
        served.with_context(|| format!("{when}; {}", self.last_words()))?;
        self.check(when)
    }

    /// Waits until the configuration has reached the disks of controller and agents: a program
    /// that is killed before has not seen it.
    pub(super) fn wait_on_disk(&self) -> Result<()> {
        let run = self.lab.run_dir();
        let places = [
            ("controller/state", &["no-thieves"][..]),
            (
                "nodes/n1/state",
                &["no-thieves", "Kubernetes//Pod/shop/cart"],
            ),
            (
                "nodes/n2/state",
                &["no-thieves", "Kubernetes//Pod/shop/server"],
            ),
        ];
        for (folder, texts) in places {
            for text in texts {
                let what = format!("{folder} holds {text}");
                lab::wait_until(&what, APPLIES, || holds(&run.join(folder), text))?;
            }
        }
        Ok(())
    }

    /// Whether what `client` says in [`call`] stands on the link in the clear.
    pub(super) fn is_readable(link: &Capture, client: &Pod) -> Result<bool> {
        let source = IpAddr::from(client.v4()?);
        ensure!(link.counts().lost == 0, "the capture lost frames");
        let said = |packet: &Packet<'_>| {
            let mut windows = packet.payload.windows(PING.len());
            packet.source == source && windows.any(|window| window == PING)
        };
        Ok(link.count(said) > 0)
    }

    /// Makes sure that what [`Mesh::check`] said crossed the link in tunnels.
    pub(super) fn check_encrypted(&self, link: &Capture) -> Result<()> {
        ensure!(link.count_port(6, 15008) > 0, "no tunnel on the link");
        ensure!(
            !Self::is_readable(link, &self.cart)?,
            "readable on the link"
        );
        Ok(())
    }

    pub(super) fn start_controller(&self) -> Result<()> {
        start_controller(self.lab)
    }
}

/// Whether a file below a folder holds a text.
fn holds(folder: &Path, text: &str) -> Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            holds(&path, text)?
        } else {
            // A file that is being replaced may vanish.
            let bytes = std::fs::read(&path).unwrap_or_default();
            let mut windows = bytes.windows(text.len());
            windows.any(|window| window == text.as_bytes())
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

fn start_controller(lab: &Lab) -> Result<()> {
    lab.start_controller(&ControllerOptions::default())
}

fn make() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    let namespaces = [mesh_namespace("shop"), plain_namespace("out")];
    lab.apply("namespaces.yaml", &namespaces.join("---\n"))?;
    start_controller(&lab)?;
    for node in ["n1", "n2"] {
        lab.start_agent(node, &AgentOptions::default())?;
    }
    for (namespace, name, node) in [
        ("shop", "cart", "n1"),
        ("shop", "thief", "n1"),
        ("out", "stranger", "n1"),
        ("shop", "server", "n2"),
    ] {
        lab.create(&pod(namespace, name, node))?;
    }
    Ok(lab)
}

/// Where [`POLICY`] stands.
pub(super) const POLICY_FILE: &str = "policy.yaml";
/// STRICT for the namespace, and one client that is denied.
pub(super) const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-thieves, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {serviceAccounts: [thief]}}]}]}
";

static LAB: Shared = Shared::new(make);
static ECHO: OnceLock<Result<Peer, String>> = OnceLock::new();
