//! A line on the agent's CNI socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|line: &str| node_agent::agent::cni::fuzz(line));
