//! Spans of requests: one for each request that is sampled, given to a collector by OTLP over gRPC.
//!
//! The context of a trace is read from and written to the request's headers in both forms that applications forward:
//! `traceparent` ([W3C Trace Context](https://www.w3.org/TR/trace-context/)) and
//! [B3](https://github.com/openzipkin/b3-propagation), for which no library is kept up any more. Names of spans and tags are those that Envoy has in Istio's meshes.

mod b3;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::{HeaderMap, HeaderName};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{
    Link, Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    Sampler, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample,
    SpanData, SpanExporter,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use runtime::metrics::Metrics;

/// Makes spans and sends them.
#[derive(Debug)]
pub struct Tracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    w3c: TraceContextPropagator,
}

/// Of which requests there are spans, and who gets them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The collector, as `http://HOST:PORT`; it speaks OTLP over gRPC.
    pub endpoint: String,
    /// Of a hundred requests whose client has not decided, how many are sampled.
    pub percent: f64,
    /// What spans say as their service, such as `waypoint.shop`.
    pub service: String,
    /// The pod, `namespace/name`.
    pub pod: String,
}

impl Tracer {
    /// Spans are sent from a thread of their own, over connections that this runtime drives.
    ///
    /// # Errors
    /// The endpoint is no URL.
    pub fn new(settings: &Settings, metrics: &Metrics) -> anyhow::Result<Self> {
        let endpoint = &settings.endpoint;
        let uri: http::Uri = endpoint
            .parse()
            .with_context(|| format!("{endpoint} is no URL"))?;
        anyhow::ensure!(
            uri.scheme_str() == Some("http") && uri.host().is_some(),
            "{endpoint}: a collector is written http://HOST:PORT"
        );
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_WITHIN)
            .build()
            .context("the exporter of spans")?;
        let spans = Family::<Result, Counter>::default();
        metrics.register(|registry| {
            registry.register(
                "keelson_waypoint_spans",
                "Spans that were given to the collector, and that were lost on the way",
                spans.clone(),
            );
        });
        // One after the other: each holds the family's lock until its statement ends.
        let sent = spans.get_or_create(&Result { result: "sent" }).clone();
        let failed = spans.get_or_create(&Result { result: "failed" }).clone();
        let exporter = Counted {
            exporter,
            sent,
            failed,
        };
        let resource = Resource::builder_empty()
            .with_service_name(settings.service.clone())
            .with_attribute(KeyValue::new("node_id", settings.pod.clone()))
            .build();
        let share = (settings.percent / 100.0).clamp(0.0, 1.0);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampling {
                share: Sampler::TraceIdRatioBased(share),
            })
            .with_resource(resource)
            .build();
        Ok(Self {
            tracer: provider.tracer("keelson-waypoint"),
            provider,
            w3c: TraceContextPropagator::new(),
        })
    }

    /// Begins the span of a request, and makes its headers say so to whoever gets the request.
    pub(crate) fn begin(&self, headers: &mut HeaderMap) -> Span {
        let parent = self.parent(headers);
        let before = match &parent {
            Some(parent) => Context::new().with_remote_span_context(parent.clone()),
            None => Context::new(),
        };
        let span = self
            .tracer
            .span_builder("request")
            .with_kind(SpanKind::Server)
            .start_with_context(&self.tracer, &before);
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        headers.remove(TRACE_STATE);
        self.w3c
            .inject_context(&context, &mut HeaderInjector(headers));
        let parent = parent.as_ref().map(SpanContext::span_id);
        b3::inject(headers, span.span_context(), parent);
        Span(span)
    }

    /// The span that a request names as the one it belongs to; W3C's form counts before B3's.
    fn parent(&self, headers: &HeaderMap) -> Option<SpanContext> {
        let found = self
            .w3c
            .extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let found = found.span().span_context().clone();
        let found = Some(found).filter(SpanContext::is_valid);
        found.or_else(|| b3::extract(headers))
    }

    /// Sends what has not been sent yet, and ends. It blocks for up to five seconds.
    pub fn finish(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(EXPORT_WITHIN) {
            tracing::warn!(%error, "some spans were not sent");
        }
    }
}

/// The span of a request that is under way.
#[derive(Debug)]
pub(crate) struct Span(opentelemetry_sdk::trace::Span);

/// What a span says of its request.
#[derive(Debug)]
pub(crate) struct Told<'a> {
    /// The service and its port, if a service was asked.
    pub(crate) name: String,
    pub(crate) method: &'a str,
    pub(crate) url: String,
    pub(crate) status: u16,
    pub(crate) grpc_status: Option<u32>,
    pub(crate) flags: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) user_agent: &'a str,
    pub(crate) cluster: Option<&'a str>,
    pub(crate) peer: String,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) error: Option<&'a str>,
}

impl Span {
    /// Whether anybody will see it.
    pub(crate) fn is_recorded(&self) -> bool {
        self.0.is_recording()
    }

    /// Ends it, with what has become of the request.
    pub(crate) fn end(mut self, told: Told<'_>) {
        let span = &mut self.0;
        span.update_name(told.name);
        let text = |key: &'static str, value: &str| KeyValue::new(key, value.to_owned());
        let number = |key: &'static str, value: u64| KeyValue::new(key, value.to_string());
        let mut tags = vec![
            text("component", "proxy"),
            text("http.method", told.method),
            text("http.url", &told.url),
            number("http.status_code", told.status.into()),
            text("response_flags", told.flags),
            text("guid:x-request-id", told.request_id),
            text("user_agent", told.user_agent),
            text("peer.address", &told.peer),
            number("request_size", told.request_bytes),
            number("response_size", told.response_bytes),
        ];
        if let Some(cluster) = told.cluster {
            tags.push(text("upstream_cluster", cluster));
        }
        if let Some(status) = told.grpc_status {
            tags.push(number("grpc.status_code", status.into()));
        }
        span.set_attributes(tags);
        let is_error = told.status >= 500 || told.grpc_status.is_some_and(|status| status != 0);
        if is_error || told.error.is_some() {
            span.set_attribute(KeyValue::new("error", "true"));
            span.set_status(Status::error(told.error.unwrap_or_default().to_owned()));
        }
        span.end();
    }
}

/// What the client decided counts; where it did not, a share of the traces is sampled.
#[derive(Clone, Debug)]
struct Sampling {
    share: Sampler,
}

impl ShouldSample for Sampling {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let context = parent.map(|parent| parent.span().span_context().clone());
        let context = context.filter(SpanContext::is_valid);
        let state = context.as_ref().map(|one| one.trace_state().clone());
        let decided = context.filter(|one| one.trace_flags() & b3::DEFERRED != b3::DEFERRED);
        match decided {
            Some(decided) => SamplingResult {
                decision: if decided.is_sampled() {
                    SamplingDecision::RecordAndSample
                } else {
                    SamplingDecision::Drop
                },
                attributes: Vec::new(),
                trace_state: state.unwrap_or_default(),
            },
            None => self
                .share
                .should_sample(None, trace, name, kind, attributes, links),
        }
    }
}

/// How giving a span away ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

/// Counts what is exported.
#[derive(Debug)]
struct Counted {
    exporter: opentelemetry_otlp::SpanExporter,
    sent: Counter,
    failed: Counter,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let exported = self.exporter.export(batch).await;
        match &exported {
            Ok(()) => self.sent.inc_by(count),
            Err(_) => self.failed.inc_by(count),
        };
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Nobody traces, or the settings say who does.
pub(crate) type MayTrace = Option<Arc<Tracer>>;

const EXPORT_WITHIN: Duration = Duration::from_secs(5);
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
