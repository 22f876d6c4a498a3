//! A pod on its way out is a member of the mesh until its sandbox is gone, whatever becomes of its object.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, Pod};
use tests_lab::{evidence, turn};

use crate::fixture::{
    Ended, at, call, echo, mesh_namespace, plain_namespace, pod, wait_configured, wait_for,
};

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";

/// Waits until a page of the controller holds a text, or holds it no more.
fn wait_controller(lab: &Lab, path: &str, text: &str, there: bool) -> Result<()> {
    let what = format!("{path} of the controller holds {text:?}: {there}");
    testkit::eventually(&what, PATIENCE, || {
        let page = lab.controller_get(path)?;
        ensure!(page.contains(text) == there, "{}", evidence(lab));
        Ok(())
    })
}

/// Agents find a controller again that was away, and report to it.
const PATIENCE: Duration = Duration::from_secs(30);

struct Departing {
    lab: Lab,
    client: Pod,
    server: Pod,
    stranger: Pod,
}

impl Departing {
    fn new() -> Result<Self> {
        let lab = Lab::builder(lab::unique_id()).build()?;
        let namespaces = [mesh_namespace("shop"), plain_namespace("out")];
        lab.apply("namespaces.yaml", &namespaces.join("---\n"))?;
        lab.apply("policy.yaml", STRICT)?;
        lab.start_controller(&ControllerOptions::default())?;
        for node in ["n1", "n2"] {
            lab.start_agent(node, &AgentOptions::default())?;
        }
        Ok(Self {
            client: lab.create(&pod("shop", "client", "n1"))?,
            server: lab.create(&pod("shop", "server", "n2"))?,
            stranger: lab.create(&pod("out", "stranger", "n1"))?,
            lab,
        })
    }

    /// Changes the object of `server` as an API server would, without the kubelet's having a part in it.
    fn edit(&self, change: impl FnOnce(&str) -> String) -> Result<()> {
        let file = self.lab.manifests_dir().join("pod-shop-server.yaml");
        let text = change(&fs::read_to_string(&file)?);
        let unfinished = self.lab.manifests_dir().join(".server.new");
        fs::write(&unfinished, text)?;
        fs::rename(&unfinished, &file).context("writing the object")
    }

    /// Both directions, over new connections, and that STRICT still holds.
    fn check(&self, when: &str) -> Result<()> {
        let to = at(self.server.v4()?, 8080);
        for (from, to, expected) in [
            (&self.client, to, Ended::Answered),
            (&self.server, at(self.client.v4()?, 8080), Ended::Answered),
            (&self.stranger, to, Ended::Refused),
        ] {
            let ended = call(from, to)?;
            ensure!(
                ended == expected,
                "{when}: {} to {to}: {ended}\n{}",
                from.key(),
                evidence(&self.lab)
            );
        }
        Ok(())
    }
}

#[test]
fn a_pod_that_is_deleted_is_a_member_until_its_sandbox_is_gone() -> Result<()> {
    let _turn = turn()?;
    let mesh = Departing::new()?;
    let (lab, dump) = (&mesh.lab, "/debug/config_dump");
    let _echoes = [echo(&mesh.server, 8080)?, echo(&mesh.client, 8080)?];
    wait_for(&mesh.client, at(mesh.server.v4()?, 8080), Ended::Answered)?;
    mesh.check("before")?;

    let uid = mesh.server.uid().to_owned();
    mesh.edit(|text| {
        text.replacen(
            "metadata:\n",
            "metadata:\n  deletionTimestamp: \"2026-01-01T00:00:00Z\"\n",
            1,
        )
    })?;
    for node in ["n1", "n2"] {
        wait_configured(lab, node, "Unhealthy", true)?;
    }
    mesh.check("while it terminates")?;

    mesh.edit(|text| text.replace(&uid, "11111111-2222-3333-4444-555555555555"))?;
    wait_controller(lab, dump, "11111111-2222-3333-4444-555555555555", true)?;
    mesh.check("with another uid")?;

    mesh.edit(|text| text.replace("11111111-2222-3333-4444-555555555555", &uid))?;
    wait_controller(lab, dump, "11111111-2222-3333-4444-555555555555", false)?;
    fs::remove_file(lab.manifests_dir().join("pod-shop-server.yaml"))?;
    let reason = "is deleted, and its node still holds it";
    wait_controller(lab, dump, reason, true)?;
    mesh.check("without an object")?;

    lab.kill_controller()?;
    lab.start_controller(&ControllerOptions::default())?;
    wait_controller(lab, dump, reason, true)?;
    mesh.check("when the controller has started again")?;

    // The kubelet notices.
    let address = mesh.server.v4()?.to_string();
    lab.reconcile()?;
    wait_controller(lab, dump, &address, false)?;
    wait_configured(lab, "n1", &address, false)
}
