//! Refuses policies and Istio's traffic objects that cannot be read when they are written, in the words of `keelson validate`,
//! and warns of what is legal and surely not meant. The API server asks, before it stores an object.
//!
//! Nothing else is refused. A policy with HTTP parts is warned of, for it may have a waypoint. Routes of the Gateway API are warned of, for their statuses say what cannot be carried out, and of
//! pods, namespaces and Services the labels and annotations of the mesh. What changes nothing of what an author wrote is let
//! through: who removes a finalizer need not repair the object first.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use compile::index::authorization::is_for_want_of_a_waypoint;
use compile::index::{Index, MeshConfig};
use compile::validate::{Place, validate};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use manifest::{Claim, Diagnostic, Kind, ObjectKey, Severity, read_object};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::tls::ServingCertificates;
use crate::metrics::{Metrics, ReasonLabel};
use crate::pipeline::Viewer;

/// What an object is judged by.
#[derive(Clone, Debug)]
pub struct Known {
    /// The settings of the mesh.
    pub mesh: watch::Receiver<MeshConfig>,
    /// Asked what there is beside an object; without, it is judged alone.
    pub viewer: Option<Viewer>,
}

/// Answers for ever, by HTTP/1.1: an API server offers nothing else here, so that it spreads its questions over replicas.
pub async fn serve(
    listener: TcpListener,
    certificates: Arc<ServingCertificates>,
    known: Known,
    metrics: Metrics,
) {
    let acceptor = TlsAcceptor::from(certificates.config_of_http1());
    loop {
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, known, metrics) = (acceptor.clone(), known.clone(), metrics.clone());
        tokio::spawn(async move {
            let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await else {
                return;
            };
            let answer = service_fn(move |request| {
                let (known, metrics) = (known.clone(), metrics.clone());
                async move { Ok::<_, Infallible>(answer(request, &known, &metrics).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE)
                .serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = served.await {
                debug!(%error, "a connection for admission broke");
            }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    known: &Known,
    metrics: &Metrics,
) -> Response<Full<Bytes>> {
    if request.method() != Method::POST || request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, "POST reviews to /admit");
    }
    let Ok(body) = Limited::new(request.into_body(), MAX_REVIEW)
        .collect()
        .await
    else {
        return plain(StatusCode::PAYLOAD_TOO_LARGE, "the review cannot be read");
    };
    let Ok(review) = serde_json::from_slice::<Value>(&body.to_bytes()) else {
        return plain(StatusCode::BAD_REQUEST, "the review is not JSON");
    };
    let mesh = known.mesh.borrow().clone();
    let beside = beside(&review, known.viewer.as_ref()).await;
    // A parser that outlives anything is still bounded work, but not the reactor's.
    let judged = tokio::task::spawn_blocking(move || judge(&review, beside, &mesh)).await;
    let Ok((response, reason)) = judged else {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "the review failed");
    };
    metrics
        .admissions
        .get_or_create(&ReasonLabel { reason })
        .inc();
    let mut response = Response::new(Full::new(Bytes::from(response.to_string())));
    let json = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

/// What there is to say of an object beside the others of the cluster. Who does not answer in time is gone on without.
async fn beside(review: &Value, viewer: Option<&Viewer>) -> Vec<Diagnostic> {
    let request = &review["request"];
    let (Some(viewer), Some((kind, object))) = (viewer, written(request)) else {
        return Vec::new();
    };
    if !matches!(kind, Kind::VirtualService | Kind::DestinationRule) {
        return Vec::new();
    }
    let text = |pointer: &str| {
        let text = request.pointer(pointer).and_then(Value::as_str);
        text.unwrap_or_default()
    };
    let key = ObjectKey::new(kind, text("/namespace"), text("/object/metadata/name"));
    let asked = viewer.lint_of(key, object.clone());
    let answered = timeout(BESIDE_WITHIN, asked).await;
    answered.ok().and_then(Result::ok).unwrap_or_default()
}

/// The answer to a review, and a word for the metric; `beside` is what other objects make of this one.
fn judge(review: &Value, beside: Vec<Diagnostic>, mesh: &MeshConfig) -> (Value, &'static str) {
    let request = &review["request"];
    let mut findings = findings(request, mesh);
    for finding in beside {
        // Alone it may have been seen already.
        let is_known = findings
            .iter()
            .any(|one| sentence(one) == sentence(&finding));
        if !is_known {
            findings.push(finding);
        }
    }
    let sentences = |severity: Severity| {
        let of = findings
            .iter()
            .filter(move |finding| finding.severity == severity);
        of.map(sentence).collect::<Vec<_>>()
    };
    let errors = sentences(Severity::Error);
    // What is refused is not stored, and has no effect to warn of.
    let mut warnings = if errors.is_empty() {
        sentences(Severity::Warning)
    } else {
        Vec::new()
    };
    warnings.iter_mut().for_each(shorten);
    let mut response = json!({
        "uid": request["uid"], "allowed": errors.is_empty(), "warnings": warnings,
    });
    let reason = match (errors.is_empty(), warnings.is_empty()) {
        (true, true) => "allowed",
        (true, false) => "warned",
        (false, _) => {
            response["status"] =
                json!({"code": 422, "reason": "Invalid", "message": errors.join("; ")});
            "refused"
        }
    };
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response,
    });
    (answer, reason)
}

/// What somebody has written, of a kind that is read; `None` where nothing has changed of what an author says.
fn written(request: &Value) -> Option<(Kind, &Value)> {
    let (object, old) = (&request["object"], &request["oldObject"]);
    let text = |pointer: &str| {
        request
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let kind = Kind::find(text("/kind/group"), text("/kind/kind"))?;
    let written = |object: &Value| {
        let of = |pointer| object.pointer(pointer).cloned();
        ["/spec", "/metadata/labels", "/metadata/annotations"].map(of)
    };
    let is_leaving = !object["metadata"]["deletionTimestamp"].is_null();
    let is_same = old.is_object() && written(object) == written(old);
    (object.is_object() && !is_leaving && !is_same).then_some((kind, object))
}

fn findings(request: &Value, mesh: &MeshConfig) -> Vec<Diagnostic> {
    let Some((kind, object)) = written(request) else {
        return Vec::new();
    };
    match kind {
        Kind::AuthorizationPolicy => {
            let mut found = alone(object, mesh);
            // A waypoint may be there, or come later; where there is none, nothing is let through by it, and the status says so.
            for finding in found
                .iter_mut()
                .filter(|one| is_for_want_of_a_waypoint(one))
            {
                finding.severity = Severity::Warning;
            }
            return found;
        }
        Kind::PeerAuthentication
        | Kind::VirtualService
        | Kind::DestinationRule
        | Kind::IstioGateway
        | Kind::ServiceEntry => return alone(object, mesh),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
            let mut found = alone(object, mesh);
            found.retain(|finding| finding.severity != Severity::Info);
            for finding in &mut found {
                finding.severity = Severity::Warning;
            }
            return found;
        }
        _ => {}
    }
    // A newer server may know fields that are not read here, and the mesh is no reason to keep a pod from starting.
    let mut decoded = read_object(kind, object.clone(), &mesh.root_namespace);
    let mut index = Index::new(mesh.clone());
    if let Some(Claim::Good(upsert)) = decoded.claims.pop() {
        index.apply(&upsert);
    }
    let of_index = index.flush().diagnostics;
    decoded
        .findings
        .extend(of_index.into_iter().flat_map(|(_, found)| found));
    decoded
        .findings
        .retain(|finding| finding.severity != Severity::Info);
    for finding in &mut decoded.findings {
        finding.severity = Severity::Warning;
    }
    decoded.findings
}

/// What the folder source would say of an object, as if nothing else were in the mesh.
fn alone(object: &Value, mesh: &MeshConfig) -> Vec<Diagnostic> {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        // The server makes the name when everybody has agreed.
        if !metadata.contains_key("name") && metadata.contains_key("generateName") {
            metadata.insert("name".to_owned(), "generated".into());
        }
    }
    let place = Place::Text {
        name: "object".into(),
        text: object.to_string(),
    };
    validate(&[place], mesh.clone()).findings
}

fn sentence(finding: &Diagnostic) -> String {
    match finding.field.as_str() {
        "" => finding.message.clone(),
        field => format!("{field}: {}", finding.message),
    }
}

/// kubectl shows a limited number of letters.
fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MAX_WARNING) {
        text.truncate(end);
        text.push('…');
    }
}

const PATH: &str = "/admit";
/// The API server's own limit of an object is about half of this.
const MAX_REVIEW: usize = 8 << 20;
const MAX_WARNING: usize = 250;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The API server waits for some seconds, and for the sake of a warning nobody needs to.
const BESIDE_WITHIN: Duration = Duration::from_millis(500);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After which time a connection without a question is closed: an API server closes it earlier itself.
const IDLE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests;
