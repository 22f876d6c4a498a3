//! Where a gateway listens for clients that are not in the mesh, and whose requests are taken there.

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;

use model::ServiceKey;

/// One listener of a gateway. Several may share a port: TLS tells them apart by the name that the client asks for, plain
/// HTTP by the request's Host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name, for logs.
    pub name: Arc<str>,
    /// The port that it listens on.
    pub port: u16,
    /// Whose names it takes.
    pub host: HostPattern,
    /// TLS ends here, with one of these certificates; `None` where it does not, or is not spoken.
    pub tls: Option<Vec<Certificate>>,
    /// What is read of what comes.
    pub reads: Reads,
    /// Clients have to show a certificate that leads to one of these roots, in PEM; `None` asks for none.
    pub client_roots: Option<Vec<u8>>,
    /// What is served, by host.
    pub hosts: Vec<VirtualHost>,
}

/// What a listener reads of what comes, to know where it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// Requests of HTTP.
    #[default]
    Requests,
    /// The name that TLS asks for. TLS passes, and ends where it leads.
    Names,
    /// Nothing: connections are told apart by the port alone.
    Nothing,
}

/// A host that is served, and where its rules are attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHost {
    /// Which hosts.
    pub host: HostPattern,
    /// What rules for it name as their service.
    pub key: ServiceKey,
}

/// A certificate of a listener, with its key; PEM, both.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate, and those between it and the root.
    pub chain: Vec<u8>,
    /// The private key.
    pub key: Vec<u8>,
}

impl fmt::Debug for Certificate {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({} bytes)", self.chain.len())
    }
}

/// A host, or all hosts below one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This one.
    Exact(Arc<str>),
    /// All that end with this text and have something before it.
    Suffix(Arc<str>),
    /// All that end with this text, which begins with a dot, and have one label before it (the wildcards of an Ingress).
    Label(Arc<str>),
    /// All.
    Any,
}

