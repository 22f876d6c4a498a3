//! The CNI plugin, run as a container runtime runs it, and what else the agent of a node is asked over the plugin's socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use testkit::patient;

use crate::{pod::Pod, programs};

/// What the agent decided about a pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Enrolment {
    /// `captured` or `exempt`.
    pub capture: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

/// Has the plugin announce a pod, as a container runtime does, and waits until the agent has decided and, if so decided,
/// captured it.
///
/// # Errors
/// No agent answers, or it could not take the pod: the pod's containers must not start.
pub(crate) fn add(socket: &Path, pod: &Pod) -> Result<Enrolment> {
    call("ADD", socket, pod).with_context(|| format!("CNI add of pod {}", pod.key()))?;
    let known = pods(socket)?;
    let is_it =
        |known: &&Value| known["namespace"] == pod.namespace() && known["name"] == pod.name();
    let known = known.iter().find(is_it).with_context(|| {
        format!(
            "the agent does not list pod {} that it was told of",
            pod.key()
        )
    })?;
    let text = |field: &str| known[field].as_str().unwrap_or_default().to_owned();
    Ok(Enrolment {
        capture: text("state"),
        reason: text("reason"),
    })
}

/// Has the plugin say that a pod is gone. Whether the agent hears of it, the plugin does not say.
///
/// # Errors
/// The plugin cannot be run, or fails.
pub(crate) fn del(socket: &Path, pod: &Pod) -> Result<()> {
    call("DEL", socket, pod).with_context(|| format!("CNI del of pod {}", pod.key()))
}

/// Runs the plugin as the last one of a list whose others have made the pod's network.
fn call(command: &str, socket: &Path, pod: &Pod) -> Result<()> {
    let ips: Vec<Value> = pod
        .ips()
        .iter()
        .map(|ip| json!({"address": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })}))
        .collect();
    let config = json!({
        "cniVersion": "1.0.0", "name": "lab", "type": "keelson-cni",
        // Who calls tries again by itself.
        "socket": socket, "waitMs": 0, "excludeNamespaces": [],
        "prevResult": {"cniVersion": "1.0.0", "ips": ips},
    });
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
        pod.namespace(),
        pod.name(),
        pod.uid()
    );
    let mut plugin = Command::new(programs::find("keelson-cni")?)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", pod.uid())
        .env("CNI_NETNS", pod.netns().path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = plugin
        .stdin
        .take()
        .context("the plugin reads its configuration")?;
    stdin.write_all(config.to_string().as_bytes())?;
    drop(stdin);
    let done = plugin.wait_with_output()?;
    if done.status.success() {
        return Ok(());
    }
    let said: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
    bail!(
        "{}",
        said["msg"]
            .as_str()
            .unwrap_or("the plugin does not say why")
    )
}

/// The pods that the agent knows.
///
/// # Errors
/// No agent answers.
pub(crate) fn pods(socket: &Path) -> Result<Vec<Value>> {
    let mut answer = ask(socket, &json!({"list": {}}))?;
    match answer.get_mut("pods").map(Value::take) {
        Some(Value::Array(pods)) => Ok(pods),
        _ => bail!("the agent's list holds no pods: {answer}"),
    }
}

/// Sends one request and returns what stands under `ok` in the answer.
///
/// # Errors
/// No answer in time, or an `error`.
pub(crate) fn ask(socket: &Path, request: &Value) -> Result<Value> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("no agent listens on {}", socket.display()))?;
    let timeout = patient(TIMEOUT);
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .with_context(|| format!("the agent gave no answer within {timeout:?}"))?;
    let mut answer: Value = serde_json::from_str(&line)
        .with_context(|| format!("the agent's answer is not JSON: {line:?}"))?;
    if let Some(error) = answer.get("error") {
        bail!("the agent refused: {}", error.as_str().unwrap_or(&line));
    }
    match answer.get_mut("ok") {
        Some(ok) => Ok(ok.take()),
        None => bail!("the agent's answer holds neither ok nor error: {line:?}"),
    }
}

/// Longer than the ten seconds after which the agent itself gives up.
const TIMEOUT: Duration = Duration::from_secs(15);
