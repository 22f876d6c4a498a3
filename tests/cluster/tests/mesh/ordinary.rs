//! What people do with Kubernetes every day, with pods of the mesh, under STRICT.

pub(crate) mod doors;
mod hands;
mod probes;
mod statics;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests_cluster::{CLIENT, Namespace, SERVER, container, eventually, nodes, pod, who};

use crate::command_line::good;
use crate::installed::Installed;
use crate::pair::Pair;

/// A pair whose server takes nothing but the mesh's own, and a pod outside that shows it.
pub(crate) struct Strict {
    pub(crate) pair: Pair,
    outside: Namespace,
}

impl Strict {
    fn create(mesh: &Installed, about: &str) -> Result<Self> {
        let pair = Pair::create(mesh, about)?;
        let outside = Namespace::create("outside")?;
        outside.apply(&[pod("visitor", None, CLIENT)])?;
        pair.label("keelson.io/mesh=enabled")?;
        let strict = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "strict"}, "spec": {"mtls": {"mode": "STRICT"}},
        });
        eventually("a controller answers", || {
            pair.namespace.apply(std::slice::from_ref(&strict))
        })?;
        pair.until_readable(false)?;
        outside.wait_ready("visitor")?;
        let strict = Self { pair, outside };
        eventually("it is strict", || strict.refuses(&strict.pair.ask))?;
        strict.pair.watch_from_now();
        Ok(strict)
    }

    /// That nobody outside of the mesh gets an answer.
    fn refuses(&self, ask: &str) -> Result<()> {
        match self.outside.exec("visitor", ask) {
            Ok(answer) => bail!("the visitor got {answer}"),
            Err(_) => Ok(()),
        }
    }

    /// That nothing was readable between the nodes since it began, and that it is as strict as then. What somebody outside asks
    /// in vain is readable.
    fn has_stayed_so(&self) -> Result<()> {
        let seen = self.pair.seen_in_the_clear()?;
        ensure!(seen == 0, "{seen} requests were readable");
        self.refuses(&self.pair.ask)
    }
}

/// How often a pod's containers were started again, those of its beginning too.
fn restarts(namespace: &Namespace, name: &str) -> Result<u64> {
    let pod = namespace.get(&["pod", name])?;
    let all = ["containerStatuses", "initContainerStatuses"];
    let of = |field: &&str| pod["status"][*field].as_array().cloned();
    let statuses = all.iter().filter_map(of).flatten();
    Ok(statuses
        .filter_map(|one| one["restartCount"].as_u64())
        .sum())
}

/// Section C of issue 11: those who end, those who have a name of their own, and those who talk before their pod is ready. None of
/// them tries twice: what the mesh does not carry at once fails the test.
#[test]
fn jobs_end_stateful_sets_are_reached_by_name_and_containers_talk_while_their_pod_starts()
-> Result<()> {
    let mesh = Installed::install()?;
    let strict = Strict::create(&mesh, "ordinary")?;
    let namespace = &strict.pair.namespace;
    let all = nodes()?;
    let (here, there) = (&all[0], &all[1]);
    namespace.apply(&[
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop"},
               "spec": {"clusterIP": "None", "selector": {"app": "shop"}, "ports": [{"port": 8080}]}}),
        stateful_set(there),
    ])?;
    let set = ["rollout", "status", "statefulset/shop", "--timeout=120s"];
    namespace.kubectl(&set)?;
    let client = namespace.pod_ip("client")?;
    for name in ["shop-0", "shop-1"] {
        let answer = eventually("its name is known", || {
            namespace.exec("client", &who(&format!("{name}.shop")))
        })?;
        ensure!(answer.trim() == format!("{name} {client}"), "{answer}");
    }
    is_seen_by_the_agents(namespace, "shop-1")?;

    namespace.apply(&[job(here), stages(here)])?;
    let ended = ["wait", "--for=condition=Complete", "job/asks"];
    namespace
        .kubectl(&[&ended[..], &["--timeout=60s"]].concat())
        .map_err(|error| {
            let said = namespace.kubectl(&["logs", "job/asks"]);
            error.context(said.unwrap_or_default())
        })?;
    let said = namespace.kubectl(&["logs", "job/asks"])?;
    ensure!(
        said.lines().count() == 5 && said.lines().all(|line| line.starts_with("shop-0 ")),
        "{said}"
    );
    namespace.wait_ready("stages")?;
    let first = namespace.kubectl(&["logs", "stages", "-c", "beside"])?;
    ensure!(first.starts_with("shop-0 "), "{first}");
    let second = namespace.kubectl(&["logs", "stages", "-c", "before"])?;
    let second: Vec<&str> = second.lines().collect();
    ensure!(
        second.len() == 2 && second[0].starts_with("shop-1 ") && second[1].trim() == first.trim(),
        "{second:?}"
    );
    for name in ["shop-0", "shop-1", "stages", "client", "server"] {
        ensure!(restarts(namespace, name)? == 0, "{name} was started again");
    }
    strict.has_stayed_so()?;
    for name in ["shop-0", "shop-1"] {
        strict.refuses(&who(&format!("{name}.shop.{}", namespace.name())))?;
    }
    Ok(())
}

