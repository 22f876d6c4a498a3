//! What Kubernetes allows as a name (`k8s.io/apimachinery`, `util/validation`).

use crate::object::Kind;

/// Why `name` cannot be the name of an object of `kind`; `None` when it can. Kinds that are not read take subdomains.
pub(crate) fn problem(kind: Option<Kind>, name: &str) -> Option<String> {
    match kind {
        Some(Kind::Namespace) => label(name),
        Some(Kind::Service) => service(name),
        _ => subdomain(name),
    }
}

/// RFC 1123 label.
pub(crate) fn label(name: &str) -> Option<String> {
    let ok = (1..=63).contains(&name.len()) && is_label(name);
    (!ok).then(|| format!("{name:?} must be at most 63 lower-case letters, digits and `-`, starting and ending with a letter or digit"))
}

fn service(name: &str) -> Option<String> {
    label(name).or_else(|| {
        let letter = name.starts_with(|c: char| c.is_ascii_lowercase());
        (!letter).then(|| format!("{name:?} must start with a letter"))
    })
}

/// RFC 1123 subdomain.
fn subdomain(name: &str) -> Option<String> {
    let ok = (1..=253).contains(&name.len()) && name.split('.').all(is_label);
    (!ok).then(|| {
        format!("{name:?} must be at most 253 lower-case letters, digits, `-` and `.`, starting and ending with a letter or digit")
    })
}

fn is_label(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_their_kind() {
        for (kind, name, fine) in [
            (None, "a.b-c.1", true),
            (None, "A", false),
            (None, "a_b", false),
            (None, "", false),
            (None, "-a", false),
            (Some(Kind::Namespace), "shop", true),
            (Some(Kind::Namespace), "shop.x", false),
            (Some(Kind::Service), "cart", true),
            (Some(Kind::Service), "1cart", false),
        ] {
            assert_eq!(problem(kind, name).is_none(), fine, "{kind:?} {name}");
        }
    }
}
