//! One listener of a gateway while it is put together: its virtual hosts, and what is attached to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use l7::listener::{Listener, Reads, VirtualHost};
use l7::route::Attachment;
use l7::{HostPattern, Origin, Service};
use manifest::{Kind, NamespacedName};
use model::ServiceKey;
use model::service::{AppProtocol, ServicePort};
use proto::{l7 as pb, type_url};

use super::Built;
use crate::resource::Resource;

/// A listener that is being put together.
pub(super) struct Place {
    /// Unlike the listener's own name, no other listener of the gateway has it, whichever API that is written in.
    pub(super) name: String,
    pub(super) api: Api,
    listener: Listener,
    hosts: BTreeMap<HostPattern, ServiceKey>,
}

impl Place {
    pub(super) fn new(api: Api, listener: Listener) -> Self {
        Self {
            name: api.place(listener.port, &listener.name),
            api,
            listener,
            hosts: BTreeMap::new(),
        }
    }

    /// Whose requests are taken.
    pub(super) fn host(&self) -> &HostPattern {
        &self.listener.host
    }

    /// Whether what another listener of its port reads leaves nothing for it: TLS and plain HTTP cannot be told apart on one
    /// port, where nothing is read there is no other, and what one name asks for is read in one way.
    pub(super) fn clashes(&self, other: &Self) -> bool {
        let (own, theirs) = (&self.listener, &other.listener);
        let takes_all = |one: &Listener| one.reads == Reads::Nothing && !one.speaks_tls();
        own.port == theirs.port
            && match self.name == other.name {
                true => own.reads != theirs.reads,
                false => {
                    own.speaks_tls() != theirs.speaks_tls() || takes_all(own) != takes_all(theirs)
                }
            }
    }

    /// Where rules for a host are attached.
    pub(super) fn attach(&mut self, namespace: &Arc<str>, host: HostPattern) -> Attachment {
        let name = &self.name;
        let key = self.hosts.entry(host).or_insert_with_key(|host| {
            ServiceKey::new(Arc::clone(namespace), format!("{name}|{host}"))
        });
        Attachment {
            service: key.clone(),
            port: None,
            client_namespace: None,
        }
    }
}

/// What a listener is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Gateway,
    Istio,
    Ingress,
}

impl Api {
    /// The name of the place of a listener on a port.
    pub(super) fn place(self, port: u16, listener: &str) -> String {
        let api = match self {
            Self::Gateway => "gateway",
            Self::Istio => "istio",
            Self::Ingress => "ingress",
        };
        format!("{api}/{port}/{listener}")
    }
}

/// By object, and by the place where its rules were compiled for, what they are attached to.
#[derive(Default)]
pub(super) struct Attachments {
    pub(super) routes: BTreeMap<(Kind, NamespacedName), BTreeSet<Attachment>>,
    pub(super) virtual_services: BTreeMap<(NamespacedName, NamespacedName), BTreeSet<Attachment>>,
    pub(super) redirects: Vec<(Origin, BTreeSet<Attachment>)>,
}

pub(super) fn finish(place: Place, built: &mut Built) {
    let Place {
        name,
        api: _,
        mut listener,
        hosts,
    } = place;
    for (host, key) in hosts {
        let service = Service {
            key: key.clone(),
            addresses: Vec::new(),
            ports: vec![ServicePort {
                port: listener.port,
                target_port: 0,
                app_protocol: match listener.reads {
                    Reads::Requests => AppProtocol::Http11,
                    Reads::Names => AppProtocol::Tls,
                    Reads::Nothing => AppProtocol::Tcp,
                },
            }],
            attached: true,
        };
        let message = pb::Service::from(&service);
        built.services.push(Resource::new(
            type_url::L7_SERVICE,
            key.to_string(),
            &message,
        ));
        listener.hosts.push(VirtualHost { host, key });
    }
    let message = pb::Listener::from(&listener);
    built
        .listeners
        .push(Resource::new(type_url::L7_LISTENER, name, &message));
}
