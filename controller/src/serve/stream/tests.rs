use prost::Message;
use proto::envoy::discovery::DeltaDiscoveryResponse;
use proto::google::rpc::Status;
use proto::type_url;

use super::*;
use compile::snapshot::{NodeEntry, WaypointEntry};

/// A client that remembers what it was told.
struct Client {
    stream: Stream,
    snapshot: Snapshot,
}

impl Client {
    fn new(snapshot: Snapshot) -> Self {
        Self {
            stream: Stream::new(Viewer::Node("n1".into())),
            snapshot,
        }
    }

    fn ask(&mut self, kind: Type, add: &[&str], remove: &[&str]) -> Meaning {
        self.send(kind, |request| {
            request.resource_names_subscribe = add.iter().map(ToString::to_string).collect();
            request.resource_names_unsubscribe = remove.iter().map(ToString::to_string).collect();
        })
    }

    fn ack(&mut self, response: &Response) -> Meaning {
        let kind = Type::find(response.type_url).expect("known");
        self.send(kind, |request| {
            request.response_nonce.clone_from(&response.nonce)
        })
    }

    fn send(&mut self, kind: Type, fill: impl FnOnce(&mut DeltaDiscoveryRequest)) -> Meaning {
        let mut request = DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        fill(&mut request);
        self.stream.request(request)
    }

    fn next(&mut self) -> Option<Response> {
        self.stream.next(&self.snapshot)
    }

    /// Every response that may go out, each acknowledged: `Type +new -gone`.
    fn drain(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(response) = self.next() {
            lines.push(line(&response));
            assert!(matches!(self.ack(&response), Meaning::Ack(..)));
        }
        lines
    }

    fn set(&mut self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.snapshot);
        self.snapshot.generation += 1;
    }
}

fn line(response: &Response) -> String {
    let kind = Type::find(response.type_url).expect("known");
    let frames = response.resources.iter().flat_map(|resource| {
        DeltaDiscoveryResponse::decode(resource.frame())
            .expect("decodes")
            .resources
            .into_iter()
            .map(|r| format!(" +{}", r.name))
    });
    let removed = response.removed.iter().map(|name| format!(" -{name}"));
    format!("{kind:?}{}", frames.chain(removed).collect::<String>())
}

fn put(resources: &mut Resources, kind: Type, name: &str, content: &str) {
    let workload = proto::istio::workload::Workload {
        uid: content.to_owned(),
        ..Default::default()
    };
    let address = proto::istio::workload::Address {
        r#type: Some(proto::istio::workload::address::Type::Workload(workload)),
    };
    resources.insert(
        name.into(),
        Arc::new(Resource::new(kind.url(), name, &address)),
    );
}

fn address(snapshot: &mut Snapshot, name: &str, content: &str) {
    put(&mut snapshot.addresses, Type::Address, name, content);
}

fn policy(snapshot: &mut Snapshot, name: &str, content: &str) {
    put(
        &mut snapshot.authorizations,
        Type::Authorization,
        name,
        content,
    );
}

fn two_of_each() -> Snapshot {
    let mut snapshot = Snapshot {
        generation: 1,
        ..Snapshot::default()
    };
    for name in ["a", "b"] {
        address(&mut snapshot, name, "1");
        policy(&mut snapshot, &format!("p/{name}"), "1");
    }
    snapshot
}

#[test]
fn policies_go_first_whatever_was_asked_first() {
    let mut client = Client::new(two_of_each());
    client.ask(Type::Address, &[], &[]);
    client.ask(Type::Authorization, &[], &[]);
    assert_eq!(client.drain(), ["Authorization +p/a +p/b", "Address +a +b"]);
    assert_eq!(client.drain(), [] as [&str; 0]);
}

#[test]
fn an_empty_world_is_told_once_so_that_the_client_knows() {
    let mut client = Client::new(Snapshot::default());
    client.ask(Type::Authorization, &["*"], &[]);
    client.ask(Type::Address, &["*"], &[]);
    assert_eq!(client.drain(), ["Authorization", "Address"]);
    client.set(|_| {});
    assert_eq!(client.drain(), [] as [&str; 0]);
}

