//! The order of a pod's life: sandbox, CNI, containers; and back. The agent is played by a thread.

#![expect(clippy::unwrap_used, reason = "a failed assertion ends a test")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use lab::{Lab, PodSpec};
use serde_json::{Value, json};

/// An agent that notes each request, with the pod's processes at that moment, and answers.
#[derive(Clone, Default)]
struct FakeAgent {
    requests: Arc<Mutex<Vec<(Value, usize)>>>,
    refusals: Arc<Mutex<Vec<&'static str>>>,
    known: Arc<Mutex<Vec<Value>>>,
}

impl FakeAgent {
    fn listen(&self, lab: &Lab, node: &str) -> Result<()> {
        let listener = UnixListener::bind(lab.agent_socket(node))?;
        let pods = lab.node(node)?.cgroup().child("kubepods")?;
        let agent = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let running = pods.processes().unwrap().len();
                let request: Value = serde_json::from_str(&line).unwrap();
                if request.get("list").is_some() {
                    writeln!(stream, "{}", agent.list()).unwrap();
                    continue;
                }
                agent.known.lock().unwrap().push(request["add"].clone());
                agent.requests.lock().unwrap().push((request, running));
                let answer = match agent.refusals.lock().unwrap().pop() {
                    Some(reason) => json!({"error": reason}),
                    None => json!({"ok": {"capture": "captured", "reason": "fake"}}),
                };
                writeln!(stream, "{answer}").unwrap();
            }
        });
        lab.install_cni(node);
        Ok(())
    }

    /// What it says of the pods that it was told of.
    fn list(&self) -> Value {
        let known = self.known.lock().unwrap();
        let listed = known.iter().filter(|pod| pod.is_object()).map(|pod| {
            json!({"namespace": pod["namespace"], "name": pod["name"], "state": "captured", "reason": "fake"})
        });
        json!({"ok": {"pods": listed.collect::<Vec<_>>()}})
    }

    fn requests(&self) -> Vec<(Value, usize)> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

fn sleeper(name: &str) -> PodSpec {
    PodSpec::new("shop", name, "n1").container("main", &["sleep", "1000"])
}

#[test]
fn containers_start_only_after_the_agent_has_taken_the_pod() -> Result<()> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    let agent = FakeAgent::default();
    agent.listen(&lab, "n1")?;
    let pod = lab.create(&sleeper("a"))?;
    let expected = json!({"add": {
        "namespace": "shop", "name": "a", "uid": pod.uid(),
        "netns": pod.netns().path(), "ips": pod.ips(),
    }});
    assert_eq!(agent.requests(), [(expected, 0)]);
    assert_eq!(pod.cgroup().processes()?.len(), 1);
    assert_eq!(lab.enrolment("shop/a").unwrap().capture, "captured");

    lab.create(&PodSpec::new("shop", "elsewhere", "n2"))?;
    assert_eq!(agent.requests(), [], "node n2 has no agent");

    lab.delete_pod("shop/a")?;
    let expected = json!({"del": {"namespace": "shop", "name": "a", "uid": pod.uid()}});
    assert_eq!(agent.requests(), [(expected, 0)]);
    Ok(())
}

#[test]
fn a_pod_that_the_agent_refuses_waits_and_is_tried_again() -> Result<()> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    let agent = FakeAgent::default();
    agent.refusals.lock().unwrap().push("not today");
    agent.listen(&lab, "n1")?;
    let error = lab.create(&sleeper("a")).unwrap_err();
    assert!(format!("{error:#}").contains("not today"), "{error:#}");
    let pod = lab.pod("shop/a")?;
    assert!(pod.cgroup().processes()?.is_empty());
    lab.reconcile()?;
    assert_eq!(pod.cgroup().processes()?.len(), 1);
    Ok(())
}

#[test]
fn a_pod_does_not_start_where_an_agent_should_be_and_is_not() -> Result<()> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    lab.install_cni("n1");
    let error = lab.create(&sleeper("a")).unwrap_err();
    assert!(
        format!("{error:#}").contains("does not run on this node"),
        "{error:#}"
    );
    assert!(lab.pod("shop/a")?.cgroup().processes()?.is_empty());
    lab.delete_pod("shop/a")
}

#[test]
fn labels_and_deletions_reach_the_live_folder() -> Result<()> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    let text = "kind: Namespace\nmetadata: {name: shop}\n---\nkind: Namespace\nmetadata: {name: other, labels: {a: b}}\n";
    lab.apply("namespaces.yaml", text)?;
    let file = lab.manifests_dir().join("namespaces.yaml");
    lab.label_namespace("shop", "keelson.io/mesh", Some("enabled"))?;
    assert!(std::fs::read_to_string(&file)?.contains("keelson.io/mesh: enabled"));
    lab.label_namespace("shop", "keelson.io/mesh", None)?;
    assert!(!std::fs::read_to_string(&file)?.contains("keelson.io"));
    assert!(lab.label_namespace("none", "a", None).is_err());
    assert!(
        std::fs::read_to_string(lab.manifests_dir().join("registered-nodes.yaml"))?
            .contains("name: n2")
    );
    Ok(())
}

#[test]
fn a_container_that_ends_keeps_its_status_and_its_log() -> Result<()> {
    let lab = Lab::builder(lab::unique_id()).build()?;
    lab.create(
        &PodSpec::new("shop", "a", "n1").container("main", &["sh", "-c", "echo gone; exit 3"]),
    )?;
    let (status, log) = lab.containers("shop/a", |containers| {
        let status = containers[0].wait(Duration::from_secs(5)).unwrap();
        (status.unwrap().code(), containers[0].log())
    });
    assert_eq!((status, &*log), (Some(3), "gone\n"));
    Ok(())
}
