//! The objects that are understood, by which key they are known, and where each comes from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_api::{
    AuthorizationPolicy, ConnectionRoute, DestinationRule, EndpointSlice, Gateway, GrpcRoute,
    HttpRoute, Ingress, IngressClass, IstioGateway, Namespace, NetworkPolicy, Node, ObjectMeta,
    PeerAuthentication, Pod, ReferenceGrant, Secret, Service, ServiceAccount, ServiceEntry,
    VirtualService,
};
use serde::{Deserialize, Serialize};

use crate::lines::FieldLines;
use crate::pod::PodFacts;

/// Where an object comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Origin {
    /// A place in a file.
    File {
        /// The file, relative to the manifests folder.
        #[serde(rename = "file")]
        path: Arc<str>,
        /// 1-based line of the object's first key; 0 when the whole file is meant.
        line: usize,
    },
    /// An object of a Kubernetes API server.
    Object {
        /// `metadata.uid`: tells it from others that had its name before or will have it.
        uid: Arc<str>,
        /// `metadata.generation`: counts up with every change of what its author wrote.
        generation: i64,
    },
}

/// Who stands behind an object, and so what of it may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authorship {
    /// The administrator of the mesh wrote it all, into a folder. No kubelet reports on it and no API server completes it.
    Administrator,
    /// A tenant of a cluster wrote what is no status; the cluster wrote the rest.
    Tenant,
}

impl Authorship {
    /// Whether the addresses that a pod's annotation `keelson.io/pod-ips` lists are its own. A tenant could list those
    /// of any other pod.
    pub fn may_say_addresses(self) -> bool {
        match self {
            Self::Administrator => true,
            Self::Tenant => false,
        }
    }

    /// Whether an object's `status` says how things are. In a file it is a copy of what was once: `kubectl apply`
    /// drops it too.
    pub fn has_status(self) -> bool {
        match self {
            Self::Administrator => false,
            Self::Tenant => true,
        }
    }

    /// Whether a Service without an address will be given one.
    pub fn allocates_addresses(self) -> bool {
        match self {
            Self::Administrator => false,
            Self::Tenant => true,
        }
    }
}

impl Origin {
    /// A line of a file.
    pub fn file(path: impl Into<Arc<str>>, line: usize) -> Self {
        Self::File {
            path: path.into(),
            line,
        }
    }

    /// The same place, but for the line if there are lines.
    #[must_use]
    pub fn at_line(&self, line: Option<usize>) -> Self {
        match (self, line) {
            (Self::File { path, .. }, Some(line)) => Self::file(Arc::clone(path), line),
            _ => self.clone(),
        }
    }

    /// Who stands behind the object.
    pub fn authorship(&self) -> Authorship {
        match self {
            Self::File { .. } => Authorship::Administrator,
            Self::Object { .. } => Authorship::Tenant,
        }
    }
}

/// `shop.yaml:12`, `shop.yaml`, or `uid 1f0c generation 3`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0 } => f.write_str(path),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Object { uid, generation } => write!(f, "uid {uid} generation {generation}"),
        }
    }
}

/// Group, kind, namespace and name: what makes two objects the same one. The API version is no part of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    kind: ObjectKind,
    namespace: Arc<str>,
    name: Arc<str>,
}

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// A name of its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// From an object's metadata; what is absent reads as empty.
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self::new(
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
        )
    }
}

/// `shop/cart`
impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Of which kind an object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// One that the controller reads.
    Known(Kind),
    /// Any other.
    Foreign {
        /// The API group; empty for the core group.
        group: Arc<str>,
        /// The kind as manifests spell it.
        kind: Arc<str>,
    },
}

impl ObjectKind {
    /// The kind of this group and name.
    pub fn of(group: &str, kind: &str) -> Self {
        match Kind::find(group, kind) {
            Some(known) => Self::Known(known),
            None => Self::Foreign {
                group: group.into(),
                kind: kind.into(),
            },
        }
    }

