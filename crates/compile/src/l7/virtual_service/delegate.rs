//! Rules of one object that go on in another (F35).

use l7::route::{Match, PathMatch};

/// Conditions of a rule together with those of a rule that it delegates to; `None` if no request fulfils both, or nobody
/// can tell.
pub(crate) fn both(outer: &Match, inner: &Match) -> Option<Match> {
    // Destructured, so that a new condition cannot be forgotten here.
    let Match {
        path,
        method,
        scheme,
        authority,
        headers,
        query,
        port,
        client_labels,
        client_namespace,
        connection,
    } = outer;
    if connection.is_some() || inner.connection.is_some() {
        return None;
    }
    let mut both = inner.clone();
    both.path = path_of_both(path, &inner.path)?;
    both.method = one_of(method, &inner.method)?;
    both.scheme = one_of(scheme, &inner.scheme)?;
    both.authority = one_of(authority, &inner.authority)?;
    both.port = one_of(port, &inner.port)?;
    both.client_namespace = one_of(client_namespace, &inner.client_namespace)?;
    both.headers.extend(headers.iter().cloned());
    both.query.extend(query.iter().cloned());
    both.client_labels.extend(client_labels.iter().cloned());
    Some(both)
}

/// What is said once, or twice the same.
fn one_of<T: Clone + PartialEq>(outer: &Option<T>, inner: &Option<T>) -> Option<Option<T>> {
    match (outer, inner) {
        (Some(outer), Some(inner)) if outer != inner => None,
        (Some(said), _) | (None, Some(said)) => Some(Some(said.clone())),
        (None, None) => Some(None),
    }
}

fn path_of_both(outer: &PathMatch, inner: &PathMatch) -> Option<PathMatch> {
    let narrows = match (outer, inner) {
        (PathMatch::Any, _) => true,
        (outer, PathMatch::Any) => return Some(outer.clone()),
        (PathMatch::Prefix(outer), PathMatch::Prefix(inner) | PathMatch::Exact(inner)) => {
            inner.starts_with(&**outer)
        }
        (outer, inner) => outer == inner,
    };
    narrows.then(|| inner.clone())
}
