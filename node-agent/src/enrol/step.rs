//! One pod, one step: [`next`] decides, from what is known, which step is due; [`step`] takes it.

use std::time::{Duration, Instant};

use abi::PodState;

use super::{
    EnrolConfig,
    capture::{self, CaptureError, Context},
    entry::{Entry, Found, Phase},
    release,
};
use crate::{host::describe, mesh::Wanted};

/// When a capture that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the controller has said of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Nothing (yet).
    Unknown,
    /// It belongs to the mesh.
    Captured,
    /// It does not.
    Exempt,
}

/// What a step depends on besides phase and wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    /// The kernel half's state of the pod's namespace; none where it has no entry.
    kernel: Option<PodState>,
    /// An earlier agent captured it, and it has not been released since.
    held: bool,
    /// The CNI waits for an answer.
    is_awaited: bool,
    /// Whether the certificate of who it is to be is there; none as long as nobody has asked for it.
    certificate: Option<bool>,
    /// For how long it has been wanted and not captured.
    wanted_for: Duration,
    /// How many of its connections are carried.
    carried: usize,
}

/// What is done for a pod in one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing.
    Nothing,
    /// Ask for its certificate, and decide again.
    Identify,
    /// Wait for the certificate.
    AwaitCertificate,
    /// Stage and engage, over what is there.
    Capture,
    /// It stays captured: follow its probes.
    Follow,
    /// What it dials from now on is plain, what reaches it goes on.
    Leave,
    /// Peers have been told: end its tunnels.
    EndTunnels,
    /// Nothing is carried any more: clean its namespace.
    Release,
    /// It was never captured: let it pass.
    LetPass,
    /// An earlier agent had let it pass.
    AdoptExempt,
    /// An earlier agent ended while it captured the pod: let it pass until something is known.
    UndoJoining,
}

/// The times of [`EnrolConfig`] that decide.
#[derive(Clone, Copy, Debug)]
struct Times {
    certificate_wait: Duration,
    release_wait: Duration,
    drain_deadline: Duration,
}

impl Times {
    fn of(config: &EnrolConfig) -> Self {
        Self {
            certificate_wait: config.certificate_wait,
            release_wait: config.release_wait,
            drain_deadline: config.drain_deadline,
        }
    }
}

/// Which step is due: the table in [`super::entry`], as code.
fn next(phase: &Phase, wish: Wish, facts: &Facts, times: Times, now: Instant) -> Step {
    let is_captured = facts.kernel == Some(PodState::Captured);
    match (wish, phase) {
        // Not known to the controller (yet): a captured pod stays captured.
        (Wish::Unknown, Phase::Unknown) if !facts.is_awaited && !facts.held => match facts.kernel {
            Some(PodState::Exempt) => Step::AdoptExempt,
            Some(PodState::Joining) => Step::UndoJoining,
            _ => Step::Nothing,
        },
        (Wish::Unknown, _) => Step::Nothing,

        (Wish::Captured, Phase::Captured) => Step::Follow,
        (Wish::Captured, Phase::Failed(retry)) if now < *retry => Step::Nothing,
        (Wish::Captured, _) => match facts.certificate {
            None => Step::Identify,
            Some(false) if facts.wanted_for < times.certificate_wait && !is_captured => {
                Step::AwaitCertificate
            }
            Some(_) => Step::Capture,
        },

        (Wish::Exempt, Phase::Exempt) => Step::Nothing,
        (Wish::Exempt, Phase::Captured) => Step::Leave,
        (Wish::Exempt, Phase::Releasing(since, false)) => {
            if now.duration_since(*since) >= times.release_wait {
                Step::EndTunnels
            } else {
                Step::Nothing
            }
        }
        (Wish::Exempt, Phase::Releasing(since, true)) => {
            let is_over = now.duration_since(*since) >= times.drain_deadline;
            if facts.carried == 0 || is_over {
                Step::Release
            } else {
                Step::Nothing
            }
        }
        (Wish::Exempt, Phase::Unknown | Phase::Failed(_)) => {
            if facts.held || is_captured {
                Step::Leave
            } else {
                Step::LetPass
            }
        }
    }
}

/// Takes the pod one step towards what is wanted.
pub(super) fn step(context: &Context<'_>, entry: &mut Entry, wanted: Option<&Wanted>) {
    if capture::know_addresses(context, entry, wanted) {
        entry.begin_again();
    }
    let wish = match wanted {
        None => Wish::Unknown,
        Some(wanted) if wanted.capture => Wish::Captured,
        Some(wanted) => {
            entry.reason.clone_from(&wanted.reason);
            entry.wanted_since = None;
            Wish::Exempt
        }
    };
    let times = Times::of(context.config);
    let due = |context: &Context<'_>, entry: &Entry| {
        let facts = facts(context, entry, wanted);
        next(&entry.phase, wish, &facts, times, Instant::now())
    };
    match due(context, entry) {
        Step::Identify => {
            let Some(wanted) = wanted else { return };
            match capture::pod_for(context, entry, wanted) {
                Ok(_) => {
                    let due = due(context, entry);
                    take(context, entry, wanted, due);
                }
                Err(error) => failed(context, entry, &error),
            }
        }
        Step::AdoptExempt => entry.phase = Phase::Exempt,
        Step::UndoJoining => {
            release::set_exempt(context, entry);
            entry.phase = Phase::Exempt;
        }
        due => {
            if let Some(wanted) = wanted {
                take(context, entry, wanted, due);
            }
        }
    }
}