    /// The kind as manifests spell it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(kind) => kind.as_str(),
            Self::Foreign { kind, .. } => kind,
        }
    }

    /// The API group; empty for the core group.
    pub fn group(&self) -> &str {
        match self {
            Self::Known(kind) => kind.group(),
            Self::Foreign { group, .. } => group,
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ObjectKey {
    /// The key of an object of a kind that the controller reads.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self::of(ObjectKind::Known(kind), namespace, name)
    }

    /// The key of an object of any kind.
    pub fn of(kind: ObjectKind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// Of which kind it is.
    pub fn kind(&self) -> &ObjectKind {
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
    /// `networking.k8s.io`.
    NetworkPolicy,
    /// `security.istio.io`.
    PeerAuthentication,
    /// `security.istio.io`.
    AuthorizationPolicy,
    /// `networking.istio.io`.
    VirtualService,
    /// `networking.istio.io`.
    DestinationRule,
    /// `gateway.networking.k8s.io`.
    Gateway,
    /// `gateway.networking.k8s.io`.
    HttpRoute,
    /// `gateway.networking.k8s.io`.
    GrpcRoute,
    /// `gateway.networking.k8s.io`.
    TlsRoute,
    /// `gateway.networking.k8s.io`.
    TcpRoute,
    /// `gateway.networking.k8s.io`.
    ReferenceGrant,
    /// `Gateway` of `networking.istio.io`.
    IstioGateway,
    /// Core.
    Secret,
    /// `networking.istio.io`.
    ServiceEntry,
    /// `networking.k8s.io`.
    IngressClass,
    /// `networking.k8s.io`.
    Ingress,
}

/// The kinds of policy that can be read. One that is broken refuses on its scope, for nobody knows what it would allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum PolicyKind {
    /// Which peers must prove who they are.
    PeerAuthentication,
    /// Which peers may connect.
    AuthorizationPolicy,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::PeerAuthentication, Self::AuthorizationPolicy];

    /// The same among all kinds.
    pub fn kind(self) -> Kind {
        match self {
            Self::PeerAuthentication => Kind::PeerAuthentication,
            Self::AuthorizationPolicy => Kind::AuthorizationPolicy,
        }
    }
}

impl Kind {
    /// All of them, in an order in which later kinds refer to earlier ones.
    pub const ALL: [Self; 22] = [
        Self::Namespace,
        Self::Node,
        Self::ServiceAccount,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::NetworkPolicy,
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
        Self::ServiceEntry,
        Self::Secret,
        Self::ReferenceGrant,
        Self::Gateway,
        Self::IstioGateway,
        Self::DestinationRule,
        Self::VirtualService,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::IngressClass,
        Self::Ingress,
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
            Self::NetworkPolicy => "NetworkPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::Gateway => "Gateway",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::IstioGateway => "Gateway",
            Self::Secret => "Secret",
            Self::ServiceEntry => "ServiceEntry",
            Self::IngressClass => "IngressClass",
            Self::Ingress => "Ingress",
        }
    }

    /// The API group; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::EndpointSlice => "discovery.k8s.io",
            Self::NetworkPolicy | Self::IngressClass | Self::Ingress => "networking.k8s.io",
            Self::PeerAuthentication | Self::AuthorizationPolicy => "security.istio.io",
            Self::VirtualService
            | Self::DestinationRule
            | Self::IstioGateway
            | Self::ServiceEntry => "networking.istio.io",
            Self::Gateway
            | Self::HttpRoute
            | Self::GrpcRoute
            | Self::TlsRoute
            | Self::TcpRoute
            | Self::ReferenceGrant => "gateway.networking.k8s.io",
            Self::Namespace
            | Self::Node
            | Self::ServiceAccount
            | Self::Pod
            | Self::Service
            | Self::Secret => "",
        }
    }

    /// The API versions that are read, the preferred one first.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::PeerAuthentication | Self::AuthorizationPolicy => &["v1", "v1beta1"],
            Self::VirtualService
            | Self::DestinationRule
            | Self::IstioGateway
            | Self::ServiceEntry => &["v1", "v1beta1", "v1alpha3"],
            Self::Gateway => &["v1", "v1beta1"],
            // The newest version is not everywhere yet.
            Self::ReferenceGrant => &["v1beta1", "v1"],
            Self::HttpRoute | Self::GrpcRoute => &["v1", "v1beta1", "v1alpha2"],
            Self::TlsRoute => &["v1", "v1alpha3", "v1alpha2"],
            Self::TcpRoute => &["v1", "v1alpha2"],
            Self::Namespace
            | Self::Node
            | Self::ServiceAccount
            | Self::Pod
            | Self::Service
            | Self::EndpointSlice
            | Self::NetworkPolicy
            | Self::IngressClass
            | Self::Ingress
            | Self::Secret => &["v1"],
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::IngressClass)
    }

    /// The kind of policy that this is, if it is one. Their unknown fields are errors: a policy with a lost field is
    /// another policy.
    pub fn policy(self) -> Option<PolicyKind> {
        PolicyKind::ALL
            .into_iter()
            .find(|policy| policy.kind() == self)
    }

    /// Whether a field that the type does not have makes another object of it: conditions that are lost widen what a
    /// policy allows or a route takes. For other kinds it is only said.
    pub fn is_exact(self) -> bool {
        self.policy().is_some() || self.is_l7()
    }

    /// Whether objects of this kind are for waypoints.
    pub fn is_l7(self) -> bool {
        matches!(
            self,
            Self::VirtualService
                | Self::DestinationRule
                | Self::HttpRoute
                | Self::GrpcRoute
                | Self::TlsRoute
                | Self::TcpRoute
                | Self::ServiceEntry
        )
    }

    /// The kind of this group and name, if it is read.
    pub fn find(group: &str, kind: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == kind && known.group() == group)
    }
}

