//! Ten thousand workloads fit an agent.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;

use model::service::{ServiceKey, ServicePort};
use model::state::MeshState;
use model::workload::{Locality, PortMapping, TunnelProtocol, WorkloadUid};
use model::{NetworkAddress, PolicyKey, Service, Workload};

const WORKLOADS: u32 = 10_000;
const SERVICES: u32 = 2_000;
const LIMIT_KIB: usize = 64 * 1024;

/// As a decoder makes it: every string has its own allocation.
fn workload(i: u32) -> Workload {
    let namespace = format!("namespace-{}", i % 50);
    let name = format!("deployment-{}-6d4f8b7c9d-{i:05}", i % SERVICES);
    let [_, a, b, c] = i.to_be_bytes();
    let ports = vec![PortMapping::new(80, 8080)];
    Workload {
        uid: WorkloadUid::from(format!("Kubernetes//Pod/{namespace}/{name}")),
        addresses: vec![
            [10, a, b, c].into(),
            std::net::Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(i)).into(),
        ],
        hostname: "".into(),
        tunnel: TunnelProtocol::Hbone,
        trust_domain: "cluster.local".parse().unwrap(),
        service_account: format!("account-{}", i % SERVICES).into(),
        node: format!("ip-10-0-0-{}.eu-central-1.compute.internal", i % 300).into(),
        canonical_name: format!("deployment-{}", i % SERVICES).into(),
        canonical_revision: "latest".into(),
        workload_name: format!("deployment-{}", i % SERVICES).into(),
        services: [(key(i % SERVICES), ports)].into(),
        authorization_policies: vec![PolicyKey::new("istio-system", "static_strict")],
        cluster_id: "Kubernetes".into(),
        locality: Locality {
            region: "eu-central-1".into(),
            zone: format!("eu-central-1{}", i % 3).into(),
            subzone: "".into(),
        },
        namespace: namespace.into(),
        name: name.into(),
        ..Workload::default()
    }
}

fn key(i: u32) -> ServiceKey {
    let namespace = format!("namespace-{}", i % 50);
    let hostname = format!("service-{i}.{namespace}.svc.cluster.local");
    ServiceKey::new(namespace, hostname)
}

fn service(i: u32) -> Service {
    let key = key(i);
    let [_, _, a, b] = i.to_be_bytes();
    Service {
        name: format!("service-{i}").into(),
        addresses: vec![NetworkAddress::single("", [10, 96, a, b].into())],
        ports: vec![ServicePort {
            port: 80,
            target_port: 8080,
            app_protocol: Default::default(),
        }],
        namespace: key.namespace,
        hostname: key.hostname,
        ..Service::default()
    }
}

fn resident_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn ten_thousand_workloads_fit_an_agent() {
    let before = resident_kib();
    let mut state = MeshState::default();
    for i in 0..SERVICES {
        state.insert_service(service(i));
    }
    // Twice, and published in between, as a controller that reconnects makes an agent do.
    for round in 0..2 {
        let published = state.clone();
        for i in 0..WORKLOADS {
            state.insert_workload(Workload {
                capacity: round + 1,
                ..workload(i)
            });
        }
        drop(published);
    }
    let used = resident_kib().saturating_sub(before);
    assert_eq!(state.workloads().len(), usize::try_from(WORKLOADS).unwrap());
    println!("{used} KiB");
    assert!(used < LIMIT_KIB, "{used} KiB");
}
