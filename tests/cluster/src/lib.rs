//! What tests on a cluster share: kubectl, and namespaces that go with the test.
//!
//! The cluster is the one that `KUBECONFIG` names: `cargo xtask test --cluster` puts one up and names it. Nothing stays
//! there.

use std::env;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use faults::Upstream;
use serde_json::{Value, json};

/// Runs kubectl and returns what it prints.
///
/// # Errors
/// No cluster is named, or kubectl fails: then with what it says.
pub fn kubectl(words: &[&str]) -> Result<String> {
    kubectl_with(words, "")
}

/// As [`kubectl`], with `input` on its standard input.
///
/// # Errors
/// As [`kubectl`].
pub fn kubectl_with(words: &[&str], input: &str) -> Result<String> {
    run("kubectl", words, input)
}

/// Runs Helm and returns what it prints.
///
/// # Errors
/// As [`kubectl`].
pub fn helm(words: &[&str]) -> Result<String> {
    helm_with(words, "")
}

/// As [`helm`], with `input` on its standard input.
///
/// # Errors
/// As [`kubectl`].
pub fn helm_with(words: &[&str], input: &str) -> Result<String> {
    run("helm", words, input)
}

fn run(program: &str, words: &[&str], input: &str) -> Result<String> {
    if env::var_os("KUBECONFIG").is_none() {
        bail!(
            "KUBECONFIG names no cluster: `cargo xtask test --cluster` puts one up for these tests"
        );
    }
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{program} {}: {}: {}",
            words.join(" "),
            output.status,
            said.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads objects.
///
/// # Errors
/// As [`kubectl`].
pub fn get(words: &[&str]) -> Result<Value> {
    let mut all = vec!["get", "-o", "json"];
    all.extend(words);
    Ok(serde_json::from_str(&kubectl(&all)?)?)
}

/// The API server that KUBECONFIG names, for a proxy before it.
///
/// # Errors
/// As [`kubectl`], or it is not named by its address.
pub fn upstream() -> Result<Upstream> {
    let words = [
        "config",
        "view",
        "--raw",
        "--minify",
        "--flatten",
        "-o",
        "json",
    ];
    let config: Value = serde_json::from_str(&kubectl(&words)?)?;
    let cluster = &config["clusters"][0]["cluster"];
    let ca = cluster["certificate-authority-data"].as_str();
    let ca = String::from_utf8(STANDARD.decode(ca.context("an authority")?)?)?;
    let server = cluster["server"].as_str().context("a server")?;
    let server = server.strip_prefix("https://").context("by TLS")?;
    let address: SocketAddr = server.parse().context("by its address")?;
    Ok(Upstream {
        address,
        name: address.ip().to_string(),
        ca,
    })
}

/// The names of the nodes that take pods.
///
/// # Errors
/// As [`kubectl`].
pub fn nodes() -> Result<Vec<String>> {
    let nodes = get(&["nodes"])?;
    let items = nodes["items"].as_array().context("a list of nodes")?;
    let usable = items
        .iter()
        .filter(|node| node["spec"]["taints"].as_array().is_none_or(Vec::is_empty));
    Ok(usable
        .filter_map(|node| Some(node["metadata"]["name"].as_str()?.to_owned()))
        .collect())
}

/// A namespace of one test. Dropping it removes it with everything inside.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one whose name begins with `about`.
    ///
    /// # Errors
    /// As [`kubectl`].
    pub fn create(about: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!(
            "keelson-{about}-{:x}-{number}",
            std::process::id()
        ))
    }

    /// Makes the one that manifests name.
    ///
    /// # Errors
    /// As [`kubectl`], or there is one of this name.
    pub fn named(name: &str) -> Result<Self> {
        kubectl(&["create", "namespace", name])?;
        let name = name.to_owned();
        let namespace = Self { name };
        // Pods are refused before their account is there.
        eventually("the default service account", || {
            kubectl(&["-n", &namespace.name, "get", "serviceaccount", "default"])
        })?;
        Ok(namespace)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs kubectl inside it.
    ///
    /// # Errors
    /// As [`kubectl`].
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        let mut all = vec!["-n", &self.name];
        all.extend(words);
        kubectl(&all)
    }

    /// Reads objects inside it.
    ///
    /// # Errors
    /// As [`kubectl`].
    pub fn get(&self, words: &[&str]) -> Result<Value> {
        let mut all = vec!["-n", &self.name];
        all.extend(words);
        get(&all)
    }

    /// Applies objects inside it.
    ///
    /// # Errors
    /// As [`kubectl`].
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        kubectl_with(&["-n", &self.name, "apply", "-f", "-"], &list.to_string())?;
        Ok(())
    }

    /// Waits until a pod is ready.
    ///
    /// # Errors
    /// It is not within two minutes; what the cluster says of it is told.
    pub fn wait_ready(&self, pod: &str) -> Result<()> {
        let waited = self.kubectl(&[
            "wait",
            "--for=condition=Ready",
            "--timeout=120s",
            &format!("pod/{pod}"),
        ]);
        waited.map(drop).map_err(|error| {
            let described = self.kubectl(&["describe", "pod", pod]);
            error.context(described.unwrap_or_default())
        })
    }

    /// The addresses of a pod, one of each family that it has.
    ///
    /// # Errors
    /// It has none yet.
    pub fn pod_ips(&self, pod: &str) -> Result<Vec<IpAddr>> {
        let pod = self.get(&["pod", pod])?;
        let ips = pod["status"]["podIPs"].as_array();
        let ips = ips.context("the pod has no address")?;
        ips.iter()
            .map(|ip| Ok(ip["ip"].as_str().context("an address")?.parse()?))
            .collect()
    }

    /// The first address of a pod.
    ///
    /// # Errors
    /// As [`Namespace::pod_ips`].
    pub fn pod_ip(&self, pod: &str) -> Result<IpAddr> {
        let ips = self.pod_ips(pod)?;
        ips.first().copied().context("the pod has no address")
    }

    /// Runs a shell command in a pod and returns what it prints.
    ///
    /// # Errors
    /// As [`kubectl`]; the command's exit code counts as kubectl's.
    pub fn exec(&self, pod: &str, command: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", command])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A test that fails has its own message, and this one's end is looked at by nobody.
        drop(kubectl(&[
            "delete",
            "namespace",
            &self.name,
            "--timeout=60s",
        ]));
    }
}

