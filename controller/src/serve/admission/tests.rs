use super::*;

fn review(kind: (&str, &str), object: Value, old: Value) -> Value {
    let review = json!({
        "request": {
            "uid": "1", "kind": {"group": kind.0, "version": "v1", "kind": kind.1},
            "object": object, "oldObject": old,
        },
    });
    let (answer, _) = judge(&review, Vec::new(), &MeshConfig::default());
    assert_eq!(answer["response"]["uid"], "1");
    answer["response"].clone()
}

const POLICY: (&str, &str) = ("security.istio.io", "AuthorizationPolicy");

fn policy(spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "n", "managedFields": [{"manager": "kubectl"}]},
        "spec": spec, "status": {"conditions": []},
    })
}

/// F126: the field is named, with what it should have been.
#[test]
fn a_misspelt_field_is_refused_with_the_sentence_of_validate() {
    let answer = review(
        POLICY,
        policy(json!({"rules": [{"form": []}]})),
        Value::Null,
    );
    assert_eq!(answer["allowed"], false, "{answer}");
    let message = answer["status"]["message"].as_str().expect("a message");
    assert!(
        message.contains("spec.rules[0]") && message.contains("did you mean"),
        "{message}"
    );
    assert_eq!(answer["warnings"], json!([]), "nothing is stored");
    let good = review(
        POLICY,
        policy(json!({"rules": [{"from": [{"source": {"namespaces": ["a"]}}]}]})),
        Value::Null,
    );
    assert_eq!(good["allowed"], true, "{good}");
    assert_eq!(good["warnings"], json!([]), "{good}");
}

#[test]
fn what_is_legal_and_surely_not_meant_is_warned_of() {
    let answer = review(POLICY, policy(json!({"action": "DENY"})), Value::Null);
    assert_eq!(answer["allowed"], true, "{answer}");
    assert!(
        answer["warnings"].to_string().contains("never matches"),
        "{answer}"
    );
}

/// F85, A45: with a waypoint these are checked, and they may be written before it is there. What no waypoint can mend is refused
/// all the same.
#[test]
fn a_policy_with_http_parts_is_taken_with_a_warning_that_names_the_field() {
    let get = json!([{"to": [{"operation": {"methods": ["GET"], "paths": ["/catalogue"]}}]}]);
    let target = json!([{"group": "", "kind": "Service", "name": "catalogue"}]);
    for spec in [
        json!({"rules": get}),
        json!({"action": "DENY", "selector": {"matchLabels": {"name": "front-end"}}, "rules": get}),
        json!({"targetRefs": target, "rules": get}),
    ] {
        let answer = review(POLICY, policy(spec), Value::Null);
        assert_eq!(answer["allowed"], true, "{answer}");
        let warnings = answer["warnings"].to_string();
        for field in ["methods", "paths"] {
            let named = format!("spec.rules[0].to[0].operation.{field}: only a waypoint checks it");
            assert!(warnings.contains(&named), "{answer}");
        }
    }
    for spec in [
        json!({"action": "CUSTOM", "rules": get}),
        json!({"rules": [{"to": [{"operation": {"methods": ["GET"], "path": ["/"]}}]}]}),
    ] {
        let answer = review(POLICY, policy(spec), Value::Null);
        assert_eq!(answer["allowed"], false, "{answer}");
    }
}

/// P15: a broken object that is there already can be deleted, labelled by nobody, and its finalizers removed.
#[test]
fn a_change_of_nothing_that_an_author_wrote_is_let_through() {
    let broken = policy(json!({"rules": [{"form": []}]}));
    let mut without_finalizer = broken.clone();
    without_finalizer["metadata"]["finalizers"] = json!([]);
    let answer = review(POLICY, without_finalizer, broken.clone());
    assert_eq!(answer["allowed"], true, "{answer}");
    let mut leaving = broken.clone();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let answer = review(POLICY, leaving, policy(json!({})));
    assert_eq!(answer["allowed"], true, "{answer}");
    let answer = review(POLICY, broken, policy(json!({})));
    assert_eq!(answer["allowed"], false, "{answer}");
}

fn traffic(kind: &str, spec: Value) -> Value {
    let object = json!({
        "apiVersion": "networking.istio.io/v1", "kind": kind,
        "metadata": {"name": "x", "namespace": "shop"}, "spec": spec,
    });
    review(("networking.istio.io", kind), object, Value::Null)
}

