//! An object as a Kubernetes API server gives it. The server has checked names, types and fields; what is left to say is
//! what a policy means, and what is asked for that does not exist yet.

use serde_json::Value;

use super::{Claim, Decoded, Place, Reader, broken};
use crate::diagnostic::{Diagnostic, Severity};
use crate::lines::FieldLines;
use crate::object::{Authorship, Kind, Object, ObjectKey, ObjectKind, Origin, Upsert};
use crate::pod::WEIGHT;
use crate::{tree, validate};

/// Reads `object`, which an API server gave as one of `kind`, for a mesh whose root namespace is `root_namespace`.
///
/// A policy or a route is read as one of a file is: with a field that is not known it is another one. Of other kinds
/// a newer server may know fields that are not read here.
pub fn read_object(kind: Kind, mut object: Value, root_namespace: &str) -> Decoded {
    let mut decoded = Decoded::default();
    let origin = origin(&object);
    if kind.is_exact() {
        prepare(kind, &mut object);
        match tree::parse(&object.to_string(), 1).as_deref() {
            Ok([node]) => {
                Reader::new(Place::Object(&origin), root_namespace, &mut decoded).item(node);
            }
            // What was JSON is read as such.
            Ok(_) => refuse(kind, &object, &origin, "not one document", &mut decoded),
            Err(error) => refuse(kind, &object, &origin, &error.message, &mut decoded),
        }
        return decoded;
    }
    let key = key(kind, &object);
    let mut say = |severity, field: &str, message: String| {
        let finding = Diagnostic::new(severity, &origin, Some(&key), message).field(field);
        decoded.findings.push(finding);
    };
    let annotations = object.pointer("/metadata/annotations");
    let weight = annotations
        .and_then(|all| all.get(WEIGHT))
        .and_then(Value::as_str);
    if let (Kind::Pod, Some(text)) = (kind, weight)
        && text.parse::<u32>().is_err()
    {
        let field = format!("metadata.annotations[{WEIGHT:?}]");
        let message =
            format!("{text:?} is not a whole number; write for example \"3\"; it counts as 1");
        say(Severity::Warning, &field, message);
    }
    match Object::decode(kind, Authorship::Tenant, object) {
        Ok(object) => {
            for problem in validate::object(&object, Authorship::Tenant, root_namespace) {
                say(problem.severity, &problem.field, problem.message);
            }
            let upsert = Upsert {
                object,
                origin,
                lines: FieldLines::default(),
            };
            decoded.claims.push(Claim::Good(Box::new(upsert)));
        }
        Err(error) => {
            say(Severity::Error, "", format!("cannot be read: {error}"));
            decoded.claims.push(Claim::Broken {
                key: Some(key),
                fallback: None,
                origin,
            });
        }
    }
    decoded
}

fn origin(object: &Value) -> Origin {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let generation = object.pointer("/metadata/generation");
    Origin::Object {
        uid: text("/metadata/uid").unwrap_or_default().into(),
        generation: generation.and_then(Value::as_i64).unwrap_or_default(),
    }
}

fn key(kind: Kind, object: &Value) -> ObjectKey {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let namespace = text("/metadata/namespace").filter(|_| kind.is_namespaced());
    ObjectKey::new(
        kind,
        namespace.unwrap_or_default(),
        text("/metadata/name").unwrap_or_default(),
    )
}

/// Items of a list come without version and kind; what controllers wrote about a policy is no part of it.
fn prepare(kind: Kind, object: &mut Value) {
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    let version = format!("{}/{}", kind.group(), kind.versions()[0]);
    fields.insert("apiVersion".to_owned(), version.into());
    fields.insert("kind".to_owned(), kind.as_str().into());
    fields.remove("status");
    let metadata = fields.get_mut("metadata").and_then(Value::as_object_mut);
    if let Some(metadata) = metadata {
        metadata.remove("managedFields");
    }
}

/// A policy that cannot even be parsed refuses on its namespace.
fn refuse(kind: Kind, object: &Value, origin: &Origin, why: &str, into: &mut Decoded) {
    let key = ObjectKey::of(
        ObjectKind::Known(kind),
        key(kind, object).namespace(),
        key(kind, object).name(),
    );
    let finding = Diagnostic::new(Severity::Error, origin, Some(&key), why);
    let fallback = broken::fallback(&key, None, &finding);
    into.findings.push(finding);
    into.claims.push(Claim::Broken {
        key: Some(key),
        fallback,
        origin: origin.clone(),
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::PolicyKind;

    fn one(kind: Kind, object: Value) -> (Claim, Vec<Diagnostic>) {
        let mut decoded = read_object(kind, object, "istio-system");
        assert_eq!(decoded.claims.len(), 1, "{decoded:?}");
        (decoded.claims.remove(0), decoded.findings)
    }

    fn metadata() -> Value {
        json!({
            "name": "p", "namespace": "n", "uid": "u-1", "generation": 3, "resourceVersion": "7",
            "managedFields": [{"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}}],
        })
    }

    #[test]
    fn a_policy_is_that_of_a_file_but_for_its_place() {
        let policy = json!({
            "metadata": metadata(),
            "spec": {"action": "ALLOW", "rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]},
            "status": {"conditions": []},
        });
        let (claim, findings) = one(Kind::AuthorizationPolicy, policy);
        assert!(findings.is_empty(), "{findings:?}");
        let Claim::Good(upsert) = claim else {
            panic!("{claim:?}")
        };
        assert_eq!(
            upsert.origin,
            Origin::Object {
                uid: "u-1".into(),
                generation: 3
            }
        );
        assert_eq!(upsert.object.key().to_string(), "AuthorizationPolicy n/p");
    }

    #[test]
    fn a_policy_with_a_field_that_is_not_known_refuses() {
        let policy = json!({"metadata": metadata(), "spec": {"rules": [{"form": []}]}});
        let (claim, findings) = one(Kind::AuthorizationPolicy, policy);
        assert_eq!(findings.len(), 1, "{findings:?}");
        let Claim::Broken {
            fallback: Some(fallback),
            ..
        } = claim
        else {
            panic!("{claim:?}")
        };
        assert!(
            matches!(&fallback.object, Object::Broken(broken) if broken.kind == PolicyKind::AuthorizationPolicy)
        );
    }

    #[test]
    fn fields_that_newer_servers_know_and_what_tenants_claim_change_nothing() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "annotations": {crate::POD_IPS: "10.0.0.1"}},
            "spec": {"containers": [], "nodeName": "n1", "newer": {"field": 1}},
            "status": {"podIPs": [{"ip": "10.1.0.9"}], "phase": "Running"},
        });
        let (claim, findings) = one(Kind::Pod, pod);
        assert!(findings.is_empty(), "{findings:?}");
        let Claim::Good(upsert) = claim else {
            panic!("{claim:?}")
        };
        let Object::Pod(facts) = &upsert.object else {
            panic!("{upsert:?}")
        };
        assert_eq!(
            facts.addresses,
            ["10.1.0.9".parse::<std::net::IpAddr>().expect("an address")]
        );
    }

    #[test]
    fn an_object_that_cannot_be_read_says_which() {
        let (claim, findings) = one(
            Kind::Service,
            json!({"metadata": metadata(), "spec": {"ports": 7}}),
        );
        assert!(matches!(
            claim,
            Claim::Broken {
                key: Some(_),
                fallback: None,
                ..
            }
        ));
        assert!(
            findings
                .iter()
                .any(|finding| finding.to_string().contains("Service n/p")),
            "{findings:?}"
        );
    }
}
