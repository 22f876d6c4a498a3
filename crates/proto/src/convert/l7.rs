//! What a waypoint is told, from the wire to [`l7`] and back.
//!
//! A resource with something in it that this program does not know is refused as a whole: what is not known may narrow.

mod backend;
mod listener;
mod policy;
mod route;

pub use self::backend::backend_out;
pub use self::policy::policy_name;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use l7::text::{Regex, TextMatch};
use l7::{Kind, Origin, Resource, ResourceName, Service};
use model::ServiceKey;
use model::service::{AppProtocol, ServicePort};
use prost::Message;

use super::{ConvertError, Problem, at, each, each_message, ip, ip_bytes, port, required, value};
use crate::{l7 as pb, type_url};

/// The resource types of a waypoint, in the order in which they are delivered: what is named before what names it.
pub const TYPES: [&str; 6] = [
    type_url::L7_POLICY,
    type_url::L7_SERVICE,
    type_url::L7_ENDPOINT,
    type_url::L7_BACKEND,
    type_url::L7_LISTENER,
    type_url::L7_ROUTE,
];

/// Reads a resource of one of [`TYPES`]. None if it is of another type.
///
/// # Errors
/// The message makes no sense, or holds what this program does not know.
pub fn resource(
    type_url: &str,
    name: &str,
    bytes: &[u8],
) -> Option<Result<Resource, ConvertError>> {
    Some(match type_url {
        type_url::L7_SERVICE => known(bytes).and_then(service).map(Resource::Service),
        type_url::L7_ENDPOINT => known(bytes)
            .and_then(backend::endpoint)
            .map(Resource::Endpoint),
        type_url::L7_BACKEND => known(bytes)
            .and_then(backend::rule)
            .map(|(key, rule)| Resource::Backend(key, rule)),
        type_url::L7_POLICY => known(bytes)
            .and_then(policy::policy)
            .map(|policy| Resource::Policy(name.into(), policy)),
        type_url::L7_ROUTE => known(bytes)
            .and_then(route::rule)
            .map(|rule| Resource::Route(name.into(), rule)),
        type_url::L7_LISTENER => known(bytes)
            .and_then(listener::listener)
            .map(|listener| Resource::Listener(name.into(), listener)),
        _ => return None,
    })
}

/// What is removed when a resource of one of [`TYPES`] is. None if it is of another type, or has a name of another form.
pub fn resource_name(type_url: &str, name: &str) -> Option<ResourceName> {
    Some(match type_url {
        type_url::L7_SERVICE => ResourceName::Service(name.parse().ok()?),
        type_url::L7_ENDPOINT => ResourceName::Endpoint(name.into()),
        type_url::L7_BACKEND => ResourceName::Backend(name.parse().ok()?),
        type_url::L7_POLICY => ResourceName::Policy(name.into()),
        type_url::L7_ROUTE => ResourceName::Route(name.into()),
        type_url::L7_LISTENER => ResourceName::Listener(name.into()),
        _ => return None,
    })
}

/// Decodes a message that has nothing in it but what this program knows.
fn known<M: Message + Default>(bytes: &[u8]) -> Result<M, ConvertError> {
    let message = M::decode(bytes).map_err(|e| at("resource", e))?;
    // Fields that are not known are dropped, and we write none that says nothing.
    if message.encoded_len() != bytes.len() {
        let problem = Problem::Extension("a field".to_owned());
        return Err(at("resource", problem));
    }
    Ok(message)
}

fn service(from: pb::Service) -> Result<Service, ConvertError> {
    Ok(Service {
        key: key("key", from.key)?,
        addresses: each("addresses", from.addresses, |bytes| ip(&bytes))?,
        ports: each_message("ports", from.ports, |declared| {
            Ok(ServicePort {
                port: port(declared.port).map_err(|e| at("port", e))?,
                target_port: 0,
                app_protocol: match value("protocol", declared.protocol)? {
                    pb::Protocol::Unknown => AppProtocol::Unknown,
                    pb::Protocol::Http11 => AppProtocol::Http11,
                    pb::Protocol::Http2 => AppProtocol::Http2,
                    pb::Protocol::Grpc => AppProtocol::Grpc,
                    pb::Protocol::Tcp => AppProtocol::Tcp,
                    pb::Protocol::Tls => AppProtocol::Tls,
                },
            })
        })?,
        attached: from.attached,
    })
}

impl From<&Service> for pb::Service {
    fn from(from: &Service) -> Self {
        Self {
            key: Some(key_out(&from.key)),
            addresses: from.addresses.iter().map(|ip| ip_bytes(*ip)).collect(),
            ports: from
                .ports
                .iter()
                .map(|port| pb::Port {
                    port: port.port.into(),
                    protocol: match port.app_protocol {
                        AppProtocol::Unknown => pb::Protocol::Unknown,
                        AppProtocol::Http11 => pb::Protocol::Http11,
                        AppProtocol::Http2 => pb::Protocol::Http2,
                        AppProtocol::Grpc => pb::Protocol::Grpc,
                        AppProtocol::Tcp => pb::Protocol::Tcp,
                        AppProtocol::Tls => pb::Protocol::Tls,
                    }
                    .into(),
                })
                .collect(),
            attached: from.attached,
        }
    }
}

