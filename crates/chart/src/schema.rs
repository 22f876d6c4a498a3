//! Values held against a JSON schema: the keywords that the chart's schema uses, and no other.

use regex::Regex;
use serde_json::{Map, Value};

/// Every fault of `value`, as `path: what is expected`.
///
/// # Errors
/// The schema has a keyword that is not known here: what it demands would not be checked.
pub fn check(schema: &Value, value: &Value) -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    at("", schema, value, &mut faults)?;
    Ok(faults)
}

fn at(path: &str, schema: &Value, value: &Value, faults: &mut Vec<String>) -> Result<(), String> {
    let schema = schema
        .as_object()
        .ok_or_else(|| format!("{path}: a schema is a map"))?;
    for (keyword, wanted) in schema {
        let fault = match keyword.as_str() {
            "$schema" | "title" | "description" => None,
            "type" => wrong_type(wanted, value),
            "enum" => {
                let allowed = wanted.as_array().is_some_and(|all| all.contains(value));
                (!allowed).then(|| format!("one of {wanted} is expected, not {value}"))
            }
            "minimum" => {
                let below = value.as_f64() < wanted.as_f64();
                (value.is_number() && below).then(|| format!("at least {wanted} is expected"))
            }
            "maximum" => {
                let above = value.as_f64() > wanted.as_f64();
                (value.is_number() && above).then(|| format!("at most {wanted} is expected"))
            }
            "minLength" => {
                let short = value
                    .as_str()
                    .is_some_and(|text| u64::try_from(text.chars().count()).ok() < wanted.as_u64());
                short.then(|| "a text is expected that is not empty".to_owned())
            }
            "pattern" => wrong_text(wanted, value)?,
            "items" => {
                for (number, item) in value.as_array().into_iter().flatten().enumerate() {
                    at(&format!("{path}[{number}]"), wanted, item, faults)?;
                }
                None
            }
            "properties" => {
                properties(path, wanted, value, faults)?;
                None
            }
            "additionalProperties" => {
                others(path, schema, wanted, value, faults)?;
                None
            }
            other => return Err(format!("the keyword {other} is not known")),
        };
        faults.extend(fault.map(|fault| format!("{path}: {fault}")));
    }
    Ok(())
}

fn wrong_type(wanted: &Value, value: &Value) -> Option<String> {
    let name = wanted.as_str().unwrap_or_default();
    let right = match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => false,
    };
    (!right).then(|| format!("{name} is expected, not {value}"))
}

fn wrong_text(wanted: &Value, value: &Value) -> Result<Option<String>, String> {
    let pattern = wanted.as_str().unwrap_or_default();
    let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
    let fits = value.as_str().is_none_or(|text| pattern.is_match(text));
    Ok((!fits).then(|| format!("{value} does not look like {pattern}")))
}

fn properties(
    path: &str,
    wanted: &Value,
    value: &Value,
    faults: &mut Vec<String>,
) -> Result<(), String> {
    for (name, schema) in wanted.as_object().into_iter().flatten() {
        if let Some(inner) = value.get(name) {
            at(&below(path, name), schema, inner, faults)?;
        }
    }
    Ok(())
}

fn others(
    path: &str,
    schema: &Map<String, Value>,
    wanted: &Value,
    value: &Value,
    faults: &mut Vec<String>,
) -> Result<(), String> {
    let known = schema.get("properties").and_then(Value::as_object);
    for (name, inner) in value.as_object().into_iter().flatten() {
        if known.is_some_and(|known| known.contains_key(name)) {
            continue;
        }
        match wanted {
            Value::Bool(true) => {}
            Value::Bool(false) => {
                faults.push(format!("{}: there is no such value", below(path, name)));
            }
            schema => at(&below(path, name), schema, inner, faults)?,
        }
    }
    Ok(())
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_keyword_that_is_not_checked_is_an_error() {
        let schema = json!({"properties": {"a": {"maxLength": 3}}});
        assert!(check(&schema, &json!({"a": "long"})).is_err());
        assert!(check(&schema, &json!({})).is_ok());
    }
}
