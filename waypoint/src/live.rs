//! Requests that last: policy that changes meanwhile ends those that it refuses.

use std::net::SocketAddr;
use std::rc::Rc;

use http::request::Parts;
use l7::Path;

use crate::active::Active;
use crate::authorize::authorize;
use crate::balance::Candidate;
use crate::caller::{Caller, Known};
use crate::reply::Reply;
use crate::serve::Exchange;
use crate::worker::Worker;

/// What a policy is asked about a request that lasts.
pub(crate) struct Judged {
    pub(crate) caller: Rc<Caller>,
    pub(crate) known: Known,
    pub(crate) head: Parts,
    pub(crate) authority: String,
    pub(crate) endpoint: Option<SocketAddr>,
}

impl Judged {
    pub(crate) fn of(exchange: &Exchange<'_>, endpoint: Option<SocketAddr>) -> Self {
        let head = exchange.head;
        let mut copy = http::Request::new(()).into_parts().0;
        copy.method = head.method.clone();
        copy.uri = head.uri.clone();
        copy.version = head.version;
        copy.headers = head.headers.clone();
        Self {
            caller: Rc::clone(exchange.caller),
            known: exchange.known.clone(),
            head: copy,
            authority: exchange.authority.to_owned(),
            endpoint,
        }
    }

    fn judge(&self, worker: &Rc<Worker>, active: &std::sync::Arc<Active>) -> Result<(), Reply> {
        let target = self
            .head
            .uri
            .path_and_query()
            .map_or("*", |path| path.as_str());
        let path = Path::new(target).map_err(|error| Reply::bad_request(error.to_string()))?;
        let exchange = Exchange {
            worker,
            caller: &self.caller,
            active,
            known: &self.known,
            head: &self.head,
            authority: &self.authority,
            path: &path,
            early: None,
        };
        let Some(address) = self.endpoint else {
            return Ok(());
        };
        // An endpoint that is gone is the connection's own business.
        let Some(endpoint) = active.l7.endpoint_at(address.ip()) else {
            return Ok(());
        };
        let member = l7::backend::Member {
            endpoint: std::sync::Arc::clone(endpoint),
            address,
            ready: true,
        };
        authorize(active, &exchange.request(), &Candidate::alone(member)).map_err(Reply::denied)
    }
}

/// Resolves when policy has come to refuse it.
pub(crate) async fn until_refused(worker: &Rc<Worker>, judged: &Judged) -> Reply {
    let mut changes = worker.shared.newest.changes();
    loop {
        let active = worker.shared.newest.load();
        if let Err(reply) = judged.judge(worker, &active) {
            return reply;
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
