use std::time::Duration;

use l7::route::{Action, Match, PathMatch, PathRewrite, RedirectPort, Share};
use manifest::{Claim, Object, Severity, read_file};

use super::*;

fn compiled(kind: &str, rules: &str) -> Compiled {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: cart, port: 80}}], rules: {rules}}}\n"
    );
    let decoded = read_file(&"f.yaml".into(), &text, "istio-system");
    let [Claim::Good(upsert)] = &decoded.claims[..] else {
        panic!("{:?}", decoded.findings);
    };
    match &upsert.object {
        Object::HttpRoute(object) => http(object, "cluster.local"),
        Object::GrpcRoute(object) => grpc(object, "cluster.local"),
        other => panic!("{other:?}"),
    }
}

fn errors(compiled: &Compiled) -> Vec<&str> {
    let errors = compiled.notes.iter();
    let errors = errors.filter(|note| note.severity == Severity::Error);
    errors.map(|note| note.field.as_str()).collect()
}

fn rule(rule: &str) -> Parts {
    let mut compiled = compiled("HTTPRoute", &format!("[{rule}]"));
    assert_eq!(errors(&compiled), [""; 0]);
    compiled.rules.remove(0)
}

fn matches(kind: &str, conditions: &str) -> Vec<Match> {
    let mut compiled = compiled(kind, &format!("[{{matches: [{conditions}]}}]"));
    assert_eq!(errors(&compiled), [""; 0]);
    compiled.rules.remove(0).matches
}

#[test]
fn a_parent_is_a_service_and_a_port_of_it() {
    let compiled = compiled("HTTPRoute", "[]");
    let key = ServiceKey::new("shop", "cart.shop.svc.cluster.local");
    assert_eq!(compiled.parents, [(key, Some(80))]);
}

#[test]
fn http_matches() {
    let path = |text: &str| {
        matches("HTTPRoute", &format!("{{path: {text}}}"))
            .remove(0)
            .path
    };
    assert_eq!(path("{value: /v1/}"), PathMatch::Segments("/v1".into()));
    assert_eq!(
        path("{type: Exact, value: /v1/}"),
        PathMatch::Exact("/v1/".into())
    );
    assert_eq!(rule("{}").matches[0].path, PathMatch::Segments("".into()));
    let m = matches(
        "HTTPRoute",
        "{method: GET, headers: [{name: X, value: a}, {name: x, value: b}], queryParams: [{name: q, value: '1'}]}",
    )
    .remove(0);
    assert_eq!(m.headers.len(), 1, "the first of one name counts");
    assert_eq!(&*m.query[0].name, "q");
}

#[test]
fn grpc_methods_are_paths() {
    let path = |text: &str| {
        matches("GRPCRoute", &format!("{{method: {text}}}"))
            .remove(0)
            .path
    };
    assert_eq!(
        path("{service: a.B, method: C}"),
        PathMatch::Exact("/a.B/C".into())
    );
    assert_eq!(path("{service: a.B}"), PathMatch::Segments("/a.B".into()));
    let any_service = path("{method: C}");
    assert!(any_service.holds("/a.B/C") && !any_service.holds("/a.B/CD"));
    let pattern = path("{type: RegularExpression, service: 'a\\..*', method: 'C|D'}");
    assert!(pattern.holds("/a.x/D") && !pattern.holds("/b/D"));
}

#[test]
fn filters_times_and_retries() {
    let parts = rule(
        "{timeouts: {request: 1s, backendRequest: 500ms}, retry: {codes: [500], attempts: 3, backoff: 10ms}, \
         filters: [{type: URLRewrite, urlRewrite: {hostname: x, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}, \
         {type: RequestMirror, requestMirror: {backendRef: {name: web, port: 80}, fraction: {numerator: 1, denominator: 4}}}, \
         {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [y]}}], \
         backendRefs: [{name: cart, port: 80, weight: 0}, {name: web, port: 81, \
         filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x, value: a}]}}]}]}",
    );
    assert_eq!(parts.rule.timeout, Some(Duration::from_secs(1)));
    assert_eq!(parts.rule.response_headers.remove.len(), 1);
    let Action::Forward(forward) = &parts.rule.action else {
        panic!("forwards");
    };
    assert_eq!(forward.attempt_timeout, Some(Duration::from_millis(500)));
    assert!(forward.retries.on.statuses && forward.retries.on.attempt_timeout);
    assert_eq!(forward.rewrite.path, Some(PathRewrite::Prefix("/b".into())));
    assert_eq!(forward.mirrors[0].share, Share::millionths(250_000));
    let weights: Vec<u32> = forward.backends.iter().map(|one| one.weight).collect();
    assert_eq!(weights, [0, 1]);
    assert_eq!(forward.backends[1].request_headers.set.len(), 1);
}

#[test]
fn redirects_have_the_ports_of_the_api() {
    let redirect = |text: &str| {
        let text = format!("{{filters: [{{type: RequestRedirect, requestRedirect: {text}}}]}}");
        match &rule(&text).rule.action {
            Action::Redirect(redirect) => redirect.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(redirect("{hostname: x}").status, StatusCode::FOUND);
    assert_eq!(redirect("{scheme: https}").port, RedirectPort::FromScheme);
    for code in [301, 302, 303, 307, 308] {
        let redirect = redirect(&format!("{{statusCode: {code}, port: 8080}}"));
        assert_eq!(redirect.status.as_u16(), code);
    }
}

#[test]
fn a_reference_that_leads_nowhere_fails_its_share() {
    let parts = rule("{backendRefs: [{name: x, kind: Bucket, group: example.com, port: 1}]}");
    let Action::Forward(forward) = &parts.rule.action else {
        panic!("forwards");
    };
    assert!(matches!(
        &forward.backends[0].backend,
        Backend::Invalid { status, .. } if *status == StatusCode::INTERNAL_SERVER_ERROR
    ));
}

#[test]
fn a64_a_bad_rule_fails_alone_and_names_its_field() {
    for (bad, field, kept) in [
        (
            "{matches: [{path: {type: RegularExpression, value: '('}}]}",
            "spec.rules[0].matches[0].path.value",
            false,
        ),
        (
            "{filters: [{type: ExtensionRef, extensionRef: {name: x}}]}",
            "spec.rules[0].filters[0].type",
            true,
        ),
        (
            "{timeouts: {request: soon}}",
            "spec.rules[0].timeouts.request",
            true,
        ),
    ] {
        let compiled = compiled("HTTPRoute", &format!("[{bad}, {{}}]"));
        assert_eq!(errors(&compiled), [field]);
        assert_eq!(compiled.rules.len(), if kept { 2 } else { 1 });
        let first = &compiled.rules[0].rule.action;
        assert_eq!(matches!(first, Action::Fail(_)), kept);
    }
}
