//! The life of one identity in the store: asked for, renewed, ended, forgotten.

use std::error::Error;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use model::identity::Identity;
use tokio::time::Instant;

use super::{Entry, Inner, Progress, Shared, SvidState};
use crate::cert::WorkloadCert;
use crate::clock::sleep_until;
use crate::source::IssueError;
use crate::svid::{Svid, SvidError};

pub(super) struct Life {
    pub(super) identity: Identity,
    pub(super) entry: Arc<Entry>,
    pub(super) shared: Arc<Shared>,
    pub(super) store: Weak<Inner>,
}

impl Life {
    /// Runs until nobody needs the identity.
    pub(super) async fn run(self) {
        tokio::select! {
            () = self.renew() => {}
            () = self.expire() => {}
            () = self.idle() => self.shared.forgotten(&self.identity),
        }
    }

    /// Keeps a certificate in use, for ever.
    async fn renew(&self) {
        if let Some(svid) = self.load()
            && let Err(error) = self.put_into_use(&svid, Duration::ZERO)
        {
            self.failed(error);
        }
        loop {
            let due = self.entry.progress.borrow().renewal;
            if let Some(due) = due
                && self.entry.cert.borrow().is_some()
            {
                sleep_until(self.clock(), due).await;
            }
            let asked = Instant::now();
            let issued = self.ask().await.and_then(|svid| {
                self.put_into_use(&svid, asked.elapsed())?;
                Ok(svid)
            });
            match issued {
                Ok(svid) => self.save(&svid),
                Err(error) => tokio::time::sleep(self.failed(error)).await,
            }
        }
    }

    async fn ask(&self) -> Result<Svid, IssueError> {
        // A closed semaphore means that the store is gone, and this task with it.
        let _slot = self.shared.slots.acquire().await;
        let serving = self.entry.cert.borrow().is_some();
        self.entry.progress.send_modify(|progress| {
            progress.state = match (serving, progress.failures) {
                (true, 0) => SvidState::Renewing,
                (false, 0) => SvidState::Requesting,
                _ => SvidState::Failing,
            };
        });
        let limit = self.shared.policy.request_timeout;
        let svid = tokio::time::timeout(limit, self.shared.source.issue(&self.identity))
            .await
            .unwrap_or(Err(IssueError::Timeout(limit)))?;
        if svid.identity != self.identity {
            let got = svid.identity.to_string();
            let asked = self.identity.clone();
            let wrong = SvidError::OtherIdentity { asked, got };
            return Err(IssueError::unusable(&self.identity, wrong));
        }
        Ok(svid)
    }

    /// Makes `svid` the one that watchers see, and plans its renewal.
    fn put_into_use(&self, svid: &Svid, round_trip: Duration) -> Result<(), IssueError> {
        let cert = WorkloadCert::new(svid, &self.shared.options).map_err(|error| {
            let malformed = SvidError::Malformed(error.to_string());
            IssueError::unusable(&self.identity, malformed)
        })?;
        let cert = Arc::new(cert);
        let renewal = self.shared.policy.renewal(
            svid.obtained,
            svid.not_after,
            round_trip,
            rand::random_range(0.0..1.0),
        );
        tracing::debug!(identity = %self.identity, serial = cert.info().serial, "certificate in use");
        self.shared.events.issued(cert.info());
        self.entry.cert.send_replace(Some(cert));
        self.entry.progress.send_replace(Progress {
            state: SvidState::Valid,
            renewal: Some(renewal),
            failures: 0,
            last_error: None,
        });
        Ok(())
    }

    /// Notes a failure and returns how long to wait before the next attempt.
    fn failed(&self, error: IssueError) -> Duration {
        let left = self.entry.cert.borrow().as_ref().map(|cert| {
            let end = cert.info().not_after;
            end.duration_since(self.clock().now()).unwrap_or_default()
        });
        self.shared.events.failed(&self.identity, &error);
        tracing::warn!(
            identity = %self.identity,
            reason = error.code(),
            error = &error as &dyn Error,
            left_s = left.map(|left| left.as_secs()),
            "no certificate was issued"
        );
        let mut failures = 1;
        self.entry.progress.send_modify(|progress| {
            progress.state = SvidState::Failing;
            progress.failures = progress.failures.saturating_add(1);
            progress.last_error = Some(error);
            failures = progress.failures;
        });
        let random = rand::random_range(0.0..1.0);
        self.shared.policy.retry(failures, left, random)
    }

    /// Takes a certificate out of use when it ends; peers would refuse it with a less helpful reason.
    async fn expire(&self) {
        let mut progress = self.entry.progress.subscribe();
        loop {
            let end = self
                .entry
                .cert
                .borrow()
                .as_ref()
                .map(|cert| cert.info().not_after);
            let ended = async {
                match end {
                    Some(end) => sleep_until(self.clock(), end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = progress.changed() => if changed.is_err() { return },
                () = ended => {
                    tracing::warn!(identity = %self.identity, "the certificate expired before a new one was issued");
                    self.shared.events.expired(&self.identity);
                    self.entry.cert.send_replace(None);
                }
            }
        }
    }

    /// Ends when the identity had no user for the linger time and has been dropped from the store.
    async fn idle(&self) {
        loop {
            self.entry.cert.closed().await;
            tokio::time::sleep(self.shared.policy.linger).await;
            if self.entry.pinned.load(Ordering::Relaxed) {
                continue;
            }
            let Some(store) = self.store.upgrade() else {
                return std::future::pending().await;
            };
            if store.forget_unused(&self.identity, &self.entry) {
                return;
            }
        }
    }

    fn load(&self) -> Option<Svid> {
        let directory = self.shared.directory.as_ref()?;
        match directory.load(&self.identity, self.clock().now()) {
            Ok(svid) => svid,
            Err(error) => {
                tracing::info!(identity = %self.identity, error = &error as &dyn Error, "a kept certificate is not used");
                None
            }
        }
    }

    fn save(&self, svid: &Svid) {
        if let Some(Err(error)) = self.shared.directory.as_ref().map(|kept| kept.save(svid)) {
            tracing::warn!(
                identity = %self.identity,
                error = &error as &dyn Error,
                "a certificate could not be kept for a restart"
            );
        }
    }

    fn clock(&self) -> &dyn crate::clock::Clock {
        self.shared.options.clock.as_ref()
    }
}
