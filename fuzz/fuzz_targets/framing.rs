//! Frames of our own framing, as either end of a tunnel takes them from the other.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel::fuzzing::frames(data));
