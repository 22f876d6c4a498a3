use prost::Message;
use proto::envoy::discovery::DeltaDiscoveryRequest;
use proto::google::rpc::Status as RpcStatus;
use proto::istio::workload::{Address, TunnelProtocol, address};
use proto::type_url::{ADDRESS, AUTHORIZATION, NODE_POD, WORKLOAD};
use tonic::Code;

use super::support::*;

/// A pod that is no agent may ask for its own certificate, and is told nothing of its node or its neighbours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_is_not_told_what_the_agent_of_its_node_is() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    let refused = controller.try_discovery("token-cart").await.err();
    assert_eq!(
        refused.map(|status| status.code()),
        Some(Code::PermissionDenied)
    );
    let metrics = controller.page("/stats/prometheus").await;
    assert!(
        metrics.contains("keelson_controller_connected_nodes 0")
            && metrics.contains("keelson_controller_unauthenticated_calls_total 1"),
        "{metrics}"
    );
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_policies_then_workloads_then_its_own_pods_and_every_change() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    let mut node = controller.discovery("token-1").await;
    node.subscribe(ADDRESS).await;
    node.subscribe(NODE_POD).await;
    node.subscribe(AUTHORIZATION).await;
    assert_eq!(node.take().await, "Authorization +shop/guard");
    assert_eq!(node.take().await, format!("Address +{A} +{B}"));
    assert_eq!(
        node.take().await,
        format!("NodePod +{A}"),
        "the pod of the other node is invisible"
    );

    home.write(
        "more.yaml",
        &MESH.replace("name: a,", "name: c,").replace("1.10", "1.11"),
    );
    assert_eq!(node.take().await, "Address +Kubernetes//Pod/shop/c");
    assert_eq!(node.take().await, "NodePod +Kubernetes//Pod/shop/c");
    home.remove("more.yaml");
    assert_eq!(node.take().await, "Address -Kubernetes//Pod/shop/c");
    assert_eq!(node.take().await, "NodePod -Kubernetes//Pod/shop/c");
    assert!(node.is_quiet().await);
    let page = controller.page("/debug/synz").await;
    assert!(
        page.contains("\"node\": \"n1\"") && page.contains(ADDRESS),
        "{page}"
    );
    let metrics = controller.page("/stats/prometheus").await;
    assert!(
        metrics.contains("keelson_controller_connected_nodes 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("keelson_controller_xds_acks_total{type=\"istio.workload.Address\"} 3"),
        "{metrics}"
    );
    drop(node);
    controller
        .until(
            "disconnected",
            |page| page.contains("connected_nodes 0"),
            "/stats/prometheus",
        )
        .await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_recorded_and_the_stream_goes_on() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    let mut node = controller.discovery("token-1").await;
    node.subscribe(ADDRESS).await;
    let response = node.receive().await;
    node.send(DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        response_nonce: response.nonce,
        error_detail: Some(RpcStatus {
            message: format!("{A}: no such thing"),
            ..Default::default()
        }),
        ..Default::default()
    })
    .await;
    controller
        .until(
            "noted",
            |page| page.contains("no such thing"),
            "/debug/synz",
        )
        .await;
    let metrics = controller.page("/stats/prometheus").await;
    assert!(
        metrics.contains("keelson_controller_xds_nacks_total{type=\"istio.workload.Address\"} 1"),
        "{metrics}"
    );
    home.write("mesh.yaml", &MESH.replace("2.10", "2.11"));
    assert_eq!(node.take().await, format!("Address +{B}"));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stream_brings_what_it_has_and_gets_the_rest() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    let mut node = controller.discovery("token-1").await;
    node.subscribe(ADDRESS).await;
    let first = node.receive().await;
    drop(node);
    let mut brought: std::collections::BTreeMap<_, _> = first
        .resources
        .into_iter()
        .map(|resource| (resource.name, resource.version))
        .collect();
    brought.insert("Kubernetes//Pod/shop/gone".into(), "x".into());
    home.write("mesh.yaml", &MESH.replace("2.10", "2.11"));
    controller
        .until(
            "read",
            |page| page.contains("10.244.2.11"),
            "/debug/config_dump",
        )
        .await;
    let mut node = controller.discovery("token-1").await;
    node.send(DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        initial_resource_versions: brought,
        ..Default::default()
    })
    .await;
    assert_eq!(
        node.take().await,
        format!("Address +{B} -Kubernetes//Pod/shop/gone")
    );
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_can_be_subscribed_and_left() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    let mut node = controller.discovery("token-1").await;
    let request = |add: &[&str], remove: &[&str]| DeltaDiscoveryRequest {
        type_url: WORKLOAD.into(),
        resource_names_subscribe: add.iter().map(ToString::to_string).collect(),
        resource_names_unsubscribe: remove.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    node.send(request(&[B, "nobody"], &[])).await;
    let both = format!("Workload +{A} +{B} -nobody");
    assert_eq!(node.take().await, both, "its own node's come unasked");
    node.send(request(&["none"], &[B])).await;
    assert_eq!(node.take().await, "Workload -none");
    home.write(
        "mesh.yaml",
        &MESH.replace("1.10", "1.12").replace("2.10", "2.12"),
    );
    assert_eq!(node.take().await, format!("Workload +{A}"));
    assert!(node.is_quiet().await);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_everywhere() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    for token in ["token-3", "token-11", "", "token-1 x"] {
        let refused = controller
            .try_discovery(token)
            .await
            .err()
            .expect("refused");
        assert_eq!(
            refused.code(),
            Code::Unauthenticated,
            "{token:?}: {refused}"
        );
        let refused = controller
            .report(token, "n1", &[])
            .await
            .expect_err("refused");
        assert_eq!(
            refused.code(),
            Code::Unauthenticated,
            "{token:?}: {refused}"
        );
    }
    let refused = controller
        .report("token-2", "n1", &[A])
        .await
        .expect_err("another node");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(
        controller
            .page("/stats/prometheus")
            .await
            .contains("unauthenticated_calls_total 8")
    );
    std::fs::write(home.path().join("tokens"), "token-1 n1\ntoken-3 n3\n").expect("writes");
    controller.discovery("token-3").await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tunnel_opens_when_the_node_reports_and_stays_over_a_restart() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    let mut node = controller.discovery("token-2").await;
    node.subscribe(ADDRESS).await;
    assert_eq!(
        tunnels(&mut node).await,
        [
            (A.to_owned(), TunnelProtocol::None),
            (B.to_owned(), TunnelProtocol::None)
        ]
    );
    controller
        .report("token-1", "n1", &[A, B, "Kubernetes//Pod/shop/gone"])
        .await
        .expect("taken");
    assert_eq!(
        tunnels(&mut node).await,
        [(A.to_owned(), TunnelProtocol::Hbone)],
        "only the pod of the reporting node"
    );
    controller.stop().await;

    let controller = home.start(&[]).await;
    let mut node = controller.discovery("token-2").await;
    node.subscribe(ADDRESS).await;
    assert_eq!(
        tunnels(&mut node).await,
        [
            (A.to_owned(), TunnelProtocol::Hbone),
            (B.to_owned(), TunnelProtocol::None)
        ]
    );
    controller
        .report("token-1", "n1", &[])
        .await
        .expect("taken");
    assert_eq!(
        tunnels(&mut node).await,
        [(A.to_owned(), TunnelProtocol::None)]
    );
    controller.stop().await;
}

