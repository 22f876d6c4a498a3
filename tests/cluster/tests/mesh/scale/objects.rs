//! Pods, services, accounts and nodes that are objects of an API server only: no kubelet runs them.

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Client, Config, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tests_cluster::{CLIENT, IMAGE};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

/// A pod as the API server has it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) node: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) ip: String,
}

/// A client with many connections: thousands of objects by kubectl take minutes.
pub(super) struct Objects {
    runtime: Runtime,
    client: Client,
}

impl Objects {
    pub(super) fn connect() -> Result<Self> {
        let runtime = Runtime::new()?;
        let client = runtime.block_on(async {
            let named = Kubeconfig::read()?;
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(named, &options).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Self { runtime, client })
    }

    /// Nodes without a kubelet, whose leases somebody renews from now on.
    pub(super) fn make_nodes(&self) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASES);
        self.runtime.block_on(async {
            make(&nodes, (0..NODES).map(node)).await?;
            for number in 0..NODES {
                let status = Patch::Merge(json!({"status": node_status(number)}));
                let (name, params) = (node_name(number), PatchParams::default());
                nodes.patch_status(&name, &params, &status).await?;
            }
            make(&leases, (0..NODES).map(lease)).await
        })?;
        self.runtime.spawn(renew(leases));
        Ok(())
    }

    /// Namespaces of the mesh, accounts, services, and the pods that have no process.
    pub(super) fn make_pods(&self) -> Result<Vec<Known>> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        self.runtime.block_on(async {
            make(&namespaces, (0..NAMESPACES).map(namespace)).await?;
            self.make_each::<ServiceAccount>(0..ACCOUNTS, account)
                .await?;
            self.make_each::<Service>(0..SERVICES, service).await?;
            self.make_each::<Pod>(0..OWN, pod).await?;
            let others = futures::stream::iter(OWN..PODS).map(|number| self.object_pod(number));
            others.buffer_unordered(WRITERS).try_collect().await
        })
    }

    async fn make_each<K>(
        &self,
        numbers: std::ops::Range<usize>,
        object: impl Fn(usize) -> Value,
    ) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let all = futures::stream::iter(numbers).map(|number| {
            let api: Api<K> = Api::namespaced(self.client.clone(), &namespace_name(number));
            let object = object(number);
            async move { make(&api, [object]).await }
        });
        all.buffer_unordered(WRITERS).try_collect().await
    }

    async fn object_pod(&self, number: usize) -> Result<Known> {
        let pods = self.pods_of(number);
        make(&pods, [pod(number)]).await?;
        let status = Patch::Merge(json!({"status": pod_status(number)}));
        let name = pod_name(number);
        let made = pods
            .patch_status(&name, &PatchParams::default(), &status)
            .await
            .with_context(|| format!("the status of {name}"))?;
        Ok(Known {
            node: home(number),
            namespace: namespace_name(number),
            uid: made.uid().context("a uid")?,
            name,
            ip: ip(number),
        })
    }

    /// Changes pods that have no process, so many a second; returns how many changed in how long.
    pub(super) fn change(&self, rate: u32, during: Duration) -> Result<(usize, Duration)> {
        self.runtime.block_on(async {
            let mut ticks = interval(Duration::from_secs(1) / rate);
            let (began, mut changes) = (Instant::now(), JoinSet::new());
            let mut done = 0;
            for turn in 0.. {
                ticks.tick().await;
                if began.elapsed() >= during {
                    break;
                }
                let number = OWN + turn % (PODS - OWN);
                let pods = self.pods_of(number);
                let change = json!({"metadata": {"labels": {REVISION: format!("r{turn}")}}});
                changes.spawn(async move {
                    let change = Patch::Merge(change);
                    let params = PatchParams::default();
                    pods.patch(&pod_name(number), &params, &change).await
                });
                while let Some(one) = changes.try_join_next() {
                    one??;
                    done += 1;
                }
            }
            while let Some(one) = changes.join_next().await {
                one??;
                done += 1;
            }
            Ok((done, began.elapsed()))
        })
    }

    /// Tokens of an account's pods on nodes of ours, with their nodes.
    pub(super) fn tokens(&self, within: &str, account: &str) -> Result<Vec<(String, String)>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), within);
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), within);
        self.runtime.block_on(async {
            let mut tokens = Vec::new();
            for pod in pods.list(&ListParams::default()).await? {
                let spec = pod.spec.clone().unwrap_or_default();
                let node = spec.node_name.unwrap_or_default();
                if !node.starts_with(NODE) || spec.service_account_name.as_deref() != Some(account)
                {
                    continue;
                }
                let request: TokenRequest = serde_json::from_value(json!({"spec": {
                    "audiences": ["keelson"], "expirationSeconds": 7200,
                    "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod.name_any(), "uid": pod.uid()},
                }}))?;
                let params = PostParams::default();
                let answer = accounts
                    .create_token_request(account, &params, &request)
                    .await?;
                tokens.push((answer.status.and_then(|status| status.token).context("a token")?, node));
            }
            Ok(tokens)
        })
    }

    /// Takes everything away again; nobody ends pods without a kubelet, so nobody is waited for.
    pub(super) fn remove(&self, agents: &str) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASES);
        let at_once = DeleteParams::default().grace_period(0);
        self.runtime.block_on(async {
            for number in 0..NODES {
                nodes.delete(&node_name(number), &at_once).await?;
                leases.delete(&node_name(number), &at_once).await?;
            }
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), agents);
            for pod in pods.list(&ListParams::default()).await? {
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
                if node.is_some_and(|node| node.starts_with(NODE)) {
                    pods.delete(&pod.name_any(), &at_once).await?;
                }
            }
            for number in 0..NAMESPACES {
                let pods = self.pods_of(number);
                pods.delete_collection(&at_once, &ListParams::default())
                    .await?;
                namespaces.delete(&namespace_name(number), &at_once).await?;
            }
            Ok(())
        })
    }

    /// How many of the pods with processes are ready.
    pub(super) fn own_ready(&self) -> Result<usize> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let all = ListParams::default().labels(&format!("{KIND}=own"));
        let list = self.runtime.block_on(pods.list(&all))?;
        let is_ready = |pod: &&Pod| {
            let status = pod.status.as_ref();
            let conditions = status.and_then(|status| status.conditions.as_ref());
            let mut all = conditions.into_iter().flatten();
            all.any(|one| one.type_ == "Ready" && one.status == "True")
        };
        Ok(list.items.iter().filter(is_ready).count())
    }

    fn pods_of(&self, number: usize) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &namespace_name(number))
    }
}

