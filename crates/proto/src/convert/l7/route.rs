//! Routes.

use std::sync::Arc;
use std::time::Duration;

use l7::route::{
    Abort, Action, Attachment, Backend, ConnectionMatch, Cors, DirectResponse, Fault, Forward,
    HeaderChanges, HeaderMatch, HeaderOperations, Match, Mirror, PathMatch, PathRewrite,
    Precedence, QueryMatch, Redirect, RedirectPort, Retries, RetryOn, Rewrite, RouteRule, Rule,
    Share, Substitution, Treatment, WeightedBackend,
};
use l7::text::Regex;
use l7::{ClusterKey, HostPattern};

use super::{
    duration, header_name, header_value, key, key_out, labels, labels_out, microseconds, optional,
    optional_text, origin, origin_out, status, text, text_or_none, text_out, texts_out,
};
use crate::convert::{ConvertError, Problem, at, each, each_message, port, value};
use crate::l7 as pb;

pub(super) fn rule(from: pb::Route) -> Result<RouteRule, ConvertError> {
    use pb::route::Action as Pb;

    let action = match from.action.ok_or_else(|| at("action", Problem::Missing))? {
        Pb::Forward(forward) => forward_in(forward)
            .map(Action::Forward)
            .map_err(|e| e.within("forward"))?,
        Pb::Redirect(redirect) => redirect_in(redirect)
            .map(Action::Redirect)
            .map_err(|e| e.within("redirect"))?,
        Pb::Respond(respond) => Action::Respond(DirectResponse {
            status: status(respond.status).map_err(|e| at("respond.status", e))?,
            body: respond.body.into(),
        }),
        Pb::Fail(reason) => Action::Fail(reason.into()),
    };
    let rule = Rule::new(
        origin(from.origin)?,
        Treatment {
            action,
            timeout: duration(from.timeout_us),
            fault: from.fault.map(fault).transpose()?.map(Box::new),
            cors: from.cors.map(cors).transpose()?.map(Box::new),
            request_headers: operations("request_headers", from.request_headers)?,
            response_headers: operations("response_headers", from.response_headers)?,
        },
    );
    let rank: Arc<str> = from.rank.into();
    Ok(RouteRule {
        attachments: each_message("attachments", from.attachments, attachment)?,
        precedence: if from.most_specific_first {
            Precedence::Specific(rank)
        } else {
            Precedence::Listed(rank)
        },
        matches: each_message("matches", from.matches, match_in)?,
        rule: Arc::new(rule),
    })
}

fn attachment(from: pb::Attachment) -> Result<Attachment, ConvertError> {
    Ok(Attachment {
        service: key("service", from.service)?,
        port: optional_port("port", from.port)?,
        client_namespace: optional(from.client_namespace),
    })
}

fn optional_port(field: &str, number: u32) -> Result<Option<u16>, ConvertError> {
    let number = port(number).map_err(|e| at(field, e))?;
    Ok((number != 0).then_some(number))
}

fn match_in(from: pb::Match) -> Result<Match, ConvertError> {
    use pb::path_match::Condition;

    let path = match from.path {
        None => PathMatch::Any,
        Some(path) => match path.condition.ok_or_else(|| at("path", Problem::Missing))? {
            Condition::Exact(text) => PathMatch::Exact(text.into()),
            Condition::Prefix(text) => PathMatch::Prefix(text.into()),
            Condition::Segments(text) => PathMatch::Segments(text.into()),
            Condition::Text(condition) => {
                PathMatch::Text(text(condition).map_err(|e| at("path.text", e))?)
            }
        },
    };
    Ok(Match {
        path,
        method: optional_text("method", from.method)?,
        scheme: optional_text("scheme", from.scheme)?,
        authority: optional_text("authority", from.authority)?,
        headers: each_message("headers", from.headers, |header| {
            Ok(HeaderMatch {
                name: header_name(&header.name).map_err(|e| at("name", e))?,
                value: optional_text("value", header.value)?
                    .ok_or_else(|| at("value", Problem::Missing))?,
                negated: header.negated,
            })
        })?,
        query: each_message("query", from.query, |query| {
            Ok(QueryMatch {
                name: query.name.into(),
                value: optional_text("value", query.value)?
                    .ok_or_else(|| at("value", Problem::Missing))?,
            })
        })?,
        port: optional_port("port", from.port)?,
        client_labels: labels(from.client_labels).into_iter().collect(),
        client_namespace: optional(from.client_namespace),
        connection: from
            .connection
            .map(connection_in)
            .transpose()?
            .map(Box::new),
    })
}

