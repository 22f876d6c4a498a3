//! Gateways at the edge of the mesh: `Gateway` of the Gateway API (class `keelson`), and Istio's.
//!
//! A listener or server that says what cannot be carried out is left out as a whole, with an error on its field: without
//! that it would be another one.

mod istio;

use k8s_api::LabelSelector;
use k8s_api::gateway::{AllowedRoutes, Gateway, Listener};
use l7::HostPattern;
use manifest::NamespacedName;

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
    /// The Secrets with its certificates; `None` for plain HTTP.
    pub(crate) tls: Option<Vec<NamespacedName>>,
    /// Whose routes it takes.
    pub(crate) from: From,
    /// It takes HTTPRoutes.
    pub(crate) http: bool,
    /// It takes GRPCRoutes.
    pub(crate) grpc: bool,
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
        let conflict = all.iter().find(|other| {
            other.port == door.port
                && (other.host == door.host || other.tls.is_some() != door.tls.is_some())
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
    let errors = notes.errors();
    let tls = match listener.protocol.as_str() {
        "HTTP" => {
            if listener.tls.is_some() {
                notes.error(format!("{field}.tls"), "is not for HTTP");
            }
            None
        }
        "HTTPS" => Some(certificates(field, listener, namespace, notes)),
        other => {
            let message = format!("{other:?} is not supported; HTTP and HTTPS are");
            notes.error(format!("{field}.protocol"), message);
            None
        }
    };
    let Some(port) = listener.port.filter(|port| *port > 0) else {
        notes.error(format!("{field}.port"), "is missing");
        return None;
    };
    let (from, http, grpc) = allowed(field, listener.allowed_routes.as_ref(), notes);
    (notes.errors() == errors).then(|| Door {
        name: listener.name.clone(),
        port,
        host: HostPattern::new(listener.hostname.as_deref().unwrap_or_default()),
        tls,
        from,
        http,
        grpc,
    })
}

fn certificates(
    field: &str,
    listener: &Listener,
    namespace: &str,
    notes: &mut Notes,
) -> Vec<NamespacedName> {
    let field = format!("{field}.tls");
    let Some(tls) = &listener.tls else {
        notes.error(field, "is missing");
        return Vec::new();
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
    found
}

fn allowed(field: &str, written: Option<&AllowedRoutes>, notes: &mut Notes) -> (From, bool, bool) {
    let field = format!("{field}.allowedRoutes");
    let namespaces = written.and_then(|written| written.namespaces.as_ref());
    let from = match namespaces.and_then(|one| one.from.as_deref()) {
        None | Some("Same") => From::Same,
        Some("All") => From::All,
        Some("None") => From::None,
        Some("Selector") => match namespaces.and_then(|one| one.selector.clone()) {
            Some(selector) => From::Selector(selector),
            None => {
                notes.error(format!("{field}.namespaces.selector"), "is missing");
                From::None
            }
        },
        Some(other) => {
            let message = format!("{other:?} means nothing; write Same, All, Selector or None");
            notes.error(format!("{field}.namespaces.from"), message);
            From::None
        }
    };
    let kinds = written.map_or(&[][..], |written| &written.kinds);
    if kinds.is_empty() {
        return (from, true, true);
    }
    let (mut http, mut grpc) = (false, false);
    for (index, kind) in kinds.iter().enumerate() {
        match kind.kind.as_str() {
            "HTTPRoute" => http = true,
            "GRPCRoute" => grpc = true,
            other => {
                let message = format!("routes of kind {other} are not supported here");
                notes.warning(format!("{field}.kinds[{index}]"), message);
            }
        }
    }
    (from, http, grpc)
}

#[cfg(test)]
mod tests;