fn key(field: &str, from: Option<pb::ServiceKey>) -> Result<ServiceKey, ConvertError> {
    let from = from.ok_or_else(|| at(field, Problem::Missing))?;
    let namespace = required("namespace", from.namespace).map_err(|e| e.within(field))?;
    let hostname = required("hostname", from.hostname).map_err(|e| e.within(field))?;
    Ok(ServiceKey::new(namespace, hostname))
}

fn key_out(key: &ServiceKey) -> pb::ServiceKey {
    pb::ServiceKey {
        namespace: key.namespace.to_string(),
        hostname: key.hostname.to_string(),
    }
}

fn origin(from: Option<pb::Origin>) -> Result<Origin, ConvertError> {
    let from = from.ok_or_else(|| at("origin", Problem::Missing))?;
    let kind = Kind::named(&from.kind)
        .ok_or_else(|| at("origin.kind", Problem::Extension(from.kind.clone())))?;
    Ok(Origin {
        kind,
        namespace: from.namespace.into(),
        name: required("origin.name", from.name)?.into(),
        rule: from.rule,
        rule_name: optional(from.rule_name),
    })
}

fn origin_out(from: &Origin) -> pb::Origin {
    pb::Origin {
        kind: from.kind.as_str().to_owned(),
        namespace: from.namespace.to_string(),
        name: from.name.to_string(),
        rule: from.rule,
        rule_name: text_or_none(from.rule_name.as_ref()),
    }
}

fn text(from: pb::Text) -> Result<TextMatch, Problem> {
    use pb::text::Condition;

    Ok(match from.condition.ok_or(Problem::Missing)? {
        Condition::Exact(text) => TextMatch::Exact(text.into()),
        Condition::ExactIgnoringCase(text) => TextMatch::ExactIgnoringCase(text.into()),
        Condition::Prefix(text) => TextMatch::Prefix(text.into()),
        Condition::PrefixIgnoringCase(text) => TextMatch::PrefixIgnoringCase(text.into()),
        Condition::Suffix(text) => TextMatch::Suffix(text.into()),
        Condition::Regex(pattern) => {
            TextMatch::Regex(Regex::new(&pattern).map_err(|e| Problem::Text(e.to_string()))?)
        }
        Condition::Present(true) => TextMatch::Present,
        Condition::Present(false) => return Err(Problem::Missing),
    })
}

fn text_out(from: &TextMatch) -> pb::Text {
    use pb::text::Condition;

    let condition = match from {
        TextMatch::Exact(text) => Condition::Exact(text.to_string()),
        TextMatch::ExactIgnoringCase(text) => Condition::ExactIgnoringCase(text.to_string()),
        TextMatch::Prefix(text) => Condition::Prefix(text.to_string()),
        TextMatch::PrefixIgnoringCase(text) => Condition::PrefixIgnoringCase(text.to_string()),
        TextMatch::Suffix(text) => Condition::Suffix(text.to_string()),
        TextMatch::Regex(regex) => Condition::Regex(regex.pattern().to_string()),
        TextMatch::Present => Condition::Present(true),
    };
    pb::Text {
        condition: Some(condition),
    }
}

fn optional_text(field: &str, from: Option<pb::Text>) -> Result<Option<TextMatch>, ConvertError> {
    from.map(text).transpose().map_err(|e| at(field, e))
}

fn texts_out(from: &[TextMatch]) -> Vec<pb::Text> {
    from.iter().map(text_out).collect()
}

fn header_name(text: &str) -> Result<HeaderName, Problem> {
    HeaderName::from_bytes(text.as_bytes())
        .ok()
        .ok_or_else(|| Problem::Text(format!("is {text:?}, which is no header's name")))
}

fn header_value(text: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(text)
        .ok()
        .ok_or_else(|| Problem::Text(format!("is {text:?}, which is no header's value")))
}

fn status(number: u32) -> Result<StatusCode, Problem> {
    u16::try_from(number)
        .ok()
        .and_then(|number| StatusCode::from_u16(number).ok())
        .ok_or_else(|| Problem::Text(format!("is {number}, which is no HTTP status")))
}

fn optional(text: String) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

fn text_or_none(text: Option<&Arc<str>>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

fn duration(microseconds: u64) -> Option<Duration> {
    (microseconds > 0).then(|| Duration::from_micros(microseconds))
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

type Labels = BTreeMap<Arc<str>, Arc<str>>;

fn labels(from: BTreeMap<String, String>) -> Labels {
    from.into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

fn labels_out<'a>(
    from: impl IntoIterator<Item = (&'a Arc<str>, &'a Arc<str>)>,
) -> BTreeMap<String, String> {
    from.into_iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

fn addresses(from: Vec<Vec<u8>>) -> Result<Vec<IpAddr>, ConvertError> {
    each("addresses", from, |bytes| ip(&bytes))
}

#[cfg(test)]
mod tests;
