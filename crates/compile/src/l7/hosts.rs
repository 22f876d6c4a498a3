//! Host names in Istio's traffic objects.

use std::cmp::Reverse;

use l7::HostPattern;
use model::ServiceKey;

/// A host of a `VirtualService` or `DestinationRule`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// This one.
    Exact(String),
    /// All that end with this, with a dot in front.
    Suffix(String),
    /// All.
    Any,
}

impl Host {
    /// Reads a host. A name without a dot is a Service of the object's own namespace.
    pub(crate) fn read(host: &str, namespace: &str, domain: &str) -> Self {
        match host.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) => Self::Suffix(suffix.to_owned()),
            None => Self::Exact(full(host, namespace, domain)),
        }
    }

    /// The same as hosts of requests at a gateway.
    pub(crate) fn pattern(&self) -> HostPattern {
        match self {
            Self::Exact(host) => HostPattern::new(host),
            Self::Suffix(suffix) => HostPattern::new(&format!("*{suffix}")),
            Self::Any => HostPattern::Any,
        }
    }

    /// Whether a full host name is meant.
    pub(crate) fn holds(&self, hostname: &str) -> bool {
        match self {
            Self::Exact(exact) => hostname == exact,
            Self::Suffix(suffix) => hostname.ends_with(suffix.as_str()),
            Self::Any => true,
        }
    }

    /// The smallest is the most specific.
    pub(crate) fn rank(&self) -> impl Ord + Clone + use<> {
        match self {
            Self::Exact(_) => (0, Reverse(0)),
            Self::Suffix(suffix) => (1, Reverse(suffix.len())),
            Self::Any => (2, Reverse(0)),
        }
    }
}

/// The full name of a host: one without a dot is a Service of this namespace.
pub(crate) fn full(host: &str, namespace: &str, domain: &str) -> String {
    let parts: Vec<&str> = host.split('.').collect();
    match parts.as_slice() {
        [name] => format!("{name}.{namespace}.svc.{domain}"),
        [_, _, "svc"] => format!("{host}.{domain}"),
        _ => host.to_owned(),
    }
}

/// The Service of a full host name, if it is one of this cluster's.
pub(crate) fn service(hostname: &str, domain: &str) -> Option<ServiceKey> {
    let rest = hostname.strip_suffix(domain)?.strip_suffix(".svc.")?;
    let (_, namespace) = rest.split_once('.')?;
    (!namespace.contains('.')).then(|| ServiceKey::new(namespace, hostname))
}

/// To whom an object of a namespace counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Export {
    /// Everybody.
    All,
    /// Clients of these namespaces.
    To(Vec<String>),
}

impl Export {
    /// Reads `exportTo` of an object of this namespace.
    pub(crate) fn read(export_to: &[String], namespace: &str) -> Self {
        if export_to.is_empty() || export_to.iter().any(|to| to == "*") {
            return Self::All;
        }
        let own = |to: &String| match to.as_str() {
            "." => Some(namespace.to_owned()),
            "~" => None,
            other => Some(other.to_owned()),
        };
        Self::To(export_to.iter().filter_map(own).collect())
    }

    /// Whether it counts in a namespace.
    pub(crate) fn holds(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::To(namespaces) => namespaces.iter().any(|to| to == namespace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "cluster.local";

    #[test]
    fn a_name_without_a_dot_is_a_service_of_the_own_namespace() {
        for (host, expected) in [
            ("cart", "cart.shop.svc.cluster.local"),
            ("cart.other.svc", "cart.other.svc.cluster.local"),
            (
                "cart.other.svc.cluster.local",
                "cart.other.svc.cluster.local",
            ),
            ("example.com", "example.com"),
        ] {
            assert_eq!(full(host, "shop", DOMAIN), expected);
        }
        let key = service("cart.other.svc.cluster.local", DOMAIN).unwrap();
        assert_eq!(&*key.namespace, "other");
        for other in [
            "example.com",
            "a.b.c.svc.cluster.local",
            "svc.cluster.local",
        ] {
            assert_eq!(service(other, DOMAIN), None, "{other}");
        }
    }

    #[test]
    fn f34_the_most_specific_host_wins() {
        let read = |host| Host::read(host, "shop", DOMAIN);
        let (any, short, long, exact) = (
            read("*"),
            read("*.svc.cluster.local"),
            read("*.shop.svc.cluster.local"),
            read("cart"),
        );
        assert!(exact.rank() < long.rank() && long.rank() < short.rank());
        assert!(short.rank() < any.rank());
        for host in [&any, &short, &long, &exact] {
            assert!(host.holds("cart.shop.svc.cluster.local"));
        }
        assert!(!long.holds("cart.other.svc.cluster.local"));
    }

    #[test]
    fn an_object_counts_where_it_is_exported_to() {
        let read = |to: &[&str]| {
            let to: Vec<String> = to.iter().map(|to| (*to).to_owned()).collect();
            Export::read(&to, "shop")
        };
        assert!(read(&[]).holds("x") && read(&["*"]).holds("x"));
        assert!(read(&["."]).holds("shop") && !read(&["."]).holds("x"));
        assert!(read(&["x"]).holds("x") && !read(&["~"]).holds("shop"));
    }
}