#[test]
fn only_what_changed_is_sent() {
    let mut client = Client::new(two_of_each());
    client.ask(Type::Address, &[], &[]);
    client.drain();
    client.set(|s| address(s, "b", "2"));
    client.set(|s| address(s, "c", "1"));
    client.set(|s| drop(s.addresses.remove("a")));
    assert_eq!(
        client.drain(),
        ["Address +b +c -a"],
        "three changes in one response"
    );
    client.set(|s| address(s, "d", "1"));
    client.set(|s| drop(s.addresses.remove("d")));
    assert_eq!(client.drain(), [] as [&str; 0], "came and went unseen");
}

#[test]
fn policies_are_taken_back_after_the_workloads_that_named_them_changed() {
    let mut client = Client::new(two_of_each());
    client.ask(Type::Authorization, &[], &[]);
    client.ask(Type::Address, &[], &[]);
    client.drain();
    client.set(|s| {
        s.authorizations.remove("p/a");
        policy(s, "p/c", "1");
        address(s, "a", "no longer names p/a");
    });
    assert_eq!(
        client.drain(),
        ["Authorization +p/c", "Address +a", "Authorization -p/a"]
    );
    client.set(|s| drop(s.authorizations.remove("p/b")));
    assert_eq!(client.drain(), ["Authorization -p/b"]);
    // A policy that is back before its removal was told stays.
    client.set(|s| drop(s.authorizations.remove("p/c")));
    client.set(|s| policy(s, "p/c", "1"));
    assert_eq!(client.drain(), [] as [&str; 0]);
}

#[test]
fn one_response_of_a_type_is_on_the_way_and_later_types_wait_for_what_they_may_refer_to() {
    let mut client = Client::new(two_of_each());
    client.ask(Type::Authorization, &[], &[]);
    client.ask(Type::Address, &[], &[]);
    let policies = client.next().expect("policies");
    let addresses = client
        .next()
        .expect("addresses follow without waiting: the stream keeps their order");
    client.ack(&addresses);
    client.set(|s| address(s, "a", "2"));
    let more = client
        .next()
        .expect("nothing new about policies, so they hold nobody up");
    assert_eq!(line(&more), "Address +a");
    client.ack(&more);
    client.set(|s| {
        policy(s, "p/c", "1");
        address(s, "a", "names p/c");
    });
    assert_eq!(
        client.next(),
        None,
        "the policy may not go out, so its workload must wait"
    );
    client.ack(&policies);
    assert_eq!(client.drain(), ["Authorization +p/c", "Address +a"]);
}

#[test]
fn a_reconnect_gets_what_changed_meanwhile() {
    let mut client = Client::new(two_of_each());
    let version = |client: &Client, name: &str| client.snapshot.addresses[name].version.to_string();
    let brought = [
        ("a".to_owned(), version(&client, "a")),
        ("b".to_owned(), "an older one".to_owned()),
        ("gone".to_owned(), "x".to_owned()),
    ];
    client.send(Type::Address, |request| {
        request.initial_resource_versions = brought.into()
    });
    assert_eq!(client.drain(), ["Address +b -gone"]);
    let policy_gone = [
        (
            "p/a".to_owned(),
            client.snapshot.authorizations["p/a"].version.to_string(),
        ),
        ("p/x".to_owned(), "x".to_owned()),
    ];
    client.send(Type::Authorization, |request| {
        request.initial_resource_versions = policy_gone.into()
    });
    assert_eq!(client.drain(), ["Authorization +p/b", "Authorization -p/x"]);
}

