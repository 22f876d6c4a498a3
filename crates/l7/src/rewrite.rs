//! The path that goes on, and the location that a redirect names.

use std::borrow::Cow;

use regex::Captures;

use crate::path::Path;
use crate::request::{Request, host};
use crate::route::{PathRewrite, Redirect, RedirectPort, Substitution};

/// How much of the normal path a rule's match has taken: what a prefix rewrite replaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of the normal path.
    pub length: usize,
    /// The match was segment by segment.
    pub by_segments: bool,
}

/// The path of the rewritten request, without the query.
pub fn path<'a>(rewrite: &'a PathRewrite, path: &'a Path<'_>, taken: Taken) -> Cow<'a, str> {
    match rewrite {
        PathRewrite::Full(full) => Cow::Borrowed(full),
        PathRewrite::Prefix(prefix) => {
            let rest = path.normal().get(taken.length..).unwrap_or_default();
            Cow::Owned(join(prefix, rest, taken.by_segments))
        }
        PathRewrite::Regex { pattern } => substitute(pattern, path.normal()),
    }
}

/// Path and query of the rewritten request.
pub fn target(rewrite: Option<&PathRewrite>, received: &Path<'_>, taken: Taken) -> String {
    let path = match rewrite {
        Some(rewrite) => path(rewrite, received, taken),
        None => Cow::Borrowed(received.forwarded()),
    };
    // A rewrite may bring a query of its own.
    match received.query() {
        Some(query) if path.contains('?') => format!("{path}&{query}"),
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    }
}

/// The `Location` of a redirect.
pub fn location(redirect: &Redirect, request: &Request<'_>, taken: Taken) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let to_host = redirect.host.as_deref().unwrap_or_else(|| request.host());
    let port = port(redirect, request, scheme);
    let target = target(redirect.path.as_ref(), request.path, taken);
    match port.filter(|port| Some(*port) != well_known(scheme)) {
        Some(port) => format!("{scheme}://{to_host}:{port}{target}"),
        None => format!("{scheme}://{to_host}{target}"),
    }
}

fn port(redirect: &Redirect, request: &Request<'_>, scheme: &str) -> Option<u16> {
    match redirect.port {
        RedirectPort::Number(port) => Some(port),
        RedirectPort::Dialled => Some(request.destination.port()),
        RedirectPort::FromScheme if redirect.scheme.is_some() => well_known(scheme),
        RedirectPort::FromScheme => Some(request.destination.port()),
        RedirectPort::Unsaid if redirect.scheme.is_some() || redirect.host.is_some() => None,
        RedirectPort::Unsaid => {
            let host = host(request.authority);
            let port = request.authority.get(host.len()..)?.strip_prefix(':')?;
            port.parse().ok()
        }
    }
}

fn well_known(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// Segment by segment there is one slash between the new prefix and the rest; text is put before text as it is.
fn join(prefix: &str, rest: &str, by_segments: bool) -> String {
    let joined = if by_segments {
        let (prefix, rest) = (prefix.trim_end_matches('/'), rest.trim_start_matches('/'));
        if rest.is_empty() && !prefix.is_empty() {
            prefix.to_owned()
        } else {
            format!("{prefix}/{rest}")
        }
    } else {
        format!("{prefix}{rest}")
    };
    if joined.starts_with('/') {
        joined
    } else {
        format!("/{joined}")
    }
}

fn substitute<'a>(substitution: &Substitution, path: &'a str) -> Cow<'a, str> {
    let replace = |captures: &Captures<'_>| {
        let mut out = String::new();
        let mut chars = substitution.replacement.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                out.push(c);
                continue;
            }
            match chars.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    let group = digit.to_digit(10).unwrap_or_default() as usize;
                    out.push_str(captures.get(group).map_or("", |group| group.as_str()));
                }
                Some(other) => out.push(other),
                None => out.push('\\'),
            }
        }
        out
    };
    substitution.regex.replace_all(path, replace)
}

#[cfg(test)]
mod tests;