fn connection_in(from: pb::ConnectionMatch) -> Result<ConnectionMatch, ConvertError> {
    let names = from.server_names.iter();
    Ok(ConnectionMatch {
        server_names: names.map(|name| HostPattern::new(name)).collect(),
        subnets: each("connection.subnets", from.subnets, |text| {
            let read = text.parse().ok();
            read.ok_or(Problem::Unsupported("no range of addresses"))
        })?,
    })
}

fn forward_in(from: pb::Forward) -> Result<Forward, ConvertError> {
    Ok(Forward {
        backends: each_message("backends", from.backends, weighted)?,
        rewrite: Rewrite {
            path: from.path.map(rewrite).transpose()?,
            authority: optional(from.authority),
        },
        retries: from
            .retries
            .map(retries)
            .transpose()
            .map_err(|e| e.within("retries"))?
            .unwrap_or_default()
            .into(),
        attempt_timeout: duration(from.attempt_timeout_us),
        mirrors: each_message("mirrors", from.mirrors, |mirror| {
            Ok(Mirror {
                backend: cluster("cluster", mirror.cluster)?,
                share: Share::millionths(mirror.share),
            })
        })?,
    })
}

fn weighted(from: pb::WeightedBackend) -> Result<WeightedBackend, ConvertError> {
    use pb::weighted_backend::Backend as Pb;

    Ok(WeightedBackend {
        backend: match from
            .backend
            .ok_or_else(|| at("backend", Problem::Missing))?
        {
            Pb::Cluster(from) => Backend::Cluster(cluster("cluster", Some(from))?),
            Pb::Invalid(invalid) => Backend::Invalid {
                status: status(invalid.status).map_err(|e| at("invalid.status", e))?,
                reason: invalid.reason.into(),
            },
        },
        weight: from.weight,
        request_headers: operations("request_headers", from.request_headers)?,
        response_headers: operations("response_headers", from.response_headers)?,
        authority: optional(from.authority),
    })
}

fn cluster(field: &str, from: Option<pb::Cluster>) -> Result<ClusterKey, ConvertError> {
    let from = from.ok_or_else(|| at(field, Problem::Missing))?;
    Ok(ClusterKey {
        service: key("service", from.service).map_err(|e| e.within(field))?,
        port: port(from.port).map_err(|e| at("port", e).within(field))?,
        subset: optional(from.subset),
    })
}

fn rewrite(from: pb::PathRewrite) -> Result<PathRewrite, ConvertError> {
    use pb::path_rewrite::Rewrite as Pb;

    Ok(
        match from.rewrite.ok_or_else(|| at("path", Problem::Missing))? {
            Pb::Full(text) => PathRewrite::Full(text.into()),
            Pb::Prefix(text) => PathRewrite::Prefix(text.into()),
            Pb::Regex(regex) => {
                let pattern = Regex::new(&regex.pattern)
                    .and_then(|pattern| Substitution::new(&pattern, &regex.substitution));
                let wrong = |error: l7::text::RegexError| {
                    at("path.regex.pattern", Problem::Text(error.to_string()))
                };
                PathRewrite::Regex {
                    pattern: Box::new(pattern.map_err(wrong)?),
                }
            }
        },
    )
}

fn retries(from: pb::Retries) -> Result<Retries, ConvertError> {
    let mut on = RetryOn::default();
    for number in from.on {
        *flag(&mut on, value("on", number)?)
            .ok_or_else(|| at("on", Problem::UnknownValue(number)))? = true;
    }
    Ok(Retries {
        attempts: from.attempts,
        on,
        statuses: each("statuses", from.statuses, status)?,
        backoff: duration(from.backoff_us),
        other_localities: from.other_localities,
    })
}

