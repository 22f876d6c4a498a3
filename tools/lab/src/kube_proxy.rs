//! kube-proxy, as uncaptured pods and the node itself need it: ClusterIPs by nf_tables DNAT.
//!
//! Endpoints are chosen at random. No session affinity, no NodePorts, no load balancers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::address::{SERVICES_V4, SERVICES_V6};
use crate::objects::{Objects, parse_ips};

/// The rules for every node, as `nft -f` takes them; they replace earlier ones as a whole.
pub(crate) fn rules(objects: &Objects) -> String {
    let mut out = String::new();
    for family in [Family::V4, Family::V6] {
        let mut dnat = String::new();
        for service in &objects.services {
            service_rules(objects, service, family, &mut dnat);
        }
        let hairpins = hairpins(objects, family);
        let (name, services) = match family {
            Family::V4 => ("ip", SERVICES_V4),
            Family::V6 => ("ip6", SERVICES_V6),
        };
        // Adding before deleting makes the first run, when there is nothing to delete, pass too.
        let _ = write!(
            out,
            "add table {name} kube-proxy
delete table {name} kube-proxy
table {name} kube-proxy {{
 chain services {{
{dnat} }}
 chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
 chain output {{ type nat hook output priority -100; jump services; }}
 chain postrouting {{ type nat hook postrouting priority srcnat;
{hairpins} }}
 chain forward {{ type filter hook forward priority filter; {name} daddr {services} reject; }}
 chain local {{ type filter hook output priority filter; {name} daddr {services} reject; }}
}}
"
        );
    }
    out
}

/// The addresses behind a service, for `/etc/hosts`: its ClusterIPs, or its pods if headless.
pub(crate) fn names_resolve_to(objects: &Objects, service: &Service) -> BTreeSet<IpAddr> {
    let cluster = cluster_ips(service);
    if !cluster.is_empty() {
        return cluster.into_iter().collect();
    }
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let families = [Family::V4, Family::V6];
    let ports = ports.into_iter().flatten();
    ports
        .flat_map(|port| families.map(|family| endpoints(objects, service, port, family)))
        .flatten()
        .map(|endpoint| endpoint.ip)
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Endpoint {
    ip: IpAddr,
    port: i32,
}

fn service_rules(objects: &Objects, service: &Service, family: Family, out: &mut String) {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    for vip in cluster_ips(service)
        .into_iter()
        .filter(|ip| family.has(*ip))
    {
        for port in ports.into_iter().flatten() {
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => "tcp",
                Some("UDP") => "udp",
                Some(_) => continue,
            };
            let endpoints = endpoints(objects, service, port, family);
            if endpoints.is_empty() {
                continue;
            }
            let name = if family == Family::V4 { "ip" } else { "ip6" };
            let mut targets = Vec::new();
            for (index, Endpoint { ip, port }) in endpoints.iter().enumerate() {
                targets.push(format!("{index} : {ip} . {port}"));
            }
            let _ = writeln!(
                out,
                "  {name} daddr {vip} {protocol} dport {} dnat {name} to numgen random mod {} map {{ {} }}",
                port.port,
                targets.len(),
                targets.join(", ")
            );
        }
    }
}

/// A pod that reaches itself through its service must see a foreign source, or it would drop
/// the packet as its own.
fn hairpins(objects: &Objects, family: Family) -> String {
    let name = if family == Family::V4 { "ip" } else { "ip6" };
    let pods = objects.pods.iter().filter_map(|pod| parse_ips(pod).ok());
    pods.flatten()
        .filter(|ip| family.has(*ip))
        .map(|ip| format!("  {name} saddr {ip} {name} daddr {ip} masquerade\n"))
        .collect()
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let list = spec.cluster_ips.iter().flatten();
    let mut ips: Vec<IpAddr> = list
        .chain(&spec.cluster_ip)
        .filter_map(|ip| ip.parse().ok())
        .collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

/// From the service's EndpointSlices if it has any, otherwise from the pods it selects.
fn endpoints(
    objects: &Objects,
    service: &Service,
    port: &ServicePort,
    family: Family,
) -> BTreeSet<Endpoint> {
    let mut slices = objects
        .slices
        .iter()
        .filter(|slice| {
            let labels = slice.metadata.labels.as_ref();
            let owner = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
            owner == service.metadata.name.as_ref()
                && same_namespace(&slice.metadata.namespace, service)
        })
        .peekable();
    let mut found = BTreeSet::new();
    if slices.peek().is_none() {
        let selector = service
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.as_ref());
        if let Some(selector) = selector.filter(|selector| !selector.is_empty()) {
            for pod in objects
                .pods
                .iter()
                .filter(|pod| selected(pod, service, selector))
            {
                let Some(target) = target_port(port, pod) else {
                    continue;
                };
                let ips = parse_ips(pod).unwrap_or_default();
                found.extend(ips.into_iter().map(|ip| Endpoint { ip, port: target }));
            }
        }
    }
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let same_name = |name: &Option<String>| {
            name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
        };
        for target in ports
            .filter(|ports| same_name(&ports.name))
            .filter_map(|port| port.port)
        {
            let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
                let conditions = endpoint.conditions.as_ref();
                conditions.and_then(|conditions| conditions.ready) != Some(false)
            });
            let ips = ready.flat_map(|endpoint| &endpoint.addresses);
            let ips = ips.filter_map(|ip| ip.parse().ok());
            found.extend(ips.map(|ip| Endpoint { ip, port: target }));
        }
    }
    found.retain(|endpoint| family.has(endpoint.ip));
    found
}

