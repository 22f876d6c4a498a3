//! Requests and answers. Protocol Buffers, so that either side may know more fields than the other.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::client::{BAGGAGE, TRACEPARENT};
use crate::forwarded;

/// A request for a connection: the headers of HBONE's CONNECT.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Open {
    /// `ip:port` or `host:port`.
    #[prost(string, tag = "1")]
    pub(crate) authority: String,
    #[prost(string, optional, tag = "2")]
    pub(crate) forwarded: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub(crate) baggage: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub(crate) traceparent: Option<String>,
    /// Bytes that the server may send before it is given more credit.
    #[prost(uint32, tag = "5")]
    pub(crate) window: u32,
}

/// The answer to it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Answer {
    /// An HTTP status; 200 is yes.
    #[prost(uint32, tag = "1")]
    pub(crate) status: u32,
    /// RFC 9209, of a refusal.
    #[prost(string, optional, tag = "2")]
    pub(crate) proxy_status: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub(crate) baggage: Option<String>,
    /// Bytes that the client may send before it is given more credit.
    #[prost(uint32, tag = "4")]
    pub(crate) window: u32,
    /// Streams that the server lets the client have open at once; nothing said is 0.
    #[prost(uint32, tag = "5")]
    pub(crate) streams: u32,
}

impl Open {
    /// As HBONE's headers. What is not a header value is left out.
    pub(crate) fn headers(&self) -> HeaderMap {
        let fields: [(HeaderName, &Option<String>); 3] = [
            (forwarded::NAME, &self.forwarded),
            (BAGGAGE, &self.baggage),
            (TRACEPARENT, &self.traceparent),
        ];
        let present = fields.into_iter().filter_map(|(name, value)| {
            Some((name, HeaderValue::from_str(value.as_deref()?).ok()?))
        });
        present.collect()
    }
}