/// The field of a kind of failure.
fn flag(on: &mut RetryOn, kind: pb::RetryOn) -> Option<&mut bool> {
    use pb::RetryOn as Pb;

    Some(match kind {
        Pb::Never => return None,
        Pb::ConnectFailure => &mut on.connect_failure,
        Pb::RefusedStream => &mut on.refused_stream,
        Pb::Reset => &mut on.reset,
        Pb::ResetBeforeRequest => &mut on.reset_before_request,
        Pb::ServerError => &mut on.server_error,
        Pb::GatewayError => &mut on.gateway_error,
        Pb::Retriable4xx => &mut on.retriable_4xx,
        Pb::Statuses => &mut on.statuses,
        Pb::AttemptTimeout => &mut on.attempt_timeout,
        Pb::GrpcCancelled => &mut on.grpc_cancelled,
        Pb::GrpcDeadlineExceeded => &mut on.grpc_deadline_exceeded,
        Pb::GrpcInternal => &mut on.grpc_internal,
        Pb::GrpcResourceExhausted => &mut on.grpc_resource_exhausted,
        Pb::GrpcUnavailable => &mut on.grpc_unavailable,
    })
}

fn redirect_in(from: pb::Redirect) -> Result<Redirect, ConvertError> {
    use pb::redirect::PortSource;

    let number = optional_port("port", from.port)?;
    let source = match value("port_source", from.port_source)? {
        PortSource::Unsaid => RedirectPort::Unsaid,
        PortSource::FromScheme => RedirectPort::FromScheme,
        PortSource::Dialled => RedirectPort::Dialled,
    };
    Ok(Redirect {
        status: status(from.status).map_err(|e| at("status", e))?,
        scheme: optional(from.scheme),
        host: optional(from.host),
        port: number.map_or(source, RedirectPort::Number),
        path: from.path.map(rewrite).transpose()?,
    })
}

fn fault(from: pb::Fault) -> Result<Fault, ConvertError> {
    use pb::abort::Error;

    let delay = from.delay.map(|delay| {
        let share = Share::millionths(delay.share);
        (share, Duration::from_micros(delay.duration_us))
    });
    let abort = from.abort.map(|abort| {
        let error = match abort.error {
            None => return Err(at("fault.abort.error", Problem::Missing)),
            Some(Error::HttpStatus(number)) => {
                Abort::Http(status(number).map_err(|e| at("fault.abort.http_status", e))?)
            }
            Some(Error::GrpcStatus(number)) => Abort::Grpc(number),
        };
        Ok((Share::millionths(abort.share), error))
    });
    Ok(Fault {
        delay,
        abort: abort.transpose()?,
    })
}

fn cors(from: pb::Cors) -> Result<Cors, ConvertError> {
    let shared = |texts: Vec<String>| texts.into_iter().map(Arc::from).collect();
    Ok(Cors {
        origins: each("cors.origins", from.origins, text)?,
        methods: shared(from.methods),
        headers: shared(from.headers),
        expose: shared(from.expose),
        max_age: from.max_age_us.map(Duration::from_micros),
        credentials: from.credentials,
        forward_unmatched: from.forward_unmatched,
    })
}

fn operations(
    field: &str,
    from: Option<pb::HeaderOperations>,
) -> Result<HeaderOperations, ConvertError> {
    let from = from.unwrap_or_default();
    let headers = |name: &str, headers: Vec<pb::Header>| {
        each_message(name, headers, |header| {
            let name = header_name(&header.name).map_err(|e| at("name", e))?;
            let value = header_value(&header.value).map_err(|e| at("value", e))?;
            Ok((name, value))
        })
    };
    let read = || {
        let changes = HeaderChanges {
            remove: each("remove", from.remove, |name| header_name(&name))?,
            set: headers("set", from.set)?,
            add: headers("add", from.add)?,
        };
        Ok(HeaderOperations::from(changes))
    };
    read().map_err(|e: ConvertError| e.within(field))
}

