//! Rules for connections whose bytes are not read as HTTP: `tcp` and `tls` of a `VirtualService` (F22).

use std::net::IpAddr;
use std::sync::Arc;

use crate::matching::connection_holds;
use crate::request::Client;
use crate::route::{Match, RouteRule, Rule};
use crate::table::order;

/// The rules of a service's port for connections, for one kind of clients. There are few: they are tried in their order.
#[derive(Debug, Default)]
pub(crate) struct Connections(Vec<(Match, Arc<Rule>)>);

impl Connections {
    /// Compiles rules; their order does not matter. Those that ask for a name of TLS go before all others, as in Istio,
    /// where a filter chain with a name is more specific than one without.
    pub(crate) fn compile<'r>(rules: impl IntoIterator<Item = &'r RouteRule>) -> Self {
        let sorted = order::sorted(rules).into_iter();
        let mut all: Vec<(Match, Arc<Rule>)> =
            sorted.map(|(m, rule)| (m, Arc::clone(rule))).collect();
        all.sort_by_key(|(m, _)| !asks_for_names(m));
        Self(all)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is a rule that can be for a port.
    pub(crate) fn concern(&self, port: u16) -> bool {
        self.0
            .iter()
            .any(|(m, _)| m.port.is_none_or(|named| named == port))
    }

    /// Whether the name that TLS asks for matters.
    pub(crate) fn ask_for_names(&self) -> bool {
        self.0.first().is_some_and(|(m, _)| asks_for_names(m))
    }

    /// The rule of a connection of a client to an address and port, on which TLS asks for a name.
    pub(crate) fn find(
        &self,
        client: Client<'_>,
        dialled: (IpAddr, u16),
        server_name: Option<&str>,
    ) -> Option<&Arc<Rule>> {
        let mut all = self.0.iter();
        let found = all.find(|(m, _)| connection_holds(m, client, dialled, server_name));
        found.map(|(_, rule)| rule)
    }
}

fn asks_for_names(m: &Match) -> bool {
    let names = m.connection.as_ref().map(|one| one.server_names.is_empty());
    names == Some(false)
}
