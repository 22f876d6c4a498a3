//! Who calls on a connection, from where, and what was dialled: as the node's agent says it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use l7::{Client, Destination};
use model::{Identity, ServiceKey};
use proto::proxy_protocol::Header;
use telemetry::{Asked, Party, Text};

use crate::active::Active;
use crate::edge::EdgePort;
use crate::telemetry::recent::Recent;
use crate::telemetry::{asked_of, party_of_endpoint};

/// The other end of a connection.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) client: SocketAddr,
    pub(crate) dialled: SocketAddr,
    pub(crate) identity: Option<Identity>,
    host: Option<String>,
    principal: Text,
    /// Where it came in, of a client from outside of the mesh.
    pub(crate) edge: Option<EdgePort>,
    /// For the configuration of this generation.
    known: RefCell<Option<(u64, Known)>>,
    /// The metrics of its requests.
    pub(crate) series: Recent,
}

/// What a configuration knows of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) dialled: Dialled,
    pub(crate) namespace: Option<Arc<str>>,
    labels: Option<Arc<BTreeMap<Arc<str>, Arc<str>>>>,
    pub(crate) party: Rc<Party>,
    /// The service that was dialled, for labels.
    pub(crate) asked: Rc<Asked>,
}

/// What was dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dialled {
    Service { key: ServiceKey, port: u16 },
    Workload(SocketAddr),
}

impl Caller {
    pub(crate) fn new(header: Header) -> Self {
        Self {
            client: header.client,
            dialled: header.dialled,
            principal: Text::principal(header.identity.as_ref()),
            identity: header.identity,
            host: header.service,
            edge: None,
            known: RefCell::default(),
            series: Recent::default(),
        }
    }

    /// A client from outside of the mesh, of which nothing but its address is known.
    pub(crate) fn at_edge(header: Header, edge: EdgePort) -> Self {
        Self {
            edge: Some(edge),
            ..Self::new(header)
        }
    }

    /// `http` or `https`, as the client sees it.
    pub(crate) fn scheme(&self) -> &'static str {
        self.edge.as_ref().map_or("http", EdgePort::scheme)
    }

    /// What a configuration knows of it.
    pub(crate) fn known(&self, active: &Active) -> Known {
        let mut known = self.known.borrow_mut();
        match &*known {
            Some((generation, known)) if *generation == active.generation => known.clone(),
            _ => {
                let new = self.look_up(active);
                *known = Some((active.generation, new.clone()));
                new
            }
        }
    }

    fn look_up(&self, active: &Active) -> Known {
        // An address is a hint: where an identity was proved, a workload that has another is not the one.
        let endpoint = active.l7.endpoint_at(self.client.ip());
        let is_same = |identity: Option<&Identity>| {
            self.identity
                .as_ref()
                .is_some_and(|proved| identity == Some(proved))
        };
        let endpoint = endpoint.filter(|one| is_same(one.identity.as_ref()));
        let workload = active.mesh.workload_by_ip("", self.client.ip());
        let workload =
            workload.filter(|one| self.identity.is_none() || is_same(Some(&one.identity())));
        let proved = self.identity.as_ref().map(|one| Arc::clone(&one.namespace));
        let party = match workload {
            Some(one) => Party::new(Some(one), self.principal.clone()),
            None if endpoint.is_some() => endpoint.map_or_else(Party::default, |one| {
                party_of_endpoint(one, self.principal.clone())
            }),
            None => Party {
                namespace: proved.clone().into(),
                ..Party::new(None, self.principal.clone())
            },
        };
        let dialled = self.dialled(active);
        Known {
            asked: Rc::new(match &dialled {
                Dialled::Service { key, .. } => asked_of(&active.mesh, key),
                Dialled::Workload(_) => Asked::default(),
            }),
            dialled,
            namespace: proved,
            labels: endpoint.map(|one| Arc::clone(&one.labels)),
            party: Rc::new(party),
        }
    }

    /// A service by its address. What the client's node says it was counts for a workload's address only, and only where
    /// the workload serves that service there: a headless one has no address of its own.
    fn dialled(&self, active: &Active) -> Dialled {
        let at_edge = self.edge.as_ref();
        if let Some(dialled) = at_edge.and_then(|edge| edge.connection(active)) {
            return dialled;
        }
        let port = self.dialled.port();
        if let Some(service) = active.l7.service_at(self.dialled.ip())
            && service.attached
        {
            return Dialled::Service {
                key: service.key.clone(),
                port,
            };
        }
        let named = self
            .host
            .as_deref()
            .and_then(|host| active.l7.service_named(host));
        let served = named
            .filter(|service| service.attached)
            .and_then(|service| {
                let endpoint = active.l7.endpoint_at(self.dialled.ip())?;
                let served = endpoint
                    .ports
                    .iter()
                    .find(|one| one.service == service.key && one.target == port)?;
                Some((service.key.clone(), served.port))
            });
        match served {
            Some((key, port)) => Dialled::Service { key, port },
            None => Dialled::Workload(self.dialled),
        }
    }

    /// As routes and policies see the client.
    pub(crate) fn as_client<'a>(&'a self, known: &'a Known) -> Client<'a> {
        Client {
            address: self.client.ip(),
            identity: self.identity.as_ref(),
            namespace: known.namespace.as_deref(),
            labels: known.labels.as_deref(),
        }
    }
}

impl Dialled {
    /// As routes and policies see it.
    pub(crate) fn as_destination(&self) -> Destination<'_> {
        match self {
            Self::Service { key, port } => Destination::Service { key, port: *port },
            Self::Workload(address) => Destination::Workload {
                address: address.ip(),
                port: address.port(),
            },
        }
    }
}
