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
