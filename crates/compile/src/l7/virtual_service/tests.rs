use std::time::Duration;

use http::StatusCode;
use l7::route::{Abort, Action, Backend, Match, PathMatch, PathRewrite, RedirectPort, Share};
use l7::text::TextMatch;
use manifest::{Claim, Object, Severity, read_file};

use super::*;

fn compiled(spec: &str) -> Compiled {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: cart, namespace: shop}}\nspec: {spec}\n"
    );
    let decoded = read_file(&"f.yaml".into(), &text, "istio-system");
    let [Claim::Good(upsert)] = &decoded.claims[..] else {
        panic!("{:?}", decoded.findings);
    };
    let Object::VirtualService(object) = &upsert.object else {
        panic!("{upsert:?}");
    };
    compile(object, "cluster.local")
}

/// The rules of a list of HTTP routes that have no errors.
fn rules(http: &str) -> Vec<Parts> {
    let compiled = compiled(&format!("{{hosts: [cart], http: {http}}}"));
    assert_eq!(errors(&compiled), [""; 0]);
    compiled.rules
}

fn errors(compiled: &Compiled) -> Vec<&str> {
    let errors = compiled.notes.iter();
    let errors = errors.filter(|note| note.severity == Severity::Error);
    errors.map(|note| note.field.as_str()).collect()
}

fn matches(conditions: &str) -> Vec<Match> {
    let http = format!("[{{match: [{conditions}], route: [{{destination: {{host: cart}}}}]}}]");
    rules(&http).remove(0).matches
}

const TO_CART: &str = "route: [{destination: {host: cart}}]";

fn action(rest: &str) -> Action {
    let rule = rules(&format!("[{{{rest}}}]")).remove(0).rule;
    rule.action.clone()
}

