//! Which object, and which rule of it, something was made of.

use std::fmt;
use std::sync::Arc;

/// The object that a rule was made of, and the rule's index there: what log, metrics and `explain` name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Kind of the object.
    pub kind: Kind,
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// Index of the rule in the object, from 0.
    pub rule: u32,
    /// Name of the rule, where it has one.
    pub rule_name: Option<Arc<str>>,
}

/// The kinds of objects that rules are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `GRPCRoute` of the Gateway API.
    GrpcRoute,
    /// `HTTPRoute` of the Gateway API.
    HttpRoute,
    /// `TLSRoute` of the Gateway API.
    TlsRoute,
    /// `TCPRoute` of the Gateway API.
    TcpRoute,
    /// Istio's `VirtualService`.
    VirtualService,
    /// Istio's `DestinationRule`.
    DestinationRule,
    /// Istio's `AuthorizationPolicy`.
    AuthorizationPolicy,
    /// Istio's `PeerAuthentication`.
    PeerAuthentication,
    /// A Kubernetes `Service`.
    Service,
    /// Istio's `Gateway`.
    Gateway,
    /// A Kubernetes `Ingress`.
    Ingress,
}

impl Kind {
    /// As manifests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GrpcRoute => "GRPCRoute",
            Self::HttpRoute => "HTTPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::Service => "Service",
            Self::Gateway => "Gateway",
            Self::Ingress => "Ingress",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        [
            Self::GrpcRoute,
            Self::HttpRoute,
            Self::TlsRoute,
            Self::TcpRoute,
            Self::VirtualService,
            Self::DestinationRule,
            Self::AuthorizationPolicy,
            Self::PeerAuthentication,
            Self::Service,
            Self::Gateway,
            Self::Ingress,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for Origin {
    /// `VirtualService shop/cart rule 2`, or with the rule's name in its place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)?;
        match &self.rule_name {
            Some(name) => write!(f, " rule {name}"),
            None => write!(f, " rule {}", self.rule),
        }
    }
}
