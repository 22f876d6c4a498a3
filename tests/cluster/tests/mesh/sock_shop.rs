//! The Sock Shop on a cluster, from its own files: front end, catalogue and the shop's rules. One application with many roles is
//! in the place of the images, which is ready at once where these take minutes; nothing else is changed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};
use tests_cluster::{CLIENT, Namespace, eventually, kubectl, nodes, pod};

use crate::application::{self, gateways, take_the_place_of_its_image};
use crate::installed::Installed;
use crate::kinds::{Kinds, until_said};

macro_rules! fixture {
    ($file:literal) => {
        include_str!(concat!("../../../lab/fixtures/sock-shop/", $file))
    };
}

const FRONT_END: &str = fixture!("1-deploy-app/manifests/front-end-dep.yaml");
const FRONT_END_V2: &str = fixture!("2-traffic-management/front-end-dep-v2.yaml");
const CATALOGUE: &str = fixture!("1-deploy-app/manifests/catalogue-dep.yaml");
/// What is applied as it is, beside the Deployments.
const BESIDE: [&str; 5] = [
    fixture!("1-deploy-app/manifests/sock-shop-ns.yaml"),
    fixture!("1-deploy-app/manifests/front-end-svc.yaml"),
    fixture!("1-deploy-app/manifests/catalogue-svc.yaml"),
    fixture!("1-deploy-app/sockshop-gateway.yaml"),
    RULES,
];
/// The rules with which the shop begins.
const RULES: &str = fixture!("1-deploy-app/sockshop-virtual-services.yaml");
const ON_V1: &str = fixture!("2-traffic-management/blue-green/frontv1-virtual-service.yaml");
const ON_V2: &str = fixture!("2-traffic-management/blue-green/frontv2-virtual-service.yaml");
const CANARY: &str = fixture!("2-traffic-management/canary/canary-virtual-service.yaml");
const FIREFOX: &str =
    fixture!("2-traffic-management/route-headers/frontv2-virtual-service-firefox.yaml");
const ABORT: &str =
    fixture!("3-resiliency/fault-injection/abort-fault-injection-virtual-service.yaml");
const DELAY: &str =
    fixture!("3-resiliency/fault-injection/delay-fault-injection-virtual-service.yaml");
const BY_ADDRESS: &str =
    fixture!("3-resiliency/load-balancing/load-balancing-consistent-hash.yaml");
const CORS: &str = fixture!("4-policy/cors/cors-virtual-service.yaml");
const DENY: &str = fixture!("5-security/http-auth/deny-policy.yaml");
const ALLOW: &str = fixture!("5-security/http-auth/allow-policy.yaml");

/// The shop, and where it is asked from outside of the mesh.
struct Shop<'m> {
    mesh: &'m Installed,
    namespace: Namespace,
    from: String,
    door: String,
}

/// An answer as curl saw it. No answer at all is status 0.
#[derive(Debug)]
struct Answer {
    status: u16,
    seconds: f64,
    body: String,
}

impl Answer {
    /// Its version, or the status if it is no page.
    fn version(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        match body["version"].as_str() {
            Some(version) if self.status == 200 => version.to_owned(),
            _ => self.status.to_string(),
        }
    }
}

impl<'m> Shop<'m> {
    fn stand_up(mesh: &'m Installed) -> Result<Self> {
        let namespace = Namespace::named("sock-shop")?;
        let labels = ["keelson.io/mesh=enabled", "istio.io/use-waypoint=waypoint"];
        kubectl(&["label", "namespace", "sock-shop", labels[0], labels[1]])?;
        namespace.apply(&gateways("all"))?;
        for text in BESIDE {
            eventually("a controller answers", || {
                application::apply(&namespace, text)
            })?;
        }
        let front_end = [
            "--ports",
            "8079",
            "--service",
            "front-end",
            "--strict",
            "--call",
            "/catalogue=catalogue/catalogue",
        ];
        let catalogue = ["--ports", "80", "--service", "catalogue"];
        for (text, words) in [
            (FRONT_END, &front_end[..]),
            (FRONT_END_V2, &front_end),
            (CATALOGUE, &catalogue),
        ] {
            namespace.apply(&deployments(text, words)?)?;
        }
        let all = ["deployment", "--all", "--timeout=120s"];
        namespace.kubectl(&[&["wait", "--for=condition=Available"][..], &all].concat())?;
        let from = nodes()?.pop().context("a node")?;
        let door = eventually("there is a door", || {
            let service = namespace.get(&["service", "door-keelson"])?;
            let address = service["spec"]["clusterIP"].as_str();
            Ok(address.context("an address")?.to_owned())
        })?;
        let shop = Self {
            mesh,
            namespace,
            from,
            door,
        };
        eventually("the catalogue is shown", || {
            let seen = shop.versions("/catalogue", "", 1)?;
            ensure!(seen.get("v1") == Some(&1), "{seen:?}");
            Ok(())
        })?;
        Ok(shop)
    }

