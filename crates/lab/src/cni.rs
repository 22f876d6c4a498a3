//! The conversation of a CNI plugin with the agent of its node: one JSON line each way.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::pod::Pod;

/// What the agent decided about a pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Enrolment {
    /// `captured` or `exempt`.
    pub capture: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

/// Announces a pod and waits until the agent has decided and, if so decided, captured it.
///
/// # Errors
/// No agent answers, or it could not take the pod: the pod's containers must not start.
pub(crate) fn add(socket: &Path, pod: &Pod) -> Result<Enrolment> {
    let answer = ask(
        socket,
        &json!({"add": {
            "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid(),
            "netns": pod.netns().path(), "ips": pod.ips(),
        }}),
    )
    .with_context(|| format!("CNI add of pod {}", pod.key()))?;
    Ok(serde_json::from_value(answer)?)
}

/// Says that a pod is gone.
///
/// # Errors
/// No agent answers, or it could not release the pod.
pub(crate) fn del(socket: &Path, pod: &Pod) -> Result<()> {
    let request = json!({"del": {
        "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid(),
    }});
    ask(socket, &request).with_context(|| format!("CNI del of pod {}", pod.key()))?;
    Ok(())
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
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .with_context(|| format!("the agent gave no answer within {TIMEOUT:?}"))?;
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
