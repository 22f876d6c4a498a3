//! Property: whatever order objects change, nodes speak and programs restart in, nobody routes a connection in plain
//! to an address that a node holds captured and has told of.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use manifest::NamespacedName;
use model::outbound::{RouteKind, route};
use model::{MeshState, Workload};
use proptest::prelude::*;
use proto::convert;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

/// One thing that happens. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Event {
    /// A pod object appears on a node.
    Create {
        name: usize,
        node: usize,
    },
    /// It is written again: with another uid, or without one.
    Rewrite {
        name: usize,
        uid: bool,
    },
    /// Its label takes it out of the mesh, or puts it in.
    Label {
        name: usize,
        captured: bool,
    },
    /// The kubelet writes the sandbox's address into it.
    Status {
        name: usize,
    },
    Terminate {
        name: usize,
    },
    Delete {
        name: usize,
    },
    /// The node makes a sandbox for the object and captures it.
    Start {
        name: usize,
    },
    /// The sandbox goes away.
    Stop {
        sandbox: usize,
    },
    /// The node lets a pod go that is to be exempt.
    Release {
        sandbox: usize,
    },
    /// The controller hears of so many of the changes of objects that it has not heard of.
    Hear {
        changes: usize,
    },
    /// A node says what it holds; an agent that has lost its list says what it found so far.
    Report {
        node: usize,
        found: Option<usize>,
    },
    /// The controller starts again and lists everything.
    Restart,
    /// Agents start again from what they kept.
    AgentsRestart,
    /// Somebody writes endpoints by hand.
    Slice {
        address: usize,
    },
}

const NAMES: [&str; 3] = ["a", "b", "c"];
const NODES: [&str; 2] = ["n1", "n2"];

fn any_event() -> impl Strategy<Value = Event> {
    let (name, node, sandbox) = (0..NAMES.len(), 0..NODES.len(), 0..4_usize);
    prop_oneof![
        2 => (name.clone(), node.clone()).prop_map(|(name, node)| Event::Create { name, node }),
        2 => (name.clone(), any::<bool>()).prop_map(|(name, uid)| Event::Rewrite { name, uid }),
        1 => (name.clone(), any::<bool>())
            .prop_map(|(name, captured)| Event::Label { name, captured }),
        3 => name.clone().prop_map(|name| Event::Status { name }),
        1 => name.clone().prop_map(|name| Event::Terminate { name }),
        2 => name.clone().prop_map(|name| Event::Delete { name }),
        4 => name.prop_map(|name| Event::Start { name }),
        1 => sandbox.clone().prop_map(|sandbox| Event::Stop { sandbox }),
        1 => sandbox.clone().prop_map(|sandbox| Event::Release { sandbox }),
        6 => (1..4_usize).prop_map(|changes| Event::Hear { changes }),
        5 => (node, proptest::option::weighted(0.3, 0..3_usize))
            .prop_map(|(node, found)| Event::Report { node, found }),
        1 => Just(Event::Restart),
        1 => Just(Event::AgentsRestart),
        1 => (0..6_usize).prop_map(|address| Event::Slice { address }),
    ]
}

#[derive(Clone, Debug)]
struct PodObject {
    node: &'static str,
    uid: String,
    address: Option<IpAddr>,
    terminating: bool,
    captured: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Real {
    node: &'static str,
    name: &'static str,
    uid: String,
    address: IpAddr,
}

/// The cluster as it is, and what a controller and an agent make of what they hear.
struct Cluster {
    objects: BTreeMap<&'static str, PodObject>,
    slices: String,
    unheard: VecDeque<(String, bool)>,
    sandboxes: Vec<Real>,
    /// What the controller has been told of, and not been told that it is gone.
    told: Vec<Real>,
    uids: usize,
    mesh: Mesh,
    state: MeshState,
    seen: BTreeMap<String, Vec<u8>>,
    kinds: BTreeMap<&'static str, usize>,
}

const BASE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {keelson.io/mesh: enabled}}\n---\n\
    apiVersion: v1\nkind: Service\nmetadata: {name: hand, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";

fn addresses(node: &str) -> [IpAddr; 3] {
    [1, 2, 3].map(|last| format!("10.244.{}.{last}", &node[1..]).parse().unwrap())
}

fn manifest(name: &str, pod: &PodObject) -> String {
    let mut metadata = format!("name: {name}, namespace: shop");
    if !pod.uid.is_empty() {
        metadata.push_str(&format!(", uid: {}", pod.uid));
    }
    if pod.terminating {
        metadata.push_str(", deletionTimestamp: \"2026-01-01T00:00:00Z\"");
    }
    if let Some(address) = pod.address {
        metadata.push_str(&format!(", annotations: {{keelson.io/pod-ips: {address}}}"));
    }
    if !pod.captured {
        metadata.push_str(", labels: {keelson.io/mesh: disabled}");
    }
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{{metadata}}}\nspec: {{nodeName: {}}}\n",
        pod.node
    )
}

