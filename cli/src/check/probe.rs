//! A short-lived pod on each node that tries what an agent needs there: with the agent's image, rights and mounts, as the chart
//! has them, and in a namespace of its own that goes with it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt as _;
use kube::api::{Api as Of, DeleteParams, ListParams, LogParams, PostParams};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use super::Finding;
use crate::api::{Api, Deed};
use crate::pods;
use crate::reach::AGENT;

/// Tries every node that the agents' selector names and that is ready.
pub(super) fn nodes(api: &Api, given: &[Value]) -> Result<Vec<Finding>> {
    let release = chart::Release {
        name: "keelson".to_owned(),
        namespace: NAMESPACE.to_owned(),
    };
    let objects = chart::objects(&release, &chart::values(given)?)?;
    let agents = objects
        .iter()
        .find(|object| object["kind"] == "DaemonSet" && object["metadata"]["name"] == AGENT);
    let template = &agents.context("the chart has the agents")?["spec"]["template"]["spec"];
    let all: Of<Node> = Of::all(api.client.clone());
    let deed = Deed::new("list", "nodes");
    let nodes = api.call(&deed, all.list(&ListParams::default()))?;
    let meant = nodes.iter().filter(|node| is_meant(node, template));
    let (ready, away): (Vec<&Node>, Vec<&Node>) = meant.partition(|node| is_ready(node));
    let ready: Vec<String> = ready.iter().map(|node| node.name_any()).collect();
    // From here on an interruption takes away what was made.
    let mut interrupts = Interrupts::watch(api)?;
    clear(api, &mut interrupts)?;
    namespace(api)?;
    let asked = ask(api, template, &ready, &mut interrupts);
    let removed = remove(api, &mut interrupts);
    let mut findings = asked?;
    removed?;
    findings.extend(away.iter().map(|node| {
        let what = format!("node {}: probe", node.name_any());
        Finding::bad(&what, "not tried: the node is not ready".to_owned())
    }));
    Ok(findings)
}

