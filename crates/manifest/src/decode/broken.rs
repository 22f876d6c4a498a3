//! What is left to know of a document that is wrong: who it is, and for policies a refusal on their scope.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Claim, Decoded, group_of, namespace_for};
use crate::diagnostic::{Diagnostic, Severity};
use crate::document::{Document, Salvage, salvage};
use crate::lines::FieldLines;
use crate::object::{BrokenPolicy, NamespacedName, Object, ObjectKey, ObjectKind, Origin, Upsert};
use crate::tree::{self, Node};

/// A syntax error leaves only what can be read without a parser.
pub(super) fn unparsable(
    file: &Arc<str>,
    document: Document<'_>,
    error: &tree::SyntaxError,
    into: &mut Decoded,
) {
    let Salvage {
        api_version,
        kind,
        name,
        namespace,
    } = salvage(document.text);
    let group = group_of(api_version.as_deref().unwrap_or_default()).to_owned();
    let key = kind.as_deref().zip(name.as_deref()).map(|(kind, name)| {
        let kind = ObjectKind::of(&group, kind);
        let namespace = namespace_for(&kind, namespace.as_deref());
        ObjectKey::of(kind, namespace, name)
    });
    let origin = Origin::file(Arc::clone(file), error.line);
    let finding = Diagnostic::new(Severity::Error, &origin, key.as_ref(), &error.message);
    let fallback = key.as_ref().and_then(|key| fallback(key, None, &finding));
    into.findings.push(finding);
    into.claims.push(Claim::Broken {
        key,
        fallback,
        origin,
    });
}

/// A policy that cannot be read refuses on its scope: the selector if that can be read, else its namespace.
pub(super) fn fallback(
    key: &ObjectKey,
    selector: Option<BTreeMap<String, String>>,
    why: &Diagnostic,
) -> Option<Box<Upsert>> {
    let ObjectKind::Known(kind) = key.kind() else {
        return None;
    };
    kind.policy().map(|kind| {
        let origin = why.origin.clone();
        let reason = match why.field.as_str() {
            "" => why.message.clone(),
            field => format!("{field}: {}", why.message),
        };
        let broken = BrokenPolicy {
            kind,
            key: NamespacedName::new(key.namespace(), key.name()),
            selector,
            reason,
        };
        Box::new(Upsert {
            object: Object::Broken(Box::new(broken)),
            origin,
            lines: FieldLines::default(),
        })
    })
}

/// The labels that a policy selects by, as far as they can be read without its type.
pub(super) fn selector(node: &Node) -> Option<BTreeMap<String, String>> {
    let labels = node.get("spec")?.get("selector")?.get("matchLabels")?;
    let pairs = labels
        .entries()
        .iter()
        .map(|entry| Some((entry.key.clone(), entry.value.text()?.to_owned())));
    pairs
        .collect::<Option<BTreeMap<_, _>>>()
        .filter(|labels| !labels.is_empty())
}
