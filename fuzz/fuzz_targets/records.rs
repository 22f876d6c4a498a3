//! TLS records of our own against those of rustls, in both directions.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tunnel::fuzzing::records(data));
