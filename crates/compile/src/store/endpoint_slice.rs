//! Facts of an `EndpointSlice`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_api::EndpointSlice;
use l7::backend::Locality;
use manifest::{Labels, NamespacedName};
use model::address::is_of_another;

/// What the mesh needs to know of a slice.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceFacts {
    /// Who it is.
    pub key: NamespacedName,
    /// The Service it belongs to.
    pub service: NamespacedName,
    /// Endpoint port by the name of the Service port.
    pub ports: BTreeMap<String, u16>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceEndpoint {
    /// Its addresses; one in practice.
    pub addresses: Vec<IpAddr>,
    /// The pod behind it, if the slice names one.
    pub pod: Option<NamespacedName>,
    /// The node it is on, empty where the slice does not say.
    pub node: Arc<str>,
    /// Whether new connections may go there.
    pub readiness: Readiness,
    /// What a slice has no fields for; an endpoint of a `ServiceEntry` has them.
    pub traits: Option<Arc<Traits>>,
}

/// What is said of an endpoint that is no pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traits {
    /// Its labels.
    pub labels: Labels,
    /// Where it runs.
    pub locality: Locality,
    /// Its share, relative to the others.
    pub weight: u32,
}

/// Whether new connections may go to an endpoint. The better sorts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// They may.
    Ready,
    /// It is ending and still serves: they may where no other endpoint is ready.
    Draining,
    /// They may not.
    NotReady,
}

impl Readiness {
    /// Reads the conditions of an endpoint as kube-proxy does: what is absent counts as ready, as serving
    /// and as not terminating (`discovery.k8s.io/v1`).
    pub fn of(ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>) -> Self {
        match (
            ready.unwrap_or(true),
            serving.unwrap_or(true) && terminating.unwrap_or(false),
        ) {
            (true, _) => Self::Ready,
            (false, true) => Self::Draining,
            (false, false) => Self::NotReady,
        }
    }
}

impl SliceFacts {
    /// Reads a slice; `None` when it belongs to no Service or lists host names.
    pub fn read(slice: &EndpointSlice) -> Option<Self> {
        let key = NamespacedName::of(&slice.metadata);
        let service = slice
            .metadata
            .labels
            .as_ref()?
            .get("kubernetes.io/service-name")?;
        if slice.address_type == "FQDN" {
            return None;
        }
        let ports = slice
            .ports
            .iter()
            .flatten()
            .filter(|port| port.protocol.as_deref().is_none_or(|p| p == "TCP"));
        let endpoints = slice.endpoints.iter().flatten().map(|endpoint| {
            let target = endpoint
                .target_ref
                .as_ref()
                .filter(|target| target.kind.as_deref() == Some("Pod"));
            SliceEndpoint {
                addresses: endpoint
                    .addresses
                    .iter()
                    .filter_map(|ip| ip.parse().ok())
                    // The API server takes none of loopback either.
                    .filter(|ip| is_of_another(*ip))
                    .collect(),
                pod: target.and_then(|target| {
                    let namespace = target.namespace.as_deref().unwrap_or(&key.namespace);
                    Some(NamespacedName::new(namespace, target.name.as_deref()?))
                }),
                node: endpoint.node_name.as_deref().unwrap_or_default().into(),
                readiness: endpoint
                    .conditions
                    .as_ref()
                    .map_or(Readiness::Ready, |conditions| {
                        Readiness::of(conditions.ready, conditions.serving, conditions.terminating)
                    }),
                traits: None,
            }
        });
        Some(Self {
            service: NamespacedName::new(&key.namespace, service),
            ports: ports
                .filter_map(|port| {
                    Some((
                        port.name.clone().unwrap_or_default(),
                        u16::try_from(port.port?).ok()?,
                    ))
                })
                .collect(),
            endpoints: endpoints.collect(),
            key,
        })
    }
}