/// A pod that runs a shell command, on a node or on any.
#[must_use]
pub fn pod(name: &str, node: Option<&str>, command: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeSelector": node.map(|node| json!({"kubernetes.io/hostname": node})),
            // Shells do not end at SIGTERM as process 1.
            "terminationGracePeriodSeconds": 0,
            "containers": [container(command)],
        },
    })
}

/// A container of [`IMAGE`] that runs a shell command.
#[must_use]
pub fn container(command: &str) -> Value {
    json!({
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", command],
    })
}

/// A command for a pod that answers every request on port 8080 with its own name and the address that it sees the client
/// have.
pub const SERVER: &str = r#"mkdir -p /tmp/www/cgi-bin && cd /tmp/www &&
cat > cgi-bin/who <<'END'
#!/bin/sh
a=${REMOTE_ADDR#[}; a=${a%]}; a=${a#::ffff:}
printf 'Content-Type: text/plain\r\n\r\n%s %s\n' "$(hostname)" "$a"
END
chmod +x cgi-bin/who && exec httpd -f -p 8080 -h /tmp/www"#;

/// A command for a pod from which tests make connections. As process 1 it takes care of what `timeout` leaves behind, which a
/// `sleep` there would not: each question would keep a number of a process for as long as the pod lives.
pub const CLIENT: &str = "sleep 86400 & wait";

/// A shell command that asks a [`SERVER`] who is there. `wget -T` of Debian's busybox crashes.
#[must_use]
pub fn who(host: &str) -> String {
    format!("timeout 5 wget -q -O - http://{host}:8080/cgi-bin/who")
}

/// The same, for an address.
#[must_use]
pub fn who_at(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => who(&ip.to_string()),
        IpAddr::V6(ip) => who(&format!("[{ip}]")),
    }
}

/// Tries until it works, up to a minute, and returns what it returned then.
///
/// # Errors
/// The last error, with what was waited for.
pub fn eventually<T>(what: &str, attempt: impl FnMut() -> Result<T>) -> Result<T> {
    testkit::eventually_every(PAUSE, what, PATIENCE, attempt)
}

/// What pods of tests run.
pub const IMAGE: &str = "docker.io/library/busybox:1.35";

const PATIENCE: Duration = Duration::from_secs(60);
/// Between two questions to the API server.
const PAUSE: Duration = Duration::from_millis(200);
