//! Where connections are told of: counted, logged, and kept if they were refused.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use admin_api::{Description, Refused};
use model::{Ending, Flag};

use crate::{
    connections::ConnectionMetrics,
    labels::{NO_FLAGS, TcpLabels},
    ration::Rations,
    refusals::{Refusal, Refusals, shorten},
};

/// A line of the access log: who, whom, and the further fields.
macro_rules! access {
    ($connection:ident, $($further:tt)*) => {
        tracing::info!(
            target: "access",
            direction = $connection.direction.as_str(),
            pod = $connection.pod,
            src.addr = $connection.source.addr.map(tracing::field::display),
            src.workload = $connection.source.workload.as_deref(),
            src.namespace = $connection.source.namespace.as_deref(),
            src.identity = $connection.source.identity,
            dst.addr = $connection.destination.addr.map(tracing::field::display),
            dst.workload = $connection.destination.workload.as_deref(),
            dst.namespace = $connection.destination.namespace.as_deref(),
            dst.identity = $connection.destination.identity,
            dst.service = $connection.service,
            $($further)*
        )
    };
}

/// Where connections are told of. A program has one.
#[derive(Debug, Default)]
pub struct Recorder {
    /// Counts them.
    pub metrics: ConnectionMetrics,
    /// Keeps refusals.
    pub refusals: Refusals,
    /// How many of them are told of.
    rations: Rations,
}

/// How a connection went, for the access log.
#[derive(Clone, Debug, Default)]
pub struct Closed {
    /// Bytes from the client.
    pub request: u64,
    /// Bytes from the server.
    pub response: u64,
    /// How long it was open.
    pub age: Duration,
    /// How it ended, if that is known.
    pub ending: Option<Ending>,
    /// What was wrong with that.
    pub error: Option<String>,
}

impl Recorder {
    /// A recorder that counts in these metrics.
    #[must_use]
    pub fn new(metrics: ConnectionMetrics) -> Self {
        Self {
            metrics,
            ..Self::default()
        }
    }

    /// Tells of a connection that was refused or could not be made.
    pub fn refuse(&self, connection: &Description, labels: &TcpLabels, refusal: Refusal) {
        self.refuse_many(connection, labels, refusal, 1);
    }

    /// Tells of so many like this. All are counted; who is refused without end is told of now and then.
    pub fn refuse_many(
        &self,
        connection: &Description,
        labels: &TcpLabels,
        mut refusal: Refusal,
        count: u64,
    ) {
        let reason = refusal.reason;
        self.metrics.fail(labels, reason, count);
        let now = Instant::now();
        let Some(more) = self.rations.take(&connection.pod, reason, count, now) else {
            return;
        };
        shorten(&mut refusal.text);
        if more > 0 {
            refusal
                .text
                .push_str(&format!(" (and {more} more like it)"));
        }
        let flags = match &*labels.response_flags {
            NO_FLAGS => reason.flag().map(Flag::as_str),
            flags => Some(flags),
        };
        self.tell_refused(connection, refusal, flags);
    }

    /// Tells of refusals that were withheld, where none of their kind has come since.
    pub fn settle(&self) {
        for (pod, reason, more) in self.rations.settle(Instant::now()) {
            tracing::info!(target: "access", pod, reason = reason.as_str(), more, "connections refused like those before");
        }
    }

    fn tell_refused(&self, connection: &Description, refusal: Refusal, flags: Option<&str>) {
        access!(
            connection,
            flags,
            reason = refusal.reason.as_str(),
            error = refusal.text,
            "connection refused"
        );
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.refusals.push(Refused {
            time_ms: milliseconds(since_1970),
            connection: connection.clone(),
            reason: refusal.reason,
            text: refusal.text,
        });
    }

    /// Writes the line of a connection that is over.
    pub fn closed(&self, connection: &Description, closed: Closed) {
        access!(
            connection,
            dst.hbone_addr = connection.tunnel.map(tracing::field::display),
            security = connection.security.as_str(),
            bytes_sent = closed.response,
            bytes_recv = closed.request,
            duration_ms = milliseconds(closed.age),
            end = closed.ending.map(Ending::as_str),
            error = closed.error,
            "connection closed"
        );
    }
}

/// A duration as logs and pages write it.
#[must_use]
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use admin_api::{ConnectionEnd, Direction};
    use model::{Reason, Security};

    use super::*;
    use crate::labels::{Asked, Party, PartyLabels, Reporter};

    pub(crate) fn of_pod(pod: &str) -> Description {
        Description {
            direction: Direction::Inbound,
            pod: pod.to_owned(),
            source: ConnectionEnd::default(),
            destination: ConnectionEnd::default(),
            service: None,
            security: Security::None,
            tunnel: None,
        }
    }

    fn labels(reporter: Reporter) -> TcpLabels {
        let (source, destination) = (Party::default(), Party::default());
        let asked = Asked::default();
        PartyLabels::new(reporter, source, destination, asked, Security::None).into()
    }

    #[test]
    fn of_what_a_peer_says_at_length_the_beginning_is_kept() {
        let recorder = Recorder::default();
        let (connection, labels) = (of_pod("shop/web"), labels(Reporter::Destination));
        for said in ["no such target".to_owned(), "\u{200b}".repeat(100_000)] {
            let refusal = Refusal {
                reason: Reason::BadRequest,
                text: said.clone(),
            };
            recorder.refuse(&connection, &labels, refusal);
            let kept = recorder.refusals.list().pop().unwrap().text;
            let beginning = kept.strip_suffix(" ...").unwrap_or(&kept);
            assert!(said.starts_with(beginning) && kept.len() < 2100, "{kept}");
        }
    }

    /// F100, F112: the page of metrics has one series for a refusal, with the flag that was given or that of its reason.
    #[test]
    fn a_refusal_is_counted_with_its_reporter_reason_and_flag() {
        let metrics = runtime::metrics::Metrics::new();
        let recorder = Recorder::new(ConnectionMetrics::register(&metrics));
        let refusal = || Refusal {
            reason: Reason::PolicyDeny,
            text: "a policy".to_owned(),
        };
        let plain = labels(Reporter::Source);
        recorder.refuse_many(&of_pod("shop/a"), &plain, refusal(), 3);
        let flagged = TcpLabels {
            response_flags: "UH".into(),
            ..labels(Reporter::Waypoint)
        };
        recorder.refuse(&of_pod("shop/b"), &flagged, refusal());
        let page = metrics.encode();
        let count = |name: &str, parts: &[&str]| -> u64 {
            let mut lines = page.lines().filter(|line| line.starts_with(name));
            let line = lines.find(|line| parts.iter().all(|part| line.contains(part)));
            let value = line.and_then(|line| line.rsplit(' ').next());
            value.map_or(0, |value| value.parse().unwrap())
        };
        for (reporter, flag, number) in [("source", "DENY", 3), ("waypoint", "UH", 1)] {
            let reporter = format!("reporter=\"{reporter}\"");
            let flag = format!("response_flags=\"{flag}\"");
            let refused = [reporter.as_str(), "reason=\"policy_deny\""];
            assert_eq!(count("keelson_connections_refused_total", &refused), number);
            let failed = [reporter.as_str(), flag.as_str()];
            assert_eq!(count("istio_tcp_connections_failed_total", &failed), number);
        }
    }
}
