//! What somebody does to a pod by kubectl.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests_cluster::{Namespace, kubectl_with, pod};

use super::Strict;
use crate::installed::Installed;

/// Section C of issue 11: the kubelet and the runtime reach into a pod that takes nothing but the mesh's own, also a runtime that makes
/// a connection inside the pod.
#[test]
#[ignore = "nightly"]
fn exec_logs_cp_and_port_forward_reach_a_pod_of_the_mesh_under_strict() -> Result<()> {
    let mesh = Installed::install()?;
    let strict = Strict::create(&mesh, "hands")?;
    let namespace = &strict.pair.namespace;
    let talkative = "echo a line of the log; sleep 86400";
    namespace.apply(&[pod("talks", None, talkative)])?;
    namespace.wait_ready("talks")?;
    ensure!(namespace.kubectl(&["logs", "talks"])? == "a line of the log\n");
    ensure!(namespace.exec("talks", "echo $((6 * 7))")? == "42\n");
    let words = ["-n", namespace.name(), "exec", "-i", "talks", "--", "cat"];
    ensure!(kubectl_with(&words, "through the pod")? == "through the pod");
    let error = namespace.exec("talks", "exit 7").unwrap_err().to_string();
    ensure!(error.contains("exit code 7"), "{error}");

    // More than fits into one buffer on the way.
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let bytes: Vec<u8> = (0..251_u8).cycle().take(2_000_000).collect();
    std::fs::write(path("there"), &bytes)?;
    namespace.kubectl(&["cp", &path("there"), "talks:/tmp/file"])?;
    namespace.kubectl(&["cp", "talks:/tmp/file", &path("back")])?;
    ensure!(std::fs::read(path("back"))? == bytes, "other bytes");

    let forwarded = Forwarded::open(namespace, "server")?;
    for _ in 0..3 {
        let answer = forwarded.ask()?;
        ensure!(answer.contains("server 127.0.0.1"), "{answer:?}");
    }
    // Where nobody listens nobody answers.
    let answer = Forwarded::open(namespace, "client")?.ask();
    ensure!(
        !answer.as_ref().is_ok_and(|answer| !answer.is_empty()),
        "{answer:?}"
    );
    strict.has_stayed_so()
}

/// `kubectl port-forward`.
struct Forwarded {
    child: Child,
    /// Who writes a line for each connection ends when nobody could read it.
    output: BufReader<ChildStdout>,
    at: SocketAddr,
}

impl Forwarded {
    fn open(namespace: &Namespace, pod: &str) -> Result<Self> {
        let mut child = Command::new("kubectl")
            .args(["-n", namespace.name(), "port-forward"])
            .args([&format!("pod/{pod}"), ":8080", "--address=127.0.0.1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().context("it is piped")?;
        let mut forwarded = Self {
            child,
            output: BufReader::new(output),
            at: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let mut line = String::new();
        forwarded.output.read_line(&mut line)?;
        // Forwarding from 127.0.0.1:40123 -> 8080
        let at = line.split_whitespace().nth(2);
        forwarded.at = at.with_context(|| line.clone())?.parse()?;
        Ok(forwarded)
    }

    /// What comes back, if anything does.
    fn ask(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.at)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        // Where nobody listens the connection is reset or closed.
        drop(stream.read_to_end(&mut answer));
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
