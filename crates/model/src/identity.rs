//! Who a workload is: a SPIFFE id of the form that Kubernetes meshes use.
//!
//! It says nothing about how an identity is proved.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::text::parse;

/// The root of a family of identities; peers of another trust domain are strangers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct TrustDomain(Arc<str>);

/// The identity of a service account: `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain, without scheme.
    pub trust_domain: TrustDomain,
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The Kubernetes service account.
    pub service_account: Arc<str>,
}

/// A string that is not an identity of this mesh's form.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IdentityError {
    /// It is not a SPIFFE id at all.
    #[error("{0:?} does not begin with spiffe://")]
    Scheme(String),
    /// It is a SPIFFE id of another form.
    #[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Shape(String),
    /// A part of it is empty or has characters that SPIFFE does not allow.
    #[error("{segment:?} cannot be the {part} of an identity: use letters, digits, '.', '-', '_'")]
    Segment {
        /// Which part.
        part: &'static str,
        /// What was given.
        segment: String,
    },
}

impl TrustDomain {
    /// The trust domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn text_mut(&mut self) -> &mut Arc<str> {
        &mut self.0
    }
}

impl Default for TrustDomain {
    /// `cluster.local`, as in Istio.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        segment("trust domain", text).map(Self)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Identity {
    /// The identity of a service account. Namespace and account are taken as they are, because
    /// Kubernetes has validated them; [`FromStr`] validates what comes from a peer.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: impl Into<Arc<str>>,
        service_account: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            trust_domain,
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// The identity as policies write it: without `spiffe://`.
    pub fn principal(&self) -> String {
        self.principal_parts().concat()
    }

    /// The principal in pieces, so that it can be compared without building it.
    pub(crate) fn principal_parts(&self) -> [&str; 5] {
        [
            self.trust_domain.as_str(),
            "/ns/",
            &self.namespace,
            "/sa/",
            &self.service_account,
        ]
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| IdentityError::Scheme(text.to_owned()))?;
        let mut parts = rest.split('/');
        let five: [Option<&str>; 5] = std::array::from_fn(|_| parts.next());
        let (
            [
                Some(domain),
                Some("ns"),
                Some(namespace),
                Some("sa"),
                Some(account),
            ],
            None,
        ) = (five, parts.next())
        else {
            return Err(IdentityError::Shape(text.to_owned()));
        };
        Ok(Self {
            trust_domain: domain.parse()?,
            namespace: segment("namespace", namespace)?,
            service_account: segment("service account", account)?,
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        self.principal_parts()
            .iter()
            .try_for_each(|part| f.write_str(part))
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse(deserializer)
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse(deserializer)
    }
}

/// A path segment by the SPIFFE-ID standard, section 2.2; upper case is let through everywhere.
fn segment(part: &'static str, text: &str) -> Result<Arc<str>, IdentityError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if text.is_empty() || text == "." || text == ".." || !text.bytes().all(allowed) {
        return Err(IdentityError::Segment {
            part,
            segment: text.to_owned(),
        });
    }
    Ok(text.into())
}

const SCHEME: &str = "spiffe://";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_as_it_was_written() {
        let text = "spiffe://cluster.local/ns/shop/sa/cart";
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity.to_string(), text);
        assert_eq!(identity.principal(), "cluster.local/ns/shop/sa/cart");
        assert_eq!(&*identity.namespace, "shop");
        assert_eq!(&*identity.service_account, "cart");
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            "cluster.local/ns/shop/sa/cart",
            "SPIFFE://cluster.local/ns/shop/sa/cart",
            "spiffe://cluster.local",
            "spiffe://cluster.local/ns/shop/sa",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns//sa/cart",
            "spiffe:///ns/shop/sa/cart",
            "spiffe://cluster.local/ns/shop/sa/cart/",
            "spiffe://cluster.local/ns/shop/sa/cart/extra",
            "spiffe://cluster.local/sa/cart/ns/shop",
            "spiffe://cluster.local/ns/../sa/cart",
            "spiffe://cluster.local:443/ns/shop/sa/cart",
            "spiffe://cluster.local/ns/shop/sa/ca%72t",
            "spiffe://cluster.local/ns/shop/sa/cart\0",
            "spiffe://cluster.local/ns/shop/sa/cart?x",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?}");
        }
    }
}
