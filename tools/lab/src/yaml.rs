//! The YAML the lab needs: manifests to JSON values, and values back to text a person reads.
//!
//! No anchors, no tags: manifests do not use them, and the lab says so if one does.

use anyhow::{Result, bail};
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// The documents of one file; empty ones are left out.
///
/// # Errors
/// It is no YAML, or has aliases.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let mut documents = Vec::new();
    let mut stack: Vec<Open> = Vec::new();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event?;
        let value = match event {
            Event::Scalar(text, style, _, _) => scalar(&text, style),
            Event::MappingStart(..) => {
                stack.push(Open::Mapping(Map::new(), None));
                continue;
            }
            Event::SequenceStart(..) => {
                stack.push(Open::Sequence(Vec::new()));
                continue;
            }
            Event::MappingEnd | Event::SequenceEnd => match stack.pop() {
                Some(Open::Mapping(map, _)) => Value::Object(map),
                Some(Open::Sequence(items)) => Value::Array(items),
                None => continue,
            },
            Event::Alias(_) => bail!("line {}: aliases are not supported here", span.start.line()),
            _ => continue,
        };
        match stack.last_mut() {
            Some(Open::Sequence(items)) => items.push(value),
            Some(Open::Mapping(map, key)) => match key.take() {
                None => *key = Some(key_text(&value)),
                Some(key) => {
                    map.insert(key, value);
                }
            },
            None if value.is_null() => {}
            None => documents.push(value),
        }
    }
    Ok(documents)
}

/// Several documents as one file.
pub(crate) fn emit(documents: &[Value]) -> String {
    let mut out = String::new();
    for document in documents {
        out.push_str("---\n");
        emit_block(document, 0, &mut out);
    }
    out
}

enum Open {
    Mapping(Map<String, Value>, Option<String>),
    Sequence(Vec<Value>),
}

/// The core schema's reading of a scalar; quoted ones are always strings.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).unwrap_or_else(|| Value::String(text.to_owned())),
    }
}

fn number(text: &str) -> Option<Value> {
    if let Ok(number) = text.parse::<i64>() {
        return Some(number.into());
    }
    let numeric = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    if !numeric || !text.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Number::from_f64(text.parse().ok()?).map(Value::Number)
}

fn key_text(key: &Value) -> String {
    match key {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn emit_block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                out.push_str(&" ".repeat(indent));
                out.push_str(&plain_or_quoted(key));
                out.push(':');
                emit_nested(value, indent + 2, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                out.push_str(&" ".repeat(indent));
                out.push('-');
                emit_item(item, indent + 2, out);
            }
        }
        leaf => {
            out.push_str(&emit_leaf(leaf));
            out.push('\n');
        }
    }
}

fn emit_nested(value: &Value, indent: usize, out: &mut String) {
    if is_leaf(value) {
        out.push(' ');
        out.push_str(&emit_leaf(value));
        out.push('\n');
    } else {
        out.push('\n');
        emit_block(value, indent, out);
    }
}

/// A sequence's item begins on the line of its dash.
fn emit_item(value: &Value, indent: usize, out: &mut String) {
    let mut block = String::new();
    emit_block(value, indent, &mut block);
    if is_leaf(value) {
        block = format!("{}\n", emit_leaf(value));
    }
    out.push(' ');
    out.push_str(block.trim_start_matches(' '));
}

fn is_leaf(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    }
}

fn emit_leaf(value: &Value) -> String {
    match value {
        Value::String(text) => plain_or_quoted(text),
        other => other.to_string(),
    }
}

/// A JSON string is a YAML string; it is used wherever the plain form could mean something else.
fn plain_or_quoted(text: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    let plain = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic())
        && text.bytes().all(safe)
        && scalar(text, ScalarStyle::Plain).is_string()
        && !["yes", "no", "on", "off", "y", "n"].contains(&text.to_lowercase().as_str());
    if plain {
        text.to_owned()
    } else {
        Value::String(text.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_are_read_with_the_types_kubernetes_expects() {
        let text = "# comment\napiVersion: v1\nkind: Service\nspec:\n  ports:\n  - {port: 80, name: \"8\"}\n  on: true\n---\n---\na: ~\nb: 1.5\nc: 10.0.0.1\nd: '7'\n";
        assert_eq!(
            parse(text).unwrap(),
            vec![
                json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80, "name": "8"}], "on": true}}),
                json!({"a": null, "b": 1.5, "c": "10.0.0.1", "d": "7"}),
            ]
        );
    }

    #[test]
    fn what_is_emitted_reads_back_equal() {
        let documents = vec![
            json!({"kind": "Pod", "metadata": {"name": "a", "labels": {}, "annotations": {"keelson.io/pod-ips": "10.0.0.1,fd00::1"}},
                "spec": {"list": [], "containers": [{"name": "x", "command": ["a", "-b", "{\"k\": \"v: w\"}", ""], "n": 3},
                {"nested": [[1, 2], ["no", "1e3", "0x1"]]}], "none": null, "flag": false}}),
            json!({"kind": "Service"}),
        ];
        let text = emit(&documents);
        assert_eq!(parse(&text).unwrap(), documents, "{text}");
    }
}