    fn apply(&self, text: &str) -> Result<()> {
        application::apply(&self.namespace, text)
    }

    /// Asks by the gateway from a node, which is outside of the mesh, so many times.
    fn ask(&self, path: &str, words: &str, count: usize) -> Result<Vec<Answer>> {
        let command = format!(
            "curl -s -m 20 -w '\\n#curl %{{http_code}} %{{time_total}}\\n' {words} 'http://{}{path}?[1-{count}]' || true",
            self.door
        );
        let mut all = Vec::new();
        let mut body = String::new();
        for line in self.mesh.on(&self.from, &command)?.lines() {
            let Some(said) = line.strip_prefix("#curl ") else {
                body.push_str(line);
                continue;
            };
            let (status, seconds) = said.split_once(' ').context("two numbers")?;
            all.push(Answer {
                status: status.parse()?,
                seconds: seconds.parse()?,
                body: std::mem::take(&mut body),
            });
        }
        ensure!(all.len() == count, "{} answers of {count}", all.len());
        Ok(all)
    }

    /// How often each version was seen, or each status that is not 200.
    fn versions(&self, path: &str, words: &str, count: usize) -> Result<BTreeMap<String, usize>> {
        let mut seen = BTreeMap::new();
        for answer in self.ask(path, words, count)? {
            *seen.entry(answer.version()).or_default() += 1;
        }
        Ok(seen)
    }

    /// Waits until all of ten requests are answered by this version, or with this status.
    fn all_are(&self, path: &str, words: &str, wanted: &str) -> Result<()> {
        eventually(&format!("{path} {words}: {wanted}"), || {
            let seen = self.versions(path, words, 10)?;
            ensure!(seen.get(wanted) == Some(&10), "{seen:?}");
            Ok(())
        })
    }