impl HostPattern {
    /// Reads `*`, `*.example.com`, `?.example.com` (one label, in no API's words) or `example.com`; nothing is the same as
    /// `*`. Host names have no case.
    pub fn new(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        if let Some(suffix) = text.strip_prefix('?').filter(|rest| rest.starts_with('.')) {
            return Self::Label(suffix.into());
        }
        match text.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) => Self::Suffix(suffix.into()),
            None if text.is_empty() => Self::Any,
            None => Self::Exact(text.into()),
        }
    }

    /// Whether a host, in small letters and without a port, is meant.
    pub fn holds(&self, host: &str) -> bool {
        match self {
            Self::Exact(exact) => host == &**exact,
            Self::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
            Self::Label(suffix) => host
                .strip_suffix(&**suffix)
                .is_some_and(|label| !label.is_empty() && !label.contains('.')),
            Self::Any => true,
        }
    }

    /// The hosts that both mean; `None` if there are none. Of two patterns one holds all of the other's hosts, or none.
    pub fn and(&self, other: &Self) -> Option<Self> {
        let holds_all = |wide: &Self, narrow: &Self| match (wide, narrow) {
            (Self::Any, _) => true,
            (wide, Self::Exact(host)) => wide.holds(host),
            (Self::Suffix(wide), Self::Suffix(narrow) | Self::Label(narrow)) => {
                narrow.ends_with(&**wide)
            }
            (Self::Label(wide), Self::Label(narrow)) => wide == narrow,
            _ => false,
        };
        if holds_all(self, other) {
            Some(other.clone())
        } else {
            holds_all(other, self).then(|| self.clone())
        }
    }

    /// The smallest is the most specific.
    pub fn rank(&self) -> impl Ord + use<> {
        match self {
            Self::Exact(_) => (0, Reverse(0), 0),
            Self::Label(suffix) => (1, Reverse(suffix.len()), 0),
            Self::Suffix(suffix) => (1, Reverse(suffix.len()), 1),
            Self::Any => (2, Reverse(0), 0),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Label(suffix) => write!(f, "?{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl Listener {
    /// Whether clients begin with TLS, which names what they want.
    pub fn speaks_tls(&self) -> bool {
        self.tls.is_some() || self.reads == Reads::Names
    }

    /// Where the rules for a host are; the most specific pattern counts.
    pub fn virtual_host(&self, host: &str) -> Option<&ServiceKey> {
        let host = host.to_ascii_lowercase();
        let served = self.hosts.iter().filter(|one| one.host.holds(&host));
        served.min_by_key(|one| one.host.rank()).map(|one| &one.key)
    }
}

/// The most specific of a port's listeners for a host.
pub(crate) fn choose<'l>(
    listeners: &'l [Arc<Listener>],
    tls: bool,
    host: &str,
) -> Option<&'l Arc<Listener>> {
    let host = host.to_ascii_lowercase();
    let fits = |one: &&Arc<Listener>| one.speaks_tls() == tls && one.host.holds(&host);
    listeners
        .iter()
        .filter(fits)
        .min_by_key(|one| one.host.rank())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_hold_what_is_below_them_and_meet_in_the_narrower_one() {
        let of = HostPattern::new;
        for (pattern, host, expected) in [
            ("*", "a.example.com", true),
            ("", "a.example.com", true),
            ("*.Example.com", "a.example.com", true),
            ("*.example.com", "b.a.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "badexample.com", false),
            ("example.com", "example.com", true),
            ("example.com", "a.example.com", false),
            ("?.Example.com", "a.example.com", true),
            ("?.example.com", "b.a.example.com", false),
            ("?.example.com", ".example.com", false),
            ("?.example.com", "example.com", false),
            ("?.example.com", "aexample.com", false),
        ] {
            assert_eq!(of(pattern).holds(host), expected, "{pattern} {host}");
        }
        for (a, b, both) in [
            ("*", "a.example.com", Some("a.example.com")),
            ("*.example.com", "*.a.example.com", Some("*.a.example.com")),
            ("*.example.com", "example.com", None),
            ("*.example.com", "*.example.org", None),
            ("a.example.com", "a.example.com", Some("a.example.com")),
            ("a.example.com", "b.example.com", None),
            ("?.example.com", "*.example.com", Some("?.example.com")),
            ("?.example.com", "*.a.example.com", None),
            ("?.a.example.com", "*.example.com", Some("?.a.example.com")),
            ("?.example.com", "?.example.com", Some("?.example.com")),
            ("?.example.com", "?.a.example.com", None),
            ("?.example.com", "a.example.com", Some("a.example.com")),
            ("?.example.com", "b.a.example.com", None),
            ("?.example.com", "*", Some("?.example.com")),
        ] {
            let met = of(a).and(&of(b));
            assert_eq!(met, both.map(of), "{a} {b}");
            assert_eq!(of(b).and(&of(a)), met, "{b} {a}");
        }
    }

    #[test]
    fn the_most_specific_listener_and_host_count() {
        let key = |name: &str| ServiceKey::new("edge", name);
        let listener = |name: &str, host: &str, tls: bool| {
            Arc::new(Listener {
                name: name.into(),
                port: 80,
                host: HostPattern::new(host),
                tls: tls.then(Vec::new),
                reads: Reads::default(),
                client_roots: None,
                hosts: vec![
                    VirtualHost {
                        host: HostPattern::new("*"),
                        key: key("all"),
                    },
                    VirtualHost {
                        host: HostPattern::new("a.example.com"),
                        key: key("one"),
                    },
                ],
            })
        };
        let all = [
            listener("any", "*", false),
            listener("below", "*.example.com", false),
            listener("secret", "a.example.com", true),
        ];
        let name = |tls, host| choose(&all, tls, host).map(|one| &*one.name);
        assert_eq!(name(false, "A.example.com"), Some("below"));
        assert_eq!(name(false, "example.com"), Some("any"));
        assert_eq!(name(true, "a.example.com"), Some("secret"));
        assert_eq!(name(true, "b.example.com"), None);
        assert_eq!(all[0].virtual_host("A.Example.com"), Some(&key("one")));
        assert_eq!(all[0].virtual_host("b.example.com"), Some(&key("all")));
    }

    #[test]
    fn a_key_is_not_shown() {
        let certificate = Certificate {
            chain: b"chain".to_vec(),
            key: b"secret".to_vec(),
        };
        assert_eq!(format!("{certificate:?}"), "Certificate(5 bytes)");
    }
}