fn is_ready(node: &Node) -> bool {
    let status = node.status.as_ref();
    let mut conditions = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Why nothing more is asked.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

/// Whether somebody wants an end of it (Ctrl-C).
struct Interrupts(Signal);

impl Interrupts {
    fn watch(api: &Api) -> Result<Self> {
        let signal = api.wait(async { signal(SignalKind::interrupt()) });
        Ok(Self(signal.context("watching for interruptions")?))
    }

    /// Waits until the next look is due.
    fn pause(&mut self, api: &Api) -> Result<()> {
        let interrupted = async { timeout(LOOK, self.0.recv()).await };
        match api.wait(interrupted) {
            Ok(_) => Err(Interrupted.into()),
            Err(_) => Ok(()),
        }
    }
}

/// Takes away what one before this left that was ended before its time.
fn clear(api: &Api, interrupts: &mut Interrupts) -> Result<()> {
    let all: Of<Namespace> = Of::all(api.client.clone());
    let deed = Deed::new("get", "namespaces");
    let Some(left) = api.find(&deed, all.get(NAMESPACE))? else {
        return Ok(());
    };
    may_be_removed(&left, k8s_openapi::jiff::Timestamp::now())?;
    remove(api, interrupts)
}

/// Whether a namespace of our name is ours, and nobody's who is at it.
fn may_be_removed(left: &Namespace, now: k8s_openapi::jiff::Timestamp) -> Result<()> {
    if left.labels().get(PART_OF).map(String::as_str) != Some("keelson") {
        bail!(
            "there is a namespace {NAMESPACE}, which is somebody else's: it lacks the label {PART_OF}=keelson"
        );
    }
    if left.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let made = left.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let age = made.map_or(i64::MAX, |made| now.as_second() - made.as_second());
    if age < LEFT_AFTER {
        bail!(
            "namespace {NAMESPACE} was made {age} s ago: another check --probe is at work, or was ended; it is removed by a check that comes {LEFT_AFTER} s after it was made"
        );
    }
    Ok(())
}

fn is_meant(node: &Node, template: &Value) -> bool {
    let labels = node.labels();
    let selector = template["nodeSelector"].as_object().into_iter().flatten();
    let mut selector = selector.filter_map(|(name, value)| Some((name, value.as_str()?)));
    selector.all(|(name, value)| labels.get(name).is_some_and(|own| own == value))
}

fn namespace(api: &Api) -> Result<()> {
    let all: Of<Namespace> = Of::all(api.client.clone());
    let object = json!({"metadata": {"name": NAMESPACE, "labels": {
        "pod-security.kubernetes.io/enforce": "privileged",
        PART_OF: "keelson",
    }}});
    let object = serde_json::from_value(object)?;
    let deed = Deed::new("create", "namespaces");
    api.call(&deed, all.create(&PostParams::default(), &object))
        .map(drop)
}

fn remove(api: &Api, interrupts: &mut Interrupts) -> Result<()> {
    let all: Of<Namespace> = Of::all(api.client.clone());
    let deed = Deed::new("delete", "namespaces");
    api.call(&deed, all.delete(NAMESPACE, &DeleteParams::default()))?;
    let end = Instant::now() + GONE_WITHIN;
    while api
        .find(&Deed::new("get", "namespaces"), all.get(NAMESPACE))?
        .is_some()
    {
        if Instant::now() > end {
            bail!("namespace {NAMESPACE} is being deleted and not gone within {GONE_WITHIN:?}");
        }
        interrupts.pause(api)?;
    }
    Ok(())
}

fn ask(
    api: &Api,
    template: &Value,
    nodes: &[String],
    interrupts: &mut Interrupts,
) -> Result<Vec<Finding>> {
    let all: Of<Pod> = Of::namespaced(api.client.clone(), NAMESPACE);
    let account: Of<k8s_openapi::api::core::v1::ServiceAccount> =
        Of::namespaced(api.client.clone(), NAMESPACE);
    let end = Instant::now() + ANSWERS_WITHIN;
    // Pods are refused before their account is there.
    let deed = Deed::new("get", "serviceaccounts").within(NAMESPACE);
    while api.find(&deed, account.get("default"))?.is_none() && Instant::now() < end {
        interrupts.pause(api)?;
    }
    let mut made = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        let pod = serde_json::from_value(pod(template, number, node)?)?;
        let deed = Deed::new("create", "pods").within(NAMESPACE);
        made.push(api.call(&deed, all.create(&PostParams::default(), &pod)));
    }
    let mut findings = Vec::new();
    for ((number, node), made) in nodes.iter().enumerate().zip(made) {
        let name = format!("probe-{number}");
        match made.and_then(|_pod| answer(api, &all, &name, end, interrupts)) {
            Ok(found) => findings.extend(found.into_iter().map(|one| Finding {
                what: format!("node {node}: {}", one.what),
                ..one
            })),
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                let what = format!("node {node}: probe");
                findings.push(Finding::bad(&what, format!("{error:#}")));
            }
        }
    }
    Ok(findings)
}

/// What a probe has written, when it has ended.
fn answer(
    api: &Api,
    all: &Of<Pod>,
    name: &str,
    end: Instant,
    interrupts: &mut Interrupts,
) -> Result<Vec<Finding>> {
    let deed = Deed::new("get", "pods").within(NAMESPACE);
    let phase = |pod: &Pod| pod.status.as_ref()?.phase.clone();
    loop {
        let pod = api.call(&deed, all.get(name))?;
        let phase = phase(&pod).unwrap_or_default();
        if phase == "Succeeded" || phase == "Failed" {
            let deed = Deed::new("get", "pods/log").within(NAMESPACE);
            let text = api.call(&deed, all.logs(name, &LogParams::default()))?;
            let found = text
                .lines()
                .find_map(|line| serde_json::from_str(line).ok());
            return found.with_context(|| format!("its pod says {}", text.trim()));
        }
        if Instant::now() > end {
            let why = pods::why_not_ready(&pod).unwrap_or(phase);
            bail!("its pod has not ended within {ANSWERS_WITHIN:?}: {why}");
        }
        interrupts.pause(api)?;
    }
}

