//! The steps of capture and release of one pod.

use std::{io, net::IpAddr, sync::Arc, time::Instant};

use abi::{AGENT_MARK, HBONE_PORT, InboundMode, ListenerKey, ListenerKind, PodState};
use tls::SvidStore;

use super::{
    EnrolConfig,
    addresses::{self, Claims},
    entry::{Entry, Phase},
    older, step,
};
use crate::{
    bpf::{Kernel, KernelError, Loaded, PodPrograms},
    carry::thread::{PodListeners, WorkerHandle},
    direct::DirectHandle,
    host::{
        describe,
        netns::Netns,
        pod_net, readers, sock_diag,
        veth::{self, NoPlace, Sandboxed},
    },
    mesh::{Mesh, Wanted},
    pod::{Pod, PodName, sock},
    telemetry::metrics::EnrolmentMetrics,
};

/// Documented ports of the listeners inside a pod; nothing depends on them but readers of `ss`.
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;

/// How often a pod's listening ports are looked at until what is counted is what there is.
const LOOKS: usize = 8;

pub(super) struct Context<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) workers: &'a [WorkerHandle],
    pub(super) certs: &'a SvidStore,
    pub(super) config: &'a EnrolConfig,
    pub(super) mesh: &'a Mesh,
    pub(super) claims: Claims,
    pub(super) direct: &'a DirectHandle,
    pub(super) metrics: &'a EnrolmentMetrics,
}

