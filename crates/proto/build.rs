//! Compiles the `.proto` files without protoc.

use std::error::Error;

const FILES: &[&str] = &[
    "envoy_core.proto",
    "envoy_discovery.proto",
    "google_rpc.proto",
    "istio_ca.proto",
    "istio_security.proto",
    "istio_workload.proto",
    "keelson_agent.proto",
    "keelson_l7.proto",
    "keelson_waypoint.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        // The same resource always encodes to the same bytes: versions are content hashes.
        .btree_map(".")
        .include_file("all.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
