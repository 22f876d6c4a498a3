//! The mesh that the policy tests share: clients of two namespaces and of none, servers on both nodes.

use std::net::SocketAddr;
use std::sync::OnceLock;

use anyhow::{Result, anyhow, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, Pod};
use testkit::Peer;
use tests_lab::Shared;

use crate::fixture::{
    APPLIES, Ended, at, call, echo, mesh_namespace, plain_namespace, pod, wait_configured,
};

/// Handles on what is in it.
pub(super) struct Mesh {
    pub(super) lab: &'static Lab,
    /// Captured, `shop`, node n1.
    pub(super) cart: Pod,
    /// Captured, `shop`, node n1.
    pub(super) web: Pod,
    /// Captured, `bank`, node n1.
    pub(super) teller: Pod,
    /// Outside the mesh, node n1.
    pub(super) stranger: Pod,
    /// Captured, `shop`, node n2; echoes on 8080 and 8081.
    pub(super) server: Pod,
    /// Captured, `shop`, node n1; echoes on 8080 and 8081.
    pub(super) near: Pod,
}

/// The mesh, without any policy; the first who asks makes it. Take a turn first.
pub(super) fn mesh() -> Result<Mesh> {
    let lab = LAB.lab()?;
    let echoes = ECHOES.get_or_init(|| serve(lab).map_err(|error| format!("{error:#}")));
    echoes.as_ref().map_err(|error| anyhow!("{error}"))?;
    let mesh = Mesh {
        lab,
        cart: lab.pod("shop/cart")?,
        web: lab.pod("shop/web")?,
        teller: lab.pod("bank/teller")?,
        stranger: lab.pod("out/stranger")?,
        server: lab.pod("shop/server")?,
        near: lab.pod("shop/near")?,
    };
    mesh.clear()?;
    Ok(mesh)
}

impl Mesh {
    /// In the order in which tables write their verdicts.
    pub(super) fn clients(&self) -> [&Pod; 4] {
        [&self.cart, &self.web, &self.teller, &self.stranger]
    }

    /// `server` on its port 8080.
    pub(super) fn far(&self) -> Result<SocketAddr> {
        Ok(at(self.server.v4()?, 8080))
    }

    /// Applies policies; `marker` is something that both agents then know.
    pub(super) fn apply(&self, policies: &str, marker: &str) -> Result<()> {
        self.lab.apply(FILE, policies)?;
        ["n1", "n2"]
            .iter()
            .try_for_each(|node| wait_configured(self.lab, node, marker, true))
    }

    /// Takes all policies away and waits until no agent knows any.
    pub(super) fn clear(&self) -> Result<()> {
        if self.lab.manifests_dir().join(FILE).exists() {
            self.lab.delete(FILE)?;
        }
        ["n1", "n2"].iter().try_for_each(|node| {
            lab::wait_until(&format!("{node} knows no policy"), APPLIES, || {
                let dump = self.lab.agent_json(node, "/config_dump")?;
                Ok(dump["policies"].as_array().is_some_and(Vec::is_empty))
            })
        })
    }

    /// How calls of all clients end, as a word such as `ARRA`: answered or refused.
    pub(super) fn verdicts(&self, to: SocketAddr) -> Result<String> {
        let mut word = String::new();
        for client in self.clients() {
            word.push(match call(client, to)? {
                Ended::Answered => 'A',
                Ended::Refused | Ended::Reset => 'R',
                Ended::Closed => 'c',
                Ended::Hung => 'h',
                Ended::Other(_) => '?',
            });
        }
        Ok(word)
    }

    /// Waits until calls of all clients end as the word says.
    pub(super) fn wait_verdicts(&self, to: SocketAddr, expected: &str) -> Result<()> {
        testkit::eventually(&format!("calls of {to} end {expected}"), APPLIES, || {
            let got = self.verdicts(to)?;
            ensure!(got == expected, "the last ended {got}");
            Ok(())
        })
    }
}

fn make() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    let namespaces = [
        mesh_namespace("shop"),
        mesh_namespace("bank"),
        mesh_namespace("istio-system"),
        plain_namespace("out"),
    ];
    lab.apply("namespaces.yaml", &namespaces.join("---\n"))?;
    lab.start_controller(&ControllerOptions {
        args: vec!["--network-policies=enforce".to_owned()],
        ..ControllerOptions::default()
    })?;
    for node in ["n1", "n2"] {
        lab.start_agent(node, &AgentOptions::default())?;
    }
    for (namespace, name, node) in [
        ("shop", "cart", "n1"),
        ("shop", "web", "n1"),
        ("bank", "teller", "n1"),
        ("out", "stranger", "n1"),
        ("shop", "server", "n2"),
        ("shop", "near", "n1"),
    ] {
        lab.create(&pod(namespace, name, node).label("app", name))?;
    }
    Ok(lab)
}

fn serve(lab: &Lab) -> Result<Vec<Peer>> {
    let mut echoes = Vec::new();
    for name in ["shop/server", "shop/near"] {
        for port in [8080, 8081] {
            echoes.push(echo(&lab.pod(name)?, port)?);
        }
    }
    Ok(echoes)
}

pub(super) const FILE: &str = "policies.yaml";
static LAB: Shared = Shared::new(make);
static ECHOES: OnceLock<Result<Vec<Peer>, String>> = OnceLock::new();
