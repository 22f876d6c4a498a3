//! What begins a connection to a waypoint.
#![no_main]

use proto::proxy_protocol::Header;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(Some((header, length))) = Header::parse(data) {
        assert!(length <= data.len());
        let again = header.to_bytes();
        assert_eq!(Header::parse(&again), Ok(Some((header, again.len()))));
    }
});