fn facts(context: &Context<'_>, entry: &Entry, wanted: Option<&Wanted>) -> Facts {
    let pod = wanted.and_then(|wanted| entry.pod_of(wanted));
    let state = context.kernel.pod(entry.netns.cookie());
    Facts {
        kernel: state.map(|(_, state)| state),
        held: entry.held,
        is_awaited: !entry.waiting.is_empty(),
        certificate: pod.map(|pod| pod.cert.borrow().is_some()),
        wanted_for: entry.wanted_since.map_or(Duration::ZERO, |at| at.elapsed()),
        carried: entry.pod.as_ref().map_or(0, |pod| pod.open()),
    }
}

/// Takes a step of a pod of which something is wanted.
fn take(context: &Context<'_>, entry: &mut Entry, wanted: &Wanted, step: Step) {
    match step {
        // The other three are the caller's.
        Step::Nothing | Step::Identify | Step::AdoptExempt | Step::UndoJoining => {}
        Step::AwaitCertificate => {
            entry.wanted_since.get_or_insert_with(Instant::now);
            "waiting for the pod's certificate".clone_into(&mut entry.reason);
            entry.phase = Phase::Unknown;
        }
        Step::Capture => captured(context, entry, wanted),
        Step::Follow => {
            entry.reason.clone_from(&wanted.reason);
            capture::follow_probes(context, entry, wanted);
        }
        Step::Leave => {
            release::stop_capturing(context, entry);
            if entry.phase == Phase::Captured {
                tracing::info!(pod = %entry.sandbox.pod, reason = entry.reason, "pod leaves the mesh");
            }
            entry.phase = Phase::Releasing(Instant::now(), false);
        }
        Step::EndTunnels => {
            release::end_tunnels(context, entry);
            if let Phase::Releasing(since, _) = entry.phase {
                entry.phase = Phase::Releasing(since, true);
            }
        }
        Step::Release => {
            release::clean_namespace(context, entry);
            context.kernel.forget_pod(entry.id);
            entry.flags = None;
            entry.probe_ports.clear();
            release::guard_exempt(context, entry);
            entry.pod = None;
            entry.held = false;
            entry.phase = Phase::Exempt;
            tracing::info!(pod = %entry.sandbox.pod, "pod released");
        }
        Step::LetPass => {
            release::set_exempt(context, entry);
            release::guard_exempt(context, entry);
            entry.phase = Phase::Exempt;
        }
    }
}

fn captured(context: &Context<'_>, entry: &mut Entry, wanted: &Wanted) {
    let captured = capture::pod_for(context, entry, wanted).and_then(|pod| {
        capture::capture(context, entry, &pod, wanted)?;
        Ok(pod)
    });
    match captured {
        Ok(pod) => {
            tracing::info!(pod = %pod.name, pod_id = entry.id, identity = %pod.identity, reason = wanted.reason, "pod captured");
            entry.phase = Phase::Captured;
            entry.reason.clone_from(&wanted.reason);
            if let Some(found) = entry.found_running.take() {
                late(context, entry, found);
            }
        }
        Err(error) => failed(context, entry, &error),
    }
}

/// Names a pod that ran outside of the mesh: neither this agent nor one before it was told of it when it was made.
fn late(context: &Context<'_>, entry: &Entry, found: Found) {
    let ran = found.ran.map(|ran| format!(" for {} s", ran.as_secs()));
    let ran = ran.unwrap_or_default();
    tracing::warn!(pod = %entry.sandbox.pod, "the pod ran{ran} outside of the mesh before it was captured: the CNI plugin has not asked about it");
    context.metrics.late.inc();
    let message = format!(
        "it ran{ran} outside of the mesh before it was captured, since the CNI plugin has not asked about it; connections that were open then stay as they were"
    );
    let notices = &context.config.notices;
    notices.warn(&entry.sandbox, "CapturedLate", message);
}

/// Notes why a pod is not captured, and when that is tried again.
pub(super) fn failed(context: &Context<'_>, entry: &mut Entry, error: &CaptureError) {
    let reason = format!("capture failed: {}", describe(error));
    if entry.reason != reason {
        context.metrics.failed(error.reason());
        let message = format!("wanted, cannot: {}", describe(error));
        let notices = &context.config.notices;
        notices.warn(&entry.sandbox, "CaptureFailed", message);
    }
    entry.reason = reason;
    tracing::error!(pod = %entry.sandbox.pod, error = entry.reason, "cannot capture the pod; trying again");
    entry.phase = Phase::Failed(Instant::now() + RETRY);
}

#[cfg(test)]
mod tests;
