//! What is asked for in a tunnel, as HTTP/2 says it.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

use super::OpenError;
use crate::forwarded;

/// What to ask the other side for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The target, `ip:port` (IPv6 in brackets) or `host:port`.
    pub authority: String,
    /// The `forwarded` header; see [`crate::forwarded::Forwarded::to_value`].
    pub forwarded: Option<String>,
    /// The `baggage` header: our workload, for the peer's telemetry.
    pub baggage: Option<String>,
    /// The `traceparent` header (W3C Trace Context), to tie the two sides' logs together.
    pub traceparent: Option<String>,
}

impl ConnectRequest {
    pub(super) fn to_http(&self) -> Result<Request<()>, OpenError> {
        let invalid = |field| OpenError::InvalidRequest { field };
        let uri = Uri::builder()
            .authority(self.authority.as_str())
            .build()
            .map_err(|_not_a_uri| invalid(":authority"))?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_2;
        let headers = [
            (forwarded::NAME, "forwarded", &self.forwarded),
            (BAGGAGE, "baggage", &self.baggage),
            (TRACEPARENT, "traceparent", &self.traceparent),
        ];
        for (name, field, value) in headers {
            let Some(value) = value else { continue };
            let value =
                HeaderValue::from_str(value).map_err(|_not_a_header_value| invalid(field))?;
            request.headers_mut().insert(name, value);
        }
        Ok(request)
    }
}

pub(crate) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

pub(crate) fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    std::str::from_utf8(headers.get(name)?.as_bytes()).ok()
}
