//! A request target, and a rule as a waypoint is told it: the normal form of the path is one that no second look
//! changes, and rule and request are decided about whatever they are.
#![no_main]

use http::{HeaderMap, Method};
use l7::request::{Client, Destination, Request};
use l7::{Path, Store};
use model::ServiceKey;
use proto::type_url::{L7_ROUTE, L7_SERVICE};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let (target, rule) = (&input[..end], &input[end + 1..]);
    let Ok(path) = str::from_utf8(target).map_err(drop).and_then(|target| Path::new(target).map_err(drop)) else {
        return;
    };
    let normal = path.normal();
    assert!(normal == "*" || normal.starts_with('/'));
    assert!(!normal.contains("//") && !normal.contains('\\'));
    assert!(!normal.split('/').any(|segment| matches!(segment, "." | "..")));
    // What was escaped twice is not looked at twice.
    if !normal.contains('%') {
        assert_eq!(Path::new(normal).map(|again| again.normal().to_owned()), Ok(normal.to_owned()));
    }

    let key = ServiceKey::new("a", "b");
    let mut store = Store::default();
    let service = proto::l7::Service {
        key: Some(proto::l7::ServiceKey { namespace: "a".into(), hostname: "b".into() }),
        ports: vec![proto::l7::Port { port: 80, protocol: 0 }],
        ..Default::default()
    };
    let service = prost::Message::encode_to_vec(&service);
    for (kind, bytes) in [(L7_SERVICE, &*service), (L7_ROUTE, rule)] {
        if let Some(Ok(resource)) = proto::convert::l7::resource(kind, "x", bytes) {
            store.apply(resource);
        }
    }
    let config = store.config();
    let request = Request {
        client: Client { address: [10, 0, 0, 1].into(), identity: None, namespace: Some("c"), labels: None },
        destination: Destination::Service { key: &key, port: 80 },
        protocol: l7::Protocol::Http,
        scheme: "http",
        method: &Method::GET,
        authority: "b",
        path: &path,
        headers: &HeaderMap::new(),
    };
    if let l7::Decision::Rule { rule, taken } = config.decide(&request) {
        match &rule.action {
            l7::Action::Redirect(redirect) => drop(l7::rewrite::location(redirect, &request, taken)),
            l7::Action::Forward(forward) => {
                drop(l7::rewrite::target(forward.rewrite.path.as_ref(), &path, taken));
            }
            l7::Action::Respond(_) | l7::Action::Fail(_) => {}
        }
    }
});
