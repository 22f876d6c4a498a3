//! The part of Helm's template language that the chart uses, and nothing else, so that both agree on every character:
//!
//! - `{{ .Values.a.b }}`, `{{ .Release.Name }}`, `{{ .Release.Namespace }}`: a string, as it is;
//! - `{{ toJson .Values.a }}`: any value as JSON, which YAML understands;
//! - `{{ if .Values.a }}`, `{{ end }}`: left out where the value is empty; `{{ if not .Values.a }}`: where it is not;
//! - `{{-` and `-}}` take the white space before and after them away.

use serde_json::Value;

/// What templates may speak of.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// `.Values`
    pub values: &'a Value,
    /// `.Release.Name`
    pub release_name: &'a str,
    /// `.Release.Namespace`
    pub release_namespace: &'a str,
}

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Braces that nobody closes.
    #[error("an action is not closed: {0:?}")]
    Open(String),
    /// More than this language has.
    #[error("the action {0:?} is none that is known here")]
    Action(String),
    /// A name that stands for nothing.
    #[error("{0} is not set")]
    Unset(String),
    /// A value that Helm would print in a way of its own.
    #[error("{0} is no string: write toJson")]
    NoString(String),
    /// An `if` too many or an `end` too few.
    #[error("`if` and `end` do not match")]
    Unbalanced,
}

/// Renders a template.
///
/// # Errors
/// The template is at fault.
pub fn render(text: &str, scope: &Scope<'_>) -> Result<String, TemplateError> {
    let mut out = String::new();
    // For each `if` that is open, whether its inside counts.
    let mut open: Vec<bool> = Vec::new();
    let mut rest = text;
    let mut trim_start = false;
    loop {
        let (before, after) = match rest.split_once("{{") {
            Some((before, after)) => (before, Some(after)),
            None => (rest, None),
        };
        let trim_end = after.is_some_and(|after| after.starts_with("- "));
        let shown = open.iter().all(|shown| *shown);
        if shown {
            out.push_str(trim(before, trim_start, trim_end));
        }
        let Some(after) = after else {
            break;
        };
        let Some((action, following)) = after.split_once("}}") else {
            return Err(TemplateError::Open(after.to_owned()));
        };
        let action = action.strip_prefix("- ").unwrap_or(action);
        trim_start = action.ends_with(" -");
        let action = action.strip_suffix(" -").unwrap_or(action).trim();
        match act(action, scope, shown)? {
            Act::Print(text) => out.push_str(&text),
            Act::Open(inside) => open.push(inside),
            Act::Close => {
                open.pop().ok_or(TemplateError::Unbalanced)?;
            }
        }
        rest = following;
    }
    if open.is_empty() {
        Ok(out)
    } else {
        Err(TemplateError::Unbalanced)
    }
}

enum Act {
    Print(String),
    Open(bool),
    Close,
}

fn act(action: &str, scope: &Scope<'_>, shown: bool) -> Result<Act, TemplateError> {
    let words: Vec<&str> = action.split_whitespace().collect();
    match *words.as_slice() {
        ["end"] => Ok(Act::Close),
        ["if", "not", name] => Ok(Act::Open(shown && is_empty(&find(name, scope)?))),
        ["if", name] => Ok(Act::Open(shown && !is_empty(&find(name, scope)?))),
        ["toJson", name] => Ok(Act::Print(if shown {
            to_json(&find(name, scope)?)
        } else {
            String::new()
        })),
        [name] if name.starts_with('.') => match find(name, scope)? {
            _ if !shown => Ok(Act::Print(String::new())),
            Value::String(text) => Ok(Act::Print(text)),
            _ => Err(TemplateError::NoString(name.to_owned())),
        },
        _ => Err(TemplateError::Action(action.to_owned())),
    }
}

fn find(name: &str, scope: &Scope<'_>) -> Result<Value, TemplateError> {
    match name {
        ".Release.Name" => return Ok(scope.release_name.into()),
        ".Release.Namespace" => return Ok(scope.release_namespace.into()),
        _ => {}
    }
    let unset = || TemplateError::Unset(name.to_owned());
    let path = name
        .strip_prefix(".Values.")
        .ok_or_else(|| TemplateError::Action(name.to_owned()))?;
    let mut value = scope.values;
    for part in path.split('.') {
        value = value.get(part).ok_or_else(unset)?;
    }
    Ok(value.clone())
}

/// What counts as false in Go's templates.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// As Go writes it: names in order, and some characters escaped for HTML's sake.
fn to_json(value: &Value) -> String {
    let mut out = String::new();
    for letter in value.to_string().chars() {
        match letter {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            letter => out.push(letter),
        }
    }
    out
}

fn trim(text: &str, start: bool, end: bool) -> &str {
    let white = [' ', '\t', '\r', '\n'];
    let text = if start {
        text.trim_start_matches(white)
    } else {
        text
    };
    if end {
        text.trim_end_matches(white)
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rendered(text: &str) -> Result<String, TemplateError> {
        let values = json!({
            "name": "a", "none": "", "count": 1_000_000, "map": {"b": 1, "a": "<&>"}, "yes": true, "list": [],
        });
        let scope = Scope {
            values: &values,
            release_name: "mesh",
            release_namespace: "system",
        };
        render(text, &scope)
    }

    #[test]
    fn what_is_known_is_rendered() {
        for (text, expected) in [
            ("plain", "plain"),
            ("x: {{ .Values.name }}/{{ .Release.Name }}", "x: a/mesh"),
            ("{{ toJson .Values.count }}", "1000000"),
            (
                "{{ toJson .Values.map }}",
                r#"{"a":"\u003c\u0026\u003e","b":1}"#,
            ),
            (
                "a\n  {{- if .Values.yes }}\n  b\n  {{- end }}\nc",
                "a\n  b\nc",
            ),
            ("a\n  {{- if .Values.none }}\n  b\n  {{- end }}\nc", "a\nc"),
            (
                "{{ if .Values.list }}x{{ if .Values.yes }}y{{ end }}{{ end }}z",
                "z",
            ),
            (
                "{{ if not .Values.list }}x{{ if not .Values.yes }}y{{ end }}{{ end }}z",
                "xz",
            ),
            ("a \n {{- .Values.name -}} \n b", "aab"),
        ] {
            assert_eq!(rendered(text).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_known_is_an_error_and_never_text() {
        for text in [
            "{{ .Values.absent }}",
            "{{ .Values.name.more }}",
            "{{ .Values.count }}",
            "{{ .Chart.Name }}",
            "{{ include \"x\" . }}",
            "{{ if .Values.yes }}",
            "{{ end }}",
            "{{ .Values.name",
            "{{ if .Values.none }}{{ .Values.absent }}{{ end }}",
        ] {
            assert!(rendered(text).is_err(), "{text}");
        }
    }
}