/// A64: what is wrong in Istio's traffic objects is refused with the field named.
#[test]
fn a64_a_malformed_traffic_object_is_refused_with_the_field_named() {
    let to = json!({"destination": {"host": "cart"}});
    for (kind, spec, field) in [
        (
            "VirtualService",
            json!({"hosts": ["cart"], "route": [to]}),
            "route",
        ),
        (
            "VirtualService",
            json!({"hosts": ["cart"], "http": [{"route": [to], "timeout": "soon"}]}),
            "spec.http[0].timeout",
        ),
        (
            "DestinationRule",
            json!({"host": "cart", "trafficPolicy": {"tls": {"mode": "NONE"}}}),
            "spec.trafficPolicy.tls.mode",
        ),
        (
            "Gateway",
            json!({"selector": {"a": "b"}, "servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}}]}),
            "spec.servers[0].hosts",
        ),
    ] {
        let answer = traffic(kind, spec);
        assert_eq!(answer["allowed"], false, "{kind}: {answer}");
        let message = answer["status"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(field), "{kind}: {message}");
    }
    for (kind, spec) in [
        (
            "VirtualService",
            json!({"hosts": ["cart"], "http": [{"route": [to]}]}),
        ),
        (
            "DestinationRule",
            json!({"host": "cart", "trafficPolicy": {"tls": {"mode": "DISABLED"}}}),
        ),
        (
            "Gateway",
            json!({"selector": {"a": "b"}, "servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]}),
        ),
        (
            "ServiceEntry",
            json!({"hosts": ["a.example.com"], "addresses": ["192.0.2.9"], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}],
                   "resolution": "STATIC", "endpoints": [{"address": "192.0.2.1"}]}),
        ),
    ] {
        let answer = traffic(kind, spec);
        assert_eq!(answer["allowed"], true, "{kind}: {answer}");
        assert_eq!(answer["warnings"], json!([]), "{kind}: {answer}");
    }
    // Legal, and reached by nobody without a waypoint.
    let named = json!({"hosts": ["a.example.com"], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "resolution": "DNS"});
    let answer = traffic("ServiceEntry", named);
    assert_eq!(answer["allowed"], true, "{answer}");
    let warning = answer["warnings"][0].as_str().unwrap_or_default();
    assert!(warning.starts_with("spec.resolution: "), "{answer}");
}

/// The Gateway API says on a status what cannot be carried out, and other controllers have routes too.
#[test]
fn a_route_of_the_gateway_api_is_warned_of_and_never_refused() {
    let object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "x", "namespace": "shop"},
        "spec": {"rules": [{"backendRef": [{"name": "cart", "port": 80}]}]},
    });
    let answer = review(
        ("gateway.networking.k8s.io", "HTTPRoute"),
        object,
        Value::Null,
    );
    assert_eq!(answer["allowed"], true, "{answer}");
    assert!(
        answer["warnings"].to_string().contains("backendRef"),
        "{answer}"
    );
}

/// P18: what other objects make of this one is said once, beside what it is alone.
#[test]
fn what_other_objects_make_of_one_is_warned_of() {
    let spec = json!({"hosts": ["cart"], "http": [{"match": [{"uri": {"prefix": "/a"}}], "route": [{"destination": {"host": "cart"}}]}]});
    let object = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "x", "namespace": "shop"}, "spec": spec,
    });
    let review = json!({"request": {
        "uid": "1", "kind": {"group": "networking.istio.io", "version": "v1", "kind": "VirtualService"}, "object": object,
    }});
    let (alone, _) = judge(&review, Vec::new(), &MeshConfig::default());
    let alone = alone["response"]["warnings"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert_eq!(alone.len(), 1, "no route takes all: {alone:?}");
    let mut index = Index::new(MeshConfig::default());
    let other = read_object(Kind::VirtualService, object_of_other(), "istio-system");
    for claim in other.claims {
        if let Claim::Good(upsert) = claim {
            index.apply(&upsert);
        }
    }
    index.flush();
    let key = ObjectKey::new(Kind::VirtualService, "shop", "x");
    let beside = index.lint_of(&key, &review["request"]["object"]);
    let (both, reason) = judge(&review, beside, &MeshConfig::default());
    let both = both["response"]["warnings"].to_string();
    assert_eq!(reason, "warned");
    assert!(
        both.contains(
            "VirtualService shop/other has the host cart.shop.svc.cluster.local at mesh too"
        ),
        "{both}"
    );
    assert_eq!(both.matches("no route takes").count(), 1, "{both}");
}

fn object_of_other() -> Value {
    json!({
        "metadata": {"name": "other", "namespace": "shop", "uid": "u", "generation": 1},
        "spec": {"hosts": ["cart"], "http": [{"route": [{"destination": {"host": "cart"}}]}]},
    })
}

#[test]
fn pods_and_namespaces_are_never_refused() {
    let pod = json!({
        "metadata": {"name": "p", "namespace": "n", "annotations": {"keelson.io/weight": "many"}},
        "spec": {"containers": []},
    });
    let answer = review(("", "Pod"), pod, Value::Null);
    assert_eq!(answer["allowed"], true, "{answer}");
    assert!(
        answer["warnings"].to_string().contains("whole number"),
        "{answer}"
    );
    let namespace = json!({"metadata": {"name": "n", "labels": {"keelson.io/mesh": "yes"}}});
    let answer = review(("", "Namespace"), namespace, Value::Null);
    assert_eq!(answer["allowed"], true, "{answer}");
    assert!(
        answer["warnings"].to_string().contains("write enabled"),
        "{answer}"
    );
    let answer = review(("apps", "Deployment"), json!({}), Value::Null);
    assert_eq!(answer["allowed"], true, "{answer}");
}