/// Makes objects, one after another.
async fn make<K>(api: &Api<K>, objects: impl IntoIterator<Item = Value>) -> Result<()>
where
    K: Serialize + DeserializeOwned + Clone + Debug,
{
    for object in objects {
        let name = object["metadata"]["name"].clone();
        let object: K = serde_json::from_value(object)?;
        let made = api.create(&PostParams::default(), &object).await;
        made.with_context(|| format!("{name}"))?;
    }
    Ok(())
}

/// As kubelets do, so that no pod is evicted.
async fn renew(leases: Api<Lease>) {
    let mut rounds = interval(Duration::from_secs(10));
    loop {
        rounds.tick().await;
        for number in 0..NODES {
            let change = Patch::Merge(json!({"spec": {"renewTime": now()}}));
            let params = PatchParams::default();
            // The next round tries again; the nodes may be gone by then.
            drop(leases.patch(&node_name(number), &params, &change).await);
        }
    }
}

fn now() -> String {
    humantime::format_rfc3339_micros(SystemTime::now()).to_string()
}

fn node_name(number: usize) -> String {
    format!("{NODE}{number}")
}

fn node(number: usize) -> Value {
    let name = node_name(number);
    json!({"metadata": {
        "name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
    }})
}

fn node_status(number: usize) -> Value {
    let room = json!({"cpu": "64", "memory": "256Gi", "pods": "250"});
    json!({
        "addresses": [{"type": "InternalIP", "address": format!("172.31.1.{}", number + 1)}],
        "capacity": room, "allocatable": room,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastHeartbeatTime": seconds(), "lastTransitionTime": seconds(),
        }],
    })
}

