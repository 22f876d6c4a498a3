use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use compile::index::view::ParentView;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn listener(name: &str, accepted: bool) -> ListenerView {
    ListenerView {
        name: name.to_owned(),
        kinds: vec!["HTTPRoute"],
        attached: 2,
        accepted: if accepted {
            Verdict::yes("Accepted")
        } else {
            Verdict::no("UnsupportedProtocol", "no".to_owned())
        },
        conflicted: Verdict::no("NoConflicts", String::new()),
        resolved: Verdict::yes("ResolvedRefs"),
    }
}

fn gateway(listeners: Vec<ListenerView>) -> GatewayView {
    GatewayView {
        object: Arc::default(),
        uid: "u".into(),
        generation: 7,
        refused: None,
        notes: Vec::new(),
        listeners,
        ports: [80].into(),
    }
}

fn outcome() -> Outcome {
    Outcome {
        refused: None,
        programmed: Verdict::yes("Programmed"),
        addresses: vec![("IPAddress", "192.0.2.1".to_owned())],
    }
}

fn said(conditions: &Value, kind: &str) -> (String, String) {
    let conditions = conditions.as_array().unwrap();
    let one = conditions.iter().find(|one| one["type"] == kind).unwrap();
    assert_eq!(one["observedGeneration"], 7);
    let text = |field: &str| one[field].as_str().unwrap().to_owned();
    (text("status"), text("reason"))
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

/// Issue 12 B4: a Gateway's status has the API's own reasons, and what stays the same keeps its time.
#[test]
fn a_gateways_status_says_what_became_of_it_and_of_each_listener() {
    let two = gateway(vec![listener("a", true), listener("b", false)]);
    let status = of_gateway(&two, &outcome(), &Value::Null);
    let conditions = &status["conditions"];
    assert_eq!(
        said(conditions, "Accepted"),
        is("True", "ListenersNotValid")
    );
    assert_eq!(said(conditions, "Programmed"), is("True", "Programmed"));
    assert_eq!(
        status["addresses"],
        json!([{"type": "IPAddress", "value": "192.0.2.1"}])
    );
    let [a, b] = status["listeners"].as_array().unwrap().as_slice() else {
        panic!("{status}");
    };
    assert_eq!(a["attachedRoutes"], 2);
    assert_eq!(a["supportedKinds"][0]["kind"], "HTTPRoute");
    assert_eq!(
        said(&a["conditions"], "Programmed"),
        is("True", "Programmed")
    );
    assert_eq!(
        said(&b["conditions"], "Accepted"),
        is("False", "UnsupportedProtocol")
    );
    assert_eq!(said(&b["conditions"], "Programmed"), is("False", "Invalid"));

    let none = gateway(vec![listener("b", false)]);
    let status = of_gateway(&none, &outcome(), &Value::Null);
    assert_eq!(
        said(&status["conditions"], "Accepted"),
        is("False", "ListenersNotValid")
    );
    assert_eq!(
        said(&status["conditions"], "Programmed"),
        is("False", "Invalid")
    );

    let mut before = of_gateway(&two, &outcome(), &Value::Null);
    let old = json!("2020-01-01T00:00:00Z");
    for one in before["conditions"].as_array_mut().unwrap() {
        one["lastTransitionTime"] = old.clone();
    }
    let foreign = json!({"type": "example.org/Fine", "status": "True", "lastTransitionTime": old});
    before["conditions"]
        .as_array_mut()
        .unwrap()
        .push(foreign.clone());
    let mut changed = outcome();
    changed.programmed = Verdict::no("Pending", "no pod".to_owned());
    let after = of_gateway(&two, &changed, &before);
    let all = after["conditions"].as_array().unwrap();
    assert!(all.contains(&foreign));
    let time = |kind: &str| {
        let one = all.iter().find(|one| one["type"] == kind).unwrap();
        one["lastTransitionTime"].clone()
    };
    assert_eq!(time("Accepted"), old);
    assert_ne!(time("Programmed"), old);
}

/// Issue 12 B4: what other controllers say of a route stays, and ours is put beside it.
#[test]
fn a_routes_status_keeps_what_others_say() {
    let reference = serde_json::from_value(json!({"name": "gw", "namespace": "edge"})).unwrap();
    let route = RouteView {
        uid: "u".into(),
        generation: 7,
        parents: vec![ParentView {
            reference,
            accepted: Verdict::no("NoMatchingListenerHostname", "none".to_owned()),
            resolved: Verdict::no("BackendNotFound", "there is no Service".to_owned()),
            partly: None,
        }],
    };
    let other = json!({"controllerName": "example.org/other", "parentRef": {"name": "x"}, "conditions": []});
    let gone =
        json!({"controllerName": CONTROLLER_NAME, "parentRef": {"name": "gone"}, "conditions": []});
    let status = of_route(&route, &json!({"parents": [other, gone]}));
    let [kept, ours] = status["parents"].as_array().unwrap().as_slice() else {
        panic!("{status}");
    };
    assert_eq!(kept, &other);
    assert_eq!(
        ours["parentRef"],
        json!({"name": "gw", "namespace": "edge"})
    );
    let conditions = &ours["conditions"];
    assert_eq!(
        said(conditions, "Accepted"),
        is("False", "NoMatchingListenerHostname")
    );
    assert_eq!(
        said(conditions, "ResolvedRefs"),
        is("False", "BackendNotFound")
    );
    // Written once, it is said already.
    assert_eq!(of_route(&route, &status), status);
}

/// A server that refuses every request, and how many it has got.
async fn refusing() -> (Client, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            counted.fetch_add(1, Ordering::Relaxed);
            let answer = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    (Client::try_from(config).unwrap(), count)
}

/// A status that the server refuses is not sent again at each look, but after a pause, or when there is something else to say.
#[tokio::test]
async fn a_status_that_is_refused_is_tried_again_after_a_pause() {
    let (client, count) = refusing().await;
    let asked = || count.load(Ordering::Relaxed);
    let mut writer = Writer::new(client);
    let name = NamespacedName {
        namespace: "shop".into(),
        name: "door".into(),
    };
    let mut view = View::default();
    view.gateways
        .insert(name.clone(), gateway(vec![listener("web", true)]));
    let outcomes = BTreeMap::from([(name.clone(), outcome())]);
    for _look in 0..3 {
        writer.write(&view, &outcomes).await;
    }
    assert_eq!(asked(), 1);
    for tried in writer.tries.values_mut() {
        tried.next = Instant::now();
    }
    writer.write(&view, &outcomes).await;
    assert_eq!(asked(), 2);
    assert_eq!(writer.tries.values().next().unwrap().failures, 2);
    view.gateways.get_mut(&name).unwrap().generation += 1;
    writer.write(&view, &outcomes).await;
    assert_eq!(asked(), 3);
}
