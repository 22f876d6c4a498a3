//! Spans of requests, and the headers by which applications carry a trace on, against a collector that speaks OTLP.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use runtime::metrics::Metrics;
use tokio::net::TcpListener;
use waypoint::trace::{Settings, Tracer};

use crate::support::{Mesh, Server, get, nothing, text};

/// Who gets spans, with the service that each is of.
#[derive(Clone, Debug, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.unwrap_or_default();
            let service = resource.attributes.into_iter().find_map(|pair| {
                let Value::StringValue(name) = pair.value?.value? else {
                    return None;
                };
                (pair.key == "service.name").then_some(name)
            });
            let service = service.unwrap_or_default();
            let spans = of_resource.scope_spans.into_iter().flat_map(|of| of.spans);
            let mut all = self.spans.lock();
            all.extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        address
    }
}

fn tracer(collector: SocketAddr, percent: f64, metrics: &Metrics) -> Arc<Tracer> {
    let settings = Settings {
        endpoint: format!("http://{collector}"),
        percent,
        service: "waypoint.shop".to_owned(),
        pod: "shop/waypoint".to_owned(),
    };
    Arc::new(Tracer::new(&settings, metrics).unwrap())
}

/// A waypoint whose requests are traced, and what its endpoint got.
async fn traced(percent: f64) -> (Mesh, Collector, Arc<Tracer>, Arc<Mutex<Vec<HeaderMap>>>) {
    let collector = Collector::default();
    let address = collector.start().await;
    let metrics = Metrics::new();
    let tracer = tracer(address, percent, &metrics);
    let seen: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let server = Server::start(move |request: Request<_>| {
        noted.lock().push(request.headers().clone());
        async move { Response::new(text("hello")) }
    })
    .await;
    let mut mesh = Mesh::traced_by(Arc::clone(&tracer), metrics);
    mesh.endpoint("a", "v1", server.address);
    (mesh, collector, tracer, seen)
}

/// Everything that has been sent, once all is.
async fn all(tracer: Arc<Tracer>, collector: &Collector) -> Vec<Span> {
    tokio::task::spawn_blocking(move || tracer.finish())
        .await
        .unwrap();
    let spans = collector.spans.lock();
    assert!(spans.iter().all(|(service, _)| service == "waypoint.shop"));
    spans.iter().map(|(_, span)| span.clone()).collect()
}

fn tags(span: &Span) -> HashMap<String, String> {
    let text = |value: Value| match value {
        Value::StringValue(text) => text,
        other => format!("{other:?}"),
    };
    let pairs = span.attributes.iter().cloned();
    pairs
        .filter_map(|pair| Some((pair.key, text(pair.value?.value?))))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A60, F108, F110: an application that forwards what it got makes one trace of two requests, in either form.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_follow_from_each_other_are_one_trace() {
    let (mesh, collector, tracer, seen) = traced(100.0).await;
    assert_eq!(mesh.get("/first?x=1").await.status, 200);
    let first = seen.lock().pop().unwrap();
    for forwarded in [
        &["traceparent", "tracestate"][..],
        &[
            "x-b3-traceid",
            "x-b3-spanid",
            "x-b3-parentspanid",
            "x-b3-sampled",
        ],
    ] {
        let mut request = get("/second");
        for name in forwarded {
            if let Some(value) = first.get(*name) {
                let name = http::HeaderName::from_static(name);
                request.headers_mut().insert(name, value.clone());
            }
        }
        assert_eq!(mesh.ask(request).await.status, 200);
    }
    let spans = all(tracer, &collector).await;
    assert_eq!(spans.len(), 3, "{spans:?}");
    let root = spans
        .iter()
        .find(|span| span.parent_span_id.is_empty())
        .expect("a first span");
    for child in spans.iter().filter(|span| span.span_id != root.span_id) {
        assert_eq!(child.trace_id, root.trace_id, "F108");
        assert_eq!(child.parent_span_id, root.span_id, "F110");
    }
    assert_eq!(root.name, "cart.shop.svc.cluster.local:80/*");
    assert_eq!(
        first["traceparent"],
        format!("00-{}-{}-01", hex(&root.trace_id), hex(&root.span_id)),
    );
    assert_eq!(first["x-b3-traceid"], hex(&root.trace_id));
    let tags = tags(root);
    assert_eq!(tags["http.method"], "GET");
    assert_eq!(tags["http.url"], "http://cart/first?x=1");
    assert_eq!(tags["http.status_code"], "200");
    assert_eq!(tags["guid:x-request-id"], first["x-request-id"], "F109");
    assert!(root.end_time_unix_nano > root.start_time_unix_nano);
    assert!(
        mesh.page()
            .contains(r#"keelson_waypoint_spans_total{result="sent"} 3"#)
    );
}

/// F111: the client's decision holds, whatever the share is; the context is carried on all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_decided_about_sampling_holds() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    for (percent, flag, expected) in [(100.0, "00", 0), (0.0, "01", 1)] {
        let (mesh, collector, tracer, seen) = traced(percent).await;
        let request = Request::builder()
            .uri("/")
            .header("host", "cart")
            .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-{flag}"))
            .header("tracestate", "vendor=1");
        let answer = mesh.ask(request.body(nothing()).unwrap()).await;
        assert_eq!(answer.status, 200);
        let got = seen.lock().pop().unwrap();
        let parent = got["traceparent"].to_str().unwrap();
        assert!(
            parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with(flag),
            "{parent}"
        );
        assert!(!parent.contains("00f067aa0ba902b7"), "{parent}");
        assert_eq!(got["tracestate"], "vendor=1");
        assert_eq!(got["x-b3-parentspanid"], "00f067aa0ba902b7");
        assert_eq!(all(tracer, &collector).await.len(), expected, "F111 {flag}");
    }
}

