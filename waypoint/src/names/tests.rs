use std::net::{Ipv4Addr, UdpSocket};

use l7::backend::{EndpointPort, Locality};
use model::ServiceKey;
use model::service::{AppProtocol, ServicePort};
use parking_lot::Mutex;
use testkit::dns::{self, Answer};

use super::*;

fn service() -> ServiceKey {
    ServiceKey::new("shop", "api.example.com")
}

fn endpoint(uid: &str, hostname: Option<&str>) -> Endpoint {
    Endpoint {
        uid: uid.into(),
        addresses: Vec::new(),
        hostname: hostname.map(Into::into),
        identity: None,
        namespace: "shop".into(),
        labels: Arc::default(),
        node: "".into(),
        locality: Locality::default(),
        weight: 1,
        ports: vec![EndpointPort {
            service: service(),
            port: 80,
            target: 8080,
            ready: true,
        }],
        policies: Vec::new(),
    }
}

fn store() -> Store {
    let mut store = Store::default();
    store.apply(Resource::Service(l7::Service {
        key: service(),
        addresses: Vec::new(),
        ports: vec![ServicePort {
            port: 80,
            target_port: 0,
            app_protocol: AppProtocol::Http11,
        }],
        attached: true,
    }));
    store
}

fn members(store: &mut Store) -> Vec<String> {
    let config = store.config();
    let mut all: Vec<_> = config
        .clusters()
        .flat_map(|cluster| cluster.members.iter().map(|one| one.address.to_string()))
        .collect();
    all.sort();
    all
}

fn ips(last: &[u8]) -> Vec<IpAddr> {
    last.iter().map(|last| [192, 0, 2, *last].into()).collect()
}

#[test]
fn endpoints_follow_what_their_name_leads_to() {
    let (mut names, mut store) = (Names::default(), store());
    names.apply(&mut store, Resource::Endpoint(endpoint("e", Some("a.com"))));
    assert!(members(&mut store).is_empty(), "nobody knows yet");
    let name: Arc<str> = "a.com".into();
    assert!(names.learn(&mut store, &name, ips(&[2, 1, 2])));
    assert_eq!(members(&mut store), ["192.0.2.1:8080", "192.0.2.2:8080"]);
    assert!(!names.learn(&mut store, &name, ips(&[1, 2])), "no news");
    let mut with_loopback = ips(&[1, 2]);
    with_loopback.extend(["127.0.0.1", "::1", "0.0.0.0"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert!(
        !names.learn(&mut store, &name, with_loopback),
        "nobody makes a waypoint dial itself"
    );
    assert!(names.learn(&mut store, &name, ips(&[3])));
    assert_eq!(members(&mut store), ["192.0.2.3:8080"]);
    // Another endpoint of the same name is known at once.
    names.apply(&mut store, Resource::Endpoint(endpoint("f", Some("a.com"))));
    assert_eq!(members(&mut store).len(), 2);
    names.remove(&mut store, &ResourceName::Endpoint("f".into()));
    // Of one that gets an address nothing is left.
    let mut known = endpoint("e", None);
    known.addresses = ips(&[9]);
    names.apply(&mut store, Resource::Endpoint(known));
    assert_eq!(members(&mut store), ["192.0.2.9:8080"]);
    assert!(names.hostnames().is_empty());
    names.remove(&mut store, &ResourceName::Endpoint("e".into()));
    assert!(members(&mut store).is_empty());
    assert!(
        !names.learn(&mut store, &name, ips(&[4])),
        "nobody asks any more"
    );
}

#[test]
fn an_answer_counts_until_it_is_over_and_silence_changes_nothing() {
    let name: Arc<str> = "a.com".into();
    let learnt = Mutex::new(Vec::new());
    let mut due = Due {
        at: Instant::now(),
        failures: 0,
    };
    let mut taken = |told| {
        take(&name, told, &mut due, |_, addresses| {
            learnt.lock().push(addresses);
        })
    };
    for (life, pause) in [(0, 5), (30, 30), (86_400, 300)] {
        let told = Told::There(ips(&[1]), Duration::from_secs(life));
        assert_eq!(taken(told), Duration::from_secs(pause), "{life}");
    }
    assert_eq!(learnt.lock().len(), 3);
    let pauses: Vec<_> = (0..7)
        .map(|_| taken(Told::Silence("x".into())).as_secs())
        .collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 32]);
    assert_eq!(learnt.lock().len(), 3, "what was known counts");
    assert_eq!(taken(Told::Nowhere), Duration::from_secs(5));
    assert_eq!(learnt.lock().last(), Some(&Vec::new()));
    assert_eq!(
        taken(Told::Silence("x".into())).as_secs(),
        1,
        "it begins anew"
    );
}

/// F39: over real packets.
#[tokio::test]
async fn f39_names_are_asked_of_a_server_and_asked_again_when_they_are_over() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = socket.local_addr().unwrap();
    let answer = Arc::new(Mutex::new(Answer::There(vec![[192, 0, 2, 1].into()], 0)));
    let said = Arc::clone(&answer);
    let _server = dns::serve(socket, move |name| match name {
        "a.example.com" => said.lock().clone(),
        "broken.example.com" => Answer::Failed,
        _ => Answer::Nowhere,
    })
    .unwrap();
    let resolver = resolver(&[server]).unwrap();
    let news = Arc::new(Notify::new());
    let learnt: Arc<Mutex<Vec<(String, usize)>>> = Arc::default();
    let told = Arc::clone(&learnt);
    let wanted: BTreeSet<Arc<str>> = ["a.example.com", "broken.example.com", "no.example.com"]
        .map(Arc::from)
        .into();
    let following = follow(
        resolver,
        news,
        move || wanted.clone(),
        move |name, addresses| told.lock().push((name.to_string(), addresses.len())),
    );
    let told_of = |name: &str| {
        let learnt = learnt.lock();
        let of = learnt.iter().filter(|(one, _)| one == name);
        of.map(|(_, count)| *count).collect::<Vec<_>>()
    };
    let until = async {
        while told_of("a.example.com").is_empty() || told_of("no.example.com").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        *answer.lock() = Answer::There(vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()], 60);
        while told_of("a.example.com").last() != Some(&2) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = following => {}
        () = until => {}
    }
    assert_eq!(
        told_of("a.example.com"),
        [1, 2],
        "once each time it was over"
    );
    assert!(told_of("no.example.com").iter().all(|count| *count == 0));
    assert!(
        told_of("broken.example.com").is_empty(),
        "a failure is no answer"
    );
}
