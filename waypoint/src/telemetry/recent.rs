//! The metrics that the requests of a connection have used last, found again without a look at any label.

use std::cell::RefCell;
use std::rc::Rc;

use http::StatusCode;

use super::Series;
use super::record::Parties;

/// What a connection's requests have used last.
#[derive(Debug, Default)]
pub(crate) struct Recent(RefCell<Vec<(Kind, Series)>>);

/// What tells the metrics of requests apart. Parties are held, so that they are no others while they are compared by place.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) parties: Parties,
    pub(crate) is_grpc: bool,
    pub(crate) status: StatusCode,
    pub(crate) grpc_status: Option<u32>,
}

impl Recent {
    /// The metrics of a kind of requests; `find` looks them up where they have not been used of late.
    pub(crate) fn get(&self, kind: &Kind, find: impl FnOnce() -> Series) -> Series {
        let mut known = self.0.borrow_mut();
        if let Some((_, series)) = known.iter().find(|(one, _)| one.is(kind)) {
            return series.clone();
        }
        let series = find();
        if known.len() >= MOST {
            known.remove(0);
        }
        known.push((kind.clone(), series.clone()));
        series
    }
}

impl Kind {
    fn is(&self, other: &Self) -> bool {
        let (one, two) = (&self.parties, &other.parties);
        Rc::ptr_eq(&one.source, &two.source)
            && Rc::ptr_eq(&one.destination, &two.destination)
            && Rc::ptr_eq(&one.asked, &two.asked)
            && self.is_grpc == other.is_grpc
            && self.status == other.status
            && self.grpc_status == other.grpc_status
    }
}

/// Kinds that a connection remembers.
const MOST: usize = 8;

#[cfg(test)]
mod tests {
    use runtime::metrics::Metrics;

    use super::super::Telemetry;
    use super::super::labels::{Grpc, HttpLabels};
    use super::super::labels_of;
    use super::*;

    /// Whatever is remembered: each kind counts under its own labels.
    #[test]
    fn a_kind_that_is_found_again_counts_under_its_own_labels() {
        let telemetry = Telemetry::register(&Metrics::new());
        let recent = Recent::default();
        let parties = [Parties::default(), Parties::default()];
        let labels = |kind: &Kind| HttpLabels {
            parties: labels_of(
                &kind.parties.source,
                &kind.parties.destination,
                &kind.parties.asked,
            ),
            request_protocol: if kind.is_grpc { "grpc" } else { "http" },
            response_code: kind.status.as_u16(),
            grpc_response_status: Grpc(kind.grpc_status),
            response_flags: "-".into(),
        };
        let kinds: Vec<Kind> = (200..200 + 2 * MOST)
            .map(|status| Kind {
                parties: parties[status % 2].clone(),
                is_grpc: status % 3 == 0,
                status: StatusCode::from_u16(u16::try_from(status).unwrap()).unwrap(),
                grpc_status: (status % 3 == 0).then_some(0),
            })
            .collect();
        for round in 1..=3 {
            for kind in kinds.iter().flat_map(|kind| [kind, kind]) {
                let series = recent.get(kind, || telemetry.series(&labels(kind)));
                series.count(1.0, 0, 0);
            }
            for kind in &kinds {
                assert_eq!(telemetry.series(&labels(kind)).requests.get(), 2 * round);
            }
        }
        assert!(recent.0.borrow().len() <= MOST);
    }

    #[test]
    fn what_was_used_is_not_looked_up_again() {
        let telemetry = Telemetry::register(&Metrics::new());
        let recent = Recent::default();
        let kind = Kind {
            parties: Parties::default(),
            is_grpc: false,
            status: StatusCode::OK,
            grpc_status: None,
        };
        let labels = HttpLabels {
            parties: labels_of(
                &kind.parties.source,
                &kind.parties.destination,
                &kind.parties.asked,
            ),
            request_protocol: "http",
            response_code: 200,
            grpc_response_status: Grpc(None),
            response_flags: "-".into(),
        };
        recent.get(&kind, || telemetry.series(&labels));
        recent.get(&kind, || unreachable!("it is known"));
    }
}
