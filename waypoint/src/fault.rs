//! What goes wrong on purpose (F62, F63): a delay holds no thread, an abort never reaches a server.

use http::Response;
use l7::Rule;
use l7::route::{Abort, Share};
use rand::RngExt as _;

use crate::forward::body::Answer;
use crate::reply::{self, Reply};
use crate::telemetry::{Flag, Record};

/// Waits, if the request is one of those that shall; gives the record back, or the answer of an abort.
pub(crate) async fn inject(
    rule: &Rule,
    mut record: Box<Record>,
) -> Result<Box<Record>, Response<Answer>> {
    let Some(fault) = &rule.fault else {
        return Ok(record);
    };
    if let Some((share, delay)) = fault.delay
        && is_drawn(share)
    {
        record.flag(Flag::DelayInjected);
        tokio::time::sleep(delay).await;
    }
    match fault.abort {
        Some((share, abort)) if is_drawn(share) => Err(match abort {
            Abort::Http(status) => Reply::abort(status, rule.origin.to_string()).answer(record),
            Abort::Grpc(status) => {
                record.flag(Flag::FaultInjected);
                record.reason = Some(("fault", rule.origin.to_string()));
                reply::grpc(status, "fault filter abort", record)
            }
        }),
        _ => Ok(record),
    }
}

/// Whether this request is one of a share of all.
pub(crate) fn is_drawn(share: Share) -> bool {
    share == Share::ALL || share.holds(rand::rng().random_range(0..1_000_000))
}
