use std::collections::BTreeMap;

use manifest::{Object, Origin};
use proptest::prelude::*;
use serde_json::json;

use super::*;

const KINDS: [Kind; 2] = [Kind::Namespace, Kind::AuthorizationPolicy];

/// A server with few names, that counts revisions and gives out uids as Kubernetes does.
#[derive(Default)]
struct Server {
    revision: u64,
    /// By kind and name: uid, revision, whether it can be read.
    objects: BTreeMap<(Kind, u8), (u64, u64, bool)>,
    /// What a receiver must have: uid and revision of the last good version, or the refusal of a broken policy.
    truth: BTreeMap<(Kind, u8), Option<(u64, u64)>>,
    events: Vec<(Kind, Told)>,
}

fn value(kind: Kind, name: u8, (uid, revision, good): (u64, u64, bool)) -> Value {
    let namespace = kind.is_namespaced().then_some("n");
    let rules = if good { "rules" } else { "rulez" };
    json!({
        "metadata": {
            "name": format!("o{name}"), "namespace": namespace, "uid": format!("u{uid}"),
            "resourceVersion": revision.to_string(), "generation": revision,
        },
        "spec": if kind == Kind::Namespace { json!({}) } else { json!({rules: [{}]}) },
    })
}

impl Server {
    fn apply(&mut self, kind: Kind, name: u8, good: bool) {
        let good = good || kind == Kind::Namespace;
        self.revision += 1;
        let known = self.objects.get(&(kind, name));
        let uid = known.map_or(self.revision, |(uid, ..)| *uid);
        let object = (uid, self.revision, good);
        self.objects.insert((kind, name), object);
        if good {
            self.truth.insert((kind, name), Some((uid, self.revision)));
        } else {
            self.truth.entry((kind, name)).or_insert(None);
        }
        self.events
            .push((kind, Told::Applied(value(kind, name, object))));
    }

    fn delete(&mut self, kind: Kind, name: u8) {
        self.revision += 1;
        self.truth.remove(&(kind, name));
        if let Some((uid, ..)) = self.objects.remove(&(kind, name)) {
            let namespace = if kind.is_namespaced() { "n" } else { "" };
            let (name, uid) = (format!("o{name}"), format!("u{uid}"));
            self.events.push((
                kind,
                Told::Deleted {
                    namespace: namespace.to_owned(),
                    name,
                    uid,
                },
            ));
        }
    }

    fn list(&self, kind: Kind) -> Vec<(Kind, Told)> {
        let all = self.objects.iter().filter(|((of, _), _)| *of == kind);
        let named = all.map(|((_, name), object)| Told::Listed(value(kind, *name, *object)));
        let told = std::iter::once(Told::ListStarts)
            .chain(named)
            .chain([Told::ListDone]);
        told.map(|told| (kind, told)).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Apply(usize, u8, bool),
    Delete(usize, u8),
    /// All events so far that were not given are; or a cut watch loses them, and a list follows.
    Deliver {
        cut: bool,
    },
    /// The last events come again.
    Again(usize),
    Batch,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..KINDS.len(), 0..4_u8, any::<bool>()).prop_map(|(kind, name, good)| Step::Apply(kind, name, good)),
        2 => (0..KINDS.len(), 0..4_u8).prop_map(|(kind, name)| Step::Delete(kind, name)),
        2 => any::<bool>().prop_map(|cut| Step::Deliver { cut }),
        1 => (0..4_usize).prop_map(Step::Again),
        1 => Just(Step::Batch),
    ]
}

/// What a receiver of batches has: uid and generation, none for a policy that refuses.
#[derive(Default)]
struct Receiver(BTreeMap<ObjectKey, Option<(String, i64)>>);

