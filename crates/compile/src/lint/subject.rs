//! What of an object is looked at: little, so that a cluster's objects can all be kept.

use std::collections::BTreeSet;

use manifest::{Labels, ObjectKey};
use serde_json::Value;

use super::MESH;

/// An object that there may be something to say of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Subject {
    VirtualService(Traffic),
    DestinationRule(Rule),
}

/// A `VirtualService`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Traffic {
    pub(crate) hosts: Vec<String>,
    pub(crate) gateways: Vec<String>,
    /// Field and host of each destination.
    pub(crate) destinations: Vec<(String, String)>,
    /// Routes for HTTP.
    pub(crate) routes: usize,
    /// The first of them that takes every request.
    pub(crate) takes_all: Option<usize>,
}

/// A `DestinationRule`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rule {
    pub(crate) host: String,
    /// Name and labels.
    pub(crate) subsets: Vec<(String, Labels)>,
}

impl Subject {
    /// Reads an object as it is written; `None` for a kind of which there is nothing to say.
    pub(crate) fn read(key: &ObjectKey, content: &Value) -> Option<Self> {
        let spec = content.get("spec").unwrap_or(&Value::Null);
        match (key.kind().group(), key.kind().as_str()) {
            ("networking.istio.io", "VirtualService") => {
                Some(Self::VirtualService(Traffic::read(spec)))
            }
            ("networking.istio.io", "DestinationRule") => {
                Some(Self::DestinationRule(Rule::read(spec)))
            }
            _ => None,
        }
    }
}

impl Traffic {
    fn read(spec: &Value) -> Self {
        let mut destinations = Vec::new();
        for kind in ["http", "tls", "tcp"] {
            for (i, route) in items(spec, kind).iter().enumerate() {
                for (j, one) in items(route, "route").iter().enumerate() {
                    let field = format!("spec.{kind}[{i}].route[{j}].destination.host");
                    destinations.push((field, text(one, "/destination/host").to_owned()));
                }
            }
        }
        let routes = items(spec, "http");
        let takes_all = |route: &Value| {
            let matches = items(route, "match");
            matches.is_empty() || matches.iter().any(is_everything)
        };
        Self {
            hosts: strings(spec, "hosts"),
            gateways: strings(spec, "gateways"),
            destinations,
            routes: routes.len(),
            takes_all: routes.iter().position(takes_all),
        }
    }

    /// Where an object of this namespace has its routes applied; in the mesh if it does not say.
    pub(crate) fn bindings(&self, namespace: &str) -> BTreeSet<String> {
        if self.gateways.is_empty() {
            return BTreeSet::from([MESH.to_owned()]);
        }
        let name = |name: &String| match name.split_once('/') {
            None if name == MESH => name.clone(),
            None => format!("gateway {namespace}/{name}"),
            Some((".", name)) => format!("gateway {namespace}/{name}"),
            Some(_) => format!("gateway {name}"),
        };
        self.gateways.iter().map(name).collect()
    }
}

impl Rule {
    fn read(spec: &Value) -> Self {
        let subsets = items(spec, "subsets").iter();
        let subsets = subsets.map(|subset| {
            let of = subset.get("labels").unwrap_or(&Value::Null);
            (text(subset, "/name").to_owned(), labels(of))
        });
        Self {
            host: text(spec, "/host").to_owned(),
            subsets: subsets.collect(),
        }
    }
}

/// A match without conditions, or with the prefix of every path alone.
fn is_everything(one: &Value) -> bool {
    let conditions = one.as_object().map_or(0, |conditions| {
        conditions.keys().filter(|key| *key != "name").count()
    });
    conditions == 0 || (conditions == 1 && text(one, "/uri/prefix") == "/")
}

/// Those that are strings.
pub(super) fn labels(value: &Value) -> Labels {
    let pairs = value.as_object().into_iter().flatten();
    let pairs = pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    pairs.collect()
}

/// The strings of a list.
pub(super) fn strings(value: &Value, key: &str) -> Vec<String> {
    let items = items(value, key).iter();
    let strings = items.filter_map(|item| Some(item.as_str()?.to_owned()));
    strings.collect()
}

pub(super) fn items<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    let items = value.get(key).and_then(Value::as_array);
    items.map_or(&[], Vec::as_slice)
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}
