//! What there is to say of Istio's traffic objects, of which nodes take nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use manifest::{Diagnostic, Kind, ObjectKey, ObjectKind, Origin, Severity};

use super::{Policies, Tracked};
use crate::pipeline::Viewer;

/// Whether objects of a kind have a status that says what becomes of them. Those of the Gateway API have theirs in that
/// API's words.
pub(crate) fn is_told(kind: Kind) -> bool {
    let is_traffic = matches!(
        kind,
        Kind::VirtualService | Kind::DestinationRule | Kind::IstioGateway | Kind::ServiceEntry
    );
    is_traffic || kind.policy().is_some()
}

/// What is legal in traffic objects and surely not meant, as it was last asked for.
#[derive(Default)]
pub(super) struct Lint {
    asked: Option<Instant>,
    known: Option<(u64, Vec<Diagnostic>)>,
}

impl Lint {
    /// Asks again after a while: all objects are looked at for it.
    pub(super) async fn newest(&mut self, viewer: &Viewer) -> &[Diagnostic] {
        if self.asked.is_none_or(|at| at.elapsed() >= LINT_EVERY) {
            self.asked = Some(Instant::now());
            let version = self.known.as_ref().map(|(version, _)| *version);
            if let Ok(Some(newest)) = viewer.lint(version).await {
                self.known = Some(newest);
            }
        }
        self.known.as_ref().map_or(&[], |(_, found)| found)
    }
}

/// Traffic objects that cannot be read and never could: of these there are findings alone.
pub(super) fn broken(policies: &Policies, findings: &[Diagnostic]) -> Policies {
    let of = findings.iter().filter_map(|finding| {
        let Some(ObjectKind::Known(kind)) = finding.kind else {
            return None;
        };
        let Origin::Object { uid, generation } = &finding.origin else {
            return None;
        };
        let is_refused = finding.severity == Severity::Error;
        let key = ObjectKey::new(kind, &finding.namespace, &finding.name);
        // A policy that cannot be read is one that refuses, and is known by that.
        let is_traffic = is_told(kind) && kind.policy().is_none();
        let is_here = is_traffic && is_refused && !policies.contains_key(&key);
        is_here.then(|| {
            let tracked = Tracked {
                uid: Arc::clone(uid),
                generation: *generation,
                snapshot: 0,
            };
            (key, tracked)
        })
    });
    of.collect()
}

/// How often all traffic objects are looked at beside each other.
const LINT_EVERY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(kind: Kind, severity: Severity) -> Diagnostic {
        let origin = Origin::Object {
            uid: "u".into(),
            generation: 4,
        };
        let key = ObjectKey::new(kind, "shop", "cart");
        Diagnostic::new(severity, &origin, Some(&key), "unknown field")
    }

    /// A64: also an object that nothing was ever compiled of gets its status.
    #[test]
    fn what_never_could_be_read_is_told_of_by_its_findings() {
        let of = |kind, severity| broken(&Policies::new(), &[finding(kind, severity)]).len();
        for kind in [
            Kind::VirtualService,
            Kind::DestinationRule,
            Kind::IstioGateway,
            Kind::ServiceEntry,
        ] {
            assert_eq!(of(kind, Severity::Error), 1, "{kind:?}");
            assert_eq!(of(kind, Severity::Warning), 0, "{kind:?}");
        }
        assert_eq!(
            of(Kind::HttpRoute, Severity::Error),
            0,
            "it has another status"
        );
        for kind in [Kind::Pod, Kind::AuthorizationPolicy] {
            assert_eq!(of(kind, Severity::Error), 0, "{kind:?}");
        }
        let key = ObjectKey::new(Kind::VirtualService, "shop", "cart");
        let tracked = Tracked {
            uid: "u".into(),
            generation: 3,
            snapshot: 7,
        };
        let known = Policies::from([(key, tracked)]);
        let found = [finding(Kind::VirtualService, Severity::Error)];
        assert!(
            broken(&known, &found).is_empty(),
            "it is known by an earlier version"
        );
    }
}
