//! How a pod leaves the mesh: what it dials is plain first, its tunnels end last.

use abi::{InboundMode, ListenerKey, ListenerKind, PodState};

use super::{
    capture::{Context, guard, set_addresses, set_state},
    entry::Entry,
};
use crate::{
    bpf::{Kernel, PodPrograms},
    host::{describe, netns::Netns, pod_net, readers},
};

pub(super) fn stop_capturing(context: &Context<'_>, entry: &Entry) {
    // What it dials from now on is plain.
    drop(context.kernel.walls().set_pod(entry.id, None));
    set_exempt(context, entry);
    if let Err(error) = context.kernel.set_inbound(entry.id, InboundMode::Release) {
        tracing::error!(pod = %entry.sandbox.pod, error = describe(&error), "cannot release the pod's inbound traffic");
    }
}

pub(super) fn set_exempt(context: &Context<'_>, entry: &Entry) {
    if let Err(error) = set_state(context, entry, PodState::Exempt) {
        tracing::error!(pod = %entry.sandbox.pod, error = describe(&error), "cannot exempt the pod");
    }
}

pub(super) fn end_tunnels(context: &Context<'_>, entry: &Entry) {
    detach(context.kernel, entry.id, Some(&entry.netns));
    for (index, worker) in context.workers.iter().enumerate() {
        worker.remove_pod(entry.id, false);
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        for kind in [
            ListenerKind::Outbound,
            ListenerKind::Inbound,
            ListenerKind::Hbone,
        ] {
            context.kernel.remove_listener(ListenerKey {
                pod: entry.id,
                kind: kind as u16,
                worker: number,
            });
        }
    }
}

pub(super) fn clean_namespace(context: &Context<'_>, entry: &Entry) {
    for worker in context.workers {
        worker.remove_pod(entry.id, true);
    }
    match entry.netns.run(pod_net::tear_down) {
        Ok(Ok(())) => {}
        Ok(Err(error)) | Err(error) => {
            tracing::warn!(pod = %entry.sandbox.pod, %error, "cannot remove the capture rule from the pod's namespace");
        }
    }
}

/// Detaches the pod's programs.
pub(super) fn detach(kernel: &Kernel, id: u32, netns: Option<&Netns>) {
    let _hurry = readers::hurry();
    let programs = PodPrograms::new(kernel, id);
    for result in [
        programs.detach_hold(netns),
        programs.detach_lookup(),
        programs.detach_answers(netns),
        programs.detach_guards(netns),
    ] {
        if let Err(error) = result {
            tracing::warn!(
                pod = id,
                error = describe(&error),
                "cannot detach a program of the pod"
            );
        }
    }
}

/// Keeps a pod outside the mesh from using the addresses of captured pods.
pub(super) fn guard_exempt(context: &Context<'_>, entry: &mut Entry) {
    if entry.known.is_empty() {
        return;
    }
    if let Err(error) = set_addresses(context, entry) {
        tracing::warn!(pod = %entry.sandbox.pod, error = describe(&error), "source addresses of the pod are not guarded");
        return;
    }
    guard(context.kernel, entry, None);
}
