//! Which replica writes: who holds a Lease of `coordination.k8s.io`. By each replica's own clock, so that clocks that differ
//! give it to nobody twice for longer than a write takes.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tracing::{debug, info};

use crate::installation::Installation;

/// The election of the writer.
pub struct Lease {
    leases: Api<Object>,
    installation: Installation,
    me: String,
    seen: Option<Seen>,
}

/// What the Lease said when it last said something new.
struct Seen {
    spec: LeaseSpec,
    at: Instant,
}

/// What to do about the Lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There is none.
    Create,
    /// It is ours, or nobody's any more.
    Replace,
    /// Somebody else holds it.
    Wait,
}

impl Lease {
    /// The Lease of the installation in `namespace`, for a replica of this name.
    pub fn new(client: Client, namespace: &str, me: &str) -> Self {
        Self {
            leases: Api::namespaced(client.clone(), namespace),
            installation: Installation::new(client, namespace),
            me: me.to_owned(),
            seen: None,
        }
    }

    /// Tries to hold it for ever, and tells whether it is held.
    pub async fn run(mut self, leads: watch::Sender<bool>) {
        let mut renewed = Instant::now();
        loop {
            let (began, tried) = (Instant::now(), self.attempt());
            match tokio::time::timeout(EVERY, tried).await {
                Ok(Ok(holds)) => {
                    renewed = began;
                    tell(&leads, holds);
                }
                Ok(Err(error)) => debug!(%error, "cannot ask for the Lease"),
                Err(_elapsed) => debug!("the API server does not answer about the Lease"),
            }
            // Long before another may take it.
            if renewed.elapsed() > GIVE_UP {
                tell(&leads, false);
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn attempt(&mut self) -> kube::Result<bool> {
        let there = self.leases.get_opt(NAME).await?;
        let params = PostParams::default();
        let answer = match self.step(there.as_ref().and_then(|lease| lease.spec.as_ref())) {
            Step::Wait => return Ok(false),
            Step::Create => {
                let lease = Object {
                    metadata: ObjectMeta {
                        name: Some(NAME.to_owned()),
                        owner_references: self.installation.owners().await?,
                        ..ObjectMeta::default()
                    },
                    spec: Some(self.claim(None)),
                };
                self.leases.create(&params, &lease).await
            }
            Step::Replace => {
                // With the revision that was read: of two that try, one is refused.
                let mut lease = there.unwrap_or_default();
                lease.spec = Some(self.claim(lease.spec.as_ref()));
                if lease.metadata.owner_references.is_none() {
                    lease.metadata.owner_references = self.installation.owners().await?;
                }
                self.leases.replace(NAME, &params, &lease).await
            }
        };
        match answer {
            Ok(lease) => {
                self.see(lease.spec.unwrap_or_default());
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn step(&mut self, there: Option<&LeaseSpec>) -> Step {
        let Some(spec) = there else {
            return Step::Create;
        };
        let is_ours = spec.holder_identity.as_deref() == Some(&*self.me);
        let is_free = spec.holder_identity.as_deref().is_none_or(str::is_empty);
        if self.seen.as_ref().is_none_or(|seen| seen.spec != *spec) {
            self.see(spec.clone());
        }
        let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default());
        let life = Duration::from_secs(seconds.unwrap_or_default());
        let is_over = self
            .seen
            .as_ref()
            .is_some_and(|seen| seen.at.elapsed() > life);
        if is_ours || is_free || is_over {
            Step::Replace
        } else {
            Step::Wait
        }
    }

    fn see(&mut self, spec: LeaseSpec) {
        self.seen = Some(Seen {
            spec,
            at: Instant::now(),
        });
    }

    fn claim(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let before = before.cloned().unwrap_or_default();
        let is_ours = before.holder_identity.as_deref() == Some(&*self.me);
        let transitions = before.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(LIFE),
            acquire_time: before
                .acquire_time
                .filter(|_| is_ours)
                .or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(!is_ours)),
            ..LeaseSpec::default()
        }
    }
}

fn tell(leads: &watch::Sender<bool>, holds: bool) {
    leads.send_if_modified(|known| {
        let changed = *known != holds;
        if changed {
            info!(writer = holds, "the Lease");
        }
        *known = holds;
        changed
    });
}

const NAME: &str = "keelson-controller";
/// Seconds without a renewal after which another takes it.
const LIFE: i32 = 15;
const EVERY: Duration = Duration::from_secs(2);
/// Who could not renew it for this long writes no more.
const GIVE_UP: Duration = Duration::from_secs(9);

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(me: &str) -> Lease {
        let config = kube::Config::new("http://127.0.0.1:1".parse().expect("a URL"));
        let client = Client::try_from(config).expect("a client");
        Lease::new(client, "mesh", me)
    }

    /// F136: one writer.
    #[tokio::test]
    async fn who_holds_it_keeps_it_and_another_waits_until_it_is_not_renewed() {
        let (mut a, mut b) = (lease("a"), lease("b"));
        assert_eq!(a.step(None), Step::Create);
        let held = a.claim(None);
        assert_eq!(
            (a.step(Some(&held)), b.step(Some(&held))),
            (Step::Replace, Step::Wait)
        );
        let renewed = a.claim(Some(&held));
        assert_eq!(
            renewed.lease_transitions,
            Some(1),
            "the first holder is a change"
        );
        assert_eq!(renewed.acquire_time, held.acquire_time);
        // By b's own clock the Lease has said nothing new for longer than it lives.
        let long_ago = Instant::now().checked_sub(Duration::from_secs(16));
        b.seen = Some(Seen {
            spec: renewed.clone(),
            at: long_ago.expect("the machine runs that long"),
        });
        assert_eq!(b.step(Some(&renewed)), Step::Replace);
        let taken = b.claim(Some(&renewed));
        assert_eq!(taken.lease_transitions, Some(2));
        assert_eq!(a.step(Some(&taken)), Step::Wait);
    }
}
