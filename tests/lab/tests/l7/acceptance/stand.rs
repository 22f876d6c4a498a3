//! How an application stands up in the lab, and how it is asked.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::{AgentOptions, ControllerOptions, Lab, PodSpec, find_program};
use serde_json::Value;
use tests_lab::metrics::Metrics;
use tests_lab::namespace;

/// How long a change of a manifest may take until a request notices it.
pub(crate) const APPLIES: Duration = Duration::from_secs(15);
/// A client outside of the mesh.
pub(crate) const OUTSIDE: &str = "outside/client";
const MESH: (&str, &str) = ("keelson.io/mesh", "enabled");
const USE_WAYPOINT: (&str, &str) = ("istio.io/use-waypoint", "waypoint");

/// A lab with controller, agents and a client outside of the mesh. The namespaces are in the mesh; those with `true` have
/// a waypoint.
pub(crate) fn mesh(nodes: u8, namespaces: &[(&str, bool)]) -> Result<Lab> {
    let lab = Lab::builder(lab::unique_id()).nodes(nodes).build()?;
    lab.start_controller(&ControllerOptions::default())?;
    for node in 1..=nodes {
        lab.start_agent(&format!("n{node}"), &AgentOptions::default())?;
    }
    lab.apply("namespace-outside.yaml", &namespace("outside", &[]))?;
    lab.create(&PodSpec::new("outside", "client", "n2"))?;
    for (name, has_waypoint) in namespaces {
        let labels: &[(&str, &str)] = match has_waypoint {
            true => &[MESH, USE_WAYPOINT],
            false => &[MESH],
        };
        lab.apply(&format!("namespace-{name}.yaml"), &namespace(name, labels))?;
        if *has_waypoint {
            waypoint(&lab, name)?;
        }
    }
    Ok(lab)
}

/// The waypoint of a namespace, for services and pods.
pub(crate) fn waypoint(lab: &Lab, namespace: &str) -> Result<()> {
    let gateway = crate::fixture::gateway(namespace, "all");
    lab.apply(&format!("waypoint-{namespace}.yaml"), &gateway)
}

/// The gateway `edge/gw` on n1, whose pod has these labels. It listens where Istio's Gateways say.
pub(crate) fn gateway(lab: &Lab, labels: &str) -> Result<()> {
    lab.apply("namespace-edge.yaml", &namespace("edge", &[MESH]))?;
    gateway_named(lab, "gw", labels)
}

/// Another one beside it.
pub(crate) fn gateway_named(lab: &Lab, name: &str, labels: &str) -> Result<()> {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: edge, annotations: {{keelson.io/waypoint-nodes: n1}}}}
spec:
  gatewayClassName: keelson
  infrastructure: {{labels: {{{labels}}}}}
  listeners:
  - {{name: own, port: 9999, protocol: HTTP}}
"
    );
    lab.apply(&format!("gateway-{name}.yaml"), &text)
}

/// The address of `edge/gw`.
pub(crate) fn door(lab: &Lab) -> Result<String> {
    Ok(lab.pod("edge/gw-n1")?.v4()?.to_string())
}

/// A Service `name` of one port for HTTP, and the pod `name-version` for each version with its node.
pub(crate) fn pages(
    lab: &Lab,
    (namespace, name): (&str, &str),
    (port, target): (u16, u16),
    versions: &[(&str, &str)],
) -> Result<()> {
    let service = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: {port}, targetPort: {target}}}]}}
"
    );
    apply(lab, &service)?;
    let program = find_program("keelson-lab-app")?;
    let program = program.to_string_lossy();
    for (version, node) in versions {
        let pod = format!("{name}-{version}");
        let (mood, target) = (mood_file(lab, &pod), target.to_string());
        let words = [
            &*program,
            "page",
            "--service",
            name,
            "--version",
            version,
            "--pod",
            &pod,
            "--ports",
            &target,
            "--mood",
            &mood,
        ];
        let spec = PodSpec::new(namespace, &pod, node)
            .service_account(name)
            .label("app", name)
            .label("version", version)
            .container("page", &words);
        lab.create(&spec)?;
    }
    Ok(())
}

