//! Who owns which fields of an object, for the API server: fields that Helm has set become ours, so that those go which
//! the chart has no longer.

use serde_json::{Map, Value, json};

use super::MANAGER;

/// Whether Helm has set fields of an object since this program last did: its entry is taken over each time.
pub(super) fn is_helms(managed_fields: &[Value]) -> bool {
    managed_fields.iter().any(of_helm)
}

/// The managed fields of an object with those of Helm made ours; nothing if Helm has none.
pub(super) fn taken_over(managed_fields: &[Value]) -> Option<Vec<Value>> {
    if !is_helms(managed_fields) {
        return None;
    }
    let is_ours = |entry: &Value| {
        entry["manager"] == MANAGER
            && entry["operation"] == "Apply"
            && entry.get("subresource").is_none()
    };
    let (from, rest): (Vec<&Value>, Vec<&Value>) = managed_fields
        .iter()
        .partition(|entry| of_helm(entry) || is_ours(entry));
    let mut fields = Map::new();
    let mut version = Value::Null;
    for entry in from {
        version = entry["apiVersion"].clone();
        if let Some(more) = entry["fieldsV1"].as_object() {
            union(&mut fields, more);
        }
    }
    let mut all: Vec<Value> = rest.into_iter().cloned().collect();
    all.push(json!({
        "manager": MANAGER, "operation": "Apply", "apiVersion": version,
        "fieldsType": "FieldsV1", "fieldsV1": fields,
    }));
    Some(all)
}

fn of_helm(entry: &Value) -> bool {
    // Its version 3 updates, its version 4 applies.
    entry["manager"] == "helm" && entry.get("subresource").is_none()
}

/// Sets of fields are trees, and their union is that of the trees.
fn union(into: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (name, value) in more {
        match (into.get_mut(name), value) {
            (Some(Value::Object(inner)), Value::Object(more)) => union(inner, more),
            (Some(_), _) => {}
            (None, _) => {
                into.insert(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helm_has_set_becomes_ours_and_all_else_stays() {
        let entry = |manager: &str, operation: &str, fields: Value| json!({"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsV1": fields});
        let mut status = entry("helm", "Update", json!({"f:status": {}}));
        status["subresource"] = json!("status");
        let other = entry("kubectl-edit", "Update", json!({"f:spec": {"f:x": {}}}));
        let before = vec![
            entry(MANAGER, "Apply", json!({"f:spec": {"f:a": {}}})),
            entry("helm", "Update", json!({"f:spec": {"f:b": {"f:c": {}}}})),
            other.clone(),
            status.clone(),
        ];
        let after = taken_over(&before).expect("Helm has some");
        let [kept, helms_status, ours] = after.as_slice() else {
            panic!("{after:?}");
        };
        assert_eq!((kept, helms_status), (&other, &status));
        assert_eq!(
            ours["fieldsV1"],
            json!({"f:spec": {"f:a": {}, "f:b": {"f:c": {}}}})
        );
        assert_eq!(taken_over(&after), None);
    }
}
