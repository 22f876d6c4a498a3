//! What a controller sends, as an agent takes it.
#![no_main]

use std::sync::Arc;

use node_agent::mesh::{Mesh, Resource, Writer};
use prost::Message;
use proto::envoy::discovery::DeltaDiscoveryResponse;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mesh = Arc::new(Mesh::default());
    let mut writer = Writer::new(Arc::clone(&mesh));
    for message in fuzz::messages(data) {
        let Ok(response) = DeltaDiscoveryResponse::decode(message) else {
            continue;
        };
        let resources = response.resources.iter().map(|resource| Resource {
            name: &resource.name,
            bytes: resource.resource.as_ref().map_or(&[], |any| &any.value),
        });
        writer.apply(&response.type_url, resources, &response.removed_resources);
        let _state = mesh.state();
    }
});
