//! The commands of docs/install.md, as they stand there.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tests_cluster::{SERVER, eventually, kubectl, kubectl_with, pod};

use crate::installed::{Installed, NAMESPACE};

/// What is done about a line of the page.
enum Done {
    /// It is run.
    Run,
    /// It is run with what nodes of such a cluster need.
    WithValues,
    /// The same, when what was installed before is gone.
    FirstGone,
    /// It is not run, for this reason.
    Not(&'static str),
}

/// Every line of a block of commands, in the order of the page.
const LINES: [(&str, Done); 26] = [
    (
        "cargo xtask images --release",
        Done::Not("what the suite itself makes, less optimised"),
    ),
    (
        "cargo build -p keelson",
        Done::Not("what the suite itself builds"),
    ),
    ("keelson check --before", Done::Run),
    ("keelson install --crds --wait", Done::WithValues),
    (
        "kubectl apply -f deploy/crds/istio-security.yaml",
        Done::Run,
    ),
    (
        "kubectl apply -f deploy/crds/istio-networking.yaml",
        Done::Run,
    ),
    (
        "helm install keelson deploy/charts/keelson --namespace keelson-system --create-namespace --wait",
        Done::FirstGone,
    ),
    (
        "kubectl label namespace shop keelson.io/mesh=enabled",
        Done::Run,
    ),
    (
        "kubectl -n keelson-system logs -l app.kubernetes.io/name=keelson-node-agent --tail=20 --prefix",
        Done::Run,
    ),
    ("kubectl label namespace shop keelson.io/mesh-", Done::Run),
    (
        "kubectl -n keelson-system get lease keelson-controller",
        Done::Run,
    ),
    (
        "kubectl -n keelson-system get configmaps -l keelson.io/kept=captured-pods",
        Done::Run,
    ),
    (
        "kubectl -n shop get authorizationpolicy guard -o yaml",
        Done::Run,
    ),
    (
        "kubectl -n shop wait --for=condition=keelson.io/Programmed authorizationpolicy/guard",
        Done::Run,
    ),
    (
        "kubectl -n keelson-system create secret generic cacerts --from-file=ca-cert.pem --from-file=ca-key.pem --from-file=root-cert.pem --from-file=cert-chain.pem",
        Done::Not("needs an authority of one's own: mesh root::*"),
    ),
    (
        "keelson upgrade --wait",
        Done::Not("of what Helm has installed it is refused: mesh command_line::*"),
    ),
    (
        "helm upgrade keelson deploy/charts/keelson --namespace keelson-system --reuse-values --wait",
        Done::Run,
    ),
    (
        "keelson uninstall",
        Done::Not("mesh command_line::*; here Helm has installed"),
    ),
    (
        "helm uninstall keelson --namespace keelson-system --wait",
        Done::Run,
    ),
    ("kubectl delete namespace keelson-system", Done::Run),
    (
        "cargo xtask cluster build && cargo xtask cluster up",
        Done::Not("what the suite itself does"),
    ),
    (
        "cargo xtask images && cargo xtask cluster load target/images/*.tar",
        Done::Not("what the suite itself does"),
    ),
    (
        "export KUBECONFIG=$(cargo xtask cluster kubeconfig) PATH=$PWD/target/cluster/bin:$PATH",
        Done::Not("what the suite itself does"),
    ),
    (
        "R='/unified/keelson-cluster-up/$(NODE_NAME)'",
        Done::Not("of the next"),
    ),
    (
        "helm install keelson deploy/charts/keelson --namespace keelson-system --create-namespace --wait \\",
        Done::Not("the same with the values of this cluster, above"),
    ),
    (
        "--set-string \"agent.cgroup.root=$R\" --set-string \"agent.cgroup.kubelet=$R/system.slice/kubelet.service\"",
        Done::Not("of the one before"),
    ),
];

/// Issue 11: each command of the page does what it says, or it is said here why it is not run. A command that is new on the page
/// fails this.
#[test]
#[ignore = "nightly: Helm"]
fn every_command_of_the_install_page_is_run_as_it_stands_there() -> Result<()> {
    let mesh = Installed::nothing()?;
    let values = tempfile::NamedTempFile::new()?;
    std::fs::write(values.path(), mesh.values()?.to_string())?;
    let values = values.path().display().to_string();
    let written = commands()?;
    let known: Vec<&str> = LINES.iter().map(|(line, _)| *line).collect();
    ensure!(written == known, "the page has {written:#?}");
    let _shop = Shop::create()?;
    for (line, done) in &LINES {
        let line = match done {
            Done::Not(why) => {
                println!("$ {line}\nnot run: {why}");
                continue;
            }
            Done::Run => (*line).to_owned(),
            Done::WithValues => format!("{line} -f {values}"),
            Done::FirstGone => {
                sh("keelson uninstall")?;
                format!("{line} -f {values}")
            }
        };
        let said = sh(&line)?;
        println!(
            "$ {line}\n{}",
            said.lines().take(3).collect::<Vec<_>>().join("\n")
        );
        Shop::after(&line)?;
    }
    let gone = kubectl(&["get", "namespace", NAMESPACE]);
    ensure!(gone.is_err(), "the namespace is still there");
    Ok(())
}

/// The namespace that the page speaks of.
struct Shop;

impl Shop {
    fn create() -> Result<Self> {
        kubectl(&["create", "namespace", "shop"])?;
        let shop = Self;
        eventually("the default service account", || {
            kubectl(&["-n", "shop", "get", "serviceaccount", "default"])
        })?;
        let server = pod("server", None, SERVER).to_string();
        kubectl_with(&["-n", "shop", "apply", "-f", "-"], &server)?;
        kubectl(&[
            "-n",
            "shop",
            "wait",
            "--for=condition=Ready",
            "pod/server",
            "--timeout=120s",
        ])?;
        Ok(shop)
    }

    /// Whether what the page says of a command has come true.
    fn after(line: &str) -> Result<()> {
        let captured = |wanted: bool| {
            eventually(&format!("captured: {wanted}"), || {
                let words = ["-n", "shop", "exec", "server", "--", "ip", "rule", "list"];
                let rules = kubectl(&words)?;
                ensure!(rules.contains("fwmark") == wanted, "{rules}");
                Ok(())
            })
        };
        if line.ends_with("keelson.io/mesh=enabled") {
            captured(true)?;
            let guard = json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "guard", "namespace": "shop"}, "spec": {"rules": [{}]},
            });
            eventually("a controller answers", || {
                kubectl_with(&["apply", "-f", "-"], &guard.to_string())
            })?;
        }
        if line.ends_with("keelson.io/mesh-") {
            captured(false)?;
        }
        Ok(())
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        // A test that fails has its own message.
        drop(kubectl(&["delete", "namespace", "shop", "--timeout=60s"]));
    }
}

/// The lines of the page's blocks of commands, without what is said of them.
fn commands() -> Result<Vec<String>> {
    let page = std::fs::read_to_string(root().join("docs/install.md"))?;
    let mut lines = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => {
                let command = line.split(" #").next().unwrap_or_default().trim();
                lines.push(command.to_owned());
            }
            _ => {}
        }
    }
    Ok(lines)
}

/// Runs a command in the repository, with the program as it was built.
fn sh(line: &str) -> Result<String> {
    let programs = lab::find_program("keelson")?;
    let programs = programs.parent().context("a directory")?;
    let path = std::env::var("PATH")?;
    let output = Command::new("sh")
        .args(["-e", "-c", line])
        .current_dir(root())
        .env("PATH", format!("{}:{path}", programs.display()))
        .output()?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}
