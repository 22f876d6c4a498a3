//! What a peer says in `:authority`, `forwarded` and `proxy-status`.
#![no_main]

use tunnel::forwarded::Forwarded;
use tunnel::{Authority, ProxyStatus};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(authority) = text.parse::<Authority>() {
        assert_eq!(authority.to_string().parse(), Ok(authority));
    }
    if let Some(forwarded) = Forwarded::parse(text) {
        let _address = forwarded.client_address();
        // What we pass on is understood by the next.
        if let Some(value) = forwarded.to_value() {
            let again = utf8(value.as_bytes()).and_then(Forwarded::parse);
            assert_eq!(again, Some(forwarded));
        }
    }
    if let Some(status) = ProxyStatus::parse(text)
        && let Some(value) = status.to_value()
    {
        let again = utf8(value.as_bytes()).and_then(ProxyStatus::parse);
        assert_eq!(again, Some(status));
    }
});

/// Names need not be ASCII: the tunnel reads headers as UTF-8.
fn utf8(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok()
}