#[test]
fn names_come_and_go_one_by_one() {
    let mut client = Client::new(two_of_each());
    client.ask(Type::Address, &["*"], &["*"]);
    assert_eq!(
        client.drain(),
        ["Address"],
        "subscribed to nothing, and told so"
    );
    client.ask(Type::Address, &["a", "missing"], &[]);
    assert_eq!(client.drain(), ["Address +a -missing"]);
    client.set(|s| {
        address(s, "a", "2");
        address(s, "b", "2");
    });
    assert_eq!(client.drain(), ["Address +a"]);
    client.ask(Type::Address, &["b"], &["a"]);
    assert_eq!(client.drain(), ["Address +b"]);
    client.set(|s| {
        address(s, "a", "3");
        s.addresses.remove("b");
    });
    assert_eq!(client.drain(), ["Address -b"]);
    client.ask(Type::Address, &["a"], &[]);
    assert_eq!(client.drain(), ["Address +a"], "asked for again");
    client.set(|s| address(s, "missing", "1"));
    assert_eq!(
        client.drain(),
        ["Address +missing"],
        "it was subscribed to all the time"
    );
    client.ask(Type::Address, &["*"], &[]);
    assert_eq!(client.drain(), ["Address +a +missing"]);
}

#[test]
fn named_resources_that_the_client_brought_are_not_sent_again() {
    let mut client = Client::new(two_of_each());
    let version = client.snapshot.addresses["a"].version.to_string();
    client.send(Type::Address, |request| {
        request.resource_names_subscribe = vec!["a".into(), "b".into(), "gone".into()];
        request.initial_resource_versions = [
            ("a".to_owned(), version),
            ("gone".to_owned(), "x".to_owned()),
        ]
        .into();
    });
    assert_eq!(client.drain(), ["Address +b -gone"]);
}

#[test]
fn answers_are_told_apart_from_each_other_and_from_old_ones() {
    let mut client = Client::new(two_of_each());
    assert_eq!(client.send(Type::Address, |_| {}), Meaning::Subscription);
    let first = client.next().expect("a response");
    let refuse = |request: &mut DeltaDiscoveryRequest| {
        request.response_nonce.clone_from(&first.nonce);
        request.error_detail = Some(Status {
            message: "a: no".into(),
            ..Status::default()
        });
    };
    assert_eq!(
        client.send(Type::Address, refuse),
        Meaning::Nack(Type::Address, 1, "a: no".into())
    );
    assert_eq!(
        client.send(Type::Address, refuse),
        Meaning::Subscription,
        "said before"
    );
    client.set(|s| address(s, "a", "2"));
    assert_eq!(
        client.drain(),
        ["Address +a"],
        "a refusal does not end the stream"
    );
    let unknown = DeltaDiscoveryRequest {
        type_url: "x/y".into(),
        ..Default::default()
    };
    assert_eq!(
        client.stream.request(unknown),
        Meaning::UnknownType("x/y".into())
    );
}

#[test]
fn a_node_sees_its_own_pods_only() {
    let mut snapshot = two_of_each();
    for node in ["n1", "n2"] {
        let name: Arc<str> = format!("pod-{node}").into();
        let resource = Arc::new(Resource::new(type_url::NODE_POD, &*name, &"x".to_owned()));
        let entry = NodeEntry {
            resource,
            namespace: "shop".into(),
            service_account: node.into(),
        };
        snapshot
            .nodes
            .insert(node.into(), [(name, Arc::new(entry))].into_iter().collect());
    }
    let mut client = Client::new(snapshot);
    client.ask(Type::NodePod, &[], &[]);
    assert_eq!(client.drain(), ["NodePod +pod-n1"]);
    client.ask(Type::NodePod, &["pod-n2"], &[]);
    assert_eq!(client.drain(), ["NodePod -pod-n2"]);
    client.set(|s| drop(s.nodes.remove("n2")));
    assert_eq!(client.drain(), [] as [&str; 0]);
    client.set(|s| drop(s.nodes.remove("n1")));
    assert_eq!(client.drain(), ["NodePod -pod-n1"]);
}

