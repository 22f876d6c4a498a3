//! Gateways at the edge of the mesh: `Gateway` of the Gateway API (class `keelson`), and Istio's.
//!
//! A listener or server that says what cannot be carried out is left out as a whole, with an error on its field: without
//! that it would be another one.

mod istio;

use k8s_api::LabelSelector;
use k8s_api::gateway::{AllowedRoutes, Gateway, Listener};
use l7::HostPattern;
use l7::listener::Reads;
use manifest::{Kind, NamespacedName};

pub(crate) use self::istio::{ClientRoots, IstioServers, istio};
use super::notes::Notes;
use crate::index::authorization::Note;

/// The class of gateways at the edge.
pub(crate) const CLASS: &str = "keelson";

/// What a `Gateway` of the Gateway API says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Listeners {
    /// Its listeners, in their order.
    pub(crate) all: Vec<Door>,
    /// What its author should know.
    pub(crate) notes: Vec<Note>,
}

/// One listener.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Door {
    /// Its name.
    pub(crate) name: String,
    /// Its port.
    pub(crate) port: u16,
    /// Whose requests it takes.
    pub(crate) host: HostPattern,
    /// The Secrets with its certificates; `None` where TLS does not end here.
    pub(crate) tls: Option<Vec<NamespacedName>>,
    /// What is read of what comes.
    pub(crate) reads: Reads,
    /// Whose routes it takes.
    pub(crate) from: From,
    /// The kinds of routes that it takes.
    pub(crate) kinds: Vec<Kind>,
}

impl Door {
    /// Whether clients begin with TLS.
    fn speaks_tls(&self) -> bool {
        self.tls.is_some() || self.reads == Reads::Names
    }

    /// Whether whatever comes to its port is for it, for nothing is read of it.
    fn takes_all(&self) -> bool {
        self.reads == Reads::Nothing && self.tls.is_none()
    }
}

/// From which namespaces routes are taken.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum From {
    /// The Gateway's own.
    Same,
    /// All.
    All,
    /// Those with such labels.
    Selector(LabelSelector),
    /// None.
    None,
}

/// Compiles one `Gateway`; `None` if it is not of our class.
pub(crate) fn listeners(gateway: &Gateway) -> Option<Listeners> {
    let spec = &gateway.spec;
    if spec.gateway_class_name != CLASS {
        return None;
    }
    let key = NamespacedName::of(&gateway.metadata);
    let mut notes = Notes::default();
    for (field, is_there) in [
        ("spec.addresses", spec.addresses.is_some()),
        ("spec.backendTls", spec.backend_tls.is_some()),
        ("spec.allowedListeners", spec.allowed_listeners.is_some()),
        ("spec.defaultScope", spec.default_scope.is_some()),
    ] {
        if is_there {
            notes.error(field, "is not supported: it has no effect");
        }
    }
    let tls_of_all = spec.tls.is_some();
    if tls_of_all {
        let message = "is not supported: listeners with TLS are left out, for they would not ask what it asks";
        notes.error("spec.tls", message);
    }
    let mut all: Vec<Door> = Vec::new();
    for (index, listener) in spec.listeners.iter().enumerate() {
        let field = format!("spec.listeners[{index}]");
        let Some(door) = door(&field, listener, &key.namespace, &mut notes) else {
            continue;
        };
        if door.tls.is_some() && tls_of_all {
            continue;
        }
        // TLS that ends here and TLS that passes are told apart by the name.
        let conflict = all.iter().find(|other| {
            other.port == door.port
                && (other.host == door.host
                    || other.speaks_tls() != door.speaks_tls()
                    || other.takes_all() != door.takes_all())
        });
        match conflict {
            Some(other) => {
                let message = format!(
                    "is in conflict with listener {}: it is left out",
                    other.name
                );
                notes.error(field, message);
            }
            None => all.push(door),
        }
    }
    Some(Listeners {
        all,
        notes: notes.0,
    })
}

fn door(field: &str, listener: &Listener, namespace: &str, notes: &mut Notes) -> Option<Door> {
    let mut errors = notes.errors();
    let (tls, reads) = match listener.protocol.as_str() {
        protocol @ ("HTTP" | "TCP") => {
            if listener.tls.is_some() {
                notes.error(format!("{field}.tls"), format!("is not for {protocol}"));
            }
            let reads = match protocol {
                "HTTP" => Reads::Requests,
                _ => Reads::Nothing,
            };
            (None, reads)
        }
        "HTTPS" => {
            let (found, wrong) = certificates(field, listener, namespace, notes);
            // Without a certificate it is not opened, and is there for who asks for its routes.
            errors += wrong;
            (Some(found), Reads::Requests)
        }
        "TLS" if passes(field, listener, notes) => (None, Reads::Names),
        "TLS" => {
            let (found, wrong) = certificates(field, listener, namespace, notes);
            errors += wrong;
            (Some(found), Reads::Nothing)
        }
        other => {
            let message = format!("{other:?} is not supported; HTTP, HTTPS, TLS and TCP are");
            notes.error(format!("{field}.protocol"), message);
            (None, Reads::Nothing)
        }
    };
    let Some(port) = listener.port.filter(|port| *port > 0) else {
        notes.error(format!("{field}.port"), "is missing");
        return None;
    };
    let ends = tls.is_some();
    let (from, kinds) = allowed(
        field,
        listener.allowed_routes.as_ref(),
        (reads, ends),
        notes,
    );
    (notes.errors() == errors).then(|| Door {
        name: listener.name.clone(),
        port,
        host: HostPattern::new(listener.hostname.as_deref().unwrap_or_default()),
        tls,
        reads,
        from,
        kinds,
    })
}

