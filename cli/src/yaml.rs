//! JSON values as YAML in block style, which is all that `-o yaml` needs.

use serde_json::Value;

/// A document.
pub(crate) fn write(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

/// Writes a value that begins at a line's start, or behind `- ` for the first line of an item.
fn block(value: &Value, depth: usize, into: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (i, (key, value)) in fields.iter().enumerate() {
                if i > 0 {
                    indent(depth, into);
                }
                into.push_str(&scalar(&Value::from(key.as_str())));
                into.push(':');
                below(value, depth, into);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    indent(depth, into);
                }
                into.push_str("- ");
                block(item, depth + 1, into);
            }
        }
        other => {
            into.push_str(&scalar(other));
            into.push('\n');
        }
    }
}

/// Writes the value of a key: beside it, or in the lines below.
fn below(value: &Value, depth: usize, into: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            into.push('\n');
            indent(depth + 1, into);
            block(value, depth + 1, into);
        }
        Value::Array(items) if !items.is_empty() => {
            into.push('\n');
            indent(depth, into);
            block(value, depth, into);
        }
        other => {
            into.push(' ');
            into.push_str(&scalar(other));
            into.push('\n');
        }
    }
}

fn indent(depth: usize, into: &mut String) {
    into.extend(std::iter::repeat_n("  ", depth));
}

/// A scalar as JSON writes it, which YAML reads; without quotes where it cannot be taken for anything else.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let first = text.bytes().next();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_./ ()".contains(&b);
    // What begins with a letter is no number; these words are no strings.
    first.is_some_and(|b| b.is_ascii_alphabetic())
        && text.bytes().all(allowed)
        && !text.ends_with(' ')
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_as_the_same() {
        let value = json!({
            "name": "shop/web", "empty": [], "none": {}, "word": "true", "number": "12", "text": "a: b\n\"c\"",
            "list": [1, -2.5, null, false, "x", ["nested", []], {"a": 1, "b": {"c": [1]}}],
            "0": {"deep": [{"x": [{"y": "z"}]}]},
        });
        let text = write(&value);
        let document = format!(
            "apiVersion: v1\nkind: X\nmetadata: {{name: x}}\nspec:\n  - {}",
            text.replace('\n', "\n    ")
        );
        let read = manifest::written(&"x.yaml".into(), &document);
        assert_eq!(
            read.first().map(|one| &one.content["spec"][0]),
            Some(&value),
            "{text}"
        );
    }
}
