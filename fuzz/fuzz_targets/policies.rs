//! A request target, and a policy as a waypoint is told it: whatever it says, what it allows as an ALLOW it refuses as a
//! DENY, and what it does not allow it does not refuse.
#![no_main]

use http::{HeaderMap, HeaderValue, Method};
use l7::policy::{Action, Scope, Target, Verdict};
use l7::request::{Client, Destination, Request};
use l7::{Endpoint, Path, Resource, Store};
use model::ServiceKey;
use proto::type_url::L7_POLICY;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let (target, policy) = (&input[..end], &input[end + 1..]);
    let Ok(target) = str::from_utf8(target) else {
        return;
    };
    let Ok(path) = Path::new(target) else {
        return;
    };
    let Some(Ok(Resource::Policy(name, mut policy))) = proto::convert::l7::resource(L7_POLICY, "x", policy) else {
        return;
    };
    if policy.unenforceable.is_some() {
        return;
    }
    policy.dry_run = false;
    policy.scope = Scope::Namespace("a".into());
    let endpoint = Endpoint {
        uid: "Kubernetes//Pod/a/b".into(),
        addresses: vec![[10, 0, 0, 2].into()],
        hostname: None,
        identity: None,
        namespace: "a".into(),
        labels: Default::default(),
        node: "n".into(),
        locality: Default::default(),
        weight: 1,
        ports: Vec::new(),
        policies: vec![name.clone()],
    };
    let key = ServiceKey::new("a", "b");
    let identity = "spiffe://cluster.local/ns/c/sa/d".parse().ok();
    let headers = HeaderMap::from_iter([(http::header::COOKIE, HeaderValue::from_static("a=b"))]);
    let mut passes = |action| {
        policy.action = action;
        let mut store = Store::default();
        store.apply(Resource::Policy(name.clone(), policy.clone()));
        let request = Request {
            client: Client { address: [10, 0, 0, 1].into(), identity: identity.as_ref(), namespace: Some("c"), labels: None },
            destination: Destination::Service { key: &key, port: 80 },
            protocol: l7::Protocol::Http,
            scheme: "http",
            method: &Method::GET,
            authority: "b:80",
            path: &path,
            headers: &headers,
        };
        let target = Target { address: [10, 0, 0, 2].into(), port: 8080 };
        matches!(store.config().authorize(&request, &endpoint, target), Verdict::Allow { .. })
    };
    assert_ne!(passes(Action::Allow), passes(Action::Deny));
});