/// Whether TLS passes a listener of protocol TLS, and is not decrypted here.
fn passes(field: &str, listener: &Listener, notes: &mut Notes) -> bool {
    let tls = listener.tls.as_ref();
    let passes = tls.and_then(|tls| tls.mode.as_deref()) == Some("Passthrough");
    if passes && tls.is_some_and(|tls| !tls.certificate_refs.is_empty()) {
        let message = "has no effect: TLS passes";
        notes.warning(format!("{field}.tls"), message);
    }
    passes
}

/// The Secrets of a listener, and how many references lead to something else.
fn certificates(
    field: &str,
    listener: &Listener,
    namespace: &str,
    notes: &mut Notes,
) -> (Vec<NamespacedName>, usize) {
    let field = format!("{field}.tls");
    let Some(tls) = &listener.tls else {
        notes.error(field, "is missing");
        return (Vec::new(), 0);
    };
    if tls.mode.as_deref().is_some_and(|mode| mode != "Terminate") {
        notes.error(format!("{field}.mode"), "is not supported; Terminate is");
    }
    for (name, is_there) in [
        ("options", tls.options.is_some()),
        ("frontendValidation", tls.frontend_validation.is_some()),
    ] {
        if is_there {
            notes.error(format!("{field}.{name}"), "is not supported");
        }
    }
    if tls.certificate_refs.is_empty() {
        notes.error(format!("{field}.certificateRefs"), "is missing");
    }
    let mut found = Vec::new();
    let errors = notes.errors();
    for (index, one) in tls.certificate_refs.iter().enumerate() {
        let group = one.group.as_deref().unwrap_or_default();
        let kind = one.kind.as_deref().unwrap_or("Secret");
        if (group, kind) != ("", "Secret") {
            let message = format!("a certificate of kind {kind} is not supported");
            notes.error(format!("{field}.certificateRefs[{index}].kind"), message);
            continue;
        }
        let of = one.namespace.as_deref().unwrap_or(namespace);
        found.push(NamespacedName::new(of, &one.name));
    }
    (found, notes.errors() - errors)
}

/// From which namespaces a listener lets something come; else which field says nothing that can be understood, and why.
pub(crate) fn from(written: Option<&AllowedRoutes>) -> Result<From, (&'static str, String)> {
    let namespaces = written.and_then(|written| written.namespaces.as_ref());
    match namespaces.and_then(|one| one.from.as_deref()) {
        None | Some("Same") => Ok(From::Same),
        Some("All") => Ok(From::All),
        Some("None") => Ok(From::None),
        Some("Selector") => {
            let selector = namespaces.and_then(|one| one.selector.clone());
            let selector = selector.map(From::Selector);
            selector.ok_or_else(|| ("selector", "is missing".to_owned()))
        }
        Some(other) => {
            let message = format!("{other:?} means nothing; write Same, All, Selector or None");
            Err(("from", message))
        }
    }
}

fn allowed(
    field: &str,
    written: Option<&AllowedRoutes>,
    (reads, ends): (Reads, bool),
    notes: &mut Notes,
) -> (From, Vec<Kind>) {
    let field = format!("{field}.allowedRoutes");
    let from = from(written).unwrap_or_else(|(name, message)| {
        notes.error(format!("{field}.namespaces.{name}"), message);
        From::None
    });
    let possible: &[Kind] = match (reads, ends) {
        (Reads::Requests, _) => &[Kind::HttpRoute, Kind::GrpcRoute],
        (Reads::Names, _) => &[Kind::TlsRoute],
        // TLS that ends has told a name.
        (Reads::Nothing, true) => &[Kind::TcpRoute, Kind::TlsRoute],
        (Reads::Nothing, false) => &[Kind::TcpRoute],
    };
    let asked = written.map_or(&[][..], |written| &written.kinds);
    if asked.is_empty() {
        return (from, possible.to_vec());
    }
    let mut kinds = Vec::new();
    for (index, one) in asked.iter().enumerate() {
        let group = one.group.as_deref().unwrap_or(Kind::Gateway.group());
        let mut all = possible.iter();
        match all.find(|kind| kind.as_str() == one.kind && kind.group() == group) {
            Some(kind) => kinds.push(*kind),
            None => {
                let message = format!("routes of kind {} are not supported here", one.kind);
                notes.warning(format!("{field}.kinds[{index}]"), message);
            }
        }
    }
    (from, kinds)
}

#[cfg(test)]
mod tests;