impl Receiver {
    fn take(&mut self, batch: Option<Batch>) {
        let Some(batch) = batch else { return };
        // As the pipeline does.
        for key in &batch.removals {
            self.0.remove(key);
        }
        for upsert in &batch.upserts {
            let Origin::Object { uid, generation } = &upsert.origin else {
                panic!("{upsert:?}")
            };
            let broken = matches!(upsert.object, Object::Broken(_));
            let version = (!broken).then(|| (uid.to_string(), *generation));
            self.0.insert(upsert.object.key(), version);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever is lost, cut off, listed again or comes twice: what a receiver has is what the server has, with the last
    /// good version of what is broken. A version that was never seen, because the watch was cut, cannot stay.
    #[test]
    fn after_any_events_and_faults_the_receiver_has_what_the_server_has(steps in prop::collection::vec(step(), 1..60)) {
        let mut server = Server::default();
        let mut memory = Memory::new("istio-system", &KINDS);
        let mut receiver = Receiver::default();
        let mut given = 0;
        let mut lost = false;
        for kind in KINDS {
            prop_assert!(memory.batch().is_none());
            for (kind, told) in server.list(kind) {
                memory.take(kind, told);
            }
        }
        receiver.take(memory.batch());
        for step in steps {
            match step {
                Step::Apply(kind, name, good) => server.apply(KINDS[kind], name, good),
                Step::Delete(kind, name) => server.delete(KINDS[kind], name),
                Step::Deliver { cut: false } => {
                    for (kind, told) in &server.events[given..] {
                        memory.take(*kind, told.clone());
                    }
                    given = server.events.len();
                }
                Step::Deliver { cut: true } => {
                    lost |= given < server.events.len();
                    given = server.events.len();
                    for kind in KINDS {
                        for (kind, told) in server.list(kind) {
                            memory.take(kind, told);
                        }
                    }
                }
                Step::Again(count) => {
                    for (kind, told) in &server.events[given.saturating_sub(count)..given] {
                        // The server may say again that something changed, not that something is there that is gone.
                        if let Told::Applied(object) = told {
                            let uid = object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
                            let there = server.objects.values().any(|(own, ..)| format!("u{own}") == uid);
                            if !there {
                                continue;
                            }
                        }
                        memory.take(*kind, told.clone());
                    }
                }
                Step::Batch => receiver.take(memory.batch()),
            }
        }
        for (kind, told) in &server.events[given..] {
            memory.take(*kind, told.clone());
        }
        receiver.take(memory.batch());
        prop_assert!(memory.batch().is_none());
        let truth: BTreeMap<ObjectKey, _> = server.truth.iter().map(|((kind, name), version)| {
            let namespace = if kind.is_namespaced() { "n" } else { "" };
            let version = version.map(|(uid, revision)| (format!("u{uid}"), i64::try_from(revision).unwrap_or(0)));
            (ObjectKey::new(*kind, namespace, &format!("o{name}")), version)
        }).collect();
        if lost {
            prop_assert_eq!(receiver.0.keys().collect::<Vec<_>>(), truth.keys().collect::<Vec<_>>());
        } else {
            prop_assert_eq!(receiver.0, truth);
        }
    }
}

#[test]
fn a_late_word_of_an_object_that_is_gone_takes_its_successor_nothing() {
    let mut memory = Memory::new("istio-system", &[Kind::Namespace]);
    let mut receiver = Receiver::default();
    memory.take(Kind::Namespace, Told::ListStarts);
    memory.take(
        Kind::Namespace,
        Told::Listed(value(Kind::Namespace, 1, (7, 7, true))),
    );
    memory.take(Kind::Namespace, Told::ListDone);
    for uid in ["u6", "u7"] {
        let name = "o1".to_owned();
        let told = Told::Deleted {
            namespace: String::new(),
            name,
            uid: uid.to_owned(),
        };
        memory.take(Kind::Namespace, told);
        receiver.take(memory.batch());
        assert_eq!(receiver.0.len(), usize::from(uid == "u6"));
    }
}

/// Every kind that gateways and routes are made of, as an API server has them.
fn edge() -> Vec<(Kind, Value)> {
    let meta = |namespace: &str, name: &str| {
        json!({
            "name": name, "namespace": namespace, "uid": format!("{namespace}-{name}"), "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        })
    };
    let namespace = |name: &str| {
        let labels = json!({"keelson.io/mesh": "enabled", "kubernetes.io/metadata.name": name});
        let metadata = json!({"name": name, "uid": name, "labels": labels});
        (Kind::Namespace, json!({"metadata": metadata}))
    };
    let pod = |(namespace, name): (&str, &str), address: &str, labels: Value| {
        let mut metadata = meta(namespace, name);
        metadata["labels"] = labels;
        // A folder has no status.
        metadata["annotations"] = json!({"keelson.io/pod-ips": address});
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let status = json!({"phase": "Running", "podIPs": [{"ip": address}], "conditions": ready});
        let spec = json!({"nodeName": "n1", "serviceAccountName": "default", "containers": []});
        let pod = json!({"metadata": metadata, "spec": spec, "status": status});
        (Kind::Pod, pod)
    };
    let of = |kind, (namespace, name): (&str, &str), spec: Value| {
        (
            kind,
            json!({"metadata": meta(namespace, name), "spec": spec}),
        )
    };
    let secret = |(namespace, name): (&str, &str)| {
        // "-----BEGIN CERTIFICATE-----"
        let pem = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t";
        let data = json!({"tls.crt": pem, "tls.key": pem});
        let secret =
            json!({"metadata": meta(namespace, name), "type": "kubernetes.io/tls", "data": data});
        (Kind::Secret, secret)
    };
    let gateway = json!({
        "gateway.networking.k8s.io/gateway-name": "gw", "gateway.networking.k8s.io/gateway-class-name": "keelson",
        "istio": "ingressgateway",
    });
    let parent = json!([{"name": "gw", "namespace": "edge"}]);
    let backend = json!([{"backendRefs": [{"name": "cart", "namespace": "shop", "port": 80}]}]);
    vec![
        namespace("edge"),
        namespace("shop"),
        pod(("edge", "gw-1"), "10.0.0.1", gateway),
        pod(("shop", "cart-1"), "10.0.0.2", json!({"app": "cart"})),
        of(
            Kind::Service,
            ("shop", "cart"),
            json!({"clusterIP": "10.96.0.1", "selector": {"app": "cart"}, "ports": [{"name": "http", "port": 80}]}),
        ),
        of(
            Kind::Gateway,
            ("edge", "gw"),
            json!({"gatewayClassName": "keelson", "listeners": [
                {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}},
                {"name": "https", "port": 443, "protocol": "HTTPS", "allowedRoutes": {"namespaces": {"from": "All"}},
                 "tls": {"certificateRefs": [{"name": "own"}, {"name": "granted", "namespace": "shop"}]}},
            ]}),
        ),
        of(
            Kind::IstioGateway,
            ("edge", "istio"),
            json!({"selector": {"istio": "ingressgateway"}, "servers": [
                {"port": {"number": 8443, "name": "https", "protocol": "HTTPS"}, "hosts": ["*"], "tls": {"mode": "SIMPLE", "credentialName": "istios"}},
                {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]},
            ]}),
        ),
        of(
            Kind::VirtualService,
            ("edge", "to-cart"),
            json!({"hosts": ["*"], "gateways": ["istio"], "http": [{"route": [{"destination": {"host": "cart.shop.svc.cluster.local"}}]}]}),
        ),
        of(
            Kind::DestinationRule,
            ("shop", "cart"),
            json!({"host": "cart", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}}),
        ),
        of(
            Kind::HttpRoute,
            ("edge", "r"),
            json!({"parentRefs": parent, "rules": backend}),
        ),
        of(
            Kind::GrpcRoute,
            ("edge", "g"),
            json!({"parentRefs": parent, "hostnames": ["grpc.example.com"], "rules": backend}),
        ),
        of(
            Kind::ReferenceGrant,
            ("shop", "all"),
            json!({
                "from": [
                    {"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "edge"},
                    {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "edge"},
                    {"group": "gateway.networking.k8s.io", "kind": "GRPCRoute", "namespace": "edge"},
                ],
                "to": [{"group": "", "kind": "Secret", "name": "granted"}, {"group": "", "kind": "Service"}],
            }),
        ),
        secret(("edge", "own")),
        secret(("shop", "granted")),
        secret(("edge", "istios")),
    ]
}

fn add(index: &mut compile::index::Index, batch: Batch) {
    for key in &batch.removals {
        index.remove(key);
    }
    for upsert in &batch.upserts {
        index.apply(upsert);
    }
    if let Some(unreadable) = batch.unreadable {
        index.set_unreadable(unreadable);
    }
    index.flush();
}

/// Everything that gateways are told, and which Secrets they name.
fn told(index: &compile::index::Index) -> String {
    let all = index.snapshot().waypoints.iter();
    let all = all.map(|(name, entry)| {
        let of = |resources: &compile::snapshot::Resources| {
            let bodies = resources
                .iter()
                .map(|(name, one)| format!("{name} {:?}", one.body()));
            bodies.collect::<Vec<_>>().join("\n")
        };
        let parts = [
            &entry.services,
            &entry.endpoints,
            &entry.backends,
            &entry.policies,
            &entry.routes,
            &entry.listeners,
        ];
        format!("{name}:\n{}", parts.map(of).join("\n"))
    });
    let all: Vec<String> = all.collect();
    format!("{}\n{:?}", all.join("\n"), index.named_secrets())
}

#[derive(Clone, Debug)]
enum Happens {
    /// An object is there, changed or anew.
    There(usize),
    Gone(usize),
    /// A kind is listed anew.
    Listed(usize),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Issue 12 B4, B8: whatever comes in whatever order from an API server, gateways are told what a folder with the same
    /// objects tells them; Secrets are read as far as they are named, and forgotten when they are not.
    #[test]
    fn gateways_are_told_the_same_from_a_cluster_and_from_a_folder(
        steps in prop::collection::vec((0_u8..6, 0_usize..15), 0..60)
    ) {
        let steps = steps.into_iter().map(|(what, which)| match what {
            0 => Happens::Gone(which),
            1 => Happens::Listed(which),
            _ => Happens::There(which),
        });
        let objects = edge();
        prop_assert_eq!(objects.len(), 15);
        let kinds: Vec<Kind> = super::super::KINDS.to_vec();
        let mut memory = Memory::new("istio-system", &kinds);
        let mut index = compile::index::Index::new(compile::index::MeshConfig::default());
        for kind in &kinds {
            memory.take(*kind, Told::ListStarts);
            memory.take(*kind, Told::ListDone);
        }
        let mut there: BTreeMap<usize, u64> = BTreeMap::new();
        let mut asked: BTreeSet<NamespacedName> = BTreeSet::new();
        let mut revision = 0;
        let written = |which: usize, revision: u64| {
            let (kind, mut object) = objects[which].clone();
            object["metadata"]["resourceVersion"] = revision.to_string().into();
            (kind, object)
        };
        let name = |which: usize| {
            let text = |pointer| objects[which].1.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            NamespacedName::new(text("/metadata/namespace"), text("/metadata/name"))
        };
        // At last all that is there is a fact for long.
        for step in steps.chain([Happens::Listed(0)]) {
            revision += 1;
            match step {
                Happens::There(which) => {
                    there.insert(which, revision);
                    let (kind, object) = written(which, revision);
                    if kind != Kind::Secret {
                        memory.take(kind, Told::Applied(object));
                    } else if asked.contains(&name(which)) {
                        memory.take(kind, Told::Named(name(which), Ok(Some(object))));
                    }
                }
                Happens::Gone(which) => if there.remove(&which).is_some() {
                    let (kind, object) = written(which, revision);
                    let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
                    let NamespacedName { namespace, name: own } = name(which);
                    if kind != Kind::Secret {
                        let (namespace, name) = (namespace.to_string(), own.to_string());
                        memory.take(kind, Told::Deleted { namespace, name, uid });
                    } else if asked.contains(&name(which)) {
                        memory.take(kind, Told::Named(name(which), Ok(None)));
                    }
                },
                Happens::Listed(which) => {
                    let kind = objects[which].0;
                    if kind != Kind::Secret {
                        memory.take(kind, Told::ListStarts);
                        for (which, revision) in &there {
                            let (of, object) = written(*which, *revision);
                            if of == kind {
                                memory.take(kind, Told::Listed(object));
                            }
                        }
                        memory.take(kind, Told::ListDone);
                    }
                }
            }
            // As often as it takes until nobody is asked for more.
            loop {
                if let Some(batch) = memory.batch() {
                    add(&mut index, batch);
                }
                let named = BTreeSet::clone(index.named_secrets());
                if named == asked {
                    break;
                }
                for gone in asked.difference(&named) {
                    memory.take(Kind::Secret, Told::Unnamed(gone.clone()));
                }
                for new in named.difference(&asked) {
                    let is_it = |which: &&usize| objects[**which].0 == Kind::Secret && name(**which) == *new;
                    let found = there.keys().find(is_it).map(|which| written(*which, there[which]).1);
                    memory.take(Kind::Secret, Told::Named(new.clone(), Ok(found)));
                }
                asked = named;
            }
        }
        let mut known = BTreeSet::new();
        memory.tell_answered(&mut known);
        prop_assert_eq!(&known, &asked);
        // Of Secrets that nobody names nothing is kept.
        let held = memory.held.keys().filter(|key| is_of(key, Kind::Secret)).count();
        let named_and_there = there.keys().filter(|which| objects[**which].0 == Kind::Secret && asked.contains(&name(**which)));
        prop_assert_eq!(held, named_and_there.count());

        let folder = tempfile::tempdir().unwrap();
        for which in there.keys() {
            let (kind, mut object) = objects[*which].clone();
            let (group, version) = (kind.group(), kind.versions()[0]);
            object["apiVersion"] = if group.is_empty() { version.into() } else { format!("{group}/{version}").into() };
            object["kind"] = kind.as_str().into();
            std::fs::write(folder.path().join(format!("{which}.json")), object.to_string()).unwrap();
        }
        let mut from_folder = compile::index::Index::new(compile::index::MeshConfig::default());
        let mut files = compile::memory::Memory::new("istio-system");
        add(&mut from_folder, files.scan(folder.path()).batch);
        prop_assert_eq!(told(&index), told(&from_folder));
    }
}

/// Issue 11 B4: a Secret that may not be read says so where it is named, and what was read before stays.
#[test]
fn a_secret_that_may_not_be_read_says_why_and_keeps_what_was_known() {
    let mut memory = Memory::new("istio-system", &[]);
    let mut index = compile::index::Index::new(compile::index::MeshConfig::default());
    let secret = edge().into_iter().nth(12).unwrap().1;
    let name = NamespacedName::new("edge", "own");
    let take = |memory: &mut Memory, found| {
        memory.take(Kind::Secret, Told::Named(name.clone(), found));
        memory.batch()
    };
    let batch = take(&mut memory, Err("secrets is forbidden".to_owned())).unwrap();
    let why = batch.unreadable.clone().unwrap();
    assert_eq!(why.get(&name).unwrap(), "secrets is forbidden");
    add(&mut index, batch);
    let batch = take(&mut memory, Ok(Some(secret))).unwrap();
    assert_eq!(batch.unreadable, Some(BTreeMap::new()));
    assert_eq!(batch.upserts.len(), 1);
    let batch = take(&mut memory, Err("gone for a while".to_owned())).unwrap();
    assert!(batch.removals.is_empty(), "{batch:?}");
    assert!(take(&mut memory, Err("gone for a while".to_owned())).is_none());
    memory.take(Kind::Secret, Told::Unnamed(name.clone()));
    let batch = memory.batch().unwrap();
    assert_eq!(batch.removals.len(), 1);
    assert_eq!(batch.unreadable, Some(BTreeMap::new()));
}
