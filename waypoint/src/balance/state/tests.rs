use model::ServiceKey;

use super::*;

fn cluster() -> Arc<ClusterState> {
    let key = ClusterKey {
        service: ServiceKey {
            namespace: "shop".into(),
            hostname: "cart.shop.svc.cluster.local".into(),
        },
        port: 80,
        subset: None,
    };
    Registry::default().cluster(&key)
}

fn rule(errors: u32) -> Outliers {
    Outliers {
        server_errors: Some(errors),
        ..Outliers::default()
    }
}

#[test]
fn errors_in_a_row_eject_an_endpoint_and_an_answer_between_does_not() {
    let cluster = cluster();
    let endpoint = cluster.endpoint("10.0.0.1:80".parse().unwrap());
    let note = |status| cluster.note(&endpoint, Outcome::Answered(status), Some(&rule(5)), 2);
    for status in [500, 500, 500, 500, 200, 500, 503, 500, 500] {
        note(status);
        assert!(!endpoint.is_ejected(), "F60, {status}");
    }
    note(500);
    assert!(endpoint.is_ejected(), "F60, A28");
}

#[test]
fn no_more_than_the_share_is_ejected_but_always_one() {
    let cluster = cluster();
    let endpoints = [1, 2, 3].map(|n| cluster.endpoint(([10, 0, 0, n], 80).into()));
    for endpoint in &endpoints {
        cluster.note(endpoint, Outcome::Answered(500), Some(&rule(1)), 3);
    }
    let ejected = endpoints.iter().filter(|one| one.is_ejected()).count();
    assert_eq!(ejected, 1, "10 % of 3, and at least one");
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_left_alone_without_a_rule() {
    let cluster = cluster();
    let endpoint = cluster.endpoint("10.0.0.1:80".parse().unwrap());
    cluster.note(&endpoint, Outcome::Unreachable, None, 1);
    assert!(endpoint.is_unreachable() && !endpoint.is_ejected());
    cluster.note(&endpoint, Outcome::Answered(200), None, 1);
    assert!(!endpoint.is_unreachable());
}

#[test]
fn the_load_is_what_waits_times_how_long_it_takes() {
    let cluster = cluster();
    let (idle, busy) = (
        cluster.endpoint("10.0.0.1:80".parse().unwrap()),
        cluster.endpoint("10.0.0.2:80".parse().unwrap()),
    );
    let requests: Vec<_> = (0..3).map(|_| busy.begin()).collect();
    assert!(busy.load() > idle.load());
    drop(requests);
    assert_eq!(busy.load(), idle.load());
}

#[test]
fn an_endpoint_is_new_from_when_it_is_ready() {
    let cluster = cluster();
    let endpoint = cluster.endpoint("10.0.0.1:80".parse().unwrap());
    endpoint.is_not_ready();
    std::thread::sleep(Duration::from_millis(30));
    assert!(
        endpoint.ready_for() < Duration::from_millis(20),
        "a start of 30 ms is none of it"
    );
    std::thread::sleep(Duration::from_millis(30));
    assert!(endpoint.ready_for() >= Duration::from_millis(30));
    endpoint.is_not_ready();
    assert!(
        endpoint.ready_for() < Duration::from_millis(20),
        "it has been away"
    );
}
