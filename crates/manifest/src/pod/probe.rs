//! Which ports of a pod its own kubelet calls: those of the probes and lifecycle hooks that the pod declares.
//!
//! A handler that names another host is that host's business, and no claim to the pod's own port.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_api::IntOrString;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, PodSpec, TCPSocketAction};

/// The ports, in order.
pub(super) fn ports(spec: &PodSpec, addresses: &[IpAddr]) -> Vec<u16> {
    let init = spec.init_containers.iter().flatten();
    let mut ports = BTreeSet::new();
    for container in spec.containers.iter().chain(init) {
        let own = |host: &Option<String>| {
            let host = host.as_deref().unwrap_or_default();
            host.is_empty() || host.parse().is_ok_and(|ip| addresses.contains(&ip))
        };
        let probes = [
            &container.liveness_probe,
            &container.readiness_probe,
            &container.startup_probe,
        ];
        let probes = probes.into_iter().flatten();
        let hooks = container.lifecycle.iter();
        let hooks = hooks.flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
        let hooks = hooks.flatten();
        let handlers = probes
            .clone()
            .map(|probe| (&probe.http_get, &probe.tcp_socket))
            .chain(hooks.map(|hook| (&hook.http_get, &hook.tcp_socket)));
        for (http, tcp) in handlers {
            let http = http.iter().filter(|get: &&HTTPGetAction| own(&get.host));
            let tcp = tcp.iter().filter(|tcp: &&TCPSocketAction| own(&tcp.host));
            let named = http.map(|get| &get.port).chain(tcp.map(|tcp| &tcp.port));
            ports.extend(named.filter_map(|port| resolve(port, container)));
        }
        let grpc = probes.filter_map(|probe| probe.grpc.as_ref());
        ports.extend(grpc.filter_map(|grpc| u16::try_from(grpc.port).ok()));
    }
    ports.remove(&0);
    ports.into_iter().collect()
}

/// As the kubelet does: a number, the name of a port of the same container, or a number in quotes.
fn resolve(port: &IntOrString, container: &Container) -> Option<u16> {
    let text = match port {
        IntOrString::Int(number) => return u16::try_from(*number).ok(),
        IntOrString::String(text) => text,
    };
    let named = container.ports.iter().flatten();
    let mut named = named.filter(|port| port.name.as_ref() == Some(text));
    match named.next() {
        Some(port) => u16::try_from(port.container_port).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(containers: serde_json::Value, expected: &[u16]) {
        let spec = serde_json::from_value(containers.clone()).unwrap();
        let own = ["10.244.1.10".parse().unwrap(), "fd00::a".parse().unwrap()];
        assert_eq!(ports(&spec, &own), expected, "{containers}");
    }

    #[test]
    fn the_ports_that_the_kubelet_calls_are_those_of_the_pods_own_probes() {
        let app = |more: serde_json::Value| {
            let mut app = serde_json::json!({"name": "app", "ports": [
                {"name": "health", "containerPort": 8086}, {"containerPort": 80}]});
            app.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            serde_json::json!({"containers": [app]})
        };
        let json = |text: &str| serde_json::from_str(text).unwrap();
        for (more, expected) in [
            (r#"{}"#, &[][..]),
            (
                r#"{"livenessProbe": {"httpGet": {"port": 81, "path": "/"}}}"#,
                &[81],
            ),
            (
                r#"{"readinessProbe": {"tcpSocket": {"port": "health"}}}"#,
                &[8086],
            ),
            (
                r#"{"readinessProbe": {"tcpSocket": {"port": "8087"}}}"#,
                &[8087],
            ),
            (
                r#"{"readinessProbe": {"tcpSocket": {"port": "nobody"}}}"#,
                &[],
            ),
            (r#"{"startupProbe": {"grpc": {"port": 9000}}}"#, &[9000]),
            (r#"{"livenessProbe": {"exec": {"command": ["true"]}}}"#, &[]),
            (
                r#"{"lifecycle": {"preStop": {"httpGet": {"port": 82}}, "postStart": {"tcpSocket": {"port": 83}}}}"#,
                &[82, 83],
            ),
            (
                r#"{"livenessProbe": {"httpGet": {"port": 81, "host": "10.244.1.11"}}}"#,
                &[],
            ),
            (
                r#"{"livenessProbe": {"tcpSocket": {"port": 81, "host": "victim.shop"}}}"#,
                &[],
            ),
            (
                r#"{"livenessProbe": {"httpGet": {"port": 81, "host": "10.244.1.10"}}}"#,
                &[81],
            ),
            (
                r#"{"livenessProbe": {"httpGet": {"port": 81, "host": ""}}}"#,
                &[81],
            ),
            (r#"{"livenessProbe": {"httpGet": {"port": 70000}}}"#, &[]),
            (r#"{"livenessProbe": {"httpGet": {"port": 0}}}"#, &[]),
        ] {
            check(app(json(more)), expected);
        }
    }

    #[test]
    fn a_native_sidecars_probe_counts_and_its_ports_have_their_own_names() {
        let spec = serde_json::json!({
            "initContainers": [{"name": "proxy", "restartPolicy": "Always",
                "ports": [{"name": "health", "containerPort": 15021}],
                "startupProbe": {"httpGet": {"port": "health"}}}],
            "containers": [{"name": "app", "ports": [{"name": "health", "containerPort": 8086}],
                "livenessProbe": {"httpGet": {"port": "health"}}}],
        });
        check(spec, &[8086, 15021]);
    }
}