impl From<&RouteRule> for pb::Route {
    fn from(from: &RouteRule) -> Self {
        use pb::route::Action as Pb;

        let rule = &from.rule;
        let (rank, most_specific_first) = match &from.precedence {
            Precedence::Listed(rank) => (rank, false),
            Precedence::Specific(rank) => (rank, true),
        };
        Self {
            attachments: from
                .attachments
                .iter()
                .map(|attachment| pb::Attachment {
                    service: Some(key_out(&attachment.service)),
                    port: attachment.port.unwrap_or_default().into(),
                    client_namespace: text_or_none(attachment.client_namespace.as_ref()),
                })
                .collect(),
            rank: rank.to_string(),
            most_specific_first,
            matches: from.matches.iter().map(match_out).collect(),
            origin: Some(origin_out(&rule.origin)),
            action: Some(match &rule.action {
                Action::Forward(forward) => Pb::Forward(forward_out(forward)),
                Action::Redirect(redirect) => Pb::Redirect(redirect_out(redirect)),
                Action::Respond(respond) => Pb::Respond(pb::DirectResponse {
                    status: respond.status.as_u16().into(),
                    body: respond.body.to_vec(),
                }),
                Action::Fail(reason) => Pb::Fail(reason.to_string()),
            }),
            timeout_us: rule.timeout.map_or(0, microseconds),
            fault: rule.fault.as_deref().map(fault_out),
            cors: rule.cors.as_deref().map(cors_out),
            request_headers: operations_out(&rule.request_headers),
            response_headers: operations_out(&rule.response_headers),
        }
    }
}

fn match_out(from: &Match) -> pb::Match {
    use pb::path_match::Condition;

    let path = match &from.path {
        PathMatch::Any => None,
        PathMatch::Exact(text) => Some(Condition::Exact(text.to_string())),
        PathMatch::Prefix(text) => Some(Condition::Prefix(text.to_string())),
        PathMatch::Segments(text) => Some(Condition::Segments(text.to_string())),
        PathMatch::Text(text) => Some(Condition::Text(text_out(text))),
    };
    pb::Match {
        path: path.map(|condition| pb::PathMatch {
            condition: Some(condition),
        }),
        method: from.method.as_ref().map(text_out),
        scheme: from.scheme.as_ref().map(text_out),
        authority: from.authority.as_ref().map(text_out),
        headers: from
            .headers
            .iter()
            .map(|header| pb::HeaderMatch {
                name: header.name.to_string(),
                value: Some(text_out(&header.value)),
                negated: header.negated,
            })
            .collect(),
        query: from
            .query
            .iter()
            .map(|query| pb::QueryMatch {
                name: query.name.to_string(),
                value: Some(text_out(&query.value)),
            })
            .collect(),
        port: from.port.unwrap_or_default().into(),
        client_labels: labels_out(from.client_labels.iter().map(|(n, v)| (n, v))),
        client_namespace: text_or_none(from.client_namespace.as_ref()),
        connection: from
            .connection
            .as_ref()
            .map(|connection| pb::ConnectionMatch {
                server_names: connection
                    .server_names
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                subnets: connection.subnets.iter().map(ToString::to_string).collect(),
            }),
    }
}

fn forward_out(from: &Forward) -> pb::Forward {
    pb::Forward {
        backends: from.backends.iter().map(weighted_out).collect(),
        path: from.rewrite.path.as_ref().map(rewrite_out),
        authority: text_or_none(from.rewrite.authority.as_ref()),
        retries: Some(retries_out(&from.retries)),
        attempt_timeout_us: from.attempt_timeout.map_or(0, microseconds),
        mirrors: from
            .mirrors
            .iter()
            .map(|mirror| pb::Mirror {
                cluster: Some(cluster_out(&mirror.backend)),
                share: mirror.share.as_millionths(),
            })
            .collect(),
    }
}

