//! The audit: from time to time what capture put into the kernel and into pods' namespaces is compared with
//! what is there, and put right.

use std::{collections::BTreeMap, io};

use tls::store::SvidStatus;

use super::{
    Enroller,
    capture::{self, CaptureError, Context},
    entry::{Entry, Phase},
    step,
};
use crate::{
    bpf::listening::{self, Counts},
    host::{
        describe,
        pod_net::{self, Part},
        sock_diag,
    },
    telemetry::metrics::{EnrolmentMetrics, Repaired},
};

impl From<Part> for Repaired {
    fn from(part: Part) -> Self {
        match part {
            Part::Rule => Self::Rule,
            Part::Route => Self::Route,
            Part::Setting => Self::Setting,
        }
    }
}

impl Enroller {
    /// Compares all captured pods.
    pub(super) fn audit(&mut self) {
        let counted = self.kernel.listening();
        let metrics = self.metrics.clone();
        let (context, entries) = self.parts();
        let failing = failing(context.certs.snapshot());
        let captured = entries.values_mut();
        for entry in captured.filter(|entry| entry.phase == Phase::Captured) {
            audit(&context, entry, &counted, &metrics);
            tell_certificate(&context, entry, &failing);
        }
    }
}

/// Identities whose certificate cannot be had or renewed, with the reason. What fails once is tried again soon.
fn failing(all: Vec<SvidStatus>) -> BTreeMap<String, String> {
    let failing = all.into_iter().filter(|one| one.failures >= FAILURES);
    let told = failing.map(|one| {
        let why = one.last_error.map(|error| describe(&error));
        (one.identity.to_string(), why.unwrap_or_default())
    });
    told.collect()
}

/// Says it to the pod's owner, once until it works again: a certificate that is not renewed ends, and the pod with it.
fn tell_certificate(context: &Context<'_>, entry: &mut Entry, failing: &BTreeMap<String, String>) {
    let identity = entry.pod.as_ref().map(|pod| pod.identity.to_string());
    let why = identity.and_then(|identity| failing.get(&identity));
    if let Some(why) = why
        && !entry.certificate_fails
    {
        let message = format!("its certificate cannot be had or renewed: {why}");
        let notices = &context.config.notices;
        notices.warn(&entry.sandbox, "CertificateFailing", message);
    }
    entry.certificate_fails = why.is_some();
}

/// In a row. Between them there is more time each.
const FAILURES: u32 = 3;

fn audit(
    context: &Context<'_>,
    entry: &mut Entry,
    counted: &BTreeMap<u32, Counts>,
    metrics: &EnrolmentMetrics,
) {
    let mut repaired = Vec::new();
    match namespace(entry) {
        Ok(parts) => repaired.extend(parts),
        Err(error) => {
            tracing::warn!(pod = %entry.sandbox.pod, %error, "cannot compare the pod's namespace with what capture needs");
        }
    }
    match listening_ports(context, entry, counted) {
        Ok(true) => repaired.push(Repaired::Listening),
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(pod = %entry.sandbox.pod, %error, "cannot list the pod's listening ports");
        }
    }
    capture::follow_addresses(context, entry);
    if !capture::is_attached(context, entry) {
        repaired.push(Repaired::Programs);
        entry.phase = Phase::Unknown;
    }
    // What the kernel still holds captured stays so, for its peers too; nobody is told that it is all right.
    if let Err(error @ CaptureError::Sandboxed(_)) = capture::check_sandbox(entry) {
        return step::failed(context, entry, &error);
    }
    for kind in repaired {
        tracing::warn!(pod = %entry.sandbox.pod, ?kind, "capture had been undone in the kernel or in the pod's namespace; it is put right");
        metrics.repaired(kind);
    }
}

/// Rule, route and settings: what was not as it has to be.
fn namespace(entry: &Entry) -> io::Result<Vec<Repaired>> {
    let own = &entry.given.own;
    let changed = entry.netns.run(|| pod_net::set_up(own))??;
    Ok(changed.into_iter().map(Repaired::from).collect())
}

/// What is counted of the pod's listening ports: says whether it was wrong. The count was read a moment
/// before, so that it is another says nothing yet.
fn listening_ports(
    context: &Context<'_>,
    entry: &mut Entry,
    counted: &BTreeMap<u32, Counts>,
) -> io::Result<bool> {
    let now = entry.netns.run(sock_diag::listening_ports)??;
    let none = Counts::new();
    if listening::is_right(counted.get(&entry.id).unwrap_or(&none), &now) {
        return Ok(false);
    }
    capture::seed_listening(context.kernel, entry)
}