    /// A13, F28: all traffic moves to v2 and back by one apply each, under load, and no request fails. The shop's files replace the
    /// subsets too, which kubectl writes after the rule that names them: so the subsets of both are there before.
    #[expect(clippy::print_stdout, reason = "the figure of a test")]
    fn flips(&self) -> Result<()> {
        self.all_are("/", "", "v1")?;
        let namespace = &self.namespace;
        namespace.apply(&only("DestinationRule", CANARY)?)?;
        let (to_v1, to_v2) = (
            only("VirtualService", ON_V1)?,
            only("VirtualService", ON_V2)?,
        );
        let stop = AtomicBool::new(false);
        let seen = thread::scope(|scope| {
            let load = scope.spawn(|| -> Result<BTreeMap<String, usize>> {
                let mut all = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    for (version, count) in self.versions("/", "", 20)? {
                        *all.entry(version).or_default() += count;
                    }
                }
                Ok(all)
            });
            let flipped = namespace
                .apply(&to_v2)
                .and_then(|()| self.all_are("/", "", "v2"))
                .and_then(|()| namespace.apply(&to_v1))
                .and_then(|()| self.all_are("/", "", "v1"));
            stop.store(true, Ordering::Relaxed);
            let load = load.join().map_err(|_panic| anyhow!("the load broke"))??;
            flipped.map(|()| load)
        })?;
        println!("while all traffic went to v2 and back: {seen:?}");
        let both: Vec<&str> = seen.keys().map(String::as_str).collect();
        ensure!(both == ["v1", "v2"], "{seen:?}");
        Ok(())
    }

    /// A14, F25: a canary of 20 % gets about 20 %.
    fn has_a_canary(&self) -> Result<()> {
        self.apply(CANARY)?;
        eventually("the canary is seen", || {
            let seen = self.versions("/", "", 30)?;
            ensure!(seen.contains_key("v2"), "{seen:?}");
            Ok(())
        })?;
        let seen = self.versions("/", "", 200)?;
        let second = seen.get("v2").copied().unwrap_or_default();
        // Of 200 draws of a fifth 40 are expected with a deviation of 5.7: five of them to either side.
        ensure!((12..=68).contains(&second), "{seen:?}");
        ensure!(seen.get("v1") == Some(&(200 - second)), "{seen:?}");
        Ok(())
    }

    /// A15, F19: Firefox gets v2, every other client v1.
    fn knows_firefox(&self) -> Result<()> {
        self.apply(FIREFOX)?;
        let firefox = "-A 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0'";
        let chrome = "-A 'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/126.0'";
        for (agent, version) in [(firefox, "v2"), (chrome, "v1"), ("", "v1")] {
            self.all_are("/", agent, version)?;
        }
        Ok(())
    }

    /// A25, A26, F62, F63: a tenth of the requests to the catalogue is answered with 500 on purpose; then each waits.
    fn has_faults(&self) -> Result<()> {
        self.apply(ABORT)?;
        eventually("some are aborted", || {
            let seen = self.versions("/catalogue", "", 40)?;
            ensure!(seen.contains_key("500"), "{seen:?}");
            Ok(())
        })?;
        let seen = self.versions("/catalogue", "", 200)?;
        let aborted = seen.get("500").copied().unwrap_or_default();
        // Of 200 draws of a tenth 20 are expected with a deviation of 4.2.
        ensure!((2..=42).contains(&aborted), "{seen:?}");
        ensure!(seen.get("v1") == Some(&(200 - aborted)), "{seen:?}");
        self.apply(DELAY)?;
        eventually("the answer is late", || {
            let answer = self.ask("/catalogue", "", 1)?.pop().context("an answer")?;
            ensure!(answer.status == 200 && answer.seconds >= 5.0, "{answer:?}");
            Ok(())
        })?;
        self.apply(RULES)?;
        self.all_are("/catalogue", "", "v1")
    }

    /// A31, F32: by the client's address, the same replica answers one client each time.
    fn balances_by_address(&self) -> Result<()> {
        let namespace = &self.namespace;
        namespace.kubectl(&["scale", "deployment/catalogue", "--replicas=3"])?;
        let clients: Vec<String> = (0..8).map(|number| format!("client-{number}")).collect();
        let nodes = nodes()?;
        let pods = clients.iter().zip(nodes.iter().cycle());
        let pods: Vec<Value> = pods
            .map(|(name, node)| pod(name, Some(node), CLIENT))
            .collect();
        namespace.apply(&pods)?;
        for name in &clients {
            namespace.wait_ready(name)?;
        }
        let rolled = ["rollout", "status", "deployment/catalogue", "--timeout=60s"];
        namespace.kubectl(&rolled)?;
        let ask = "for i in $(seq 12); do timeout 5 wget -q -O - http://catalogue/tags; echo; done";
        let replicas = |client: &str| -> Result<Vec<String>> {
            let said = namespace.exec(client, ask)?;
            let said = said.lines().filter(|line| !line.trim().is_empty());
            let mut pods = said
                .map(|line| {
                    let page: Value = serde_json::from_str(line).context(line.to_owned())?;
                    Ok(page["pod"].as_str().context("a pod")?.to_owned())
                })
                .collect::<Result<Vec<_>>>()?;
            ensure!(pods.len() == 12, "{pods:?}");
            pods.sort();
            pods.dedup();
            Ok(pods)
        };
        eventually("all replicas answer", || {
            let seen = replicas("client-0")?;
            ensure!(seen.len() == 3, "{seen:?}");
            Ok(())
        })?;
        self.apply(BY_ADDRESS)?;
        eventually("the address decides", || {
            let seen = replicas("client-0")?;
            ensure!(seen.len() == 1, "{seen:?}");
            Ok(())
        })?;
        let mut chosen = std::collections::BTreeSet::new();
        for client in &clients {
            let seen = replicas(client)?;
            ensure!(seen.len() == 1, "{client}: {seen:?}");
            chosen.extend(seen);
        }
        // Of eight clients all at one of three replicas: once in 2,187.
        ensure!(chosen.len() > 1, "all clients are at {chosen:?}");
        self.apply(RULES)
    }

    /// A45, F85: a DENY of the catalogue shows the words that users know; an ALLOW of GET lets GET pass and no POST.
    fn obeys_policies(&self) -> Result<()> {
        self.apply(DENY)?;
        self.all_are("/catalogue", "", "403")?;
        let answer = self.ask("/catalogue", "", 1)?.pop().context("an answer")?;
        ensure!(answer.body == "RBAC: access denied", "{answer:?}");
        self.all_are("/", "", "v1")?;
        self.apply(ALLOW)?;
        self.all_are("/catalogue", "", "v1")?;
        self.all_are("/catalogue", "-d x=1", "403")?;
        // A waypoint checks what no agent could, and its status does not say that it is wrong.
        let conditions = || {
            let policy = self
                .namespace
                .get(&["authorizationpolicy", "deny-catalogue-list"])?;
            Ok(policy["status"]["conditions"].clone())
        };
        let reason = ("True", "AcceptedWithWarnings");
        until_said(conditions, "keelson.io/Accepted", reason)?;
        application::delete(&self.namespace, ALLOW)?;
        self.all_are("/catalogue", "-d x=1", "v1")
    }

    /// A49, F93: the OPTIONS request that is printed gets the answer that is printed.
    fn answers_a_preflight(&self) -> Result<()> {
        self.apply(CORS)?;
        let command = format!(
            "curl -s -m 5 -I -X OPTIONS -H 'access-control-request-method: PUT' -H 'origin: http://aboullaite.me' \
             http://{}/catalogue",
            self.door
        );
        eventually("the rule counts", || {
            let head = self.mesh.on(&self.from, &command)?.to_lowercase();
            let lines: Vec<&str> = head.lines().map(str::trim).collect();
            for line in [
                "http/1.1 200 ok",
                "access-control-allow-origin: http://aboullaite.me",
                "access-control-allow-methods: post,get",
                "access-control-allow-headers: x-foo-bar",
                "access-control-max-age: 86400",
            ] {
                ensure!(lines.contains(&line), "{line}: {lines:?}");
            }
            // False is not said.
            ensure!(!head.contains("allow-credentials"), "{head}");
            Ok(())
        })?;
        self.apply(RULES)
    }
}