/// A policy that cannot be read and has no earlier good version. It refuses on its scope until it is repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BrokenPolicy {
    /// Of which kind it is.
    pub kind: PolicyKind,
    /// Who it is.
    pub key: NamespacedName,
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
    NetworkPolicy(Box<NetworkPolicy>),
    PeerAuthentication(Box<PeerAuthentication>),
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    VirtualService(Box<VirtualService>),
    DestinationRule(Box<DestinationRule>),
    Gateway(Box<Gateway>),
    HttpRoute(Box<HttpRoute>),
    GrpcRoute(Box<GrpcRoute>),
    TlsRoute(Box<ConnectionRoute>),
    TcpRoute(Box<ConnectionRoute>),
    ReferenceGrant(Box<ReferenceGrant>),
    IstioGateway(Box<IstioGateway>),
    Secret(Box<Secret>),
    ServiceEntry(Box<ServiceEntry>),
    IngressClass(Box<IngressClass>),
    Ingress(Box<Ingress>),
    Broken(Box<BrokenPolicy>),
}

impl Object {
    /// The key it is known by. Names and namespaces that are absent read as empty; the source has refused those.
    pub fn key(&self) -> ObjectKey {
        let (kind, meta) = match self {
            Self::Broken(o) => {
                return ObjectKey::new(o.kind.kind(), &o.key.namespace, &o.key.name);
            }
            Self::Namespace(o) => (Kind::Namespace, &o.metadata),
            Self::Node(o) => (Kind::Node, &o.metadata),
            Self::ServiceAccount(o) => (Kind::ServiceAccount, &o.metadata),
            Self::Pod(o) => return ObjectKey::new(Kind::Pod, &o.key.namespace, &o.key.name),
            Self::Service(o) => (Kind::Service, &o.metadata),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, &o.metadata),
            Self::NetworkPolicy(o) => (Kind::NetworkPolicy, &o.metadata),
            Self::PeerAuthentication(o) => (Kind::PeerAuthentication, &o.metadata),
            Self::AuthorizationPolicy(o) => (Kind::AuthorizationPolicy, &o.metadata),
            Self::VirtualService(o) => (Kind::VirtualService, &o.metadata),
            Self::DestinationRule(o) => (Kind::DestinationRule, &o.metadata),
            Self::Gateway(o) => (Kind::Gateway, &o.metadata),
            Self::HttpRoute(o) => (Kind::HttpRoute, &o.metadata),
            Self::GrpcRoute(o) => (Kind::GrpcRoute, &o.metadata),
            Self::TlsRoute(o) => (Kind::TlsRoute, &o.metadata),
            Self::TcpRoute(o) => (Kind::TcpRoute, &o.metadata),
            Self::ReferenceGrant(o) => (Kind::ReferenceGrant, &o.metadata),
            Self::IstioGateway(o) => (Kind::IstioGateway, &o.metadata),
            Self::Secret(o) => (Kind::Secret, &o.metadata),
            Self::ServiceEntry(o) => (Kind::ServiceEntry, &o.metadata),
            Self::IngressClass(o) => (Kind::IngressClass, &o.metadata),
            Self::Ingress(o) => (Kind::Ingress, &o.metadata),
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
    pub fn set_namespace(&mut self, namespace: &str) {
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
            Self::NetworkPolicy(o) => &mut o.metadata,
            Self::PeerAuthentication(o) => &mut o.metadata,
            Self::AuthorizationPolicy(o) => &mut o.metadata,
            Self::VirtualService(o) => &mut o.metadata,
            Self::DestinationRule(o) => &mut o.metadata,
            Self::Gateway(o) => &mut o.metadata,
            Self::HttpRoute(o) => &mut o.metadata,
            Self::GrpcRoute(o) => &mut o.metadata,
            Self::TlsRoute(o) | Self::TcpRoute(o) => &mut o.metadata,
            Self::ReferenceGrant(o) => &mut o.metadata,
            Self::IstioGateway(o) => &mut o.metadata,
            Self::Secret(o) => &mut o.metadata,
            Self::ServiceEntry(o) => &mut o.metadata,
            Self::IngressClass(o) => &mut o.metadata,
            Self::Ingress(o) => &mut o.metadata,
        };
        metadata.namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
    }

