//! The mesh that tests of identity and interoperation share: two nodes with our agents, a third
//! without one, on which a test acts as somebody else's agent, and a CA whose key the tests hold.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow};
use lab::{AgentOptions, ControllerOptions, Lab, Pod};
use testkit::Peer;
use tests_lab::Shared;

use crate::api::Caller;
use crate::authority::{Authority, Minted, Wish};
use crate::fixture::{
    APPLIES, at, echo, mesh_namespace, plain_namespace, pod, spiffe, wait_configured,
};

/// Handles on what is in it.
pub(crate) struct Estate {
    pub(crate) lab: &'static Lab,
    pub(crate) authority: &'static Authority,
    /// Captured, on node n1.
    pub(crate) client: Pod,
    /// Captured, on node n2, with an echo on port 8080.
    pub(crate) server: Pod,
    /// Captured, on node n2 beside `server`.
    pub(crate) other: Pod,
    /// Of a mesh namespace, on node n3, where nobody captures.
    pub(crate) foreign: Pod,
    /// Outside the mesh, on node n1.
    pub(crate) stranger: Pod,
    pub(crate) echo: &'static Peer,
}

/// The estate; the first who asks makes it. Take a turn first.
pub(crate) fn estate() -> Result<Estate> {
    let lab = LAB.lab()?;
    let echo = ECHO.get_or_init(|| serve(lab).map_err(|error| format!("{error:#}")));
    Ok(Estate {
        lab,
        authority: authority()?,
        client: lab.pod("shop/client")?,
        server: lab.pod("shop/server")?,
        other: lab.pod("shop/other")?,
        foreign: lab.pod("shop/foreign")?,
        stranger: lab.pod("out/stranger")?,
        echo: echo.as_ref().map_err(|error| anyhow!("{error}"))?,
    })
}

impl Estate {
    /// The echo's address.
    pub(crate) fn echo_at(&self) -> Result<SocketAddr> {
        Ok(at(self.server.v4()?, 8080))
    }

    /// A certificate for the pod `foreign`, from the shared CA key.
    pub(crate) fn foreign_certificate(&self) -> Result<Minted> {
        self.authority.mint(&Wish::identity(&spiffe(&self.foreign)))
    }

    /// The address of the pod `foreign`.
    pub(crate) fn foreign_ip(&self) -> Result<IpAddr> {
        Ok(self.foreign.v4()?.into())
    }

    /// Does something while a manifest is applied; `text` is what the agents of n1 and n2 then know.
    pub(crate) fn with_manifest<T>(
        &self,
        manifest: &str,
        text: &str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.lab.apply("for-one-test.yaml", manifest)?;
        let agree = |there| {
            ["n1", "n2"]
                .iter()
                .try_for_each(|node| wait_configured(self.lab, node, text, there))
        };
        let done = agree(true).and_then(|()| work());
        self.lab.delete("for-one-test.yaml")?;
        agree(false)?;
        done
    }

    /// Says as the agent of n3 which of its pods can be reached through HBONE, and waits until the
    /// agent of n1 has heard of it.
    pub(crate) fn announce_foreign(&self, hbone: bool) -> Result<()> {
        let uid = "Kubernetes//Pod/shop/foreign".to_owned();
        let captured = if hbone { vec![uid.clone()] } else { Vec::new() };
        Caller::of_node(self.lab, "n3")?
            .report("n3", &captured)?
            .context("the report of n3")?;
        lab::wait_until("n1 knows how to reach shop/foreign", APPLIES, || {
            let dump = self.lab.agent_json("n1", "/config_dump")?;
            let workloads = dump["workloads"].as_array().cloned().unwrap_or_default();
            let foreign = workloads.iter().find(|workload| workload["uid"] == uid);
            let tunnel = foreign.context("unknown workload")?["tunnel"].clone();
            Ok((tunnel == "Hbone") == hbone)
        })
    }
}

fn authority() -> Result<&'static Authority> {
    static AUTHORITY: OnceLock<Result<Authority, String>> = OnceLock::new();
    let authority =
        AUTHORITY.get_or_init(|| Authority::generate().map_err(|error| error.to_string()));
    authority.as_ref().map_err(|error| anyhow!("{error}"))
}

fn make() -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).nodes(3).build()?;
    let cacerts: PathBuf = lab.run_dir().join("cacerts");
    std::fs::create_dir(&cacerts)?;
    authority()?.write_cacerts(&cacerts)?;
    let namespaces = [mesh_namespace("shop"), plain_namespace("out")];
    lab.apply("namespaces.yaml", &namespaces.join("---\n"))?;
    lab.start_controller(&ControllerOptions {
        cacerts: Some(cacerts),
        ..ControllerOptions::default()
    })?;
    for node in ["n1", "n2"] {
        lab.start_agent(node, &AgentOptions::default())?;
    }
    for (namespace, name, node) in [
        ("shop", "client", "n1"),
        ("shop", "server", "n2"),
        ("shop", "other", "n2"),
        ("shop", "foreign", "n3"),
        ("out", "stranger", "n1"),
    ] {
        lab.create(&pod(namespace, name, node))?;
    }
    Ok(lab)
}

fn serve(lab: &Lab) -> Result<Peer> {
    echo(&lab.pod("shop/server")?, 8080)
}

static LAB: Shared = Shared::new(make);
static ECHO: OnceLock<Result<Peer, String>> = OnceLock::new();
