//! What is left to know of a document that is wrong: who it is, and for policies a refusal on their scope.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Claim, DEFAULT_NAMESPACE, Decoded, group_of, namespace_for};
use crate::diagnostics::{Diagnostic, Severity};
use crate::object::{BrokenPolicy, Kind, Object, ObjectKey, Origin};
use crate::source::document::{Document, Salvage, salvage};
use crate::source::tree::{self, Node};
use crate::source::{FieldLines, Upsert};

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
    let key =
        kind.as_deref()
            .zip(name.as_deref())
            .map(|(kind, name)| match Kind::find(&group, kind) {
                Some(known) => {
                    ObjectKey::new(known, namespace_for(known, namespace.as_deref()), name)
                }
                None => ObjectKey::foreign(
                    &group,
                    kind,
                    namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE),
                    name,
                ),
            });
    let origin = Origin::new(Arc::clone(file), error.line);
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
    let policy = [Kind::AuthorizationPolicy, Kind::PeerAuthentication]
        .iter()
        .any(|kind| kind.as_str() == key.kind());
    policy.then(|| {
        let origin = Origin::new(Arc::clone(&why.file), why.line);
        let reason = match why.field.as_str() {
            "" => why.message.clone(),
            field => format!("{field}: {}", why.message),
        };
        let broken = BrokenPolicy {
            key: key.clone(),
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
