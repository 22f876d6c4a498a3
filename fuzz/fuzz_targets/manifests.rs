//! A file of manifests, from its text to what nodes are told.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| controller::fuzzing::manifests(text));