async fn tunnels(node: &mut Discovery) -> Vec<(String, TunnelProtocol)> {
    let response = node.receive().await;
    node.ack(&response).await;
    let read = response.resources.into_iter().map(|resource| {
        let body = resource.resource.expect("a body").value;
        match Address::decode(body.as_slice()).expect("decodes").r#type {
            Some(address::Type::Workload(workload)) => (resource.name, workload.tunnel_protocol()),
            other => panic!("{other:?}"),
        }
    });
    read.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn convergence_is_measured_from_a_change_and_not_from_a_streams_beginning() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    let mut agent = controller.discovery("token-1").await;
    agent.subscribe(ADDRESS).await;
    agent.take().await;
    let count = |page: &str, metric: &str| {
        let line = page.lines().find(|line| line.starts_with(metric));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    const ACKS: &str = "keelson_controller_xds_acks_total{type=\"istio.workload.Address\"}";
    const CONVERGED: &str = "keelson_controller_config_convergence_seconds_count";
    let acked = |wanted| move |page: &str| count(page, ACKS) == Some(wanted);
    controller
        .until("acked", acked(1), "/stats/prometheus")
        .await;
    let page = controller.page("/stats/prometheus").await;
    assert_eq!(count(&page, CONVERGED), Some(0), "{page}");
    home.write("mesh.yaml", &MESH.replace("10.244.2.10", "10.244.2.11"));
    agent.take().await;
    controller
        .until("acked", acked(2), "/stats/prometheus")
        .await;
    let page = controller.page("/stats/prometheus").await;
    assert_eq!(count(&page, CONVERGED), Some(1), "{page}");
    controller.stop().await;
}
