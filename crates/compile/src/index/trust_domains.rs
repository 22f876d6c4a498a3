//! The names that policies may use for the trust domain of this mesh, as Istio has them: its own name, its aliases, and
//! `cluster.local`, which is a pointer to the local trust domain whatever that is called.

use std::collections::HashSet;

use proto::istio::security::StringMatch;
use proto::istio::security::string_match::MatchType;

use super::MeshConfig;

/// The trust domain of this mesh and its aliases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomains {
    /// Those that identities may have.
    domains: Vec<String>,
}

impl TrustDomains {
    /// A trust domain with its aliases.
    pub fn new<'a>(local: &'a str, aliases: impl IntoIterator<Item = &'a str>) -> Self {
        let mut domains: Vec<String> = Vec::new();
        for domain in std::iter::once(local).chain(aliases) {
            if !domains.iter().any(|known| known == domain) {
                domains.push(domain.to_owned());
            }
        }
        Self { domains }
    }

    /// Those of a mesh.
    pub(super) fn of(mesh: &MeshConfig) -> Self {
        let aliases = mesh.trust_domain_aliases.iter();
        Self::new(&mesh.trust_domain, aliases.map(String::as_str))
    }

    /// The conditions on an identity that a policy's value for a principal stands for: one of them has to hold.
    pub fn principals(&self, values: &[String]) -> Vec<StringMatch> {
        // A tenant may name as many as fit into an object: tens of thousands.
        let mut known = HashSet::new();
        let mut all: Vec<MatchType> = Vec::new();
        for kind in values.iter().flat_map(|value| self.principal(value)) {
            if known.insert(kind.clone()) {
                all.push(kind);
            }
        }
        all.into_iter().map(of_kind).collect()
    }

    fn principal(&self, value: &str) -> Vec<MatchType> {
        let kind = kind(value);
        match &kind {
            MatchType::Presence(()) => vec![kind],
            MatchType::Exact(text) | MatchType::Prefix(text) if text.contains('/') => {
                let (domain, rest) = text.split_once('/').unwrap_or((text, ""));
                if !self.is_name(domain) {
                    return vec![kind];
                }
                let renamed = |local: &String| {
                    let text = format!("{local}/{rest}");
                    match &kind {
                        MatchType::Exact(_) => MatchType::Exact(text),
                        _ => MatchType::Prefix(text),
                    }
                };
                self.domains.iter().map(renamed).collect()
            }
            // The beginning of a trust domain.
            MatchType::Prefix(start) => {
                let begins = self.names().any(|name| name.starts_with(&**start));
                let whole = |local: &String| MatchType::Prefix(format!("{local}/"));
                self.and_if(begins, kind.clone(), whole)
            }
            MatchType::Suffix(end) => {
                // The end of a trust domain, and all that follows it.
                let Some((domain, rest)) = end
                    .split_once('/')
                    .filter(|(domain, rest)| !domain.is_empty() && rest.starts_with("ns/"))
                else {
                    return vec![kind];
                };
                let ends = self.names().any(|name| name.ends_with(domain));
                let whole = |local: &String| MatchType::Exact(format!("{local}/{rest}"));
                self.and_if(ends, kind.clone(), whole)
            }
            MatchType::Exact(_) => vec![kind],
        }
    }

    /// The value as it is, and for every local trust domain if the value fits one of their names.
    fn and_if(
        &self,
        fits: bool,
        kind: MatchType,
        local: impl Fn(&String) -> MatchType,
    ) -> Vec<MatchType> {
        let locals = self.domains.iter().filter(|_| fits).map(local);
        std::iter::once(kind).chain(locals).collect()
    }

    fn is_name(&self, domain: &str) -> bool {
        self.names().any(|name| name == domain)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let domains = self.domains.iter().map(String::as_str);
        domains.chain(std::iter::once(POINTER))
    }
}

/// `*` is presence, `*x` a suffix, `x*` a prefix, as upstream.
fn kind(value: &str) -> MatchType {
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => MatchType::Presence(()),
        (Some(suffix), _) => MatchType::Suffix(suffix.to_owned()),
        (None, Some(prefix)) => MatchType::Prefix(prefix.to_owned()),
        (None, None) => MatchType::Exact(value.to_owned()),
    }
}

fn of_kind(kind: MatchType) -> StringMatch {
    StringMatch {
        match_type: Some(kind),
    }
}

/// Values that have nothing to do with trust domains.
pub(super) fn strings(values: &[String]) -> Vec<StringMatch> {
    values.iter().map(|value| of_kind(kind(value))).collect()
}

/// What Istio calls the local trust domain in policies, whatever its name.
const POINTER: &str = "cluster.local";

#[cfg(test)]
mod tests;
