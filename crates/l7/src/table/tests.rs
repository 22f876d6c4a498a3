use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use model::ServiceKey;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::origin::{Kind, Origin};
use crate::path::Path;
use crate::request::{Client, Destination};
use crate::route::{
    Action, HeaderMatch, HeaderOperations, Match, Precedence, QueryMatch, RouteRule, Treatment,
};
use crate::text::{Regex, TextMatch};

fn rule(precedence: Precedence, index: u32, matches: Vec<Match>) -> RouteRule {
    let name = match &precedence {
        Precedence::Listed(text) | Precedence::Specific(text) => Arc::clone(text),
    };
    RouteRule {
        attachments: Vec::new(),
        precedence,
        matches,
        rule: Arc::new(Rule::new(
            Origin {
                kind: Kind::HttpRoute,
                namespace: "shop".into(),
                name,
                rule: index,
                rule_name: None,
            },
            Treatment {
                action: Action::Fail("never carried out".into()),
                timeout: None,
                fault: None,
                cors: None,
                request_headers: HeaderOperations::default(),
                response_headers: HeaderOperations::default(),
            },
        )),
    }
}

fn path(path: PathMatch) -> Match {
    Match {
        path,
        ..Match::default()
    }
}

/// What a client may ask for.
#[derive(Clone, Debug)]
struct Asked {
    method: Method,
    target: String,
    authority: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    port: u16,
    client: Option<&'static str>,
}

impl Asked {
    fn get(target: &str) -> Self {
        Self {
            method: Method::GET,
            target: target.to_owned(),
            authority: "cart",
            headers: Vec::new(),
            port: 80,
            client: None,
        }
    }