#[test]
fn workloads_alone_leave_services_out() {
    let mut snapshot = two_of_each();
    let service = proto::istio::workload::Service {
        name: "s".into(),
        ..Default::default()
    };
    let service = proto::istio::workload::Address {
        r#type: Some(proto::istio::workload::address::Type::Service(service)),
    };
    snapshot.addresses.insert(
        "s".into(),
        Arc::new(Resource::new(type_url::ADDRESS, "s", &service)),
    );
    let mut client = Client::new(snapshot);
    client.ask(Type::Workload, &[], &[]);
    let response = client.next().expect("a response");
    assert_eq!(line(&response), "Workload +a +b");
    let decoded = DeltaDiscoveryResponse::decode(response.resources[0].frame()).expect("decodes");
    let any = decoded.resources[0].resource.clone().expect("a body");
    assert_eq!(any.type_url, type_url::WORKLOAD);
    assert_eq!(
        proto::istio::workload::Workload::decode(any.value.as_slice())
            .expect("decodes")
            .uid,
        "1"
    );
    client.ack(&response);
    client.set(|s| drop(s.addresses.remove("s")));
    assert_eq!(client.drain(), [] as [&str; 0]);
}

/// A workload with an address on a node, or a Service with an address.
fn place(snapshot: &mut Snapshot, name: &str, node: Option<&str>, ip: [u8; 4]) {
    use proto::istio::workload::{Address, NetworkAddress, Service, Workload, address};

    let content = match node {
        Some(node) => address::Type::Workload(Workload {
            uid: name.to_owned(),
            node: node.to_owned(),
            addresses: vec![ip.to_vec()],
            network: "west".to_owned(),
            ..Default::default()
        }),
        None => address::Type::Service(Service {
            addresses: vec![NetworkAddress {
                network: "west".to_owned(),
                address: ip.to_vec(),
                length: None,
            }],
            ..Default::default()
        }),
    };
    let message = Address {
        r#type: Some(content),
    };
    let resource = Resource::new(type_url::ADDRESS, name, &message);
    snapshot.addresses.insert(name.into(), Arc::new(resource));
}

#[test]
fn on_demand_an_address_is_a_name_and_the_own_nodes_workloads_come_unasked() {
    let mut snapshot = Snapshot {
        generation: 1,
        ..Snapshot::default()
    };
    place(&mut snapshot, "own", Some("n1"), [10, 0, 0, 1]);
    place(&mut snapshot, "far", Some("n2"), [10, 0, 0, 2]);
    place(&mut snapshot, "other", Some("n2"), [10, 0, 0, 3]);
    place(&mut snapshot, "shop/svc", None, [10, 96, 0, 1]);
    let mut client = Client::new(snapshot);
    client.ask(Type::Address, &["*"], &["*"]);
    assert_eq!(client.drain(), ["Address +own"], "its own node's, unasked");
    client.ask(Type::Address, &["west/10.0.0.2"], &[]);
    assert_eq!(client.drain(), ["Address +far"]);
    client.ask(Type::Address, &["west/10.96.0.1"], &[]);
    assert_eq!(client.drain(), ["Address +shop/svc"]);
    client.ask(
        Type::Address,
        &["west/10.9.9.9", "east/10.0.0.3", "west/x", "/10.0.0.2"],
        &[],
    );
    assert_eq!(
        client.drain(),
        ["Address -/10.0.0.2 -east/10.0.0.3 -west/10.9.9.9 -west/x"],
        "nobody has these, and the client hears that"
    );
    // What it has stays up to date, what it did not ask for is not sent.
    client.set(|s| {
        place(s, "far", Some("n3"), [10, 0, 0, 2]);
        place(s, "other", Some("n4"), [10, 0, 0, 3]);
        place(s, "new", Some("n1"), [10, 0, 0, 4]);
    });
    assert_eq!(client.drain(), ["Address +far +new"]);
    // The address moves to another workload, the one that had it goes.
    client.set(|s| {
        s.addresses.remove("far");
        place(s, "heir", Some("n2"), [10, 0, 0, 2]);
    });
    assert_eq!(client.drain(), ["Address +heir -far"]);
    // An address that nobody had is asked for all the time.
    client.set(|s| place(s, "late", Some("n2"), [10, 9, 9, 9]));
    assert_eq!(client.drain(), ["Address +late"]);
    client.ask(Type::Address, &[], &["west/10.9.9.9"]);
    client.set(|s| s.addresses.remove("late").map_or((), drop));
    assert_eq!(client.drain(), [""; 0]);
}

