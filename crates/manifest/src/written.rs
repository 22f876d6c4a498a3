//! Objects of any kind as they are written: for what is to be said about kinds that the mesh does not read.

use std::sync::Arc;

use serde_json::{Map, Number, Value};

use crate::decode::{group_of, metadata_text, namespace_for, parse};
use crate::document::split;
use crate::lines::FieldLines;
use crate::object::{ObjectKey, ObjectKind, Origin};
use crate::tree::{self, Node, Scalar};

/// One object with the line of each of its fields.
#[derive(Clone, Debug)]
pub struct Written {
    /// Who it is.
    pub key: ObjectKey,
    /// Where it begins.
    pub origin: Origin,
    /// Where its fields are.
    pub lines: FieldLines,
    /// All of it.
    pub content: Value,
}

/// The objects of a file that have a kind and a name. What is wrong with the others [`crate::read_file`] says.
pub fn written(file: &Arc<str>, text: &str) -> Vec<Written> {
    let mut found = Vec::new();
    for document in split(text) {
        for node in parse(document).unwrap_or_default() {
            item(file, &node, &mut found);
        }
    }
    found
}

fn item(file: &Arc<str>, node: &Node, into: &mut Vec<Written>) {
    let text = |key: &str| node.get(key).and_then(Node::text);
    let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        return;
    };
    if let Some(items) = node.get("items").filter(|_| kind.ends_with("List")) {
        return items.items().iter().for_each(|one| item(file, one, into));
    }
    let Some(name) = metadata_text(node, "name") else {
        return;
    };
    let kind = ObjectKind::of(group_of(api_version), kind);
    let namespace = namespace_for(&kind, metadata_text(node, "namespace"));
    into.push(Written {
        key: ObjectKey::of(kind, namespace, name),
        origin: Origin::file(Arc::clone(file), node.line),
        lines: FieldLines::of(node),
        content: value(node),
    });
}

fn value(node: &Node) -> Value {
    match &node.value {
        tree::Value::Scalar(Scalar::Null) => Value::Null,
        tree::Value::Scalar(Scalar::Bool(yes)) => Value::Bool(*yes),
        tree::Value::Scalar(Scalar::Unsigned(number)) => (*number).into(),
        tree::Value::Scalar(Scalar::Signed(number)) => (*number).into(),
        tree::Value::Scalar(Scalar::Float(number)) => {
            Number::from_f64(*number).map_or(Value::Null, Value::Number)
        }
        tree::Value::Scalar(Scalar::Text(text)) => text.as_str().into(),
        tree::Value::Sequence(items) => Value::Array(items.iter().map(value).collect()),
        tree::Value::Mapping(entries) => {
            let pairs = entries.iter();
            let pairs = pairs.map(|entry| (entry.key.clone(), value(&entry.value)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_all_kinds_are_there_with_their_lines_and_lists_are_taken_apart() {
        let text = "kind: List\napiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n---\n\
                    apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata:\n  name: g\nspec:\n  servers: [{port: 80}]\n\
                    ---\nbroken: [\n";
        let found = written(&"f.yaml".into(), text);
        let keys: Vec<_> = found.iter().map(|one| one.key.to_string()).collect();
        assert_eq!(keys, ["Namespace a", "Gateway default/g"]);
        assert_eq!(found[1].lines.line("spec.servers[0].port"), Some(13));
        assert_eq!(found[1].content["spec"]["servers"][0]["port"], 80);
    }
}
