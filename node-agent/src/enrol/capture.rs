//! The steps of capture and release of one pod.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use abi::{
    HBONE_PORT, InboundMode, ListenerKey, ListenerKind, OWN_ADDRESS, OWNED_ADDRESS, PodState,
};
use tls::SvidStore;

use super::{
    EnrolConfig, Wanted, describe,
    entry::{Entry, Phase},
};
use crate::{
    bpf::{Kernel, KernelError, PodPrograms},
    netns::Netns,
    pod::Pod,
    pod_net, sock, sock_diag,
    worker::{PodListeners, WorkerHandle},
};

/// Documented ports of the listeners inside a pod; nothing depends on them but readers of `ss`.
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;

const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Context<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) workers: &'a [WorkerHandle],
    pub(super) certs: &'a SvidStore,
    pub(super) config: &'a EnrolConfig,
}

/// Why a pod could not be captured.
#[derive(Debug, thiserror::Error)]
enum CaptureError {
    #[error("cannot prepare the pod's network namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot listen inside the pod")]
    Listen(#[source] io::Error),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Takes the pod one step towards what is wanted.
pub(super) fn step(context: &Context<'_>, entry: &mut Entry, wanted: Option<&Wanted>) {
    match wanted {
        Some(wanted) if wanted.capture => towards_captured(context, entry, wanted),
        Some(wanted) => {
            entry.reason.clone_from(&wanted.reason);
            entry.wanted_since = None;
            towards_exempt(context, entry);
        }
        // Not known to the controller (yet): a captured pod stays captured.
        None => adopt_as_it_is(context, entry),
    }
}

fn adopt_as_it_is(context: &Context<'_>, entry: &mut Entry) {
    if entry.phase == Phase::Unknown && entry.waiting.is_empty() && !entry.held {
        let pod = context.kernel.pod(entry.netns.cookie());
        if pod.is_some_and(|(_, state)| state == PodState::Exempt) {
            entry.phase = Phase::Exempt;
        }
    }
}

fn towards_captured(context: &Context<'_>, entry: &mut Entry, wanted: &Wanted) {
    match entry.phase {
        Phase::Captured => {
            entry.reason.clone_from(&wanted.reason);
            return;
        }
        Phase::Failed(retry) if Instant::now() < retry => return,
        _ => {}
    }
    let pod = match pod_for(context, entry, wanted) {
        Ok(pod) => pod,
        Err(error) => return failed(entry, &CaptureError::Namespace(error)),
    };
    let ready = pod.cert.borrow().is_some();
    if !ready
        && entry
            .wanted_since
            .get_or_insert_with(Instant::now)
            .elapsed()
            < context.config.certificate_wait
        && !is_captured_in_kernel(context, entry)
    {
        "waiting for the pod's certificate".clone_into(&mut entry.reason);
        entry.phase = Phase::Unknown;
        return;
    }
    match capture(context, entry, &pod) {
        Ok(()) => {
            tracing::info!(pod = %pod.name, identity = %pod.identity, reason = wanted.reason, "pod captured");
            entry.phase = Phase::Captured;
            entry.reason.clone_from(&wanted.reason);
        }
        Err(error) => failed(entry, &error),
    }
}

/// Opens what taking the pod over will need, and nothing that its agent would notice. Says what is
/// still awaited.
pub(super) fn prepare(
    context: &Context<'_>,
    entry: &mut Entry,
    wanted: &Wanted,
) -> Result<(), String> {
    let name = entry.sandbox.pod.clone();
    let prepare = |entry: &mut Entry| -> Result<Arc<Pod>, CaptureError> {
        let pod = pod_for(context, entry, wanted).map_err(CaptureError::Namespace)?;
        if entry.prepared.is_empty() {
            entry.prepared = open_listeners(context, &entry.netns)?;
        }
        Ok(pod)
    };
    let pod = prepare(entry).map_err(|error| format!("pod {name}: {}", describe(&error)))?;
    let since = entry.wanted_since.get_or_insert_with(Instant::now);
    if pod.cert.borrow().is_none() && since.elapsed() < context.config.certificate_wait {
        return Err(format!("pod {name}: the certificate of {}", pod.identity));
    }
    Ok(())
}

/// First half of taking over a pod that an earlier agent captured: its connections come to us as far
/// as programs that use our maps are attached.
pub(super) fn take(
    context: &Context<'_>,
    entry: &mut Entry,
    wanted: &Wanted,
) -> Result<(), String> {
    let take = |entry: &mut Entry| -> Result<(), CaptureError> {
        let pod = pod_for(context, entry, wanted).map_err(CaptureError::Namespace)?;
        stage(context, entry, &pod)?;
        set_state(context, entry, PodState::Captured)?;
        Ok(())
    };
    take(entry).map_err(|error| format!("pod {}: {}", entry.sandbox.pod, describe(&error)))
}

/// Second half: programs of ours, where those of the earlier agent are.
pub(super) fn complete(
    context: &Context<'_>,
    entry: &mut Entry,
    wanted: &Wanted,
) -> Result<(), String> {
    engage(context, entry)
        .map_err(|error| format!("pod {}: {}", entry.sandbox.pod, describe(&error)))?;
    entry.phase = Phase::Captured;
    entry.reason.clone_from(&wanted.reason);
    Ok(())
}

/// Keeps a pod refused that an earlier agent of another version captured and that the controller does
/// not know: nobody listens for it.
pub(super) fn hold(context: &Context<'_>, entry: &mut Entry) -> Result<(), String> {
    let own = entry.sandbox.ips.iter();
    let flags = own
        .map(|ip| (ip.to_canonical(), OWN_ADDRESS | OWNED_ADDRESS))
        .collect();
    let hold = |entry: &mut Entry| -> Result<(), CaptureError> {
        context.kernel.set_addresses(entry.id, &flags)?;
        context.kernel.set_inbound(entry.id, InboundMode::Capture)?;
        set_state(context, entry, PodState::Captured)?;
        engage(context, entry)
    };
    hold(entry).map_err(|error| format!("pod {}: {}", entry.sandbox.pod, describe(&error)))
}

fn pod_for(context: &Context<'_>, entry: &mut Entry, wanted: &Wanted) -> io::Result<Arc<Pod>> {
    let same = |pod: &&Arc<Pod>| pod.identity == wanted.identity && pod.workload == wanted.workload;
    let pod = match entry.pod.as_ref().filter(same) {
        Some(pod) => Arc::clone(pod),
        None => new_pod(context, entry, wanted)?,
    };
    entry.pod = Some(Arc::clone(&pod));
    Ok(pod)
}

fn set_state(context: &Context<'_>, entry: &Entry, state: PodState) -> Result<(), KernelError> {
    context
        .kernel
        .set_pod(entry.netns.cookie(), entry.id, state, entry.congestion)
}

fn failed(entry: &mut Entry, error: &CaptureError) {
    entry.reason = format!("capture failed: {}", describe(error));
    tracing::error!(pod = %entry.sandbox.pod, error = entry.reason, "cannot capture the pod; trying again");
    entry.phase = Phase::Failed(Instant::now() + RETRY);
}

/// Puts our listeners in place of those of another agent; see [`super::Command::Resume`].
pub(super) fn listen_again(context: &Context<'_>, entry: &mut Entry) {
    let Some(pod) = entry.pod.clone().filter(|_| entry.phase == Phase::Captured) else {
        return;
    };
    if let Err(error) = listen(context, entry, &pod) {
        failed(entry, &error);
    }
}

/// Puts our programs in place of those of another agent.
pub(super) fn engage_again(context: &Context<'_>, entry: &mut Entry) {
    if entry.phase == Phase::Captured
        && let Err(error) = engage(context, entry)
    {
        failed(entry, &error);
    }
}

pub(super) fn is_captured_in_kernel(context: &Context<'_>, entry: &Entry) -> bool {
    entry.is_captured_by(context.kernel)
}

fn new_pod(context: &Context<'_>, entry: &Entry, wanted: &Wanted) -> io::Result<Arc<Pod>> {
    let mut addresses: Vec<IpAddr> = entry.sandbox.ips.iter().map(IpAddr::to_canonical).collect();
    for own in entry.netns.run(pod_net::addresses)?? {
        if !addresses.contains(&own) {
            addresses.push(own);
        }
    }
    let cert = context.certs.watch(&wanted.identity);
    let pod = Pod::new(
        entry.id,
        &entry.sandbox,
        wanted.workload.clone(),
        wanted.identity.clone(),
        entry.netns.clone(),
        addresses,
        cert,
    );
    Ok(Arc::new(pod))
}

fn capture(context: &Context<'_>, entry: &mut Entry, pod: &Arc<Pod>) -> Result<(), CaptureError> {
    stage(context, entry, pod)?;
    engage(context, entry)
}

/// What capture needs before any program of ours asks about the pod: addresses, listeners, mode.
fn stage(context: &Context<'_>, entry: &mut Entry, pod: &Arc<Pod>) -> Result<(), CaptureError> {
    let kernel = context.kernel;
    kernel.set_addresses(entry.id, &address_flags(entry, pod))?;
    let addresses = &pod.addresses;
    entry
        .netns
        .run(|| pod_net::set_up(addresses))
        .and_then(|r| r)
        .map_err(CaptureError::Namespace)?;
    listen(context, entry, pod)?;
    kernel.set_inbound(entry.id, InboundMode::Capture)?;
    Ok(())
}

/// Puts the pod's programs in place: guard, inbound, then outbound.
fn engage(context: &Context<'_>, entry: &mut Entry) -> Result<(), CaptureError> {
    let kernel = context.kernel;
    // Known to the tracker before its ports are listed, so that none falls between.
    if !is_captured_in_kernel(context, entry)
        && !matches!(
            kernel.pod(entry.netns.cookie()),
            Some((_, PodState::Pending))
        )
    {
        set_state(context, entry, PodState::Exempt)?;
    }
    seed_listening(kernel, entry).map_err(CaptureError::Namespace)?;
    let programs = PodPrograms::new(kernel, entry.id);
    entry.guarded = guard_source(kernel, &programs, entry);
    programs.attach_lookup(kernel, &entry.netns)?;
    set_state(context, entry, PodState::Captured)?;
    Ok(())
}

fn address_flags(entry: &Entry, pod: &Pod) -> BTreeMap<IpAddr, u32> {
    // Where the CNI named no addresses (a pod found running), those on its interfaces are trusted.
    let owned = |ip: &IpAddr| {
        entry.sandbox.ips.is_empty()
            || entry
                .sandbox
                .ips
                .iter()
                .any(|own| own.to_canonical() == *ip)
    };
    pod.addresses
        .iter()
        .map(|ip| (*ip, OWN_ADDRESS | if owned(ip) { OWNED_ADDRESS } else { 0 }))
        .collect()
}

/// Opens the sockets of all workers inside the pod.
fn open_listeners(context: &Context<'_>, netns: &Netns) -> Result<Vec<PodListeners>, CaptureError> {
    let open = || {
        Ok(PodListeners {
            outbound: sock::listen(OUTBOUND_PORT)?,
            inbound: sock::listen(INBOUND_PORT)?,
            hbone: sock::listen(HBONE_PORT)?,
        })
    };
    netns
        .run(|| context.workers.iter().map(|_| open()).collect())
        .and_then(|listeners: io::Result<Vec<PodListeners>>| listeners)
        .map_err(CaptureError::Listen)
}

fn listen(context: &Context<'_>, entry: &mut Entry, pod: &Arc<Pod>) -> Result<(), CaptureError> {
    let mut opened = std::mem::take(&mut entry.prepared);
    if opened.is_empty() {
        opened = open_listeners(context, &pod.netns)?;
    }
    for ((index, worker), listeners) in context.workers.iter().enumerate().zip(opened) {
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        let key = |kind: ListenerKind| ListenerKey {
            pod: pod.id,
            kind: kind as u16,
            worker: number,
        };
        context
            .kernel
            .set_listener(key(ListenerKind::Outbound), &listeners.outbound)?;
        context
            .kernel
            .set_listener(key(ListenerKind::Inbound), &listeners.inbound)?;
        context
            .kernel
            .set_listener(key(ListenerKind::Hbone), &listeners.hbone)?;
        worker.add_pod(Arc::clone(pod), listeners);
    }
    Ok(())
}

/// Tells the kernel which ports the pod listens on, until two looks agree: a socket that starts to
/// listen between look and note is not lost.
pub(super) fn seed_listening(kernel: &Kernel, entry: &Entry) -> io::Result<()> {
    let mut before = None;
    for _ in 0..5 {
        let now = entry.netns.run(sock_diag::listening_ports)??;
        if before.as_ref() == Some(&now) {
            return Ok(());
        }
        kernel
            .set_listening(entry.id, &now)
            .map_err(io::Error::other)?;
        before = Some(now);
    }
    Ok(())
}

/// Keeps the pod from using other addresses; says whether all of its interfaces are guarded. Where
/// one is no veth the node's own source validation has to do, and a metric counts the pod.
fn guard_source(kernel: &Kernel, programs: &PodPrograms, entry: &Entry) -> bool {
    let peers = match entry.netns.run(pod_net::veth_peers) {
        Ok(Ok(peers)) => peers,
        Ok(Err(error)) | Err(error) => {
            tracing::warn!(pod = %entry.sandbox.pod, %error, "cannot find the node's end of the pod's interface");
            return false;
        }
    };
    let guard = |peer: &u32| {
        let guarded = nix::net::if_::if_indextoname(*peer)
            .map_err(|e| e.to_string())
            .and_then(|name| name.into_string().map_err(|e| e.to_string()))
            .and_then(|name| {
                programs
                    .attach_guard(kernel, &name, &entry.sandbox.ips)
                    .map_err(|e| describe(&e))
            });
        if let Err(error) = &guarded {
            tracing::warn!(pod = %entry.sandbox.pod, interface = peer, error, "source addresses of the pod are not guarded");
        }
        guarded.is_ok()
    };
    peers.iter().filter(|peer| guard(peer)).count() == peers.len() && !peers.is_empty()
}

fn towards_exempt(context: &Context<'_>, entry: &mut Entry) {
    match entry.phase {
        Phase::Exempt => {}
        Phase::Captured => {
            stop_capturing(context, entry);
            entry.phase = Phase::Releasing(Instant::now(), false);
            tracing::info!(pod = %entry.sandbox.pod, reason = entry.reason, "pod leaves the mesh");
        }
        Phase::Releasing(since, false) if since.elapsed() >= context.config.release_wait => {
            end_tunnels(context, entry);
            entry.phase = Phase::Releasing(since, true);
        }
        Phase::Releasing(since, true) => {
            let carried = entry.pod.as_ref().map_or(0, |pod| pod.open());
            if carried == 0 || since.elapsed() >= context.config.drain_deadline {
                clean_namespace(context, entry);
                context.kernel.forget_pod(entry.id);
                guard_exempt(context, entry);
                entry.pod = None;
                entry.held = false;
                entry.phase = Phase::Exempt;
                tracing::info!(pod = %entry.sandbox.pod, "pod released");
            }
        }
        Phase::Releasing(..) => {}
        Phase::Unknown | Phase::Failed(_)
            if entry.held || is_captured_in_kernel(context, entry) =>
        {
            stop_capturing(context, entry);
            entry.phase = Phase::Releasing(Instant::now(), false);
        }
        Phase::Unknown | Phase::Failed(_) => {
            set_exempt(context, entry);
            guard_exempt(context, entry);
            entry.phase = Phase::Exempt;
        }
    }
}

/// Keeps a pod outside the mesh from using the addresses of captured pods.
fn guard_exempt(context: &Context<'_>, entry: &mut Entry) {
    if entry.sandbox.ips.is_empty() {
        return;
    }
    let own = entry.sandbox.ips.iter();
    let flags = own
        .map(|ip| (ip.to_canonical(), OWN_ADDRESS | OWNED_ADDRESS))
        .collect();
    if let Err(error) = context.kernel.set_addresses(entry.id, &flags) {
        tracing::warn!(pod = %entry.sandbox.pod, error = describe(&error), "source addresses of the pod are not guarded");
        return;
    }
    let programs = PodPrograms::new(context.kernel, entry.id);
    entry.guarded = guard_source(context.kernel, &programs, entry);
}

fn stop_capturing(context: &Context<'_>, entry: &Entry) {
    set_exempt(context, entry);
    if let Err(error) = context.kernel.set_inbound(entry.id, InboundMode::Release) {
        tracing::error!(pod = %entry.sandbox.pod, error = describe(&error), "cannot release the pod's inbound traffic");
    }
}

fn set_exempt(context: &Context<'_>, entry: &Entry) {
    if let Err(error) = set_state(context, entry, PodState::Exempt) {
        tracing::error!(pod = %entry.sandbox.pod, error = describe(&error), "cannot exempt the pod");
    }
}

fn end_tunnels(context: &Context<'_>, entry: &Entry) {
    detach(context.kernel, entry.id);
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

fn clean_namespace(context: &Context<'_>, entry: &Entry) {
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
pub(super) fn detach(kernel: &Kernel, id: u32) {
    let programs = PodPrograms::new(kernel, id);
    for result in [programs.detach_lookup(), programs.detach_guards()] {
        if let Err(error) = result {
            tracing::warn!(
                pod = id,
                error = describe(&error),
                "cannot detach a program of the pod"
            );
        }
    }
}

/// Whether the kernel and the namespace still hold what capture put there.
pub(super) fn is_intact(context: &Context<'_>, entry: &Entry) -> bool {
    is_captured_in_kernel(context, entry)
        && PodPrograms::new(context.kernel, entry.id).lookup_attached(&entry.netns)
        && entry
            .netns
            .run(pod_net::is_set_up)
            .is_ok_and(|rule| rule.unwrap_or(false))
}