#[test]
fn on_demand_a_resource_names_its_addresses() {
    let mut snapshot = Snapshot {
        generation: 1,
        ..Snapshot::default()
    };
    place(&mut snapshot, "far", Some("n2"), [10, 0, 0, 2]);
    let mut client = Client::new(snapshot.clone());
    client.ask(Type::Address, &["west/10.0.0.2"], &[]);
    let response = client.next().expect("a response");
    let sent = DeltaDiscoveryResponse::decode(response.resources[0].frame()).expect("decodes");
    assert_eq!(sent.resources[0].aliases, ["west/10.0.0.2"]);
    assert_eq!(
        response.resources[0].body(),
        snapshot.addresses["far"].body()
    );
    let mut all = Client::new(snapshot);
    all.ask(Type::Address, &[], &[]);
    let response = all.next().expect("a response");
    let sent = DeltaDiscoveryResponse::decode(response.resources[0].frame()).expect("decodes");
    assert!(sent.resources[0].aliases.is_empty());
}

#[test]
fn on_demand_a_reconnect_hears_what_has_gone() {
    let mut snapshot = Snapshot {
        generation: 1,
        ..Snapshot::default()
    };
    place(&mut snapshot, "heir", Some("n2"), [10, 0, 0, 2]);
    let mut client = Client::new(snapshot);
    client.send(Type::Address, |request| {
        request.resource_names_subscribe = vec!["west/10.0.0.2".into()];
        request.initial_resource_versions = [("far".to_owned(), "x".to_owned())].into();
    });
    assert_eq!(client.drain(), ["Address +heir -far"]);
}

/// The parts of the routes of `shop/waypoint`, each acknowledged: how many resources, what is removed, whether more follows.
fn parts(client: &mut Client) -> Vec<(usize, usize, bool)> {
    let mut parts = Vec::new();
    while let Some(response) = client.next() {
        assert_eq!(response.type_url, Type::L7Route.url());
        assert!(
            client.next().is_none(),
            "the next part waits for the answer"
        );
        parts.push((
            response.resources.len(),
            response.removed.len(),
            response.more,
        ));
        assert!(matches!(client.ack(&response), Meaning::Ack(..)));
    }
    parts
}

#[test]
fn a_large_response_to_a_waypoint_is_cut_into_parts() {
    let mut client = Client::new(Snapshot::default());
    client.stream = Stream::new(Viewer::Waypoint("shop/waypoint".into()));
    let routes = |client: &mut Client, names: std::ops::Range<usize>, content: &str| {
        let mut resources = Resources::default();
        for number in names {
            let name = format!("shop/cart/{number:04}");
            let content = format!("{content}{}", "x".repeat(1 << 10));
            put(&mut resources, Type::L7Route, &name, &content);
        }
        client.set(|snapshot| {
            let entry = WaypointEntry {
                routes: resources,
                ..WaypointEntry::default()
            };
            snapshot
                .waypoints
                .insert("shop/waypoint".into(), Arc::new(entry));
        });
    };
    routes(&mut client, 0..10, "a");
    client.ask(Type::L7Route, &[], &[]);
    assert_eq!(parts(&mut client), [(10, 0, false)], "a small one is whole");
    routes(&mut client, 5..205, "b");
    let told = parts(&mut client);
    assert!(told.len() > 2, "{told:?}");
    let (last, before) = told.split_last().expect("parts");
    assert!(
        before
            .iter()
            .all(|(_, removed, more)| *removed == 0 && *more)
    );
    assert_eq!(
        (last.1, last.2),
        (5, false),
        "what is gone goes with the last part"
    );
    assert_eq!(told.iter().map(|(count, ..)| count).sum::<usize>(), 200);
    assert!(client.next().is_none());
    // What changes between two parts comes after them.
    routes(&mut client, 5..205, "c");
    let first = client.next().expect("a part");
    routes(&mut client, 5..206, "c");
    client.ack(&first);
    let rest = parts(&mut client);
    assert_eq!(rest.last(), Some(&(1, 0, false)), "{rest:?}");
}
