//! When a rule applies.

use http::Method;
use k8s_api::gateway_route::{GrpcMatch, GrpcMethod, HttpMatch, HttpRule, Value};
use l7::route::{HeaderMatch, Match, PathMatch, QueryMatch};
use l7::text::TextMatch;

use crate::l7::notes::Notes;

pub(super) fn http(field: &str, rule: &HttpRule, notes: &mut Notes) -> Vec<Match> {
    let one = |(index, written): (usize, &HttpMatch), notes: &mut Notes| {
        let field = format!("{field}.matches[{index}]");
        let HttpMatch {
            path,
            headers,
            query_params,
            method,
        } = written;
        let method = method.as_ref().map(|method| {
            if Method::from_bytes(method.as_bytes()).is_err() {
                notes.error(
                    format!("{field}.method"),
                    format!("{method:?} is no method"),
                );
            }
            TextMatch::Exact(method.as_str().into())
        });
        Match {
            path: path
                .as_ref()
                .map_or(PathMatch::Segments("".into()), |path| {
                    self::path(&format!("{field}.path"), path, notes)
                }),
            method,
            headers: self::headers(&field, headers, notes),
            query: query(&field, query_params, notes),
            ..Match::default()
        }
    };
    let matches = rule.matches.iter().enumerate();
    let mut matches: Vec<Match> = matches.map(|written| one(written, notes)).collect();
    if matches.is_empty() {
        // The default of the API: every path, as the prefix `/`.
        matches.push(Match {
            path: PathMatch::Segments("".into()),
            ..Match::default()
        });
    }
    matches
}

fn path(field: &str, written: &Value, notes: &mut Notes) -> PathMatch {
    let value = written.value.as_deref().unwrap_or("/");
    match written.r#type.as_deref().unwrap_or("PathPrefix") {
        kind @ ("Exact" | "PathPrefix") => {
            if !value.starts_with('/') {
                notes.error(
                    format!("{field}.value"),
                    format!("{value:?} does not begin with a slash"),
                );
            }
            match kind {
                "Exact" => PathMatch::Exact(value.into()),
                // A slash at the end says nothing.
                _ => PathMatch::Segments(value.trim_end_matches('/').into()),
            }
        }
        "RegularExpression" => match notes.regex(&format!("{field}.value"), value) {
            Some(regex) => PathMatch::Text(TextMatch::Regex(regex)),
            None => PathMatch::Any,
        },
        other => {
            notes.error(
                format!("{field}.type"),
                format!("{other:?} is not supported"),
            );
            PathMatch::Any
        }
    }
}

/// Of several conditions on one header, or one parameter, the first counts, as the API says.
fn headers(field: &str, written: &[Value], notes: &mut Notes) -> Vec<HeaderMatch> {
    let mut headers: Vec<HeaderMatch> = Vec::new();
    for (index, value) in written.iter().enumerate() {
        let field = format!("{field}.headers[{index}]");
        let name = notes.header_name(&format!("{field}.name"), &value.name);
        let (Some(name), Some(condition)) = (name, text(&field, value, notes)) else {
            continue;
        };
        if headers.iter().all(|known| known.name != name) {
            headers.push(HeaderMatch {
                name,
                value: condition,
                negated: false,
            });
        }
    }
    headers
}

fn query(field: &str, written: &[Value], notes: &mut Notes) -> Vec<QueryMatch> {
    let mut query: Vec<QueryMatch> = Vec::new();
    for (index, value) in written.iter().enumerate() {
        let field = format!("{field}.queryParams[{index}]");
        let Some(condition) = text(&field, value, notes) else {
            continue;
        };
        if query.iter().all(|known| *known.name != *value.name) {
            query.push(QueryMatch {
                name: value.name.as_str().into(),
                value: condition,
            });
        }
    }
    query
}

fn text(field: &str, written: &Value, notes: &mut Notes) -> Option<TextMatch> {
    let value = written.value.as_deref().unwrap_or_default();
    match written.r#type.as_deref().unwrap_or("Exact") {
        "Exact" => Some(TextMatch::Exact(value.into())),
        "RegularExpression" => notes
            .regex(&format!("{field}.value"), value)
            .map(TextMatch::Regex),
        other => {
            notes.error(
                format!("{field}.type"),
                format!("{other:?} is not supported"),
            );
            None
        }
    }
}

pub(super) fn grpc(field: &str, written: &[GrpcMatch], notes: &mut Notes) -> Vec<Match> {
    let one = |(index, written): (usize, &GrpcMatch)| {
        let field = format!("{field}.matches[{index}]");
        Match {
            path: written.method.as_ref().map_or(PathMatch::Any, |method| {
                grpc_path(&format!("{field}.method"), method, notes)
            }),
            headers: headers(&field, &written.headers, notes),
            ..Match::default()
        }
    };
    written.iter().enumerate().map(one).collect()
}

/// A method is the path `/service/method`.
fn grpc_path(field: &str, written: &GrpcMethod, notes: &mut Notes) -> PathMatch {
    let service = written.service.as_deref().filter(|text| !text.is_empty());
    let method = written.method.as_deref().filter(|text| !text.is_empty());
    let pattern = match written.r#type.as_deref().unwrap_or("Exact") {
        "Exact" => match (service, method) {
            (Some(service), Some(method)) => {
                return PathMatch::Exact(format!("/{service}/{method}").into());
            }
            (Some(service), None) => return PathMatch::Segments(format!("/{service}").into()),
            (None, Some(method)) => format!("/[^/]+/{}", escaped(method)),
            (None, None) => return PathMatch::Any,
        },
        "RegularExpression" => format!(
            "/(?:{})/(?:{})",
            service.unwrap_or("[^/]+"),
            method.unwrap_or("[^/]+")
        ),
        other => {
            notes.error(
                format!("{field}.type"),
                format!("{other:?} is not supported"),
            );
            return PathMatch::Any;
        }
    };
    match notes.regex(field, &pattern) {
        Some(regex) => PathMatch::Text(TextMatch::Regex(regex)),
        None => PathMatch::Any,
    }
}

/// The name of a method has letters, digits and underscores, and whatever else stands for itself.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_ascii() && !c.is_ascii_alphanumeric() && c != '_' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