/// A pod of the agents' template for one node, without what only an installation has.
fn pod(template: &Value, number: usize, node: &str) -> Result<Value> {
    let mut spec = template.clone();
    let fields = spec.as_object_mut().context("a template is an object")?;
    for only_installed in ["serviceAccountName", "priorityClassName"] {
        fields.remove(only_installed);
    }
    fields.insert("nodeName".to_owned(), json!(node));
    fields.insert("restartPolicy".to_owned(), json!("Never"));
    fields.insert("automountServiceAccountToken".to_owned(), json!(false));
    fields.insert("terminationGracePeriodSeconds".to_owned(), json!(0));
    let container = &mut spec["containers"][0];
    let flags = container["command"].as_array().into_iter().flatten();
    let flags = flags.filter_map(Value::as_str);
    let root = flags.filter(|flag| flag.starts_with("--cgroup-root="));
    let root = root.map(|flag| flag.replace("$(NODE_NAME)", node));
    let command = ["/keelson-node-agent", "probe"].map(str::to_owned);
    container["command"] = command.into_iter().chain(root).collect();
    let container = container.as_object_mut().context("a container")?;
    // By their variables agents know that they are to run.
    for not_for_it in ["args", "env", "readinessProbe", "startupProbe"] {
        container.remove(not_for_it);
    }
    // What an installation makes, and what it would leave on the node.
    let is_needed = |volume: &Value| ["bpf", "cgroup"].iter().any(|name| volume["name"] == *name);
    for list in ["/containers/0/volumeMounts", "/volumes"] {
        if let Some(Value::Array(all)) = spec.pointer_mut(list) {
            all.retain(is_needed);
        }
    }
    Ok(json!({"metadata": {"name": format!("probe-{number}")}, "spec": spec}))
}

const NAMESPACE: &str = "keelson-probe";
const PART_OF: &str = "app.kubernetes.io/part-of";
/// In seconds: one that is still at work would have ended.
const LEFT_AFTER: i64 = 180;
const LOOK: Duration = Duration::from_millis(200);
/// An image may have to be fetched.
const ANSWERS_WITHIN: Duration = Duration::from_secs(120);
const GONE_WITHIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_is_told_from_what_is_somebody_elses_or_at_work() {
        let now: k8s_openapi::jiff::Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
        let left = |made: &str, labels: Value, more: Value| {
            let mut object = json!({"metadata": {
                "name": NAMESPACE, "creationTimestamp": made, "labels": labels,
            }});
            if let Some(time) = more.as_str() {
                object["metadata"]["deletionTimestamp"] = json!(time);
            }
            let namespace = serde_json::from_value(object).expect("a namespace");
            may_be_removed(&namespace, now).map_err(|error| error.to_string())
        };
        let ours = || json!({PART_OF: "keelson"});
        let [old, fresh] = ["2026-01-01T00:06:59Z", "2026-01-01T00:09:30Z"];
        left(old, ours(), Value::Null).expect("it was left");
        left(fresh, ours(), json!(fresh)).expect("it is being deleted");
        let said = left(fresh, ours(), Value::Null).expect_err("at work");
        assert!(said.contains("made 30 s ago"), "{said}");
        let said = left(old, json!({}), Value::Null).expect_err("not ours");
        assert!(said.contains("somebody else's"), "{said}");
    }

    #[test]
    fn a_node_that_is_not_ready_is_not_tried() {
        let node = |status: Value| {
            let object = json!({"metadata": {"name": "n1"}, "status": status});
            is_ready(&serde_json::from_value(object).expect("a node"))
        };
        let ready = |said: &str| json!({"conditions": [{"type": "DiskPressure", "status": "True"}, {"type": "Ready", "status": said}]});
        assert!(node(ready("True")));
        assert!(!node(ready("Unknown")) && !node(ready("False")) && !node(json!({})));
    }

    #[test]
    fn a_probe_has_the_agents_rights_and_leaves_nothing_on_the_node() {
        let release = chart::Release {
            name: "a".to_owned(),
            namespace: "b".to_owned(),
        };
        let values = json!({"agent": {"cgroup": {"root": "/unified/$(NODE_NAME)"}}});
        let values = chart::values(&[values]).expect("values");
        let objects = chart::objects(&release, &values).expect("objects");
        let agents = objects.iter().find(|object| object["kind"] == "DaemonSet");
        let template = &agents.expect("agents")["spec"]["template"]["spec"];
        let pod = pod(template, 3, "n1").expect("a pod");
        let container = &pod["spec"]["containers"][0];
        assert_eq!(
            container["command"],
            json!([
                "/keelson-node-agent",
                "probe",
                "--cgroup-root=/host/cgroup/unified/n1"
            ])
        );
        let own = &template["containers"][0];
        assert_eq!(container["securityContext"], own["securityContext"]);
        assert_eq!(container["image"], own["image"]);
        let names = |list: &Value| {
            let names = list.as_array().expect("a list").iter();
            names.map(|one| one["name"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&pod["spec"]["volumes"]), ["bpf", "cgroup"]);
        assert_eq!(names(&container["volumeMounts"]), ["bpf", "cgroup"]);
        assert_eq!(pod["spec"]["nodeName"], "n1");
        assert_eq!(pod["spec"].get("serviceAccountName"), None);
    }
}