/// That a connection by the pod's own name is one of the mesh to the agents too, with a certificate for either end.
fn is_seen_by_the_agents(namespace: &Namespace, to: &str) -> Result<()> {
    let hold = format!("(sleep 60 | nc {to}.shop 8080) > /dev/null 2>&1 & true");
    namespace.exec("client", &hold)?;
    let ip = namespace.pod_ip(to)?.to_string();
    let account = format!("ns/{}/sa/default", namespace.name());
    eventually("the agents know of the connection", || {
        let all = good(&["proxy-config", "connections"], "")?;
        let all = all.as_array().context("a list")?;
        let is_it = |one: &&Value| {
            one["security"] == "mutual_tls"
                && one["destination"].to_string().contains(&ip)
                && one["source"].to_string().contains(&account)
        };
        ensure!(all.iter().any(|one| is_it(&one)), "{all:?}");
        Ok(())
    })
}

fn template(app: &str, node: &str, rest: &Value) -> Value {
    let mut spec = json!({
        "nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0,
    });
    for (field, value) in rest.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    json!({"metadata": {"labels": {"app": app}}, "spec": spec})
}

fn stateful_set(node: &str) -> Value {
    let pods = json!({"containers": [container(SERVER)]});
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "shop"},
        "spec": {
            "serviceName": "shop", "replicas": 2, "selector": {"matchLabels": {"app": "shop"}},
            "template": template("shop", node, &pods),
        },
    })
}

/// It asks five times, each time for the first time in its life or soon after, and is not tried again.
fn job(node: &str) -> Value {
    let ask = who("shop-0.shop");
    let pods = json!({
        "restartPolicy": "Never",
        "containers": [container(&format!("set -e; for i in 1 2 3 4 5; do {ask} | tr -d '\\n'; echo; done"))],
    });
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "asks"},
        "spec": {"backoffLimit": 0, "template": template("asks", node, &pods)},
    })
}

/// A sidecar that has started when it has an answer to pass on, a container before the others that asks a server and the
/// sidecar, and one that asks both again.
fn stages(node: &str) -> Value {
    let named = |name: &str, command: &str| {
        let mut one = container(command);
        one["name"] = json!(name);
        one
    };
    let asks = format!(
        "set -e; {} | tr -d '\\n'; echo; wget -q -O - http://127.0.0.1:8081/first",
        who("shop-1.shop")
    );
    let first = format!(
        "set -e; mkdir -p /tmp/www; {} > /tmp/www/first; cat /tmp/www/first; exec httpd -f -p 8081 -h /tmp/www",
        who("shop-0.shop")
    );
    let mut beside = named("beside", &first);
    beside["restartPolicy"] = json!("Always");
    beside["startupProbe"] = json!({
        "httpGet": {"path": "/first", "port": 8081}, "periodSeconds": 1, "failureThreshold": 30,
    });
    let mut main = named("main", &format!("{asks}; touch /tmp/asked; sleep 86400"));
    main["readinessProbe"] =
        json!({"exec": {"command": ["test", "-e", "/tmp/asked"]}, "periodSeconds": 1});
    let mut pod = template(
        "stages",
        node,
        &json!({"initContainers": [beside, named("before", &asks)], "containers": [main]}),
    );
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("stages");
    pod
}