fn selected(pod: &Pod, service: &Service, selector: &BTreeMap<String, String>) -> bool {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    same_namespace(&pod.metadata.namespace, service)
        && selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

fn same_namespace(namespace: &Option<String>, service: &Service) -> bool {
    let of = |namespace: &Option<String>| namespace.clone().unwrap_or_else(|| "default".to_owned());
    of(namespace) == of(&service.metadata.namespace)
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let named = ports.find(|port| port.name.as_ref() == Some(name))?;
            Some(named.container_port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    fn objects(text: &str) -> Objects {
        let mut objects = Objects::default();
        for document in yaml::parse(text).unwrap() {
            match document["kind"].as_str().unwrap() {
                "Pod" => objects.pods.push(serde_json::from_value(document).unwrap()),
                "Service" => objects
                    .services
                    .push(serde_json::from_value(document).unwrap()),
                _ => objects
                    .slices
                    .push(serde_json::from_value(document).unwrap()),
            }
        }
        objects
    }

    const PODS: &str = "
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: s}, annotations: {keelson.io/pod-ips: '10.244.1.10,fd00:10:244:1::10'}}
spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
---
kind: Pod
metadata: {name: other, namespace: elsewhere, labels: {app: s}, annotations: {keelson.io/pod-ips: 10.244.1.11}}
";

    #[test]
    fn a_named_target_port_is_looked_up_in_the_selected_pods() {
        let service = "---\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {clusterIPs: [10.96.0.10, 'fd00:10:96::10'], selector: {app: s}, ports: [{port: 80, targetPort: http}]}\n";
        let rules = rules(&objects(&format!("{PODS}{service}")));
        assert!(rules.contains("ip daddr 10.96.0.10 tcp dport 80 dnat ip to numgen random mod 1 map { 0 : 10.244.1.10 . 8080 }"), "{rules}");
        assert!(rules.contains("ip6 daddr fd00:10:96::10 tcp dport 80 dnat ip6 to numgen random mod 1 map { 0 : fd00:10:244:1::10 . 8080 }"), "{rules}");
        assert!(!rules.contains("10.244.1.11 ."), "{rules}");
    }

    #[test]
    fn slices_win_over_the_selector_and_unready_endpoints_are_left_out() {
        let service = "---\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {clusterIP: 10.96.0.10, selector: {app: s}, ports: [{port: 53, protocol: UDP, name: dns}]}
---
kind: EndpointSlice
metadata: {name: s-1, namespace: shop, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{name: dns, port: 5353}]
endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: false}}, {addresses: [10.0.0.3], conditions: {ready: true}}]\n";
        let rules = rules(&objects(&format!("{PODS}{service}")));
        assert!(rules.contains("udp dport 53 dnat ip to numgen random mod 2 map { 0 : 10.0.0.1 . 5353, 1 : 10.0.0.3 . 5353 }"), "{rules}");
    }

    #[test]
    fn a_headless_service_has_no_rule_and_resolves_to_its_pods() {
        let service = "---\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {clusterIP: None, selector: {app: s}, ports: [{port: 80}]}\n";
        let objects = objects(&format!("{PODS}{service}"));
        assert!(!rules(&objects).contains("dnat"));
        let ips = names_resolve_to(&objects, &objects.services[0]);
        assert_eq!(ips.len(), 2);
    }
}
