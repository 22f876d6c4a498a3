//! The services that a workload is an endpoint of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PortMapping;
use crate::service::ServiceKey;

/// Ports by service, in the order of the services. Most workloads are endpoints of one service, and a mesh has many workloads: a
/// `BTreeMap` takes 630 bytes for that one, this takes 60.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Map", into = "Map")]
pub struct ServicePorts(Vec<(ServiceKey, Vec<PortMapping>)>);

type Map = BTreeMap<ServiceKey, Vec<PortMapping>>;

impl ServicePorts {
    /// The ports that it serves for a service.
    pub fn get(&self, service: &ServiceKey) -> Option<&Vec<PortMapping>> {
        let at = self.find(service).ok()?;
        self.0.get(at).map(|(_, ports)| ports)
    }

    /// Whether it is an endpoint of a service.
    pub fn contains_key(&self, service: &ServiceKey) -> bool {
        self.find(service).is_ok()
    }

    /// The services.
    pub fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.0.iter().map(|(service, _)| service)
    }

    /// All of it.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ServiceKey, &Vec<PortMapping>)> {
        self.0.iter().map(|(service, ports)| (service, ports))
    }

    /// All of it, to share what it holds with other workloads. Whoever changes an order of services breaks it.
    pub(super) fn all_mut(&mut self) -> &mut Vec<(ServiceKey, Vec<PortMapping>)> {
        &mut self.0
    }

    /// Whether it is an endpoint of none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a service, or replaces its ports.
    pub fn insert(&mut self, service: ServiceKey, ports: Vec<PortMapping>) {
        match self.find(&service) {
            Ok(at) => {
                if let Some((_, there)) = self.0.get_mut(at) {
                    *there = ports;
                }
            }
            Err(at) => self.0.insert(at, (service, ports)),
        }
    }

    fn find(&self, service: &ServiceKey) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(service))
    }
}

impl From<Map> for ServicePorts {
    fn from(map: Map) -> Self {
        Self(map.into_iter().collect())
    }
}

impl From<ServicePorts> for Map {
    fn from(services: ServicePorts) -> Self {
        services.0.into_iter().collect()
    }
}

impl<const N: usize> From<[(ServiceKey, Vec<PortMapping>); N]> for ServicePorts {
    fn from(all: [(ServiceKey, Vec<PortMapping>); N]) -> Self {
        Map::from(all).into()
    }
}

#[cfg(test)]
mod tests {
    use super::{Map, PortMapping, ServiceKey, ServicePorts};

    #[test]
    fn it_says_what_a_map_says() {
        let key = |name| ServiceKey::new("shop", name);
        let (mut services, mut map) = (ServicePorts::default(), Map::new());
        for (name, ports) in [("b", 1), ("a", 2), ("c", 0), ("b", 3)] {
            let ports = vec![PortMapping::new(80, 8080); ports];
            services.insert(key(name), ports.clone());
            map.insert(key(name), ports);
        }
        assert!(services.iter().eq(map.iter()) && services.keys().eq(map.keys()));
        for name in ["a", "b", "c", "d", ""] {
            assert_eq!(services.get(&key(name)), map.get(&key(name)), "{name}");
            assert_eq!(
                services.contains_key(&key(name)),
                map.contains_key(&key(name))
            );
        }
        assert_eq!(ServicePorts::from(map.clone()), services);
        assert_eq!(Map::from(services), map);
    }
}
