//! What a client that subscribes on demand means by a name: `network/ip` stands for whatever has the address, and the
//! workloads of its own node are wanted without being named. A ztunnel with `XDS_ON_DEMAND` asks like that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use prost::Message;
use proto::istio::workload::address::Type;
use proto::istio::workload::{Address, NetworkAddress};

use compile::resource::Resource;
use compile::snapshot::Resources;

/// The names, beside its own, under which a resource can be asked for.
pub(super) fn aliases(resource: &Resource) -> Vec<String> {
    match content(resource) {
        Some(Type::Workload(workload)) => workload
            .addresses
            .iter()
            .filter_map(|bytes| Some(format!("{}/{}", workload.network, ip(bytes)?)))
            .collect(),
        Some(Type::Service(service)) => service.addresses.iter().filter_map(of_service).collect(),
        None => Vec::new(),
    }
}

/// What has the addresses that aliases name, by alias. One pass over everything, however many there are.
pub(super) fn find(
    view: &Resources,
    names: &BTreeSet<String>,
) -> BTreeMap<String, Vec<Arc<Resource>>> {
    let mut found: BTreeMap<String, Vec<Arc<Resource>>> = BTreeMap::new();
    let addresses: Vec<Vec<u8>> = names.iter().filter_map(|name| octets_in(name)).collect();
    if addresses.is_empty() {
        return found;
    }
    let finders: Vec<_> = addresses.iter().map(memchr::memmem::Finder::new).collect();
    // Few resources have the bytes of a few addresses anywhere, so few are decoded.
    let may_have = |resource: &Resource| {
        finders.len() > FEW || finders.iter().any(|f| f.find(resource.body()).is_some())
    };
    for resource in view.values().filter(|resource| may_have(resource)) {
        for alias in aliases(resource) {
            if names.contains(&alias) {
                found.entry(alias).or_default().push(Arc::clone(resource));
            }
        }
    }
    found
}

/// Whether a resource is wanted although its own name was not asked for.
pub(super) fn is_wanted(resource: &Resource, names: &BTreeSet<String>, node: &str) -> bool {
    is_on_node(resource, node) || aliases(resource).iter().any(|alias| names.contains(alias))
}

fn is_on_node(resource: &Resource, node: &str) -> bool {
    matches!(content(resource), Some(Type::Workload(workload)) if workload.node == node && !node.is_empty())
}

fn content(resource: &Resource) -> Option<Type> {
    Address::decode(resource.body()).ok()?.r#type
}

fn of_service(address: &NetworkAddress) -> Option<String> {
    let ip = ip(&address.address)?;
    Some(match address.length {
        None => format!("{}/{ip}", address.network),
        Some(length) => format!("{}/{ip}/{length}", address.network),
    })
}

/// The bytes of the address in `network/ip` or `network/ip/length`.
fn octets_in(alias: &str) -> Option<Vec<u8>> {
    let (_network, rest) = alias.split_once('/')?;
    let ip = rest.split_once('/').map_or(rest, |(ip, _length)| ip);
    Some(match ip.parse().ok()? {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_longer| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// More addresses than this are looked for by decoding everything.
const FEW: usize = 8;