/// Applies a manifest as it is, and makes the pods of its Deployments: `run` says on which node, and with which arguments
/// of the page, by the Deployment's name and version.
pub(crate) fn deploy(
    lab: &Lab,
    manifest: &str,
    run: impl Fn(&str) -> (&'static str, Vec<String>),
) -> Result<()> {
    apply(lab, manifest)?;
    for document in lab::parse_yaml(manifest)? {
        if document.get("kind").and_then(Value::as_str) == Some("Deployment") {
            let name = text(&document, "/metadata/name")?.to_owned();
            replica(lab, &document, &name, &run)?;
        }
    }
    Ok(())
}

/// Applies a manifest as `kubectl apply` does: an object that is there already is replaced by what is written here, without
/// a moment in between. Each document gets a file of its own, byte for byte as it is written. Returns their names.
pub(crate) fn apply(lab: &Lab, manifest: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for text in documents(manifest) {
        let Some(document) = lab::parse_yaml(&text)?.into_iter().next() else {
            continue;
        };
        let part = |pointer| {
            self::text(&document, pointer)
                .unwrap_or("default")
                .to_lowercase()
        };
        let parts = [
            "/kind",
            "/apiVersion",
            "/metadata/namespace",
            "/metadata/name",
        ]
        .map(part);
        let file = format!("{}.yaml", parts.join("-").replace('/', "-"));
        let folder = lab.manifests_dir();
        // In one step, so that a watcher never reads half of it.
        let unfinished = folder.join(format!(".{file}.new"));
        std::fs::write(&unfinished, text)?;
        std::fs::rename(&unfinished, folder.join(&file))?;
        files.push(file);
    }
    lab.reconcile()?;
    Ok(files)
}

/// The documents of a manifest as text: what stands between lines of `---`.
fn documents(manifest: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for line in manifest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            all.push(String::new());
        } else if let Some(last) = all.last_mut() {
            last.push_str(line);
        }
    }
    all
}

/// Does `check` while a manifest holds; what it replaces comes back by `after`.
pub(crate) fn with<T>(
    lab: &Lab,
    manifest: &str,
    after: &str,
    check: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let files = apply(lab, manifest)?;
    let checked = check();
    let back = apply(lab, after)?;
    for file in files.iter().filter(|file| !back.contains(file)) {
        lab.delete(file)?;
    }
    checked
}

/// One more pod of the only Deployment of a manifest, as `kubectl scale` makes it.
pub(crate) fn scale(
    lab: &Lab,
    manifest: &str,
    pod: &str,
    run: impl Fn(&str) -> (&'static str, Vec<String>),
) -> Result<()> {
    let documents = lab::parse_yaml(manifest)?;
    let deployment = documents
        .iter()
        .find(|one| one.get("kind").and_then(Value::as_str) == Some("Deployment"));
    replica(lab, deployment.context("a Deployment")?, pod, &run)
}

fn replica(
    lab: &Lab,
    deployment: &Value,
    pod: &str,
    run: &impl Fn(&str) -> (&'static str, Vec<String>),
) -> Result<()> {
    let namespace = text(deployment, "/metadata/namespace").unwrap_or("default");
    let template = deployment.pointer("/spec/template").context("a template")?;
    let (node, args) = run(pod);
    let program = find_program("keelson-lab-app")?;
    let mood = mood_file(lab, pod);
    let version = text(template, "/metadata/labels/version").unwrap_or("v1");
    let own = ["page", "--pod", pod, "--version", version, "--mood", &mood];
    let mut command = vec![program.to_string_lossy().into_owned()];
    command.extend(own.map(str::to_owned));
    command.extend(args);
    let spec = PodSpec::from_template((namespace, pod), node, template, &command);
    lab.create(&spec)?;
    Ok(())
}

/// Words as arguments.
pub(crate) fn args(words: &str) -> Vec<String> {
    words.split(' ').map(str::to_owned).collect()
}

fn text<'a>(document: &'a Value, pointer: &str) -> Result<&'a str> {
    let value = document.pointer(pointer).and_then(Value::as_str);
    value.with_context(|| format!("{pointer} of {document}"))
}

fn mood_file(lab: &Lab, pod: &str) -> String {
    let file = lab.run_dir().join(format!("mood-{pod}"));
    file.to_string_lossy().into_owned()
}

