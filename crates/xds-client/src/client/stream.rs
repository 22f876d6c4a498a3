//! One ADS stream from its first request to its end.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proto::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use proto::google::rpc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{Config, Handler, RawResource, Rejection, Shared};
use crate::controller::ConnectError;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("the configuration stream could not be opened")]
    Connect(#[from] ConnectError),
    #[error("the controller ended the configuration stream ({:?}: {})", .0.code(), .0.message())]
    Status(Box<tonic::Status>),
    #[error("the controller closed the configuration stream")]
    Closed,
    #[error("the controller sends configuration but reads no answers")]
    Deaf,
}

/// Runs one stream; returns when it is over.
pub(super) async fn run(
    config: &Config,
    shared: &Shared,
    handler: &mut impl Handler,
) -> StreamError {
    match open_and_follow(config, shared, handler).await {
        Ok(()) => StreamError::Closed,
        Err(error) => error,
    }
}

async fn open_and_follow(
    config: &Config,
    shared: &Shared,
    handler: &mut impl Handler,
) -> Result<(), StreamError> {
    let channel = config.controller.connect().await?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(config.max_response);
    // One initial request a type, and then one answer for each response: the controller reads what it asked for.
    let (requests, outgoing) = mpsc::channel(config.types.len() + ANSWERS);
    for type_url in &config.types {
        if requests
            .send(first(config, shared, type_url))
            .await
            .is_err()
        {
            return Ok(());
        }
    }
    let request = config.controller.authorize(ReceiverStream::new(outgoing))?;
    let mut responses = client
        .delta_aggregated_resources(request)
        .await
        .map_err(failed)?
        .into_inner();
    tracing::info!(
        controller = config.controller.uri,
        "configuration stream open"
    );
    shared.status.send_modify(|status| {
        status.connected = true;
        status.streams += 1;
        status.last_error = None;
    });
    while let Some(response) = responses.message().await.map_err(failed)? {
        let Some(answer) = take(config, shared, handler, response) else {
            continue;
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, requests.send(answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(_closed)) => break,
            Err(_elapsed) => return Err(StreamError::Deaf),
        }
    }
    Ok(())
}

fn failed(status: tonic::Status) -> StreamError {
    StreamError::Status(Box::new(status))
}

/// The wildcard subscription of a type, with what is already here.
fn first(config: &Config, shared: &Shared, type_url: &str) -> DeltaDiscoveryRequest {
    let held = shared.held();
    DeltaDiscoveryRequest {
        node: Some(config.node.to_proto()),
        type_url: type_url.to_owned(),
        initial_resource_versions: held.versions(type_url).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// Hands a response to the handler, remembers what was taken, and answers with ACK or NACK.
fn take(
    config: &Config,
    shared: &Shared,
    handler: &mut impl Handler,
    response: DeltaDiscoveryResponse,
) -> Option<DeltaDiscoveryRequest> {
    let DeltaDiscoveryResponse {
        type_url,
        resources,
        removed_resources: removed,
        nonce,
        more,
        ..
    } = response;
    if !config.types.contains(&type_url) {
        tracing::warn!(
            type_url,
            "resources of a type that was not subscribed are ignored"
        );
        return None;
    }
    let mut rejected = Vec::new();
    let mut updated = Vec::with_capacity(resources.len());
    // One allocation for what goes at once, so that it leaves no holes between what stays.
    let lengths = resources.iter().filter_map(|one| one.resource.as_ref());
    let mut contents = BytesMut::with_capacity(lengths.map(|any| any.value.len()).sum());
    for resource in resources {
        match raw(&type_url, resource, &mut contents) {
            Ok(resource) => updated.push(resource),
            Err(rejection) => rejected.push(rejection),
        }
    }
    tracing::debug!(
        type_url,
        updated = updated.len(),
        removed = removed.len(),
        "configuration received"
    );
    rejected.extend(handler.apply_part(&type_url, updated.clone(), removed.clone(), more));
    if config.snapshot.is_none() {
        // Nobody will ask for it, and an empty part of the allocation would keep the whole.
        updated.iter_mut().for_each(|one| one.bytes = Bytes::new());
    }
    let count = remember(shared, &type_url, updated, &removed, &rejected);
    if !more {
        shared.change();
    }
    let detail = nack(&rejected);
    shared.status.send_modify(|status| {
        let one = status.types.entry(type_url.clone()).or_default();
        one.synced |= !more;
        one.resources = count;
        match &detail {
            None => one.acked += 1,
            Some(_) => one.nacked += 1,
        }
        one.last_nack = detail.as_ref().map(|detail| detail.message.clone());
    });
    if let Some(detail) = &detail {
        tracing::warn!(
            type_url,
            reason = detail.message,
            "configuration refused in part"
        );
    }
    Some(DeltaDiscoveryRequest {
        type_url,
        response_nonce: nonce,
        error_detail: detail,
        ..DeltaDiscoveryRequest::default()
    })
}

fn raw(
    type_url: &str,
    resource: Resource,
    contents: &mut BytesMut,
) -> Result<RawResource, Rejection> {
    let reject = |name, reason| Err(Rejection { name, reason });
    match resource.resource {
        Some(any) if any.type_url == type_url => {
            contents.extend_from_slice(&any.value);
            Ok(RawResource {
                name: resource.name.into(),
                version: resource.version,
                bytes: contents.split().freeze(),
            })
        }
        Some(any) => reject(
            resource.name,
            format!("it is of the type {:?}", any.type_url),
        ),
        None => reject(resource.name, "it has no content".to_owned()),
    }
}

/// What was rejected keeps its last good content, without a version: the controller will send it again.
fn remember(
    shared: &Shared,
    type_url: &str,
    updated: Vec<RawResource>,
    removed: &[String],
    rejected: &[Rejection],
) -> usize {
    let mut held = shared.held();
    let rejected: BTreeSet<&str> = rejected.iter().map(|one| one.name.as_str()).collect();
    for name in removed {
        held.remove(type_url, name);
    }
    for resource in updated {
        if !rejected.contains(&*resource.name) {
            held.set(type_url, resource.name, &resource.version, resource.bytes);
        }
    }
    for name in rejected {
        held.reject(type_url, name);
    }
    held.count(type_url)
}

fn nack(rejected: &[Rejection]) -> Option<rpc::Status> {
    if rejected.is_empty() {
        return None;
    }
    let mut message = String::new();
    for Rejection { name, reason } in rejected {
        if message.len() > NACK_LENGTH {
            message.push_str("; and more");
            break;
        }
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.push_str(&format!("{name}: {reason}"));
    }
    Some(rpc::Status {
        code: Code::InvalidArgument.into(),
        message,
        ..rpc::Status::default()
    })
}

/// Answers that may wait while the controller does not read them.
const ANSWERS: usize = 64;
/// A controller that lets that many answers wait for this long is left.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A NACK names rejected resources up to about this many bytes.
const NACK_LENGTH: usize = 4096;
