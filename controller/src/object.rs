//! The objects that the controller understands, by which key they are known, and where each was written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_api::{
    AuthorizationPolicy, EndpointSlice, Namespace, Node, ObjectMeta, PeerAuthentication, Pod,
    Service, ServiceAccount,
};
use serde::{Deserialize, Serialize};

use crate::store::PodFacts;

/// Where an object was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The file, relative to the manifests folder.
    pub file: Arc<str>,
    /// 1-based line of the object's first key; 0 when the whole file is meant.
    pub line: usize,
}

impl Origin {
    /// A line of a file.
    pub fn new(file: impl Into<Arc<str>>, line: usize) -> Self {
        Self {
            file: file.into(),
            line,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Group, kind, namespace and name: what makes two objects the same one. The API version is no part of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    group: Cow<'static, str>,
    kind: Cow<'static, str>,
    namespace: Arc<str>,
    name: Arc<str>,
}

impl ObjectKey {
    /// The key of an object of a supported kind.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            group: Cow::Borrowed(kind.group()),
            kind: Cow::Borrowed(kind.as_str()),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of an object of a kind that the controller does not read.
    pub fn foreign(group: &str, kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            group: Cow::Owned(group.to_owned()),
            kind: Cow::Owned(kind.to_owned()),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The kind as manifests spell it.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The namespace; empty for kinds that have none.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// `Pod shop/cart`, `Namespace shop`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// The kinds that the controller reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Core.
    Namespace,
    /// Core.
    Node,
    /// Core.
    ServiceAccount,
    /// Core.
    Pod,
    /// Core.
    Service,
    /// `discovery.k8s.io`.
    EndpointSlice,
    /// `security.istio.io`.
    PeerAuthentication,
    /// `security.istio.io`.
    AuthorizationPolicy,
}

impl Kind {
    /// All of them, in an order in which later kinds refer to earlier ones.
    pub const ALL: [Self; 8] = [
        Self::Namespace,
        Self::Node,
        Self::ServiceAccount,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
    ];

    /// The kind as manifests spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
        }
    }

    /// The API group; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::EndpointSlice => "discovery.k8s.io",
            Self::PeerAuthentication | Self::AuthorizationPolicy => "security.istio.io",
            _ => "",
        }
    }

    /// The API versions that are read, the preferred one first.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::PeerAuthentication | Self::AuthorizationPolicy => &["v1", "v1beta1"],
            _ => &["v1"],
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }

    /// Whether the kind is Istio's, whose unknown fields are errors: a policy with a lost field is another policy.
    pub fn is_istio(self) -> bool {
        matches!(self, Self::PeerAuthentication | Self::AuthorizationPolicy)
    }

    /// The kind of this group and name, if it is read.
    pub fn find(group: &str, kind: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == kind && known.group() == group)
    }
}

/// A policy that cannot be read and has no earlier good version. It refuses on its scope until it is repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenPolicy {
    /// `AuthorizationPolicy` or `PeerAuthentication`.
    pub key: ObjectKey,
    /// The labels it selects by; `None` when they cannot be read, which means the whole namespace.
    pub selector: Option<BTreeMap<String, String>>,
    /// What is wrong with it.
    pub reason: String,
}

/// An object of a supported kind. Pods are many, so of them only the facts are kept.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is the kind of its name")]
pub enum Object {
    Namespace(Box<Namespace>),
    Node(Box<Node>),
    ServiceAccount(Box<ServiceAccount>),
    Pod(Arc<PodFacts>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    PeerAuthentication(Box<PeerAuthentication>),
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    Broken(Box<BrokenPolicy>),
}

impl Object {
    /// The key it is known by. Names and namespaces that are absent read as empty; the source has refused those.
    pub fn key(&self) -> ObjectKey {
        let (kind, meta) = match self {
            Self::Broken(broken) => return broken.key.clone(),
            Self::Namespace(o) => (Kind::Namespace, &o.metadata),
            Self::Node(o) => (Kind::Node, &o.metadata),
            Self::ServiceAccount(o) => (Kind::ServiceAccount, &o.metadata),
            Self::Pod(o) => return ObjectKey::new(Kind::Pod, &o.key.namespace, &o.key.name),
            Self::Service(o) => (Kind::Service, &o.metadata),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, &o.metadata),
            Self::PeerAuthentication(o) => (Kind::PeerAuthentication, &o.metadata),
            Self::AuthorizationPolicy(o) => (Kind::AuthorizationPolicy, &o.metadata),
        };
        let namespace = if kind.is_namespaced() {
            meta.namespace.as_deref()
        } else {
            None
        };
        ObjectKey::new(
            kind,
            namespace.unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }

    /// Puts the object into a namespace; empty takes it out of any.
    pub(crate) fn set_namespace(&mut self, namespace: &str) {
        let metadata: &mut ObjectMeta = match self {
            Self::Broken(_) => return,
            Self::Pod(o) => {
                if *o.key.namespace != *namespace {
                    Arc::make_mut(o).key.namespace = namespace.into();
                }
                return;
            }
            Self::Namespace(o) => &mut o.metadata,
            Self::Node(o) => &mut o.metadata,
            Self::ServiceAccount(o) => &mut o.metadata,
            Self::Service(o) => &mut o.metadata,
            Self::EndpointSlice(o) => &mut o.metadata,
            Self::PeerAuthentication(o) => &mut o.metadata,
            Self::AuthorizationPolicy(o) => &mut o.metadata,
        };
        metadata.namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
    }

    /// Reads what serializing wrote of an object of `kind`.
    ///
    /// # Errors
    /// What the first wrong field is.
    pub fn from_json(kind: Kind, value: serde_json::Value) -> serde_json::Result<Self> {
        match kind {
            Kind::Pod => serde_json::from_value(value).map(|facts| Self::Pod(Arc::new(facts))),
            _ => Self::decode(kind, value),
        }
    }

    /// Reads a manifest of `kind`.
    ///
    /// # Errors
    /// What the first wrong field is.
    pub fn decode<'de, D: serde::Deserializer<'de>>(kind: Kind, from: D) -> Result<Self, D::Error> {
        fn boxed<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
            from: D,
        ) -> Result<Box<T>, D::Error> {
            T::deserialize(from).map(Box::new)
        }
        match kind {
            Kind::Namespace => boxed(from).map(Self::Namespace),
            Kind::Node => boxed(from).map(Self::Node),
            Kind::ServiceAccount => boxed(from).map(Self::ServiceAccount),
            Kind::Pod => {
                Pod::deserialize(from).map(|pod| Self::Pod(Arc::new(PodFacts::read(&pod))))
            }
            Kind::Service => boxed(from).map(Self::Service),
            Kind::EndpointSlice => boxed(from).map(Self::EndpointSlice),
            Kind::PeerAuthentication => boxed(from).map(Self::PeerAuthentication),
            Kind::AuthorizationPolicy => boxed(from).map(Self::AuthorizationPolicy),
        }
    }
}

/// As the object itself, for the snapshot on disk.
impl Serialize for Object {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Broken(o) => o.serialize(to),
            Self::Namespace(o) => o.serialize(to),
            Self::Node(o) => o.serialize(to),
            Self::ServiceAccount(o) => o.serialize(to),
            Self::Pod(o) => o.serialize(to),
            Self::Service(o) => o.serialize(to),
            Self::EndpointSlice(o) => o.serialize(to),
            Self::PeerAuthentication(o) => o.serialize(to),
            Self::AuthorizationPolicy(o) => o.serialize(to),
        }
    }
}