fn weighted_out(from: &WeightedBackend) -> pb::WeightedBackend {
    use pb::weighted_backend::Backend as Pb;

    pb::WeightedBackend {
        backend: Some(match &from.backend {
            Backend::Cluster(key) => Pb::Cluster(cluster_out(key)),
            Backend::Invalid { status, reason } => Pb::Invalid(pb::Invalid {
                status: status.as_u16().into(),
                reason: reason.to_string(),
            }),
        }),
        weight: from.weight,
        request_headers: operations_out(&from.request_headers),
        response_headers: operations_out(&from.response_headers),
        authority: text_or_none(from.authority.as_ref()),
    }
}

fn cluster_out(from: &ClusterKey) -> pb::Cluster {
    pb::Cluster {
        service: Some(key_out(&from.service)),
        port: from.port.into(),
        subset: text_or_none(from.subset.as_ref()),
    }
}

fn rewrite_out(from: &PathRewrite) -> pb::PathRewrite {
    use pb::path_rewrite::Rewrite as Pb;

    let rewrite = match from {
        PathRewrite::Full(text) => Pb::Full(text.to_string()),
        PathRewrite::Prefix(text) => Pb::Prefix(text.to_string()),
        PathRewrite::Regex { pattern } => Pb::Regex(pb::RegexRewrite {
            pattern: pattern.pattern().to_owned(),
            substitution: pattern.replacement().to_owned(),
        }),
    };
    pb::PathRewrite {
        rewrite: Some(rewrite),
    }
}

fn retries_out(from: &Retries) -> pb::Retries {
    // Numbers go up from 1 without a gap.
    let kinds = (1..).map_while(|number| pb::RetryOn::try_from(number).ok());
    let mut on = from.on;
    pb::Retries {
        attempts: from.attempts,
        on: kinds
            .filter(|kind| flag(&mut on, *kind).is_some_and(|set| *set))
            .map(Into::into)
            .collect(),
        statuses: from.statuses.iter().map(|s| s.as_u16().into()).collect(),
        backoff_us: from.backoff.map_or(0, microseconds),
        other_localities: from.other_localities,
    }
}

fn redirect_out(from: &Redirect) -> pb::Redirect {
    use pb::redirect::PortSource;

    let (port, source) = match from.port {
        RedirectPort::Unsaid => (0, PortSource::Unsaid),
        RedirectPort::FromScheme => (0, PortSource::FromScheme),
        RedirectPort::Dialled => (0, PortSource::Dialled),
        RedirectPort::Number(port) => (port, PortSource::Unsaid),
    };
    pb::Redirect {
        status: from.status.as_u16().into(),
        scheme: text_or_none(from.scheme.as_ref()),
        host: text_or_none(from.host.as_ref()),
        port: port.into(),
        port_source: source.into(),
        path: from.path.as_ref().map(rewrite_out),
    }
}

fn fault_out(from: &Fault) -> pb::Fault {
    use pb::abort::Error;

    pb::Fault {
        delay: from.delay.map(|(share, duration)| pb::Delay {
            share: share.as_millionths(),
            duration_us: microseconds(duration),
        }),
        abort: from.abort.map(|(share, error)| pb::Abort {
            share: share.as_millionths(),
            error: Some(match error {
                Abort::Http(status) => Error::HttpStatus(status.as_u16().into()),
                Abort::Grpc(status) => Error::GrpcStatus(status),
            }),
        }),
    }
}

fn cors_out(from: &Cors) -> pb::Cors {
    let texts = |texts: &[Arc<str>]| texts.iter().map(ToString::to_string).collect();
    pb::Cors {
        origins: texts_out(&from.origins),
        methods: texts(&from.methods),
        headers: texts(&from.headers),
        expose: texts(&from.expose),
        max_age_us: from.max_age.map(microseconds),
        credentials: from.credentials,
        forward_unmatched: from.forward_unmatched,
    }
}

fn operations_out(from: &HeaderOperations) -> Option<pb::HeaderOperations> {
    let headers = |headers: &[(http::HeaderName, http::HeaderValue)]| {
        headers
            .iter()
            .map(|(name, value)| pb::Header {
                name: name.to_string(),
                value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
            })
            .collect()
    };
    (!from.is_empty()).then(|| pb::HeaderOperations {
        remove: from.remove.iter().map(ToString::to_string).collect(),
        set: headers(&from.set),
        add: headers(&from.add),
    })
}