impl Cluster {
    fn new() -> Self {
        Self {
            objects: BTreeMap::new(),
            slices: String::new(),
            unheard: VecDeque::new(),
            sandboxes: Vec::new(),
            told: Vec::new(),
            uids: 0,
            mesh: Mesh::of(BASE),
            state: MeshState::default(),
            seen: BTreeMap::new(),
            kinds: BTreeMap::new(),
        }
    }

    fn fresh_uid(&mut self) -> String {
        self.uids += 1;
        format!("u{}", self.uids)
    }

    fn write(&mut self, name: &'static str, change: impl FnOnce(&mut PodObject)) {
        if let Some(pod) = self.objects.get_mut(name) {
            change(pod);
            self.unheard.push_back((manifest(name, pod), true));
        }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Create { name, node } => {
                let name = NAMES[name];
                if !self.objects.contains_key(name) {
                    let pod = PodObject {
                        node: NODES[node],
                        uid: self.fresh_uid(),
                        address: None,
                        terminating: false,
                        captured: true,
                    };
                    self.objects.insert(name, pod);
                    self.write(name, |_| ());
                }
            }
            Event::Rewrite { name, uid } => {
                let uid = if uid { self.fresh_uid() } else { String::new() };
                self.write(NAMES[name], |pod| pod.uid = uid);
            }
            Event::Label { name, captured } => {
                self.write(NAMES[name], |pod| pod.captured = captured);
            }
            Event::Status { name } => {
                let own = self.sandboxes.iter().rev();
                let own = own.filter(|real| real.name == NAMES[name]);
                let found: Vec<_> = own.map(|real| (real.node, real.address)).collect();
                self.write(NAMES[name], |pod| {
                    let here = found.iter().find(|(node, _)| *node == pod.node);
                    pod.address = here.map(|(_, address)| *address).or(pod.address);
                });
            }
            Event::Terminate { name } => self.write(NAMES[name], |pod| pod.terminating = true),
            Event::Delete { name } => {
                if let Some(pod) = self.objects.remove(NAMES[name]) {
                    self.unheard.push_back((manifest(NAMES[name], &pod), false));
                }
            }
            Event::Start { name } => self.start(NAMES[name]),
            Event::Stop { sandbox } => {
                if sandbox < self.sandboxes.len() {
                    self.sandboxes.remove(sandbox);
                }
            }
            Event::Release { sandbox } => {
                let exempt = self.sandboxes.get(sandbox).is_some_and(|real| {
                    let name = format!("shop/{}", real.name);
                    let told = self.mesh.node_pod(real.node, &name);
                    told.is_some_and(|pod| {
                        pod.capture() == agent::Capture::Exempt
                            && (pod.pod_uid.is_empty() || pod.pod_uid == real.uid)
                    })
                });
                if exempt {
                    self.sandboxes.remove(sandbox);
                }
            }
            Event::Hear { changes } => {
                for _ in 0..changes {
                    match self.unheard.pop_front() {
                        Some((text, true)) => drop(self.mesh.apply(&text)),
                        Some((text, false)) => drop(self.mesh.remove(&text)),
                        None => break,
                    }
                }
            }
            Event::Report { node, found } => self.report(NODES[node], found),
            Event::Restart => self.restart(),
            Event::AgentsRestart => {
                self.state = MeshState::default();
                let kept = std::mem::take(&mut self.seen);
                self.take(kept.into_iter().collect(), Vec::new());
            }
            Event::Slice { address } => {
                let all = [addresses("n1"), addresses("n2")].concat();
                self.slices = format!(
                    "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, namespace: shop, labels: {{kubernetes.io/service-name: hand}}}}\n\
                     addressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{{addresses: [{}]}}]\n",
                    all[address]
                );
                self.unheard.push_back((self.slices.clone(), true));
            }
        }
    }

    fn start(&mut self, name: &'static str) {
        let Some(pod) = self.objects.get(name).cloned() else {
            return;
        };
        if pod.terminating || !pod.captured {
            return;
        }
        // The agent knows one sandbox of a name, and the container runtime makes another only when the one before is
        // gone.
        let own = |real: &Real| real.name == name && real.node == pod.node;
        self.sandboxes.retain(|real| !own(real));
        let taken = |ip: &IpAddr| self.sandboxes.iter().any(|real| real.address == *ip);
        let free = addresses(pod.node).into_iter().find(|ip| !taken(ip));
        if let Some(address) = free {
            let (node, uid) = (pod.node, pod.uid);
            self.sandboxes.push(Real {
                node,
                name,
                uid,
                address,
            });
        }
    }

    fn report(&mut self, node: &'static str, found: Option<usize>) {
        let held = self.sandboxes.iter().filter(|real| real.node == node);
        let held: Vec<Real> = held.take(found.unwrap_or(usize::MAX)).cloned().collect();
        let pods = held.iter().map(|real| Sandbox {
            uid: real.uid.clone(),
            addresses: [real.address].into(),
            ..Sandbox::named(NamespacedName::new("shop", real.name))
        });
        let word = Word {
            pods: pods.collect(),
            partial: found.is_some(),
        };
        self.mesh.index.report(node, word);
        if found.is_none() {
            self.told.retain(|real| real.node != node);
        }
        for real in held {
            if !self.told.contains(&real) {
                self.told.push(real);
            }
        }
    }

    fn restart(&mut self) {
        let kept = serde_json::to_string(&self.mesh.index.captured()).unwrap();
        self.unheard.clear();
        self.mesh = Mesh::of(BASE);
        for (name, pod) in &self.objects {
            self.mesh.apply(&manifest(name, pod));
        }
        if !self.slices.is_empty() {
            self.mesh.apply(&self.slices);
        }
        self.mesh
            .index
            .restore(serde_json::from_str(&kept).unwrap());
    }

    /// What an agent hears: what changed and what went.
    fn push(&mut self) {
        self.mesh.index.flush();
        let snapshot = self.mesh.index.snapshot();
        let now: BTreeMap<String, Vec<u8>> = snapshot
            .addresses
            .iter()
            .map(|(name, resource)| (name.to_string(), resource.body().to_vec()))
            .collect();
        let changed = now
            .iter()
            .filter(|(name, body)| self.seen.get(*name) != Some(*body));
        let changed: Vec<_> = changed.map(|(n, b)| (n.clone(), b.clone())).collect();
        let gone = self.seen.keys().filter(|name| !now.contains_key(*name));
        let gone: Vec<_> = gone.cloned().collect();
        self.take(changed, gone);
    }

    fn take(&mut self, changed: Vec<(String, Vec<u8>)>, gone: Vec<String>) {
        for (name, body) in changed {
            match convert::address(&body).unwrap() {
                convert::Address::Workload(workload) => self.state.insert_workload(workload),
                convert::Address::Tombstone(tombstone) => self.state.insert_tombstone(tombstone),
                convert::Address::Service(service) => self.state.insert_service(service),
            }
            self.seen.insert(name, body);
        }
        for name in gone {
            self.state.remove(&name);
            self.seen.remove(&name);
        }
    }

    fn check(&mut self, so_far: &[Event]) {
        let client = Workload {
            namespace: "shop".into(),
            ..Workload::default()
        };
        let held: Vec<IpAddr> = self
            .told
            .iter()
            .filter(|real| self.sandboxes.contains(real))
            .map(|real| real.address)
            .collect();
        let dialled = held.iter().map(|ip| SocketAddr::new(*ip, 80));
        let by_hand = SocketAddr::new("10.96.0.1".parse().unwrap(), 80);
        for dialled in dialled.chain([by_hand]) {
            let mut rng = StdRng::seed_from_u64(0);
            let kind = match route(&self.state, &client, dialled, &mut rng) {
                Ok(route) => match route.kind {
                    RouteKind::Plain { dial } => {
                        assert!(
                            !held.contains(&dial.ip()),
                            "{dialled} is dialled in plain at {dial} after {so_far:#?}\n{:#?}\n{:#?}",
                            self.told,
                            self.seen.keys()
                        );
                        "plain"
                    }
                    RouteKind::Hbone { .. } => "tunnel",
                    RouteKind::ToSelf { .. } => "self",
                },
                Err(error) => error.reason().as_str(),
            };
            *self.kinds.entry(kind).or_default() += 1;
        }
    }
}

fn play(events: &[Event]) -> BTreeMap<&'static str, usize> {
    let mut cluster = Cluster::new();
    for (index, event) in events.iter().enumerate() {
        cluster.happen(event);
        cluster.push();
        cluster.check(&events[..=index]);
    }
    cluster.kinds
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_connection_to_an_address_that_a_node_holds_is_routed_in_plain(
        events in proptest::collection::vec(any_event(), 1..60)
    ) {
        play(&events);
    }
}

/// The property is worth something only if everything happens in it.
#[test]
fn the_property_sees_tunnels_tombstones_and_plain_connections() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let strategy = proptest::collection::vec(any_event(), 30..60);
    let mut kinds = BTreeMap::new();
    for _ in 0..200 {
        let events = strategy.new_tree(&mut runner).unwrap().current();
        for (kind, count) in play(&events) {
            *kinds.entry(kind).or_insert(0) += count;
        }
    }
    for kind in ["tunnel", "address_tombstone", "plain"] {
        assert!(
            kinds.get(kind).is_some_and(|count| *count > 10),
            "{kinds:?}"
        );
    }
}