/// The objects of a file that are of a kind.
fn only(kind: &str, text: &str) -> Result<Vec<Value>> {
    let mut all = lab::parse_yaml(text)?;
    all.retain(|object| object["kind"] == kind);
    Ok(all)
}

/// The Deployments of a file, with a page of ours in them.
fn deployments(text: &str, words: &[&str]) -> Result<Vec<Value>> {
    let mut all = lab::parse_yaml(text)?;
    for deployment in &mut all {
        let template = &mut deployment["spec"]["template"];
        let version = template["metadata"]["labels"]["version"].as_str();
        let version = version.context("a version")?.to_owned();
        // The images' programs have a capability of their own for the low port.
        template["spec"]["securityContext"] = json!({
            "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
        });
        let probe = &mut template["spec"]["containers"][0]["readinessProbe"];
        probe["initialDelaySeconds"] = 1.into();
        let words = [&["--version", &version], words].concat();
        take_the_place_of_its_image(deployment, &words)?;
    }
    Ok(all)
}

/// A13, A14, A15, A25, A26, A31, A45, A49: the shop follows its own rules.
#[test]
#[ignore = "nightly"]
fn the_sock_shop_stands_up_from_its_own_files_and_follows_its_own_rules() -> Result<()> {
    let mesh = Installed::install()?;
    let _kinds = Kinds::apply()?;
    let shop = Shop::stand_up(&mesh)?;
    shop.flips()?;
    shop.has_a_canary()?;
    shop.knows_firefox()?;
    shop.apply(RULES)?;
    shop.all_are("/", "", "v1")?;
    shop.has_faults()?;
    shop.balances_by_address()?;
    shop.obeys_policies()?;
    shop.answers_a_preflight()?;
    shop.all_are("/catalogue", "", "v1")
}