/// Why a pod could not be captured.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    #[error("cannot prepare the pod's network namespace")]
    Namespace(#[source] io::Error),
    #[error(transparent)]
    Interface(#[from] NoPlace),
    #[error(transparent)]
    Sandboxed(#[from] Sandboxed),
    #[error("cannot listen inside the pod")]
    Listen(#[source] io::Error),
    #[error("the cluster has not said which addresses the pod has")]
    NoAddress,
    #[error("the cluster gave {ip} to pod {other} too, so it is neither's")]
    Disputed { ip: IpAddr, other: PodName },
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl CaptureError {
    /// As the metric names it.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "namespace",
            Self::Interface(_) => "interface",
            Self::Sandboxed(_) => "sandboxed",
            Self::Listen(_) => "listen",
            Self::NoAddress => "no_address",
            Self::Disputed { .. } => "address_disputed",
            Self::Kernel(KernelError::Full { .. }) => "map_full",
            Self::Kernel(_) => "kernel",
        }
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
        let pod = pod_for(context, entry, wanted)?;
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
        let pod = pod_for(context, entry, wanted)?;
        stage(context, entry, &pod, wanted)?;
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
    know_addresses(context, entry, None);
    let hold = |entry: &mut Entry| -> Result<(), CaptureError> {
        set_addresses(context, entry)?;
        context.kernel.set_inbound(entry.id, InboundMode::Capture)?;
        set_state(context, entry, PodState::Captured)?;
        engage(context, entry)
    };
    hold(entry).map_err(|error| format!("pod {}: {}", entry.sandbox.pod, describe(&error)))
}

pub(super) fn pod_for(
    context: &Context<'_>,
    entry: &mut Entry,
    wanted: &Wanted,
) -> Result<Arc<Pod>, CaptureError> {
    know_addresses(context, entry, Some(wanted));
    let pod = match entry.pod_of(wanted) {
        Some(pod) => Arc::clone(pod),
        None => new_pod(context, entry, wanted)?,
    };
    entry.pod = Some(Arc::clone(&pod));
    Ok(pod)
}

/// Notes what the cluster says of the pod's addresses now; says whether that is a change.
pub(super) fn know_addresses(
    context: &Context<'_>,
    entry: &mut Entry,
    wanted: Option<&Wanted>,
) -> bool {
    entry.known = entry.addresses(wanted);
    let given = context.claims.judge(&entry.sandbox.pod, &entry.known);
    if given == entry.given {
        return false;
    }
    for (ip, other) in &given.disputed {
        tracing::error!(pod = %entry.sandbox.pod, %ip, %other, "the cluster gave one address to two pods; it is neither's: nothing leaves with it");
    }
    entry.given = given;
    // A pod that has lost an address must not use it while it is captured anew, or cannot be.
    if entry.flags.is_some() {
        follow_addresses(context, entry);
        let walled = is_captured_in_kernel(context, entry).then(|| entry.netns.clone());
        guard(context.kernel, entry, walled.as_ref());
    }
    true
}

/// Tells the kernel half of the pod's addresses, which may be others by now.
pub(super) fn follow_addresses(context: &Context<'_>, entry: &mut Entry) {
    if let Err(error) = set_addresses(context, entry) {
        tracing::warn!(pod = %entry.sandbox.pod, error = describe(&error), "cannot follow the pod's addresses");
    }
}

pub(super) fn set_addresses(context: &Context<'_>, entry: &mut Entry) -> Result<(), CaptureError> {
    let found = entry.netns.run(pod_net::addresses);
    let mut found = found
        .and_then(|found| found)
        .map_err(CaptureError::Namespace)?;
    // They name nobody to anybody else; a pod reaches itself by them.
    let link_local = entry.netns.run(pod_net::link_local_addresses);
    let link_local = link_local.and_then(|found| found);
    found.extend(link_local.map_err(CaptureError::Namespace)?);
    let state = context.mesh.state();
    let (name, pod) = (&entry.sandbox.pod, entry.pod.as_ref());
    let flags = addresses::flags(&entry.given.own, &found, |ip| {
        context.claims.other(name, ip).is_some()
            || pod.is_some_and(|pod| addresses::is_anothers(&state, &pod.workload, ip))
    });
    if entry.flags.as_ref() != Some(&flags) {
        context.kernel.set_addresses(entry.id, &flags)?;
        entry.flags = Some(flags);
    }
    Ok(())
}

/// Tells the kernel half which ports the pod's own probes declare.
pub(super) fn follow_probes(context: &Context<'_>, entry: &mut Entry, wanted: &Wanted) {
    if entry.probe_ports == wanted.probe_ports {
        return;
    }
    match context
        .kernel
        .set_probe_ports(entry.id, &wanted.probe_ports)
    {
        Ok(()) => entry.probe_ports.clone_from(&wanted.probe_ports),
        Err(error) => {
            tracing::warn!(pod = %entry.sandbox.pod, error = describe(&error), "what the kubelet calls in the pod is not told from other plain text");
        }
    }
}

pub(super) fn set_state(
    context: &Context<'_>,
    entry: &Entry,
    state: PodState,
) -> Result<(), KernelError> {
    let families = match &entry.pod {
        Some(pod) => families(&pod.addresses),
        None => families(&entry.sandbox.ips),
    };
    let (cookie, id) = (entry.netns.cookie(), entry.id);
    context
        .kernel
        .set_pod(cookie, id, state, entry.congestion, families)
}

/// Of which families a pod has addresses; of all, where none is known.
pub(super) fn families(addresses: &[IpAddr]) -> u32 {
    let family = |ip: IpAddr| {
        if ip.is_ipv4() {
            abi::FAMILY_V4
        } else {
            abi::FAMILY_V6
        }
    };
    let known = addresses.iter().map(|ip| family(ip.to_canonical()));
    match known.fold(0, std::ops::BitOr::bitor) {
        0 => abi::FAMILY_V4 | abi::FAMILY_V6,
        families => families,
    }
}

/// Puts our listeners in place of those of another agent; see [`super::Command::Resume`].
pub(super) fn listen_again(context: &Context<'_>, entry: &mut Entry) {
    let Some(pod) = entry.pod.clone().filter(|_| entry.phase == Phase::Captured) else {
        return;
    };
    if let Err(error) = listen(context, entry, &pod) {
        step::failed(context, entry, &error);
    }
}

/// Puts our programs in place of those of another agent.
pub(super) fn engage_again(context: &Context<'_>, entry: &mut Entry) {
    if entry.phase == Phase::Captured
        && let Err(error) = engage(context, entry)
    {
        step::failed(context, entry, &error);
    }
}

pub(super) fn is_captured_in_kernel(context: &Context<'_>, entry: &Entry) -> bool {
    entry.is_captured_by(context.kernel)
}

fn new_pod(
    context: &Context<'_>,
    entry: &Entry,
    wanted: &Wanted,
) -> Result<Arc<Pod>, CaptureError> {
    if entry.given.own.is_empty() {
        let mut disputed = entry.given.disputed.iter().cloned();
        let disputed = disputed
            .next()
            .map(|(ip, other)| CaptureError::Disputed { ip, other });
        return Err(disputed.unwrap_or(CaptureError::NoAddress));
    }
    let cert = context.certs.watch(&wanted.identity);
    let pod = Pod::new(
        entry.id,
        &entry.sandbox,
        wanted.workload.clone(),
        wanted.identity.clone(),
        entry.netns.clone(),
        entry.given.own.clone(),
        cert,
    );
    Ok(Arc::new(pod))
}

pub(super) fn capture(
    context: &Context<'_>,
    entry: &mut Entry,
    pod: &Arc<Pod>,
    wanted: &Wanted,
) -> Result<(), CaptureError> {
    check_sandbox(entry)?;
    // What is captured already stays so; that it is not guarded is reported.
    if !is_captured_in_kernel(context, entry) {
        veth::pairs(&entry.netns, &entry.given.own).map_err(CaptureError::Namespace)??;
    }
    stage(context, entry, pod, wanted)?;
    engage(context, entry)
}

/// Whether the pod's sockets are this kernel's. A runtime that keeps them to itself shows after the CNI has been answered.
pub(super) fn check_sandbox(entry: &Entry) -> Result<(), CaptureError> {
    let found = veth::sandboxed(&entry.netns, &entry.given.own).map_err(CaptureError::Namespace)?;
    found.map_or(Ok(()), |why| Err(why.into()))
}

/// What capture needs before any program of ours asks about the pod: addresses, listeners, mode.
fn stage(
    context: &Context<'_>,
    entry: &mut Entry,
    pod: &Arc<Pod>,
    wanted: &Wanted,
) -> Result<(), CaptureError> {
    let kernel = context.kernel;
    set_addresses(context, entry)?;
    follow_probes(context, entry, wanted);
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
    let _hurry = readers::hurry();
    let kernel = context.kernel;
    let before = kernel.pod(entry.netns.cookie()).map(|(_, state)| state);
    // What was refused or captured until now has nothing that nobody was asked about.
    let was_free = !matches!(before, Some(PodState::Pending | PodState::Captured));
    entry.must_find_older |= was_free && !entry.held;
    // Known to the tracker before its ports are listed, so that none falls between.
    if !is_captured_in_kernel(context, entry)
        && !matches!(
            kernel.pod(entry.netns.cookie()),
            Some((_, PodState::Pending))
        )
    {
        set_state(context, entry, PodState::Joining)?;
    }
    seed_listening(kernel, entry).map_err(CaptureError::Namespace)?;
    let mut programs = PodPrograms::new(kernel, entry.id).load(kernel, &entry.given.own)?;
    guard_with(kernel, &mut programs, entry, Some(&entry.netns.clone()));
    let reached = reached_by(entry).map_err(CaptureError::Namespace)?;
    programs.attach_answers(kernel, &entry.netns, &reached)?;
    programs.attach_lookup(&entry.netns)?;
    programs.attach_hold(kernel, &entry.netns)?;
    set_state(context, entry, PodState::Captured)?;
    if let Some(pod) = entry.pod.clone() {
        // From here on every connection is asked about; these began before.
        let found = if entry.must_find_older {
            older::find(context, entry, &pod)
        } else {
            older::find_again(context, entry, &pod)
        };
        found.map_err(CaptureError::Namespace)?;
        entry.must_find_older = false;
    }
    Ok(())
}

/// The interfaces by which the pod is reached from outside: those with the addresses that the cluster gave.
fn reached_by(entry: &Entry) -> io::Result<Vec<String>> {
    let given = &entry.given.own;
    entry.netns.run(|| pod_net::interfaces_with(given))?
}

/// Opens the sockets of all workers inside the pod.
fn open_listeners(context: &Context<'_>, netns: &Netns) -> Result<Vec<PodListeners>, CaptureError> {
    let heartbeat = context.kernel.heartbeat();
    let open = |worker: u32| {
        let beat = heartbeat.index(worker);
        Ok(PodListeners {
            outbound: sock::listen(OUTBOUND_PORT, beat, None)?,
            inbound: sock::listen(INBOUND_PORT, beat, Some(AGENT_MARK))?,
            hbone: sock::listen(HBONE_PORT, beat, Some(AGENT_MARK))?,
        })
    };
    netns
        .run(|| {
            (0_u32..)
                .zip(context.workers)
                .map(|(worker, _)| open(worker))
                .collect()
        })
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

/// Makes what the kernel half has counted of the pod's listening ports what there is, until a look finds
/// nothing to do: a socket that starts to listen between look and note is not lost. Says whether the count
/// was wrong.
pub(super) fn seed_listening(kernel: &Kernel, entry: &mut Entry) -> io::Result<bool> {
    let mut wrong = false;
    for _ in 0..LOOKS {
        let before = kernel.listening().remove(&entry.id).unwrap_or_default();
        let found = entry.netns.run(sock_diag::listening_ports)??;
        let look = kernel
            .compare_listening(entry.id, &before, &found, &mut entry.suspects)
            .map_err(io::Error::other)?;
        entry.ports_left_out = look.left_out;
        wrong |= look.wrong;
        if !look.changed {
            break;
        }
    }
    if entry.ports_left_out > 0 {
        tracing::warn!(pod = %entry.sandbox.pod, left_out = entry.ports_left_out, "the pod listens on more ports than its share; connections to those beyond it are refused: raise --max-listening-ports-per-pod");
    }
    Ok(wrong)
}

/// Looks at the ports of a captured pod again where some found no room in the kernel. Those that were left out
/// have to wait for the audit: what took their room may be gone by then.
pub(super) fn look_for_ports(kernel: &Kernel, entry: &mut Entry) {
    if entry.ports_left_out == 0
        && kernel.has_lost_ports(entry.id)
        && let Err(error) = seed_listening(kernel, entry)
    {
        tracing::warn!(pod = %entry.sandbox.pod, %error, "cannot list the pod's listening ports");
    }
}

/// Keeps the pod from using other addresses, and with `netns` from plain TCP with captured pods of other
/// nodes. Where that cannot be had the entry says why, a metric counts the pod, and nothing goes directly.
pub(super) fn guard(kernel: &Kernel, entry: &mut Entry, netns: Option<&Netns>) {
    let _hurry = readers::hurry();
    match PodPrograms::new(kernel, entry.id).load(kernel, &entry.given.own) {
        Ok(mut programs) => guard_with(kernel, &mut programs, entry, netns),
        Err(error) => unguarded(entry, describe(&error)),
    }
}

/// As [`guard`], with programs that are there already.
fn guard_with(kernel: &Kernel, programs: &mut Loaded, entry: &mut Entry, netns: Option<&Netns>) {
    let pairs = veth::pairs(&entry.netns, &entry.given.own)
        .map_err(|error| error.to_string())
        .and_then(|pairs| pairs.map_err(|no_place| no_place.to_string()));
    let guarded = pairs.and_then(|pairs| {
        programs
            .attach_guards(kernel, &pairs, netns)
            .map_err(|error| describe(&error))?;
        Ok(pairs)
    });
    match guarded {
        Ok(pairs) => {
            entry.pairs = pairs;
            entry.unguarded = None;
        }
        Err(why) => unguarded(entry, why),
    }
}

fn unguarded(entry: &mut Entry, why: String) {
    if entry.unguarded.as_ref() != Some(&why) {
        tracing::warn!(pod = %entry.sandbox.pod, error = why, "the pod's interface is not guarded");
    }
    entry.pairs = Vec::new();
    entry.unguarded = Some(why);
}

/// Whether the kernel still holds the pod captured, by programs of ours in its namespace and at its interfaces.
pub(super) fn is_attached(context: &Context<'_>, entry: &Entry) -> bool {
    let programs = PodPrograms::new(context.kernel, entry.id);
    is_captured_in_kernel(context, entry)
        && programs.lookup_attached(&entry.netns)
        && programs.hold_attached(&entry.netns)
        && programs.guards_attached(&entry.pairs, Some(&entry.netns))
}