    /// Reads what serializing wrote of an object of `kind`. Of a pod these are its facts, which were believed already.
    ///
    /// # Errors
    /// What the first wrong field is.
    pub fn from_json(
        kind: Kind,
        origin: &Origin,
        value: serde_json::Value,
    ) -> serde_json::Result<Self> {
        match kind {
            Kind::Pod => serde_json::from_value(value).map(|facts| Self::Pod(Arc::new(facts))),
            Kind::Namespace
            | Kind::Node
            | Kind::ServiceAccount
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::NetworkPolicy
            | Kind::PeerAuthentication
            | Kind::AuthorizationPolicy
            | Kind::VirtualService
            | Kind::DestinationRule
            | Kind::Gateway
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TlsRoute
            | Kind::TcpRoute
            | Kind::ReferenceGrant
            | Kind::IstioGateway
            | Kind::ServiceEntry
            | Kind::IngressClass
            | Kind::Ingress
            | Kind::Secret => Self::decode(kind, origin.authorship(), value),
        }
    }

    /// Reads an object of `kind` as `authorship` allows.
    ///
    /// # Errors
    /// What the first wrong field is.
    pub fn decode<'de, D: serde::Deserializer<'de>>(
        kind: Kind,
        authorship: Authorship,
        from: D,
    ) -> Result<Self, D::Error> {
        fn boxed<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
            from: D,
        ) -> Result<Box<T>, D::Error> {
            T::deserialize(from).map(Box::new)
        }
        match kind {
            Kind::Namespace => boxed(from).map(Self::Namespace),
            Kind::Node => boxed(from).map(Self::Node),
            Kind::ServiceAccount => boxed(from).map(Self::ServiceAccount),
            Kind::Pod => Pod::deserialize(from)
                .map(|pod| Self::Pod(Arc::new(PodFacts::read(&pod, authorship)))),
            Kind::Service => boxed(from).map(Self::Service),
            Kind::EndpointSlice => boxed(from).map(Self::EndpointSlice),
            Kind::NetworkPolicy => boxed(from).map(Self::NetworkPolicy),
            Kind::PeerAuthentication => boxed(from).map(Self::PeerAuthentication),
            Kind::AuthorizationPolicy => boxed(from).map(Self::AuthorizationPolicy),
            Kind::VirtualService => boxed(from).map(Self::VirtualService),
            Kind::DestinationRule => boxed(from).map(Self::DestinationRule),
            Kind::Gateway => boxed(from).map(Self::Gateway),
            Kind::HttpRoute => boxed(from).map(Self::HttpRoute),
            Kind::GrpcRoute => boxed(from).map(Self::GrpcRoute),
            Kind::TlsRoute => boxed(from).map(Self::TlsRoute),
            Kind::TcpRoute => boxed(from).map(Self::TcpRoute),
            Kind::ReferenceGrant => boxed(from).map(Self::ReferenceGrant),
            Kind::IstioGateway => boxed(from).map(Self::IstioGateway),
            Kind::Secret => boxed(from).map(Self::Secret),
            Kind::ServiceEntry => boxed(from).map(Self::ServiceEntry),
            Kind::IngressClass => boxed(from).map(Self::IngressClass),
            Kind::Ingress => boxed(from).map(Self::Ingress),
        }
    }
}

/// A new or changed object and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Upsert {
    /// The object.
    pub object: Object,
    /// Its place.
    pub origin: Origin,
    /// The lines of its fields, for kinds whose fields are reported on later; else empty.
    pub lines: FieldLines,
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
            Self::NetworkPolicy(o) => o.serialize(to),
            Self::PeerAuthentication(o) => o.serialize(to),
            Self::AuthorizationPolicy(o) => o.serialize(to),
            Self::VirtualService(o) => o.serialize(to),
            Self::DestinationRule(o) => o.serialize(to),
            Self::Gateway(o) => o.serialize(to),
            Self::HttpRoute(o) => o.serialize(to),
            Self::GrpcRoute(o) => o.serialize(to),
            Self::TlsRoute(o) | Self::TcpRoute(o) => o.serialize(to),
            Self::ReferenceGrant(o) => o.serialize(to),
            Self::IstioGateway(o) => o.serialize(to),
            Self::Secret(o) => o.serialize(to),
            Self::ServiceEntry(o) => o.serialize(to),
            Self::IngressClass(o) => o.serialize(to),
            Self::Ingress(o) => o.serialize(to),
        }
    }
}
