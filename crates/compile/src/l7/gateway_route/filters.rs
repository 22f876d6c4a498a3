//! What happens to a request besides being forwarded.

use std::time::Duration;

use http::StatusCode;
use k8s_api::gateway_route::{
    CorsFilter, Filter, HeaderFilter, MirrorFilter, PathModifier, RedirectFilter,
};
use l7::route::{
    Backend, Cors, HeaderChanges, Mirror, PathRewrite, Redirect, RedirectPort, Rewrite, Share,
};
use l7::text::TextMatch;

use super::{Names, Operations};
use crate::l7::notes::Notes;

/// All filters of a rule or a backend.
#[derive(Debug, Default)]
pub(super) struct Filters {
    pub(super) request_headers: Operations,
    pub(super) response_headers: Operations,
    pub(super) redirect: Option<Redirect>,
    pub(super) rewrite: Rewrite,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) cors: Option<Cors>,
}

pub(super) fn read(
    field: &str,
    written: &[Filter],
    names: Names<'_>,
    notes: &mut Notes,
) -> Filters {
    let mut filters = Filters::default();
    for (index, filter) in written.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let is_there = match filter.r#type.as_str() {
            "RequestHeaderModifier" => filter.request_header_modifier.as_ref().map(|headers| {
                let field = format!("{field}.requestHeaderModifier");
                filters.request_headers = operations(&field, headers, notes);
            }),
            "ResponseHeaderModifier" => filter.response_header_modifier.as_ref().map(|headers| {
                let field = format!("{field}.responseHeaderModifier");
                filters.response_headers = operations(&field, headers, notes);
            }),
            "RequestRedirect" => filter.request_redirect.as_ref().map(|redirect| {
                let field = format!("{field}.requestRedirect");
                filters.redirect = Some(self::redirect(&field, redirect, notes));
            }),
            "URLRewrite" => filter.url_rewrite.as_ref().map(|rewrite| {
                let field = format!("{field}.urlRewrite.path");
                filters.rewrite = Rewrite {
                    path: rewrite
                        .path
                        .as_ref()
                        .and_then(|path| modifier(&field, path, notes)),
                    authority: rewrite.hostname.as_deref().map(Into::into),
                };
            }),
            "RequestMirror" => filter.request_mirror.as_ref().map(|mirror| {
                let field = format!("{field}.requestMirror");
                filters
                    .mirrors
                    .extend(self::mirror(&field, mirror, names, notes));
            }),
            "CORS" => filter
                .cors
                .as_ref()
                .map(|cors| filters.cors = Some(self::cors(&format!("{field}.cors"), cors, notes))),
            other => {
                notes.error(format!("{field}.type"), format!("{other} is not supported"));
                Some(())
            }
        };
        if is_there.is_none() {
            let message = format!("has no content for its type {}", filter.r#type);
            notes.error(field, message);
        }
    }
    filters
}

fn operations(field: &str, written: &HeaderFilter, notes: &mut Notes) -> Operations {
    let mut changes = HeaderChanges::default();
    for name in &written.remove {
        let field = format!("{field}.remove");
        changes.remove.extend(notes.header_name(&field, name));
    }
    for (kind, from, to) in [
        ("set", &written.set, &mut changes.set),
        ("add", &written.add, &mut changes.add),
    ] {
        for (index, header) in from.iter().enumerate() {
            let field = format!("{field}.{kind}[{index}]");
            let name = notes.header_name(&field, &header.name);
            to.extend(name.zip(notes.header_value(&field, &header.value)));
        }
    }
    changes.into()
}

fn redirect(field: &str, written: &RedirectFilter, notes: &mut Notes) -> Redirect {
    let code = written.status_code.unwrap_or(302);
    let status = match code {
        301 | 302 | 303 | 307 | 308 => StatusCode::from_u16(code).ok(),
        _ => None,
    };
    if status.is_none() {
        let message = format!("{code} is none of 301, 302, 303, 307 and 308");
        notes.error(format!("{field}.statusCode"), message);
    }
    Redirect {
        status: status.unwrap_or(StatusCode::FOUND),
        scheme: written.scheme.as_deref().map(Into::into),
        host: written.hostname.as_deref().map(Into::into),
        port: written
            .port
            .map_or(RedirectPort::FromScheme, RedirectPort::Number),
        path: written
            .path
            .as_ref()
            .and_then(|path| modifier(&format!("{field}.path"), path, notes)),
    }
}

fn modifier(field: &str, written: &PathModifier, notes: &mut Notes) -> Option<PathRewrite> {
    let PathModifier {
        r#type,
        replace_full_path,
        replace_prefix_match,
    } = written;
    match (r#type.as_str(), replace_full_path, replace_prefix_match) {
        ("ReplaceFullPath", Some(path), None) => Some(PathRewrite::Full(path.as_str().into())),
        ("ReplacePrefixMatch", None, Some(path)) => Some(PathRewrite::Prefix(path.as_str().into())),
        _ => {
            notes.error(field, "its content does not fit its type");
            None
        }
    }
}

fn mirror(
    field: &str,
    written: &MirrorFilter,
    names: Names<'_>,
    notes: &mut Notes,
) -> Option<Mirror> {
    let share = match (written.percent, &written.fraction) {
        (None, None) => Share::ALL,
        (Some(percent), None) => notes.percentage(&format!("{field}.percent"), percent.into()),
        (None, Some(fraction)) => {
            let denominator = fraction.denominator.unwrap_or(100).max(1);
            let percent = 100.0 * f64::from(fraction.numerator) / f64::from(denominator);
            notes.percentage(&format!("{field}.fraction"), percent)
        }
        (Some(_), Some(_)) => {
            notes.error(field, "only one of percent and fraction can be set");
            return None;
        }
    };
    let Some(backend) = &written.backend_ref else {
        notes.error(format!("{field}.backendRef"), "is missing");
        return None;
    };
    // A mirror that leads nowhere takes nothing from the request.
    match super::backend(&format!("{field}.backendRef"), backend, names, notes) {
        Backend::Cluster(backend) => Some(Mirror { backend, share }),
        Backend::Invalid { .. } => None,
    }
}

fn cors(field: &str, written: &CorsFilter, notes: &mut Notes) -> Cors {
    let shared = |texts: &[String]| texts.iter().map(|text| text.as_str().into()).collect();
    let mut origins = Vec::new();
    for (index, origin) in written.allow_origins.iter().enumerate() {
        origins.extend(match origin.split_once('*') {
            None => Some(TextMatch::Exact(origin.as_str().into())),
            Some(("", "")) => Some(TextMatch::Present),
            // `https://*.example.com`: one or more labels in place of the star.
            Some((scheme, rest)) => {
                let escape = |text: &str| text.replace('.', r"\.");
                let pattern = format!("{}[^/]+{}", escape(scheme), escape(rest));
                notes
                    .regex(&format!("{field}.allowOrigins[{index}]"), &pattern)
                    .map(TextMatch::Regex)
            }
        });
    }
    Cors {
        origins,
        methods: shared(&written.allow_methods),
        headers: shared(&written.allow_headers),
        expose: shared(&written.expose_headers),
        // 5 seconds are the API's default.
        max_age: Some(Duration::from_secs(written.max_age.unwrap_or(5).into())),
        credentials: written.allow_credentials.unwrap_or(false),
        forward_unmatched: false,
    }
}