/// F111: where the client has not decided, the share does: none of them at 0.
#[tokio::test(flavor = "multi_thread")]
async fn the_share_decides_where_nobody_else_has() {
    let (mesh, collector, tracer, seen) = traced(0.0).await;
    assert_eq!(mesh.get("/").await.status, 200);
    let b3 = Request::builder()
        .uri("/")
        .header("host", "cart")
        .header("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7");
    assert_eq!(mesh.ask(b3.body(nothing()).unwrap()).await.status, 200);
    {
        let seen = seen.lock();
        assert_eq!(seen[0]["x-b3-sampled"], "0");
        assert!(!seen[0].contains_key("b3"));
        assert_eq!(
            seen[1]["x-b3-traceid"], "4bf92f3577b34da6a3ce929d0e0e4736",
            "a trace without a decision goes on"
        );
        let single = seen[1]["b3"].to_str().unwrap();
        assert!(single.ends_with("-0-00f067aa0ba902b7"), "{single}");
    }
    assert_eq!(all(tracer, &collector).await.len(), 0);
}

/// F110: what went wrong can be seen in the span.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_failed_is_marked() {
    let (mut mesh, collector, tracer, _seen) = traced(100.0).await;
    mesh.backend(&["v9"], l7::TrafficPolicy::default());
    mesh.route(0, vec![], |rule| {
        rule.action = l7::route::Action::Forward(crate::support::to(&[(Some("v9"), 1)]));
    });
    assert_eq!(mesh.get("/").await.status, 503);
    let spans = all(tracer, &collector).await;
    let tags = tags(&spans[0]);
    assert_eq!(tags["error"], "true");
    assert_eq!(tags["http.status_code"], "503");
    assert_eq!(tags["response_flags"], "UH");
}

/// F112: nobody traces, so nothing is said of traces.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_headers_of_traces_pass_as_they_are() {
    let seen: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let server = Server::start(move |request: Request<_>| {
        noted.lock().push(request.headers().clone());
        async move { Response::new(text("hello")) }
    })
    .await;
    let mut mesh = Mesh::new();
    mesh.endpoint("a", "v1", server.address);
    assert_eq!(mesh.get("/").await.status, 200);
    let mut request = get("/");
    let headers = request.headers_mut();
    headers.insert("b3", http::HeaderValue::from_static("0"));
    headers.insert("traceparent", http::HeaderValue::from_static("as-it-is"));
    assert_eq!(mesh.ask(request).await.status, 200);
    let seen = seen.lock();
    assert!(!seen[0].contains_key("traceparent") && !seen[0].contains_key("x-b3-traceid"));
    assert_eq!(seen[1]["traceparent"], "as-it-is");
    assert_eq!(seen[1]["b3"], "0");
}

/// A collector that is away costs no request; its spans are counted as lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_is_not_felt() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let metrics = Metrics::new();
    let tracer = tracer(address, 100.0, &metrics);
    let server = Server::named("v1").await;
    let mut mesh = Mesh::traced_by(Arc::clone(&tracer), metrics);
    mesh.endpoint("a", "v1", server.address);
    for _ in 0..5 {
        assert_eq!(mesh.get("/").await.status, 200);
    }
    let finished = tokio::task::spawn_blocking(move || tracer.finish());
    let waited = tokio::time::timeout(Duration::from_secs(20), finished).await;
    waited.expect("it gives up").unwrap();
    assert!(
        mesh.page()
            .contains(r#"keelson_waypoint_spans_total{result="failed"} 5"#)
    );
}
