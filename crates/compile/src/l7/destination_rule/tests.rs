use std::time::Duration;

use l7::backend::{HashKey, LoadBalancer, LocalityPolicy, TlsMode, Upgrade};
use manifest::{Claim, Object, Severity, read_file};

use super::*;

fn compiled(spec: &str) -> Compiled {
    let text = format!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\nmetadata: {{name: cart, namespace: shop}}\nspec: {spec}\n"
    );
    let decoded = read_file(&"f.yaml".into(), &text, "istio-system");
    let [Claim::Good(upsert)] = &decoded.claims[..] else {
        panic!("{:?}", decoded.findings);
    };
    let Object::DestinationRule(object) = &upsert.object else {
        panic!("{upsert:?}");
    };
    compile(object, "cluster.local")
}

fn errors(compiled: &Compiled) -> Vec<&str> {
    let errors = compiled.notes.iter();
    let errors = errors.filter(|note| note.severity == Severity::Error);
    errors.map(|note| note.field.as_str()).collect()
}

fn policy(text: &str) -> l7::TrafficPolicy {
    let compiled = compiled(&format!("{{host: cart, trafficPolicy: {text}}}"));
    assert_eq!(errors(&compiled), [""; 0]);
    l7::TrafficPolicy::clone(&compiled.rule.policy)
}

#[test]
fn f26_subsets_have_labels_and_policies_of_their_own() {
    let compiled = compiled(
        "{host: cart, trafficPolicy: {loadBalancer: {simple: LEAST_CONN}}, subsets: [\
         {name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}]}",
    );
    assert_eq!(errors(&compiled), [""; 0]);
    let of = |subset| {
        let policy = compiled.rule.policy(80, subset)?;
        policy.load_balancer.clone()
    };
    assert_eq!(of(None), Some(LoadBalancer::LeastRequest));
    assert_eq!(
        of(Some("v1")),
        Some(LoadBalancer::LeastRequest),
        "inherited"
    );
    assert_eq!(of(Some("v2")), Some(LoadBalancer::Random));
    assert_eq!(of(Some("v3")), None);
}

#[test]
fn f32_balancers() {
    let of = |text: &str| policy(&format!("{{loadBalancer: {text}}}")).load_balancer;
    let hash = |text: &str| match of(&format!("{{consistentHash: {text}}}")) {
        Some(LoadBalancer::Hash(key)) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(of("{simple: ROUND_ROBIN}"), Some(LoadBalancer::RoundRobin));
    assert_eq!(hash("{useSourceIp: true}"), HashKey::SourceIp);
    assert_eq!(
        hash("{httpCookie: {name: user, ttl: 0s}}"),
        HashKey::Cookie {
            name: "user".into(),
            path: None,
            ttl: Some(Duration::ZERO),
        }
    );
    assert!(matches!(
        hash("{httpHeaderName: x-user}"),
        HashKey::Header(_)
    ));
    assert_eq!(
        hash("{httpQueryParameterName: q}"),
        HashKey::QueryParameter("q".into())
    );
}

#[test]
fn c7_tls_is_off_in_both_spellings() {
    for mode in ["DISABLE", "DISABLED"] {
        let policy = policy(&format!("{{tls: {{mode: {mode}}}}}"));
        assert_eq!(policy.tls, Some(TlsMode::Disable), "{mode}");
    }
}

#[test]
fn f59_f60_limits_and_outliers() {
    let policy = policy(
        "{connectionPool: {tcp: {maxConnections: 1, connectTimeout: 30ms}, http: {http1MaxPendingRequests: 1, h2UpgradePolicy: UPGRADE}}, \
         outlierDetection: {consecutiveErrors: 5, interval: 1m, baseEjectionTime: 3m, maxEjectionPercent: 100}}",
    );
    let limits = policy.limits.unwrap();
    assert_eq!((limits.connections, limits.pending), (Some(1), Some(1)));
    assert_eq!(limits.connect_timeout, Some(Duration::from_millis(30)));
    assert_eq!(limits.upgrade, Upgrade::Always);
    let outliers = policy.outliers.unwrap();
    assert_eq!(outliers.server_errors, Some(5));
    assert_eq!(outliers.interval, Duration::from_secs(60));
    assert_eq!(outliers.base_time, Duration::from_secs(180));
    assert_eq!(outliers.max_percent, 100);
}

#[test]
fn f61_localities() {
    let of = |text: &str| {
        let text = format!("{{loadBalancer: {{localityLbSetting: {text}}}}}");
        policy(&text).locality.unwrap()
    };
    assert_eq!(of("{enabled: false}"), LocalityPolicy::Off);
    let LocalityPolicy::Failover(regions) = of("{failover: [{from: a, to: b}]}") else {
        panic!("failover");
    };
    assert_eq!(regions.get("a").map(|to| &**to), Some("b"));
    let LocalityPolicy::Distribute(all) =
        of("{distribute: [{from: a/*, to: {'a/*': 80, 'b/*': 20}}]}")
    else {
        panic!("distribute");
    };
    assert_eq!(all[0].1.len(), 2);
}

#[test]
fn a_port_has_its_own_policy_in_the_place_of_the_others() {
    let compiled = compiled(
        "{host: cart, trafficPolicy: {loadBalancer: {simple: RANDOM}, outlierDetection: {}, \
         portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE, sni: x}}]}}",
    );
    let of = |port| compiled.rule.policy(port, None).unwrap();
    assert!(of(80).tls.is_none() && of(80).outliers.is_some());
    assert!(matches!(of(443).tls, Some(TlsMode::Simple { .. })));
    assert!(of(443).load_balancer.is_none() && of(443).outliers.is_none());
}

#[test]
fn a64_what_is_not_supported_names_its_field() {
    for (text, field) in [
        ("{tls: {mode: MUTUAL}}", "spec.trafficPolicy.tls.mode"),
        ("{tunnel: {}}", "spec.trafficPolicy.tunnel"),
        (
            "{loadBalancer: {simple: BEST}}",
            "spec.trafficPolicy.loadBalancer.simple",
        ),
        (
            "{connectionPool: {tcp: {connectTimeout: fast}}}",
            "spec.trafficPolicy.connectionPool.tcp.connectTimeout",
        ),
        (
            "{outlierDetection: {maxEjectionPercent: 101}}",
            "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
        ),
    ] {
        let compiled = compiled(&format!("{{host: cart, trafficPolicy: {text}}}"));
        assert_eq!(errors(&compiled), [field]);
    }
}
