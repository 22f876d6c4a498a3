//! Rules for connections whose bytes are not read as HTTP: `tcp` and `tls` of a `VirtualService` (F22).

use std::net::IpAddr;
use std::sync::Arc;

use crate::matching::connection_holds;
use crate::request::Client;
use crate::route::{Match, Rule};
use crate::table::kept::Kept;
use crate::table::order::{self, Entry};

/// The rules of a service's port for connections, for one kind of clients. There are few: they are tried in their order.
#[derive(Debug, Default)]
pub(crate) struct Connections(Box<[Entry]>);

impl Connections {
    /// Compiles rules; their order does not matter. Those that ask for a name of TLS go before all others, as in Istio,
    /// where a filter chain with a name is more specific than one without.
    pub(crate) fn compile<'r>(rules: impl IntoIterator<Item = &'r Arc<Kept>>) -> Self {
        let mut all = order::sorted(rules);
        all.sort_by_key(|entry| !asks_for_names(entry));
        Self(all.into())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is a rule that can be for a port.
    pub(crate) fn concern(&self, port: u16) -> bool {
        self.0.iter().any(|entry| {
            let named = of(entry).and_then(|m| m.port);
            named.is_none_or(|named| named == port)
        })
    }

    /// Whether the name that TLS asks for matters.
    pub(crate) fn ask_for_names(&self) -> bool {
        self.0.first().is_some_and(asks_for_names)
    }

    /// The rule of a connection of a client to an address and port, on which TLS asks for a name.
    pub(crate) fn find(
        &self,
        client: Client<'_>,
        dialled: (IpAddr, u16),
        server_name: Option<&str>,
    ) -> Option<&Rule> {
        let mut all = self.0.iter();
        let found = all.find(|entry| {
            of(entry).is_some_and(|m| connection_holds(m, client, dialled, server_name))
        });
        found.map(|entry| &entry.rule().rule)
    }
}

/// Its conditions; one that has none of its own is for no connection.
fn of(entry: &Entry) -> Option<&Match> {
    entry.condition()?.whole()
}

fn asks_for_names(entry: &Entry) -> bool {
    let connection = of(entry).and_then(|m| m.connection.as_ref());
    connection.is_some_and(|one| !one.server_names.is_empty())
}
