//! The client against a delta ADS server, over TLS on loopback, on one thread.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;

use proto::envoy::discovery::DeltaDiscoveryResponse;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};
use tonic::Status as Refusal;

use super::*;
use crate::testing::{Running, Site, resource, response, soon};

const A: &str = "type.googleapis.com/test.A";
const B: &str = "type.googleapis.com/test.B";

/// What the handler was given, as `type +name=content -name`; it is bound to its thread on purpose.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<String>>>);

impl Handler for Log {
    fn apply(
        &mut self,
        type_url: &str,
        updated: Vec<RawResource>,
        removed: Vec<String>,
    ) -> Vec<Rejection> {
        let mut line = type_url.rsplit('.').next().unwrap().to_owned();
        for one in &updated {
            let content = String::from_utf8_lossy(&one.bytes);
            line.push_str(&format!(" +{}={content}", one.name));
        }
        for name in &removed {
            line.push_str(&format!(" -{name}"));
        }
        self.0.borrow_mut().push(line);
        updated
            .into_iter()
            .filter(|one| one.bytes.starts_with(b"bad"))
            .map(|one| Rejection {
                name: one.name.to_string(),
                reason: "bad content".to_owned(),
            })
            .collect()
    }
}

struct Agent {
    log: Log,
    status: watch::Receiver<Status>,
    flusher: Flusher,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Agent {
    fn start(site: &Site) -> Self {
        Self::start_with(site, |_| {})
    }

    fn start_with(site: &Site, change: impl FnOnce(&mut Config)) -> Self {
        let node = NodeInfo {
            node: "n1".to_owned(),
            ip: "192.0.2.7".parse().unwrap(),
            pod: "agent-x".to_owned(),
            namespace: "keelson-system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            metadata: [("REVISION".to_owned(), "7".to_owned())].into(),
        };
        let types = vec![A.to_owned(), B.to_owned()];
        let mut config = Config::new(site.controller(), node, types);
        config.backoff.max = Duration::from_millis(50);
        config.snapshot = Some(site.file("state/snapshot"));
        change(&mut config);
        let client = Client::new(config);
        let status = client.status();
        let flusher = client.flusher();
        let log = Log::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let handler = log.clone();
        let task = tokio::task::spawn_local(client.run(handler, async {
            drop(stopped.await);
        }));
        Self {
            log,
            status,
            flusher,
            stop: Some(stop),
            task,
        }
    }

    async fn until(&mut self, holds: impl FnMut(&Status) -> bool) -> Status {
        soon(self.status.wait_for(holds)).await.unwrap().clone()
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        soon(self.task).await.unwrap();
    }

    fn log(&self) -> Vec<String> {
        self.log.0.borrow().clone()
    }
}

/// Runs a test where tasks may stay on their thread, as the agent's do.
async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

async fn site() -> (Site, Running) {
    let site = Site::new().await;
    let running = site.run().await;
    (site, running)
}

#[tokio::test]
async fn the_first_requests_say_who_asks_and_subscribe_to_everything() {
    local(async {
        let (site, mut running) = site().await;
        let _agent = Agent::start(&site);
        let mut stream = running.stream().await;
        assert_eq!(stream.token, "Bearer secret-1");
        assert_eq!(stream.cluster, "Kubernetes");
        for (request, type_url) in stream.requests(2).await.into_iter().zip([A, B]) {
            assert_eq!(request.type_url, type_url);
            assert!(request.resource_names_subscribe.is_empty());
            assert!(request.initial_resource_versions.is_empty());
            assert!(request.response_nonce.is_empty());
            let node = request.node.unwrap();
            assert_eq!(
                node.id,
                "ztunnel~192.0.2.7~agent-x.keelson-system~keelson-system.svc.cluster.local"
            );
            let metadata = node.metadata.unwrap().fields;
            let names: Vec<&str> = metadata.keys().map(String::as_str).collect();
            assert_eq!(
                names,
                ["INSTANCE_IPS", "NAME", "NAMESPACE", "NODE_NAME", "REVISION"]
            );
        }
    })
    .await;
}

#[tokio::test]
async fn good_responses_are_acknowledged_and_counted() {
    local(async {
        let (site, mut running) = site().await;
        let mut agent = Agent::start(&site);
        let mut stream = running.stream().await;
        stream.requests(2).await;
        stream.send(response(A, "n-1", &["x=1", "y=1"], &[])).await;
        let ack = stream.request().await;
        assert_eq!(
            (ack.type_url.as_str(), ack.response_nonce.as_str()),
            (A, "n-1")
        );
        assert!(ack.error_detail.is_none() && ack.node.is_none());
        assert!(
            !agent
                .until(|status| status.types[A].acked == 1)
                .await
                .synced()
        );

        stream.send(response(B, "n-2", &[], &[])).await;
        assert_eq!(stream.request().await.response_nonce, "n-2");
        let status = agent.until(Status::synced).await;
        assert!(status.connected && status.has_configuration());
        assert_eq!(status.types[A].resources, 2);

        stream.send(response(A, "n-3", &["x=2"], &["y"])).await;
        stream.request().await;
        let status = agent.until(|status| status.types[A].acked == 2).await;
        assert_eq!(status.types[A].resources, 1);
        assert_eq!(agent.log(), ["A +x=1 +y=1", "B", "A +x=2 -y"]);
    })
    .await;
}

#[tokio::test]
async fn a_response_with_bad_resources_is_refused_by_name_and_the_rest_is_in_force() {
    local(async {
        let (site, mut running) = site().await;
        let mut agent = Agent::start(&site);
        let mut stream = running.stream().await;
        stream.requests(2).await;
        let mut mixed = response(A, "n-1", &["x=1", "y=bad"], &[]);
        mixed.resources.push(resource(B, "z=1"));
        let mut empty = resource(A, "w=1");
        empty.resource = None;
        mixed.resources.push(empty);
        stream.send(mixed).await;
        let nack = stream.request().await;
        assert_eq!(nack.response_nonce, "n-1");
        let detail = nack.error_detail.unwrap();
        assert_eq!(detail.code, 3, "INVALID_ARGUMENT");
        assert_eq!(
            detail.message,
            format!("z: it is of the type {B:?}; w: it has no content; y: bad content")
        );
        let status = agent.until(|status| status.types[A].nacked == 1).await;
        assert_eq!(status.types[A].resources, 1);
        assert!(status.types[A].synced && status.types[A].last_nack.is_some());
        assert_eq!(agent.log(), ["A +x=1 +y=bad"]);

        stream.send(response(A, "n-2", &["y=1"], &[])).await;
        assert!(stream.request().await.error_detail.is_none());
        let status = agent.until(|status| status.types[A].acked == 1).await;
        assert!(status.types[A].last_nack.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_new_stream_names_what_is_held_but_not_what_was_refused_or_removed() {
    local(async {
        let (site, mut running) = site().await;
        let mut agent = Agent::start(&site);
        let mut stream = running.stream().await;
        stream.requests(2).await;
        stream
            .send(response(A, "1", &["x=1", "y=1", "z=1"], &[]))
            .await;
        stream.send(response(A, "2", &["y=bad2"], &["z"])).await;
        stream.requests(2).await;
        stream.fail(Refusal::unavailable("restarting")).await;

        let status = agent.until(|status| !status.connected).await;
        assert!(status.last_error.unwrap().contains("restarting"));
        let mut stream = running.stream().await;
        let requests = stream.requests(2).await;
        let versions: Vec<_> = requests[0].initial_resource_versions.iter().collect();
        assert_eq!(versions, [(&"x".to_owned(), &"1".to_owned())]);
        assert!(requests[1].initial_resource_versions.is_empty());
        let status = agent.until(|status| status.connected).await;
        assert_eq!((status.streams, status.last_error), (2, None));
    })
    .await;
}

#[tokio::test]
async fn a_controller_that_is_gone_and_back_finds_its_client() {
    local(async {
        let (site, mut running) = site().await;
        let mut agent = Agent::start(&site);
        let mut stream = running.stream().await;
        stream.requests(2).await;
        stream.send(response(A, "1", &["x=1"], &[])).await;
        stream.request().await;
        drop(stream);
        drop(running);
        fs::write(site.file("token"), "secret-2").unwrap();
        agent
            .until(|status| {
                let error = status.last_error.as_deref().unwrap_or_default();
                !status.connected && error.contains("cannot connect")
            })
            .await;
        assert_eq!(agent.log(), ["A +x=1"], "nothing is taken away");

        let mut running = site.run().await;
        let mut stream = running.stream().await;
        assert_eq!(stream.token, "Bearer secret-2");
        let requests = stream.requests(2).await;
        assert_eq!(requests[0].initial_resource_versions["x"], "1");
        stream.send(response(A, "1", &[], &["x"])).await;
        stream.request().await;
        agent.until(|status| status.types[A].resources == 0).await;
    })
    .await;
}

#[tokio::test]
async fn types_that_were_not_subscribed_are_ignored() {
    local(async {
        let (site, mut running) = site().await;
        let mut agent = Agent::start(&site);
        let mut stream = running.stream().await;
        stream.requests(2).await;
        let other = DeltaDiscoveryResponse {
            type_url: "type.googleapis.com/test.Other".to_owned(),
            nonce: "0".to_owned(),
            ..DeltaDiscoveryResponse::default()
        };
        stream.send(other).await;
        stream.send(response(A, "1", &["x=1"], &[])).await;
        assert_eq!(stream.request().await.response_nonce, "1");
        let status = agent.until(|status| status.types[A].acked == 1).await;
        assert_eq!(status.types.len(), 2);
        assert_eq!(agent.log(), ["A +x=1"]);
    })
    .await;
}

#[tokio::test]
async fn trouble_on_the_way_is_on_the_status() {
    local(async {
        let (site, _running) = site().await;
        let stranger = Site::new().await;
        for (case, part) in [
            ("another root", "invalid peer certificate"),
            ("no roots", "missing.pem"),
            ("no token", "missing-token"),
            ("another name", "not valid for name"),
        ] {
            let mut agent = Agent::start_with(&site, |config| match case {
                "another root" => config.controller.roots = stranger.file("root.pem"),
                "no roots" => config.controller.roots = site.file("missing.pem"),
                "no token" => config.controller.token = site.file("missing-token"),
                _ => config.controller.server_name = Some("controller.example".to_owned()),
            });
            let status = agent.until(|status| status.last_error.is_some()).await;
            let error = status.last_error.clone().unwrap();
            assert!(error.contains(part), "{case}: {error}");
            assert!(!status.connected && !status.has_configuration(), "{case}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_response_beyond_the_limit_ends_the_stream_and_not_the_client() {
    local(async {
        let (site, mut running) = site().await;
        let mut agent = Agent::start_with(&site, |config| config.max_response = 1000);
        let stream = running.stream().await;
        let large = format!("x={}", "1".repeat(2000));
        stream.send(response(A, "1", &[&large], &[])).await;
        let status = agent.until(|status| status.last_error.is_some()).await;
        assert!(status.last_error.unwrap().contains("OutOfRange"));
        running.stream().await;
        assert!(agent.log().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_restart_without_controller_begins_with_the_last_good_configuration() {
    local(async {
        let (site, mut running) = site().await;
        let agent = Agent::start(&site);
        let mut stream = running.stream().await;
        stream.requests(2).await;
        stream.send(response(A, "1", &["x=1", "y=1"], &[])).await;
        stream.send(response(A, "2", &["y=bad"], &[])).await;
        stream.send(response(B, "3", &[], &[])).await;
        stream.requests(3).await;
        agent.stop().await;
        drop(stream);
        drop(running);

        let mut agent = Agent::start(&site);
        let status = agent.until(|status| status.last_error.is_some()).await;
        assert!(status.has_configuration() && !status.synced());
        assert_eq!(agent.log(), ["A +x=1 +y=1", "B"]);

        let mut running = site.run().await;
        let mut stream = running.stream().await;
        let requests = stream.requests(2).await;
        let versions: Vec<_> = requests[0].initial_resource_versions.iter().collect();
        assert_eq!(versions, [(&"x".to_owned(), &"1".to_owned())]);
    })
    .await;
}

#[tokio::test]
async fn a_change_is_on_disk_soon_even_if_the_agent_is_killed() {
    local(async {
        let (site, mut running) = site().await;
        let agent = Agent::start(&site);
        let mut stream = running.stream().await;
        stream.requests(2).await;
        for round in 0..20 {
            let text = format!("x={round}");
            stream.send(response(A, "1", &[&text], &[])).await;
            stream.request().await;
        }
        let path = site.file("state/snapshot");
        soon(async {
            loop {
                let held = snapshot::read(&path, "n1").unwrap().unwrap_or_default();
                let last = held.get(A).and_then(|all| all.get("x"));
                if last.is_some_and(|stored| stored.bytes == "19") {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        agent.task.abort();
    })
    .await;
}

/// What waits for a flush may rely on everything before it, whatever happens next.
#[tokio::test]
async fn a_flush_puts_what_was_taken_on_disk_at_once() {
    local(async {
        let (site, mut running) = site().await;
        let agent = Agent::start(&site);
        let mut stream = running.stream().await;
        stream.requests(2).await;
        let path = site.file("state/snapshot");
        for round in 0..20 {
            let text = format!("x={round}");
            stream.send(response(A, "1", &[&text], &[])).await;
            stream.request().await;
            assert!(soon(agent.flusher.flush()).await);
            let held = snapshot::read(&path, "n1").unwrap().unwrap();
            let now = std::str::from_utf8(&held[A]["x"].bytes).unwrap().to_owned();
            assert_eq!(now, round.to_string());
        }
        // Where nothing can be written, whoever waits goes on and is told.
        fs::remove_dir_all(site.file("state")).unwrap();
        fs::write(site.file("state"), "no directory").unwrap();
        stream.send(response(A, "2", &["y=1"], &[])).await;
        stream.request().await;
        assert!(!soon(agent.flusher.flush()).await);
        agent.task.abort();
    })
    .await;
}

#[tokio::test]
async fn a_damaged_snapshot_is_reported_ignored_and_replaced() {
    local(async {
        let (site, mut running) = site().await;
        let path = site.file("state/snapshot");
        fs::create_dir_all(site.file("state")).unwrap();
        for damage in ["", "KEELSNAP", "junk"] {
            fs::write(&path, damage).unwrap();
            let mut agent = Agent::start(&site);
            let mut stream = running.stream().await;
            let status = agent.until(|status| status.connected).await;
            assert!(
                status
                    .snapshot_error
                    .as_ref()
                    .unwrap()
                    .contains("state/snapshot")
            );
            assert!(!status.has_configuration());
            stream.requests(2).await;
            stream.send(response(A, "1", &["x=1"], &[])).await;
            stream.request().await;
            agent.until(|status| status.snapshot_error.is_none()).await;
            agent.stop().await;
            let held = snapshot::read(&path, "n1").unwrap().unwrap();
            assert_eq!(held[A].len(), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn stopping_without_any_configuration_leaves_the_disk_alone() {
    local(async {
        let site = Site::new().await;
        let mut agent = Agent::start(&site);
        agent.until(|status| status.last_error.is_some()).await;
        agent.stop().await;
        assert!(!site.file("state/snapshot").exists());
    })
    .await;
}

/// Under Istio's control plane our own types have a stream of their own: it ends streams that ask for what it does not know.
#[tokio::test]
async fn a_stream_that_is_refused_again_and_again_never_ends_the_one_beside_it() {
    local(async {
        let (istios, mut refusing) = site().await;
        let (own, mut serving) = site().await;
        let mut good = Agent::start_with(&own, |config| config.types = vec![A.to_owned()]);
        let mut stream = serving.stream().await;
        let asked = stream.request().await;
        assert_eq!(asked.type_url, A);
        let mut bad = Agent::start_with(&istios, |config| config.types = vec![B.to_owned()]);
        for round in 0..3 {
            let mut refused = refusing.stream().await;
            assert_eq!(refused.request().await.type_url, B);
            refused
                .fail(Refusal::invalid_argument("no such type"))
                .await;
            bad.until(|status| status.last_error.is_some()).await;
            let nonce = round.to_string();
            stream
                .send(response(A, &nonce, &[&format!("x={round}")], &[]))
                .await;
            assert_eq!(stream.request().await.response_nonce, nonce);
        }
        let status = good.until(|status| status.types[A].acked == 3).await;
        assert_eq!((status.streams, status.connected), (1, true));
        let both = status.and(&bad.status.borrow());
        assert!(!both.connected && !both.synced() && both.types.len() == 2);
        assert!(both.last_error.unwrap().contains("no such type"));
        // The other way round: it is let in when it has what it asks for.
        let mut again = refusing.stream().await;
        again.request().await;
        drop(stream);
        drop(serving);
        good.until(|status| !status.connected).await;
        again.send(response(B, "n", &["y=1"], &[])).await;
        let status = bad.until(|status| status.types[B].acked == 1).await;
        assert!(status.connected);
    })
    .await;
}