/// Does `check` while a page is in a mood; see [`testkit::Page`].
pub(crate) fn moody<T>(
    lab: &Lab,
    pods: &[&str],
    mood: &str,
    check: impl FnOnce() -> Result<T>,
) -> Result<T> {
    for pod in pods {
        std::fs::write(mood_file(lab, pod), mood)?;
    }
    let checked = check();
    for pod in pods {
        std::fs::remove_file(mood_file(lab, pod))?;
    }
    checked
}

/// An answer as curl saw it. No answer at all is status 0.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) seconds: f64,
    /// All heads as they came; only of [`ask`].
    pub(crate) head: String,
}

impl Answer {
    /// A field of the page's JSON.
    pub(crate) fn says(&self, pointer: &str) -> Value {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body.pointer(pointer).cloned().unwrap_or_default()
    }

    /// Its version, or the status if it is no page.
    pub(crate) fn version(&self) -> String {
        match self.says("/version").as_str() {
            Some(version) if self.status == 200 => version.to_owned(),
            _ => self.status.to_string(),
        }
    }
}

/// Asks once, from the pod `namespace/name`.
pub(crate) fn ask(lab: &Lab, from: &str, url: &str, args: &[&str]) -> Result<Answer> {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--max-time",
        "10",
        "--dump-header",
        "/dev/stderr",
    ]);
    command.args(["--write-out", MARK]).args(args).arg(url);
    let output = lab.pod(from)?.output(command)?;
    let mut all = answers(&String::from_utf8_lossy(&output.stdout))?;
    let mut answer = all.pop().context("curl wrote nothing")?;
    answer.head = String::from_utf8_lossy(&output.stderr).to_lowercase();
    Ok(answer)
}

/// Asks so many times: one request after the other, on kept connections, unless `args` say otherwise.
pub(crate) fn ask_often(
    lab: &Lab,
    from: &str,
    url: &str,
    args: &[&str],
    count: usize,
) -> Result<Vec<Answer>> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--max-time", "30", "--write-out", MARK]);
    let url = format!("{url}?[1-{count}]");
    let output = lab.pod(from)?.output({
        command.args(args).arg(url);
        command
    })?;
    let all = answers(&String::from_utf8_lossy(&output.stdout))?;
    ensure!(all.len() == count, "{} answers of {count}", all.len());
    Ok(all)
}

fn answers(text: &str) -> Result<Vec<Answer>> {
    let mut all = Vec::new();
    let mut body = String::new();
    for line in text.lines() {
        let Some(said) = line.strip_prefix("#curl ") else {
            body.push_str(line);
            continue;
        };
        let Some((status, seconds)) = said.split_once(' ') else {
            bail!("curl wrote {said:?}");
        };
        all.push(Answer {
            status: status.parse()?,
            seconds: seconds.parse()?,
            body: std::mem::take(&mut body),
            head: String::new(),
        });
    }
    Ok(all)
}

/// How often each thing was said.
pub(crate) fn tally(said: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for one in said {
        *seen.entry(one).or_default() += 1;
    }
    seen
}

/// Waits until `check` holds: what was applied has arrived then.
pub(crate) fn soon(what: &str, check: impl FnMut() -> Result<()>) -> Result<()> {
    testkit::eventually(what, APPLIES, check)
}

/// What the containers of a pod have written.
pub(crate) fn log(lab: &Lab, pod: &str) -> String {
    lab.containers(pod, |all| all.iter().map(lab::Process::log).collect())
}

/// How many requests a page has got so far.
pub(crate) fn requests(lab: &Lab, pod: &str) -> usize {
    let log = log(lab, pod);
    log.lines().filter(|line| line.contains(" host=")).count()
}

/// The metrics of a waypoint's or a gateway's pod.
pub(crate) fn metrics(lab: &Lab, pod: &str) -> Result<Metrics> {
    let url = "http://127.0.0.1:15020/stats/prometheus";
    Ok(Metrics::new(ask_plain(lab, pod, url)?))
}

/// The body of a page of a pod's own, as it is.
pub(crate) fn ask_plain(lab: &Lab, pod: &str, url: &str) -> Result<String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--max-time", "5", url]);
    let output = lab.pod(pod)?.output(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const MARK: &str = "\n#curl %{http_code} %{time_total}\n";
