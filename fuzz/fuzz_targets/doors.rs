//! What an agent and a waypoint of its node tell each other.
#![no_main]

use proto::convert::doors::{Callers, Doors};
use proto::proxy_protocol::{CONVERSATION, is_conversation};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if is_conversation(data) == Some(true) {
        assert!(data.starts_with(CONVERSATION));
    }
    if let Ok(callers) = Callers::read(data) {
        assert_eq!(Callers::read(&callers.to_bytes()), Ok(callers));
    }
    if let Ok(doors) = Doors::read(data) {
        assert_eq!(Doors::read(&doors.to_bytes()), Ok(doors));
    }
});
