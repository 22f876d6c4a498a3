use http::{HeaderMap, Method, StatusCode};
use test_case::test_case;

use super::*;
use crate::request::{Client, Destination};
use crate::text::Regex;

const BY_SEGMENTS: bool = true;
const AS_TEXT: bool = false;

#[test_case("/v1", "/v2", "/v1/items", BY_SEGMENTS, "/v2/items"; "below")]
#[test_case("/v1", "/v2", "/v1", BY_SEGMENTS, "/v2"; "itself")]
#[test_case("/v1", "/", "/v1/items", BY_SEGMENTS, "/items"; "to the root")]
#[test_case("/v1", "/", "/v1", BY_SEGMENTS, "/"; "itself to the root")]
#[test_case("/v1", "/v2/", "/v1/items", BY_SEGMENTS, "/v2/items"; "one slash")]
#[test_case("/v1/", "/", "/v1/items", AS_TEXT, "/items"; "text")]
#[test_case("/ratings", "/v1/bookRatings", "/ratings/7", AS_TEXT, "/v1/bookRatings/7"; "Istio's example")]
fn a_prefix_is_replaced(prefix: &str, new: &str, from: &str, by_segments: bool, to: &str) {
    let from = Path::new(from).unwrap();
    let taken = Taken {
        length: prefix.len(),
        by_segments,
    };
    assert_eq!(path(&PathRewrite::Prefix(new.into()), &from, taken), to);
}

#[test]
fn a_pattern_is_substituted_and_the_query_stays() {
    let pattern = Regex::new("/service/([^/]+)(/.*)").unwrap();
    let pattern = Substitution::new(&pattern, r"\2/instance/\1").unwrap();
    let from = Path::new("/service/foo/v1/api?x=1").unwrap();
    let pattern = Box::new(pattern);
    let rewrite = PathRewrite::Regex { pattern };
    assert_eq!(
        target(Some(&rewrite), &from, Taken::default()),
        "/v1/api/instance/foo?x=1"
    );
}

fn redirected(redirect: &Redirect, scheme: &str, authority: &str, dialled: u16) -> String {
    let path = Path::new("/a/b?q").unwrap();
    let request = Request {
        client: Client {
            address: [10, 0, 0, 1].into(),
            identity: None,
            namespace: None,
            labels: None,
        },
        destination: Destination::Workload {
            address: [10, 0, 0, 2].into(),
            port: dialled,
        },
        protocol: crate::Protocol::Http,
        scheme,
        method: &Method::GET,
        authority,
        path: &path,
        headers: &HeaderMap::new(),
    };
    location(redirect, &request, Taken::default())
}

#[test]
fn a_redirect_names_what_it_changes_and_keeps_the_rest() {
    let same = Redirect {
        status: StatusCode::FOUND,
        ..Redirect::default()
    };
    assert_eq!(
        redirected(&same, "http", "x:8080", 80),
        "http://x:8080/a/b?q"
    );
    let https = Redirect {
        scheme: Some("https".into()),
        ..same.clone()
    };
    assert_eq!(redirected(&https, "http", "x:8080", 80), "https://x/a/b?q");
    let host = Redirect {
        host: Some("y".into()),
        port: RedirectPort::FromScheme,
        ..same.clone()
    };
    assert_eq!(redirected(&host, "http", "x", 8080), "http://y:8080/a/b?q");
    assert_eq!(redirected(&host, "http", "x", 80), "http://y/a/b?q");
    let port = Redirect {
        port: RedirectPort::Number(8443),
        path: Some(PathRewrite::Full("/c".into())),
        ..same
    };
    assert_eq!(redirected(&port, "https", "x", 80), "https://x:8443/c?q");
}