fn forward(rest: &str) -> l7::route::Forward {
    match action(&format!("{TO_CART}, {rest}")) {
        Action::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

#[test]
fn f17_f18_paths_are_prefixes_of_text_exact_or_patterns() {
    let path = |uri: &str| matches(&format!("{{uri: {uri}}}")).remove(0).path;
    assert_eq!(path("{prefix: /v1}"), PathMatch::Prefix("/v1".into()));
    assert_eq!(path("{exact: /a}"), PathMatch::Exact("/a".into()));
    let PathMatch::Text(TextMatch::Regex(regex)) = path(r#"{regex: "/foo/\\d+:myCustomMethod"}"#)
    else {
        panic!("a pattern");
    };
    assert!(regex.matches("/foo/132:myCustomMethod"));
    let ignoring = matches("{uri: {prefix: /V1}, ignoreUriCase: true}").remove(0);
    assert!(ignoring.path.holds("/v1/x"));
}

#[test]
fn f19_f20_f21_other_conditions() {
    let m = matches(
        "{headers: {end-user: {exact: jason}, x: {}}, withoutHeaders: {y: {prefix: a}}, method: {exact: GET}, \
         scheme: {exact: http}, authority: {prefix: cart}, queryParams: {v: {exact: '2'}}, port: 80, \
         sourceLabels: {app: web}, sourceNamespace: edge}",
    )
    .remove(0);
    let headers: Vec<_> = m
        .headers
        .iter()
        .map(|h| (h.name.as_str(), h.negated))
        .collect();
    assert_eq!(headers, [("end-user", false), ("x", false), ("y", true)]);
    assert_eq!(m.headers[1].value, TextMatch::Present);
    assert_eq!(m.method, Some(TextMatch::Exact("GET".into())));
    assert_eq!(m.authority, Some(TextMatch::Prefix("cart".into())));
    assert_eq!((m.port, &*m.query[0].name), (Some(80), "v"));
    assert_eq!(m.client_labels, [("app".into(), "web".into())]);
    assert_eq!(m.client_namespace.as_deref(), Some("edge"));
}

#[test]
fn c11_a_map_of_cookies_is_a_condition_on_each() {
    let m = matches("{headers: {cookie: {trusted-tester: 'true'}}}").remove(0);
    let holds = |value: &str| m.headers[0].value.holds(value);
    assert!(holds("trusted-tester=true") && holds("a=b; trusted-tester=true; c=d"));
    assert!(!holds("trusted-tester=trueish") && !holds("untrusted-tester=true"));
}

#[test]
fn f25_weights_are_shares_and_a_single_destination_gets_all() {
    let weights = |route: &str| -> Vec<u32> {
        let Action::Forward(forward) = action(&format!("route: [{route}]")) else {
            panic!("forwards");
        };
        forward.backends.iter().map(|one| one.weight).collect()
    };
    assert_eq!(
        weights(
            "{destination: {host: cart, subset: v1}, weight: 90}, {destination: {host: cart, subset: v2}, weight: 10}"
        ),
        [90, 10]
    );
    assert_eq!(weights("{destination: {host: cart}}"), [1]);
    assert_eq!(
        weights("{destination: {host: cart}, weight: 100}, {destination: {host: web}}"),
        [100, 0]
    );
}

#[test]
fn destinations_are_named_as_istio_names_them() {
    let backend = |destination: &str| {
        let Action::Forward(forward) = action(&format!("route: [{{destination: {destination}}}]"))
        else {
            panic!("forwards");
        };
        forward.backends[0].backend.clone()
    };
    let Backend::Cluster(key) = backend("{host: cart, subset: v1, port: {number: 8000}}") else {
        panic!("a cluster");
    };
    assert_eq!(&*key.service.hostname, "cart.shop.svc.cluster.local");
    assert_eq!((key.port, key.subset.as_deref()), (8000, Some("v1")));
    let Backend::Cluster(key) = backend("{host: web.other.svc.cluster.local}") else {
        panic!("a cluster");
    };
    assert_eq!((&*key.service.namespace, key.port), ("other", 0));
    // Which namespace's entry it is, is known where all are.
    let Backend::Cluster(key) = backend("{host: Example.com}") else {
        panic!("a cluster");
    };
    assert_eq!(
        (&*key.service.namespace, &*key.service.hostname),
        ("", "example.com")
    );
}

#[test]
fn f62_f63_c3_faults_in_all_three_spellings_of_a_percentage() {
    let fault = |text: &str| {
        let http = format!("[{{fault: {text}, {TO_CART}}}]");
        rules(&http).remove(0).rule.fault.clone().unwrap()
    };
    let delay = Duration::from_secs(5);
    for all in [
        "",
        ", percent: 100",
        ", percentage: 100",
        ", percentage: {value: 100}",
    ] {
        let fault = fault(&format!("{{delay: {{fixedDelay: 5s{all}}}}}"));
        assert_eq!(fault.delay, Some((Share::ALL, delay)), "{all}");
    }
    let ten = Share::millionths(100_000);
    let abort = fault("{abort: {httpStatus: 500, percentage: {value: 10}}}").abort;
    let status = Abort::Http(StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(abort, Some((ten, status)));
    let abort = fault("{abort: {grpcStatus: UNAVAILABLE, percentage: {value: 0.1}}}").abort;
    assert_eq!(abort, Some((Share::millionths(1_000), Abort::Grpc(14))));
    assert_eq!(
        fault("{abort: {httpStatus: 555}}").abort.unwrap().0,
        Share::ALL
    );
}

#[test]
fn f56_f57_times_and_retries() {
    let rule = rules(&format!(
        "[{{timeout: 2s, retries: {{attempts: 3, perTryTimeout: 500ms}}, {TO_CART}}}]"
    ));
    let rule = &rule[0].rule;
    assert_eq!(rule.timeout, Some(Duration::from_secs(2)));
    let Action::Forward(to) = &rule.action else {
        panic!("forwards");
    };
    assert_eq!(to.attempt_timeout, Some(Duration::from_millis(500)));
    assert_eq!(to.retries.attempts, 3);
    assert!(to.retries.on.connect_failure && to.retries.on.attempt_timeout);
    assert_eq!(to.retries.statuses, [StatusCode::SERVICE_UNAVAILABLE]);
    let on = forward_retries("retryOn: 'gateway-error,connect-failure,429'");
    assert!(on.on.gateway_error && on.on.statuses && !on.on.server_error);
    assert_eq!(on.statuses, [StatusCode::TOO_MANY_REQUESTS]);
    assert_eq!(forward("retries: {attempts: 0}").retries.attempts, 0);
}

fn forward_retries(rest: &str) -> l7::route::Retries {
    let forward = forward(&format!("retries: {{attempts: 1, {rest}}}"));
    l7::route::Retries::clone(&forward.retries)
}

/// F58: what may have been processed is not sent again unasked (istio#50506).
#[test]
fn f58_without_a_rule_only_what_surely_was_not_processed_is_tried_again() {
    let retries = forward("timeout: 1s").retries;
    assert_eq!(retries.attempts, 2);
    assert!(retries.on.connect_failure && retries.on.refused_stream);
    assert!(!retries.on.reset && !retries.on.statuses && !retries.on.server_error);
}

/// A16, F30: Istio's schema has this spelling too, and the Sock Shop uses it.
#[test]
fn f30_the_share_of_a_mirror_may_be_written_in_the_old_spelling() {
    for (written, millionths) in [
        ("mirror_percent: 100", 1_000_000),
        ("mirrorPercent: 25", 250_000),
    ] {
        let compiled = compiled(&format!(
            "{{hosts: [cart], http: [{{route: [{{destination: {{host: cart}}}}], mirror: {{host: web}}, {written}}}]}}"
        ));
        assert_eq!(errors(&compiled), [""; 0], "{written}");
        let [only] = &compiled.rules[..] else {
            panic!("{compiled:?}");
        };
        let Action::Forward(forward) = &only.rule.action else {
            panic!("{only:?}");
        };
        assert_eq!(forward.mirrors[0].share, Share::millionths(millionths));
    }
}

#[test]
fn f30_f36_mirrors_rewrites_and_headers() {
    let forward = forward(
        "mirror: {host: web, subset: v2}, mirrorPercentage: {value: 50}, \
         rewrite: {uri: /new, authority: cart.v2}, \
         headers: {request: {set: {x: '1', Host: ignored.example}, remove: [y]}}",
    );
    assert_eq!(forward.mirrors[0].share, Share::millionths(500_000));
    assert_eq!(
        forward.rewrite.path,
        Some(PathRewrite::Prefix("/new".into()))
    );
    assert_eq!(forward.rewrite.authority.as_deref(), Some("cart.v2"));
    let rule = rules(&format!(
        "[{{headers: {{request: {{set: {{Host: other}}, add: {{x: '1'}}}}}}, {TO_CART}}}]"
    ));
    let Action::Forward(forward) = &rule[0].rule.action else {
        panic!("forwards");
    };
    assert_eq!(forward.rewrite.authority.as_deref(), Some("other"));
    assert!(rule[0].rule.request_headers.set.is_empty());
}

#[test]
fn redirects_and_direct_responses() {
    let Action::Redirect(redirect) = action("redirect: {uri: /x, authority: y, redirectCode: 308}")
    else {
        panic!("redirects");
    };
    assert_eq!(redirect.status, StatusCode::PERMANENT_REDIRECT);
    assert_eq!(redirect.port, RedirectPort::Unsaid);
    let Action::Respond(respond) = action("directResponse: {status: 503, body: {string: closed}}")
    else {
        panic!("responds");
    };
    assert_eq!(&*respond.body, b"closed");
}

#[test]
fn f37_an_object_for_gateways_alone_is_not_for_the_mesh() {
    let of = |gateways: &str| {
        compiled(&format!(
            "{{hosts: [cart], gateways: [{gateways}], http: []}}"
        ))
    };
    assert!(of("").mesh && of("edge, mesh").mesh && !of("edge").mesh);
    // A match for gateways alone is none for the mesh.
    let http = format!("[{{match: [{{gateways: [edge]}}], {TO_CART}}}]");
    assert_eq!(rules(&http), []);
}

#[test]
fn a64_a_bad_rule_fails_alone_and_names_its_field() {
    let good = format!("{{{TO_CART}}}");
    for (bad, field, kept) in [
        (
            format!("{{match: [{{uri: {{regex: '('}}}}], {TO_CART}}}"),
            "spec.http[0].match[0].uri.regex",
            false,
        ),
        (
            format!("{{timeout: soon, {TO_CART}}}"),
            "spec.http[0].timeout",
            true,
        ),
        (
            "{fault: {delay: {exponentialDelay: 1s}}, route: [{destination: {host: cart}}]}"
                .to_owned(),
            "spec.http[0].fault.delay.exponentialDelay",
            true,
        ),
        (
            format!("{{retries: {{attempts: 1, retryOn: luck}}, {TO_CART}}}"),
            "spec.http[0].retries.retryOn",
            true,
        ),
    ] {
        let compiled = compiled(&format!("{{hosts: [cart], http: [{bad}, {good}]}}"));
        assert_eq!(errors(&compiled).first(), Some(&field));
        let rules: Vec<_> = compiled.rules.iter().map(|parts| &parts.rule).collect();
        assert_eq!(rules.len(), if kept { 2 } else { 1 }, "{bad}");
        let failing = matches!(rules[0].action, Action::Fail(_));
        assert_eq!(failing, kept, "{bad}");
        let last = rules.last().unwrap();
        assert!(matches!(last.action, Action::Forward(_)));
        assert_eq!(last.origin.rule, 1, "the index in the object");
    }
}

/// F22, A21: Y48.
#[test]
fn f22_tcp_and_tls_become_rules_for_connections() {
    let compiled = compiled(
        "{hosts: [api.company.com],
          tcp: [{match: [{port: 9090, destinationSubnets: [10.128.0.0/16]}], route: [{destination: {host: database.test.svc.cluster.local}}]},
                {match: [{port: 9090}], route: [{destination: {host: database.prod.svc.cluster.local}}]}],
          tls: [{match: [{sniHosts: [example.api.company.com]}], route: [{destination: {host: example.prod.svc.cluster.local}}]}]}",
    );
    assert_eq!(errors(&compiled), [""; 0]);
    let told = compiled.rules.iter().map(|parts| {
        let [only] = &parts.matches[..] else {
            panic!("{parts:?}");
        };
        let connection = only.connection.as_ref().unwrap();
        let names: Vec<String> = connection
            .server_names
            .iter()
            .map(ToString::to_string)
            .collect();
        let subnets: Vec<String> = connection.subnets.iter().map(ToString::to_string).collect();
        let Action::Forward(to) = &parts.rule.action else {
            panic!("{parts:?}");
        };
        let Backend::Cluster(key) = &to.backends[0].backend else {
            panic!("{to:?}");
        };
        let port = only.port.unwrap_or_default();
        let (names, subnets) = (names.join(","), subnets.join(","));
        format!("{port} {names} {subnets} {}", key.service.hostname)
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            "0 example.api.company.com  example.prod.svc.cluster.local",
            "9090  10.128.0.0/16 database.test.svc.cluster.local",
            "9090   database.prod.svc.cluster.local",
        ]
    );
}

#[test]
fn f22_what_cannot_be_read_of_connections_is_left_out_with_its_field() {
    let route = "route: [{destination: {host: cart}}]";
    let compiled = compiled(&format!(
        "{{hosts: [cart], tcp: [{{match: [{{destinationSubnets: [here]}}], {route}}}, {{match: [{{sourceSubnet: 10.0.0.1}}], {route}}}, {{{route}}}],
          tls: [{{{route}}}, {{match: [{{port: 443}}], {route}}}]}}"
    ));
    assert_eq!(
        errors(&compiled),
        [
            "spec.tls[0].match",
            "spec.tls[1].match[0].sniHosts",
            "spec.tcp[0].match[0].destinationSubnets[0]",
            "spec.tcp[1].match[0].sourceSubnet",
        ]
    );
    assert_eq!(compiled.rules.len(), 1, "what can be read counts");
}