fn lease(number: usize) -> Value {
    let name = node_name(number);
    json!({
        "metadata": {"name": name, "namespace": LEASES},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now()},
    })
}

fn seconds() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// Pods, services and accounts of the same number modulo this are in the same namespace.
fn namespace_name(number: usize) -> String {
    format!("keelson-scale-{}", number % NAMESPACES)
}

fn namespace(number: usize) -> Value {
    json!({"metadata": {"name": namespace_name(number), "labels": {"keelson.io/mesh": "enabled"}}})
}

fn account(number: usize) -> Value {
    json!({"metadata": {"name": format!("account-{number}"), "namespace": namespace_name(number)}})
}

fn service(number: usize) -> Value {
    json!({
        "metadata": {
            "name": format!("service-{number}"), "namespace": namespace_name(number),
            // kube-proxy leaves it to others: its work is not what is measured.
            "labels": {"service.kubernetes.io/service-proxy-name": "nobody"},
        },
        "spec": {
            "selector": {"app": format!("service-{number}")},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    })
}

fn pod_name(number: usize) -> String {
    format!("service-{}-{number}", number % SERVICES)
}

/// The node of a pod: the first ones run on a real one.
fn home(number: usize) -> String {
    match number.checked_sub(OWN) {
        None => "node1".to_owned(),
        Some(number) => node_name(number % NODES),
    }
}

fn ip(number: usize) -> String {
    format!("10.100.{}.{}", number >> 8, number & 255)
}

fn pod(number: usize) -> Value {
    let kind = if number < OWN { "own" } else { "object" };
    let service = number % SERVICES;
    json!({
        "metadata": {
            "name": pod_name(number), "namespace": namespace_name(number),
            "labels": {
                "app": format!("service-{service}"), "version": "v1", "pod-template-hash": "5d4f8c7b9", KIND: kind,
            },
        },
        "spec": {
            "nodeName": home(number),
            "serviceAccountName": format!("account-{}", number % ACCOUNTS),
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", CLIENT], "ports": [{"name": "http", "containerPort": 8080}],
            }],
        },
    })
}

fn pod_status(number: usize) -> Value {
    let is_so =
        |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": seconds()});
    let conditions = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ];
    json!({
        "phase": "Running", "startTime": seconds(),
        "podIP": ip(number), "podIPs": [{"ip": ip(number)}],
        "conditions": conditions.map(is_so),
        "containerStatuses": [{
            "name": "main", "image": IMAGE, "imageID": format!("sha256:{:064x}", 1), "ready": true, "started": true,
            "restartCount": 0, "containerID": format!("containerd://{number:064x}"),
            "state": {"running": {"startedAt": seconds()}},
        }],
    })
}

/// All pods, those with processes included.
pub(super) const PODS: usize = 10_000;
/// So many pods have processes, on one node.
pub(super) const OWN: usize = 110;
pub(super) const SERVICES: usize = 1000;
pub(super) const ACCOUNTS: usize = 200;
/// Nodes that are objects; with the two real ones they are a hundred.
pub(super) const NODES: usize = 98;
/// Divides the numbers of services and of accounts.
const NAMESPACES: usize = 20;
pub(super) const NODE: &str = "object-";
const LEASES: &str = "kube-node-lease";
const KIND: &str = "tests.keelson.io/kind";
/// What a workload is served with.
const REVISION: &str = "service.istio.io/canonical-revision";
/// Requests at once.
const WRITERS: usize = 16;
