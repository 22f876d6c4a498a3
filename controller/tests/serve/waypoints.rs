//! What a waypoint is told, and what it is not.

use proto::envoy::discovery::DeltaDiscoveryRequest;
use proto::google::rpc::Status as RpcStatus;
use proto::type_url::{
    ADDRESS, ANNOUNCED, AUTHORIZATION, L7_BACKEND, L7_ENDPOINT, L7_POLICY, L7_ROUTE, L7_SERVICE,
};
use tonic::Code;

use super::support::*;

const WITH_WAYPOINT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}, annotations: {keelson.io/pod-ips: 10.244.1.90}}
spec: {nodeName: n1, serviceAccountName: wp}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: b}, ports: [{name: http, port: 80}]}
";

fn route(prefix: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a, namespace: shop}}\n\
         spec: {{hosts: [a], http: [{{match: [{{uri: {{prefix: {prefix}}}}}], route: [{{destination: {{host: b}}}}]}}]}}\n"
    )
}

const TO_A: &str = "shop/a.shop.svc.cluster.local";
const TO_B: &str = "shop/b.shop.svc.cluster.local";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waypoint_gets_its_services_and_what_they_need_and_every_change() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    home.write("waypoint.yaml", WITH_WAYPOINT);
    let controller = home.start(&[]).await;
    let mut waypoint = controller.discovery("token-wp").await;
    for kind in [L7_ROUTE, L7_BACKEND, L7_ENDPOINT, L7_SERVICE, L7_POLICY] {
        waypoint.subscribe(kind).await;
    }
    assert_eq!(waypoint.take().await, "Policy +shop/guard");
    assert_eq!(waypoint.take().await, format!("Service +{TO_A}"));
    // Its own pods are among them: by theirs it knows its region.
    assert_eq!(
        waypoint.take().await,
        format!("Endpoint +{A} +Kubernetes//Pod/shop/wp-1")
    );
    assert_eq!(waypoint.take().await, "Backend");
    assert_eq!(waypoint.take().await, "Route");

    // A route leads to another service: what it names comes first.
    home.write("route.yaml", &route("/b"));
    assert_eq!(waypoint.take().await, format!("Service +{TO_B}"));
    assert_eq!(waypoint.take().await, format!("Endpoint +{B}"));
    assert_eq!(waypoint.take().await, "Route +VirtualService/shop/a/0");
    home.write("route.yaml", &route("/c"));
    assert_eq!(waypoint.take().await, "Route +VirtualService/shop/a/0");

    // It goes: what it named goes last.
    home.remove("route.yaml");
    assert_eq!(waypoint.take().await, "Route -VirtualService/shop/a/0");
    assert_eq!(waypoint.take().await, format!("Service -{TO_B}"));
    assert_eq!(waypoint.take().await, format!("Endpoint -{B}"));
    assert!(waypoint.is_quiet().await);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waypoint_is_not_told_what_an_agent_is_nor_an_agent_what_a_waypoint_is() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    home.write("waypoint.yaml", WITH_WAYPOINT);
    let controller = home.start(&[]).await;
    let mut waypoint = controller.discovery("token-wp").await;
    for kind in [ADDRESS, AUTHORIZATION, ANNOUNCED] {
        waypoint.subscribe(kind).await;
    }
    assert!(waypoint.is_quiet().await);
    let mut node = controller.discovery("token-1").await;
    node.subscribe(L7_SERVICE).await;
    node.subscribe(L7_ROUTE).await;
    assert!(node.is_quiet().await);
    // Another workload of the same namespace is no waypoint.
    let refused = controller.try_discovery("token-cart").await.err();
    assert_eq!(
        refused.map(|status| status.code()),
        Some(Code::PermissionDenied)
    );
    controller.stop().await;
}

/// The order of capture waits for all agents. A waypoint that takes nothing must not hold it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waypoint_that_refuses_is_not_waited_for() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    home.write("waypoint.yaml", WITH_WAYPOINT);
    let controller = home.start(&[]).await;
    let mut waypoint = controller.discovery("token-wp").await;
    waypoint.subscribe(L7_SERVICE).await;
    let response = waypoint.receive().await;
    waypoint
        .send(DeltaDiscoveryRequest {
            type_url: L7_SERVICE.into(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(RpcStatus {
                message: "no".into(),
                ..RpcStatus::default()
            }),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    let mut node = controller.discovery("token-1").await;
    node.subscribe(ADDRESS).await;
    node.subscribe(ANNOUNCED).await;
    node.take().await;
    assert_eq!(node.take().await, "Announced");
    controller.report("token-1", "n1", &[A]).await.expect("ok");
    node.take_until(&format!("Announced +{A}")).await;
    controller
        .until(
            "refused",
            |page| page.contains("\"nack\": \"no\""),
            "/debug/synz",
        )
        .await;
    controller.stop().await;
}
