//! When a rule applies.

use std::sync::Arc;

use http::header;
use k8s_api::virtual_service::{HeaderMatch as WrittenHeader, HttpMatch, HttpRoute, StringMatch};
use l7::route::{HeaderMatch, Match, PathMatch, QueryMatch};
use l7::text::TextMatch;

use crate::l7::notes::Notes;

/// The conditions of a rule in the mesh or at a gateway, which `place` names; `None` if it is not for that, or if a condition
/// cannot be read.
pub(super) fn of(
    field: &str,
    http: &HttpRoute,
    place: &str,
    notes: &mut Notes,
) -> Option<Vec<Match>> {
    if http.r#match.is_empty() {
        return Some(Vec::new());
    }
    let errors = notes.errors();
    let mut matches = Vec::new();
    for (index, written) in http.r#match.iter().enumerate() {
        let is_here =
            written.gateways.is_empty() || written.gateways.iter().any(|name| name == place);
        if is_here {
            let field = format!("{field}.match[{index}]");
            matches.extend(one(&field, written, notes));
        }
    }
    (notes.errors() == errors && !matches.is_empty()).then_some(matches)
}

/// A match; several for a header that one condition cannot say.
fn one(field: &str, written: &HttpMatch, notes: &mut Notes) -> Vec<Match> {
    let HttpMatch {
        name: _,
        uri,
        scheme,
        method,
        authority,
        headers,
        without_headers,
        query_params,
        ignore_uri_case,
        port,
        source_labels,
        source_namespace,
        gateways: _,
        stat_prefix: _,
    } = written;
    let mut m = Match {
        port: *port,
        client_labels: source_labels
            .iter()
            .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
            .collect(),
        client_namespace: (!source_namespace.is_empty()).then(|| source_namespace.as_str().into()),
        ..Match::default()
    };
    if let Some(uri) = uri {
        m.path = path(&format!("{field}.uri"), uri, *ignore_uri_case, notes);
    }
    let mut text = |name: &str, written: &Option<StringMatch>| {
        let written = written.as_ref()?;
        condition(&format!("{field}.{name}"), written, notes)
    };
    m.scheme = text("scheme", scheme);
    m.method = text("method", method);
    m.authority = text("authority", authority);
    for (negated, name, written) in [
        (false, "headers", headers),
        (true, "withoutHeaders", without_headers),
    ] {
        for (header, condition) in written {
            let field = format!("{field}.{name}.{header}");
            m.headers
                .extend(header_matches(&field, header, condition, negated, notes));
        }
    }
    for (name, written) in query_params {
        let field = format!("{field}.queryParams.{name}");
        if let Some(value) = condition(&field, written, notes) {
            let name = name.as_str().into();
            m.query.push(QueryMatch { name, value });
        }
    }
    vec![m]
}

fn path(field: &str, uri: &StringMatch, ignoring_case: bool, notes: &mut Notes) -> PathMatch {
    match (condition(field, uri, notes), ignoring_case) {
        (Some(TextMatch::Exact(text)), false) => PathMatch::Exact(text),
        (Some(TextMatch::Prefix(text)), false) => PathMatch::Prefix(text),
        (Some(TextMatch::Exact(text)), true) => PathMatch::Text(TextMatch::ExactIgnoringCase(text)),
        (Some(TextMatch::Prefix(text)), true) => {
            PathMatch::Text(TextMatch::PrefixIgnoringCase(text))
        }
        (Some(TextMatch::Present) | None, _) => PathMatch::Any,
        // The case of a regular expression is its own business, as in Istio.
        (Some(other), _) => PathMatch::Text(other),
    }
}

fn condition(field: &str, written: &StringMatch, notes: &mut Notes) -> Option<TextMatch> {
    let StringMatch {
        exact,
        prefix,
        regex,
    } = written;
    text(
        field,
        (exact.as_deref(), prefix.as_deref(), regex.as_deref()),
        notes,
    )
}

type Written<'w> = (Option<&'w str>, Option<&'w str>, Option<&'w str>);

fn text(field: &str, written: Written<'_>, notes: &mut Notes) -> Option<TextMatch> {
    match written {
        (None, None, None) => Some(TextMatch::Present),
        (Some(exact), None, None) => Some(TextMatch::Exact(exact.into())),
        (None, Some(prefix), None) => Some(TextMatch::Prefix(prefix.into())),
        (None, None, Some(regex)) => notes
            .regex(&format!("{field}.regex"), regex)
            .map(TextMatch::Regex),
        _ => {
            notes.error(field, "only one of exact, prefix and regex can be set");
            None
        }
    }
}

/// The conditions on one header. `cookie` may be a map of cookies (C11).
fn header_matches(
    field: &str,
    header: &str,
    written: &WrittenHeader,
    negated: bool,
    notes: &mut Notes,
) -> Vec<HeaderMatch> {
    // Istio ignores pseudo headers here, and says so; there are fields of their own.
    if ["uri", "scheme", "method", "authority"].contains(&header) {
        notes.warning(field, "is ignored; there is a field of its own for it");
        return Vec::new();
    }
    let Some(name) = notes.header_name(field, header) else {
        return Vec::new();
    };
    let WrittenHeader {
        exact,
        prefix,
        regex,
        other,
    } = written;
    let own = (exact.as_deref(), prefix.as_deref(), regex.as_deref());
    if other.is_empty() {
        let value = text(field, own, notes);
        let value = value.into_iter();
        return value
            .map(|value| HeaderMatch {
                name: name.clone(),
                value,
                negated,
            })
            .collect();
    }
    if name != header::COOKIE || own != (None, None, None) {
        for unknown in other.keys() {
            notes.error(
                format!("{field}.{unknown}"),
                "is none of exact, prefix and regex",
            );
        }
        return Vec::new();
    }
    let cookies = other.iter().filter_map(|(cookie, value)| {
        let pattern = cookie_pattern(cookie, value);
        let regex = notes.regex(&format!("{field}.{cookie}"), &pattern)?;
        Some(HeaderMatch {
            name: name.clone(),
            value: TextMatch::Regex(regex),
            negated,
        })
    });
    cookies.collect()
}

/// A cookie of this name with this value, among others.
fn cookie_pattern(name: &str, value: &str) -> Arc<str> {
    let escape = |text: &str| {
        let mut out = String::new();
        for c in text.chars() {
            if !c.is_ascii_alphanumeric() && c.is_ascii() {
                out.push('\\');
            }
            out.push(c);
        }
        out
    };
    format!(r"(.*;\s*)?{}={}(\s*;.*)?", escape(name), escape(value)).into()
}