    fn with<T>(&self, then: impl FnOnce(&Request<'_>) -> T) -> T {
        let path = Path::new(&self.target).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        let labels: BTreeMap<Arc<str>, Arc<str>> = self
            .client
            .map(|app| ("app".into(), app.into()))
            .into_iter()
            .collect();
        let key = ServiceKey::new("shop", "cart.shop.svc.cluster.local");
        then(&Request {
            client: Client {
                address: [10, 0, 0, 1].into(),
                identity: None,
                namespace: self.client,
                labels: self.client.map(|_| &labels),
            },
            destination: Destination::Service {
                key: &key,
                port: self.port,
            },
            protocol: crate::Protocol::Http,
            scheme: "http",
            method: &self.method,
            authority: self.authority,
            path: &path,
            headers: &headers,
        })
    }
}

fn found(rules: &[RouteRule], asked: &Asked) -> Option<(String, u32)> {
    let table = Table::compile(rules);
    asked.with(|request| {
        let origin = &table.find(request)?.rule.origin;
        Some((origin.name.to_string(), origin.rule))
    })
}

fn listed(matches: impl IntoIterator<Item = Match>) -> Vec<RouteRule> {
    let rules = matches.into_iter().zip(0..);
    rules
        .map(|(m, index)| rule(Precedence::Listed("vs".into()), index, vec![m]))
        .collect()
}

#[test]
fn f23_the_first_rule_of_a_virtual_service_wins_however_specific_another_is() {
    let rules = listed([
        path(PathMatch::Prefix("/v1".into())),
        path(PathMatch::Exact("/v1/x".into())),
        path(PathMatch::Any),
    ]);
    assert_eq!(found(&rules, &Asked::get("/v1/x")), Some(("vs".into(), 0)));
    assert_eq!(
        found(&rules, &Asked::get("/v1beta")),
        Some(("vs".into(), 0))
    );
    assert_eq!(found(&rules, &Asked::get("/v2")), Some(("vs".into(), 2)));
}

#[test]
fn f24_without_a_match_there_is_no_rule() {
    let rules = listed([path(PathMatch::Exact("/assets/static/style.css".into()))]);
    assert_eq!(found(&rules, &Asked::get("/assets/static")), None);
}

#[test]
fn f18_regular_expressions_are_for_the_whole_path() {
    let regex = Regex::new(r"/foo/\d+:myCustomMethod").unwrap();
    let rules = listed([path(PathMatch::Text(TextMatch::Regex(regex)))]);
    let asked = Asked::get("/foo/132:myCustomMethod?x=1");
    assert_eq!(found(&rules, &asked), Some(("vs".into(), 0)));
    assert_eq!(
        found(&rules, &Asked::get("/foo/132:myCustomMethod/y")),
        None
    );
}

#[test]
fn f20_cookies_in_several_lines_are_one_header() {
    let mut m = Match::default();
    m.headers.push(HeaderMatch {
        name: http::header::COOKIE,
        value: TextMatch::Regex(Regex::new("(.*?;)?\\s*(trusted-tester=true)(;.*)?").unwrap()),
        negated: false,
    });
    let rules = listed([m]);
    let mut asked = Asked::get("/");
    assert_eq!(found(&rules, &asked), None);
    asked.headers = vec![("cookie", "a=b"), ("cookie", "trusted-tester=true")];
    assert_eq!(found(&rules, &asked), Some(("vs".into(), 0)));
}

#[test]
fn the_gateway_api_tries_the_most_specific_match_first() {
    let specific = |name: &str, index, m| rule(Precedence::Specific(name.into()), index, vec![m]);
    let mut with_header = path(PathMatch::Segments("/v2".into()));
    with_header.headers.push(HeaderMatch {
        name: HeaderName::from_static("version"),
        value: TextMatch::Exact("2".into()),
        negated: false,
    });
    let rules = [
        specific("b", 0, path(PathMatch::Segments("".into()))),
        specific("b", 1, path(PathMatch::Segments("/v2".into()))),
        specific("b", 2, with_header),
        specific("a", 0, path(PathMatch::Segments("/v2".into()))),
        specific("a", 1, path(PathMatch::Exact("/v2/x".into()))),
    ];
    let mut asked = Asked::get("/v2");
    assert_eq!(found(&rules, &asked), Some(("a".into(), 0)));
    asked.headers = vec![("version", "2")];
    assert_eq!(found(&rules, &asked), Some(("b".into(), 2)));
    asked.target = "/v2/x".into();
    assert_eq!(found(&rules, &asked), Some(("a".into(), 1)));
    // A segment is a segment.
    asked.target = "/v2x".into();
    assert_eq!(found(&rules, &asked), Some(("b".into(), 0)));
}

fn any_text() -> impl Strategy<Value = TextMatch> {
    prop_oneof![
        select(&["a", "ab", "B"][..]).prop_map(|t| TextMatch::Exact(t.into())),
        select(&["a", "ab", ""][..]).prop_map(|t| TextMatch::Prefix(t.into())),
        select(&["A", "aB"][..]).prop_map(|t| TextMatch::ExactIgnoringCase(t.into())),
        select(&["a.*", "[ab]|c"][..]).prop_map(|t| TextMatch::Regex(Regex::new(t).unwrap())),
        Just(TextMatch::Present),
    ]
}

fn any_path() -> impl Strategy<Value = PathMatch> {
    const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c"];
    prop_oneof![
        Just(PathMatch::Any),
        select(PATHS).prop_map(|t| PathMatch::Exact(t.into())),
        select(PATHS).prop_map(|t| PathMatch::Prefix(t.into())),
        select(&["", "/a", "/a/b", "/ab"][..]).prop_map(|t| PathMatch::Segments(t.into())),
        select(&["/A", "/a/B"][..])
            .prop_map(|t| PathMatch::Text(TextMatch::PrefixIgnoringCase(t.into()))),
        select(&["/a.*", "/[ab]+", ".*/b/.*"][..])
            .prop_map(|t| PathMatch::Text(TextMatch::Regex(Regex::new(t).unwrap()))),
    ]
}

fn any_match() -> impl Strategy<Value = Match> {
    let header =
        (select(&["x", "y"][..]), any_text(), any::<bool>()).prop_map(|(name, value, negated)| {
            HeaderMatch {
                name: HeaderName::from_static(name),
                value,
                negated,
            }
        });
    let query = (select(&["p", "q"][..]), any_text()).prop_map(|(name, value)| QueryMatch {
        name: name.into(),
        value,
    });
    (
        any_path(),
        prop::option::weighted(0.2, select(&["GET", "POST"][..])),
        prop::option::weighted(0.2, any_text()),
        prop::collection::vec(header, 0..2),
        prop::collection::vec(query, 0..2),
        prop::option::weighted(0.1, select(&[80_u16, 81][..])),
        prop::option::weighted(0.1, select(&["a", "b"][..])),
    )
        .prop_map(
            |(path, method, authority, headers, query, port, client)| Match {
                connection: None,
                path,
                method: method.map(|m| TextMatch::Exact(m.into())),
                authority,
                headers,
                query,
                port,
                client_labels: client
                    .map(|app| ("app".into(), app.into()))
                    .into_iter()
                    .collect(),
                client_namespace: client.filter(|_| port.is_some()).map(Arc::from),
                scheme: None,
            },
        )
}

fn any_rules() -> impl Strategy<Value = Vec<RouteRule>> {
    let one = (
        any::<bool>(),
        select(&["p", "q"][..]),
        prop::collection::vec(any_match(), 0..3),
    );
    prop::collection::vec(one, 0..8).prop_map(|rules| {
        let rules = rules.into_iter().zip(0..);
        rules
            .map(|((specific, name, matches), index)| {
                let precedence = if specific {
                    Precedence::Specific(name.into())
                } else {
                    Precedence::Listed(name.into())
                };
                rule(precedence, index, matches)
            })
            .collect()
    })
}

fn any_request() -> impl Strategy<Value = Asked> {
    let header = (
        select(&["x", "y"][..]),
        select(&["a", "ab", "B", "c", ""][..]),
    );
    (
        select(&[Method::GET, Method::POST][..]),
        "(/|/a|/b|/ab|/A|/c){1,3}(\\?(p=a|p=ab&q=c|q&p=B|p=x&p=a))?",
        select(&["a", "ab", "b", "cart:80"][..]),
        prop::collection::vec(header, 0..3),
        select(&[80_u16, 81][..]),
        prop::option::of(select(&["a", "b"][..])),
    )
        .prop_map(|(method, target, authority, headers, port, client)| Asked {
            method,
            target,
            authority,
            headers,
            port,
            client,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn the_table_says_what_the_specifications_say(rules in any_rules(), asked in any_request()) {
        let expected = asked.with(|request| {
            naive::find(&rules, request).map(|rule| rule.origin.clone())
        });
        let table = Table::compile(&rules);
        let found = asked.with(|request| table.find(request).map(|hit| hit.rule.origin.clone()));
        prop_assert_eq!(found, expected);
    }
}
